"""Training that is killed at any instant, with its workers, resumes and ends with the same weights and history.

FIVEGATE_KILLS is the number of SIGKILLs: 6 in `make test-process`, 300 in `make test-crash`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.release.verify import faults
from pipeline.run_store.ledger import read_ledger
from pipeline.run_store.run import Run
from tests.user_package import WORDS, trace, write_package

pytestmark = pytest.mark.process
ROOT = Path(__file__).resolve().parents[1]
KILLS = int(os.environ.get("FIVEGATE_KILLS", "6"))
PER_RUN = 5  # kills of one run before it is left to end

VARIANTS: dict[str, list[str]] = {
    "tensors, a schedule by step": ["scheduler=one_cycle"],
    "rows read here, a plateau": ["+data.items=true", "scheduler=plateau", "optimizer=sgd", "optimizer.momentum=0.9"],
    "rows read by 2 workers": ["+data.items=true", "loader.num_workers=2", "loader.sampler=balanced"],
}

# Imports once what every attempt needs, then forks one process group per attempt; a group that is to be killed is,
# after so many seconds. Back come, line by line, the exit code of each attempt and its seconds.
ATTEMPTS = """
import json, os, signal, sys, time
import hydra, matplotlib.pyplot, scipy.stats, torch
import phases.baseline, phases.planning, pipeline.config.compose, pipeline.engine.fit, pipeline.orchestration.execute
from pipeline.__main__ import main

for line in sys.stdin:
    words, seconds = json.loads(line)
    began = time.perf_counter()
    child = os.fork()
    if child == 0:
        os.setsid()
        sys.stdout = sys.stderr = open(os.devnull, "w")
        os._exit(main(words))
    ended = 0
    while not ended and (seconds is None or time.perf_counter() - began < seconds):
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.002)
    if not ended:
        try:
            os.killpg(child, signal.SIGKILL)
        except ProcessLookupError:  # so soon that the child has no group of its own yet
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    print(json.dumps([os.waitstatus_to_exitcode(status), time.perf_counter() - began]), flush=True)
"""


class Attempts:
    """Runs a command in a new process group, which is killed after so many seconds."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process: Any = subprocess.Popen(
            [sys.executable, "-c", ATTEMPTS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment,
        )

    def __call__(self, arguments: list[str], seconds: float | None = None) -> tuple[int, float]:
        self.process.stdin.write(json.dumps([arguments, seconds]) + "\n")
        self.process.stdin.flush()
        code, took = json.loads(self.process.stdout.readline())
        return code, took

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)


def outcome(run: Run) -> dict[str, Any]:
    """Return digests of everything that a training leaves, apart from times."""
    state = run.state()
    assert state.candidate
    gates = {phase: state.gate(phase) for phase in ("planning", "baseline")}
    return {**trace(run.inside("baseline")), "score": state.candidate["score"], "gates": gates}


@pytest.fixture
def attempts(own_folder: Path) -> Any:
    write_package(own_folder)
    attempts = Attempts(own_folder)
    yield attempts
    attempts.close()


FIRST, *OTHERS = VARIANTS


@pytest.mark.parametrize("variant", [FIRST, *(pytest.param(other, marks=pytest.mark.slow) for other in OTHERS)])
def test_training_resumes_with_same_bits_after_kill(attempts: Attempts, own_folder: Path, variant: str) -> None:
    """After SIGKILL at random instants, again and again, the run ends as an undisturbed one."""
    import random

    draw = random.Random(KILLS)

    def arguments(name: str) -> list[str]:
        return ["phase=baseline", *WORDS, f"run.name={name}", *VARIANTS[variant]]

    code, seconds = attempts(arguments("calm"))
    assert code == 0
    expected = outcome(Run(own_folder / "runs" / "calm"))

    wanted, killed, number, taken_up = -(-KILLS // len(VARIANTS)), 0, 0, 0
    while killed < wanted:
        number += 1
        run = Run(own_folder / "runs" / f"killed-{number}")
        for _ in range(min(PER_RUN, wanted - killed)):
            code, _ = attempts(arguments(run.name), draw.uniform(0, seconds))
            assert code in (0, -9)
            killed += code == -9
            taken_up += code == -9 and any(run.inside("baseline").glob("checkpoints/*"))
        code, _ = attempts(arguments(run.name))
        assert code == 0
        assert outcome(run) == expected
        assert faults(run)[1] == [] and read_ledger(run.ledger_path)
    print(f"{variant}: {killed} kills over {number} runs, {taken_up} of them behind a checkpoint; 0 failures")
