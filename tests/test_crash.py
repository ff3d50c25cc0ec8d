"""Killed at any instant, a run goes on where it was: no acknowledged fact is lost, and the weights are the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from pipeline.record import ledger
from pipeline.record.run import Run
from pipeline.record.verify import faults

ROOT = Path(__file__).resolve().parents[1]
WORDS = [
    "phase=auto", "experiment=digits", "tracking=none", "trainer.max_epochs=2", "phases.baseline.overfit_steps=20",
    "task.target=0.5", "export.formats=[onnx]",
]  # fmt: skip

# Imports once what every attempt needs, then forks one process per attempt. The k-th system call of an attempt kills
# it; k = 0 kills nobody. The exit codes come back.
ATTEMPTS = """
import itertools, json, os, sys
import hydra, matplotlib.pyplot, onnxruntime, scipy.stats, sklearn.datasets, sklearn.metrics, torch.onnx
import phases.baseline, phases.finalization, phases.planning
import pipeline.engine.loop, pipeline.export.formats, pipeline.session
from pipeline.__main__ import main
from pipeline.record import files

words, kills = json.loads(sys.argv[1]), json.loads(sys.argv[2])
ends = []
for k in kills:
    child = os.fork()
    if child == 0:
        os.environ["FIVEGATE_FAULT"] = f"kill@{k}"
        files._hook = files._hook_from_environment()
        sys.stdout = sys.stderr = open(os.devnull, "w")
        os._exit(main(words))
    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    path = "runs/digits/ledger.jsonl"
    size = os.path.getsize(path) if os.path.exists(path) else 0
    os.path.exists(path) and open(f"after-{len(ends)}", "wb").write(open(path, "rb").read())
print(json.dumps(ends))
"""


def attempts(folder: Path, kills: list[int]) -> list[int]:
    """How each attempt ended, -9 for those that were killed; the ledger after each is in `after-<n>`."""
    folder.mkdir()
    words = [sys.executable, "-c", ATTEMPTS, json.dumps(WORDS), json.dumps(kills)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def outcome(folder: Path) -> dict[str, object]:
    """What a finished run amounts to."""
    state = Run(folder / "runs" / "digits").state()
    assert state.candidate
    return {
        "weights": state.candidate["weights"],
        "score": state.candidate["score"],
        "items": {p: [(i.id, i.outcome) for i in g.items] for p, g in state.gates.items()},
        "gates": {p: state.gate(p) for p in state.gates},
    }


def test_killed_again_and_again(tmp_path: Path) -> None:
    """Twelve kills spread over the whole run, each behind the one before; then it ends as if nothing had happened."""
    kills = [2, 5, 9, 14, 23, 40, 70, 90, 120, 30, 61, 17]
    calm, killed = tmp_path / "calm", tmp_path / "killed"

    assert attempts(calm, [0]) == [3]
    ends = attempts(killed, [*kills, 0])

    assert ends[-1] == 3 and ends.count(-9) >= 10
    run = Run(killed / "runs" / "digits")
    final = ledger.read(run.ledger_path)
    for n in range(1, len(ends) + 1):
        kept = killed / f"after-{n}"
        if kept.exists():
            acknowledged = ledger.scan(kept)
            assert acknowledged.fault is None
            assert final[: len(acknowledged.entries)] == acknowledged.entries
    assert faults(run)[1] == []
    assert outcome(killed) == outcome(calm)
    assert len(run.state().test_opened) == 1


def test_a_kill_at_the_first_calls(tmp_path: Path) -> None:
    """Killed while the run is being made, it is made by the next command."""
    for k in (1, 3, 6):
        folder = tmp_path / str(k)
        assert attempts(folder, [k])[0] == -9
    assert not any((tmp_path / "1").glob("runs/digits/ledger.jsonl"))
