"""Optimization where nothing is broken, with real trainings: a near miss without a symptom, and healthy runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.run_store.run import Run
from tests.check_helpers import read_evidence
from tests.conftest import SHORT, go, in_this_process

# Three classes that overlap: no model can be right in much more than nine of ten rows.
DATA = """
import numpy as np

def table():
    draw = np.random.default_rng(0)
    y = draw.integers(0, 3, 600)
    X = (draw.normal(size=(600, 8)) + 2 * np.eye(8)[y]).astype("float32")
    return {"train": (X[:400], y[:400]), "val": (X[400:500], y[400:500]), "test": (X[500:], y[500:])}
"""
EXPERIMENT = """# @package _global_
defaults: [digits, override /data: null, override /model: mlp]
data: {_target_: overlapping_rows.table}
tracking: {kind: none}
"""


def optimized(root: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[Run, dict[str, Any]]:
    """A run of the overlapping rows after one round, and what the round measured."""
    (root / "conf" / "experiment").mkdir(parents=True)
    (root / "overlapping_rows.py").write_text(DATA)
    (root / "conf" / "experiment" / "mine.yaml").write_text(EXPERIMENT)
    monkeypatch.setattr("pipeline.trials.executor.Workers.run", in_this_process)
    short = (*SHORT, "phases.baseline.overfit_steps=20", "phases.optimization.seeds_per_arm=6")
    round_ = ("phases.optimization.rounds=1", "phases.optimization.parallel=1", "trust=[overlapping_rows]")
    run, _, _ = go(root, "phase=auto", "experiment=mine", *short, *round_, *words, config_dirs=[root / "conf"])
    return run, read_evidence(run, "optimization", 1)


@pytest.mark.slow
def test_near_miss_gets_general_changes(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a symptom: the rate of the range test, a wider and a deeper model, and more epochs with a schedule."""
    overrides = ("model.hidden=[16]", "task.target=0.91", "trainer.max_epochs=16", "optimizer.lr=0.008")
    run, values = optimized(own_folder, monkeypatch, *overrides)
    tried = {key for arm in values["searched"] for key in arm["delta"]["overrides"]}

    assert values["causes"] == [] and {arm["origin"] for arm in values["searched"]} == {"general"}
    assert {"optimizer.lr", "model.hidden", "trainer.max_epochs", "scheduler"} <= tried
    assert any(arm["values"] for arm in values["searched"]) and values["search"]["trainings"] <= 6
    assert run.state().gate("optimization") == "open"


@pytest.mark.slow
def test_healthy_runs_stay_as_they_are(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of runs that do what the rows allow, and whose target is beyond that, at most a share of alpha is changed: none
    of three, where one is expected in twenty."""
    healthy = ("model.hidden=[16]", "task.target=0.95", "trainer.max_epochs=16", "optimizer.lr=0.02")
    adopted = []
    for seed in (1, 2, 3):
        _, values = optimized(own_folder / str(seed), monkeypatch, *healthy, f"seed={seed}")
        adopted.append(values["winner"] is not None and "candidate" in values)
        for arm in values["arms"]:
            assert arm["wins"] == (arm["p"] < 0.05 and arm["effect"] >= values["declared_effect"])
    assert sum(adopted) == 0
