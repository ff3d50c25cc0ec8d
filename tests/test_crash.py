"""Killed at any instant, a run goes on where it was: no acknowledged fact is lost, and the weights are the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.release.verify import faults
from pipeline.run_store.ledger import read_ledger, scan_ledger
from pipeline.run_store.run import Run

pytestmark = pytest.mark.process
ROOT = Path(__file__).resolve().parents[1]
WORDS = [
    "phase=auto", "experiment=digits", "model=mlp", "tracking=none", "trainer.max_epochs=2",
    "phases.baseline.overfit_steps=20", "phases.finalization.seeds=1",
    "task.target=0.5", "export.formats=[onnx]", "phases.baseline.sanity_check_steps=20",
    "phases.baseline.reproducibility_steps=0", "phases.baseline.folds=0",
]  # fmt: skip

# Imports once what every attempt needs, then forks one process per attempt. The k-th system call of an attempt kills
# it; k = 0 kills nobody. The exit codes come back.
ATTEMPTS = """
import json, os, shutil, sys
import hydra, matplotlib.pyplot, onnxruntime, scipy.stats, sklearn.datasets, sklearn.metrics, torch.onnx
import phases.baseline, phases.finalization, phases.planning
import pipeline.engine.loop, pipeline.export.formats, pipeline.orchestration.execute
from pipeline.__main__ import main
from pipeline.run_store import files

words, plan = json.loads(sys.argv[1]), json.loads(sys.argv[2])
ends = []
for root, k in plan:
    child = os.fork()
    if child == 0:
        os.environ["FIVEGATE_FAULT"] = f"kill@{k}"
        files._hook = files._hook_from_environment()
        sys.stdout = sys.stderr = open(os.devnull, "w")
        os._exit(main([*words, f"run.root={root}"]))
    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    path = f"{root}/digits/ledger.jsonl"
    if os.path.exists(path):
        shutil.copy(path, f"{root}/after-{len(ends)}")
print(json.dumps(ends))
"""


def attempts(plan: list[tuple[str, int]]) -> list[int]:
    """How each attempt at (root, k) ended, -9 for those that were killed; `<root>/after-<n>` is the ledger after it."""
    arguments = [sys.executable, "-c", ATTEMPTS, json.dumps(WORDS), json.dumps(plan)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def outcome(run: Run) -> dict[str, object]:
    """What a finished run amounts to."""
    state = run.state()
    assert state.candidate
    return {
        "weights": state.candidate["weights"],
        "score": state.candidate["score"],
        "items": {p: [(i.id, i.outcome) for i in g.items] for p, g in state.gates.items()},
        "gates": {p: state.gate(p) for p in state.gates},
    }


def test_run_survives_repeated_kills(own_folder: Path) -> None:
    """Kills spread over the whole run, each behind the one before; then it ends as if nothing had happened."""
    kills = [1, 5, 13, 33, 45, 26, 10]

    calm, *ends = attempts([("calm", 0), *(("killed", k) for k in kills), ("killed", 0)])
    run = Run(own_folder / "killed" / "digits")
    final = read_ledger(run.ledger_path)

    assert (calm, ends[-1]) == (3, 3) and ends.count(-9) == len(kills)
    for snapshot in (own_folder / "killed").glob("after-*"):
        acknowledged = scan_ledger(snapshot)
        assert acknowledged.fault is None
        assert final[: len(acknowledged.entries)] == acknowledged.entries
    assert faults(run)[1] == []
    assert outcome(run) == outcome(Run(own_folder / "calm" / "digits"))
    assert len(run.state().test_opened) == 1
    assert [e["kind"] for e in final].count("test.scored") == 1
