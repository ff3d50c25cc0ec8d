"""A tensor that becomes NaN anywhere in a model, forward or backward, is named with its module, step and rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.engine.fit import fit
from pipeline.engine.replay import replay
from pipeline.run_store import permits
from pipeline.run_store.job import Delta, Job
from pipeline.run_store.run import Run
from tests.conftest import Cli

PACKAGE = '''
import numpy as np
import torch
from torch import nn

class Poison(nn.Module):
    """Passes tensors on; in one training step the output of two rows, or its gradient, becomes NaN."""
    def __init__(self, step, backward):
        super().__init__()
        self.step, self.backward = step, backward
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
    def forward(self, x):
        if not self.training or len(x) < 4:
            return x
        self.calls += 1
        if self.calls != self.step:
            return x
        hole = torch.zeros(len(x), *[1] * (x.ndim - 1))
        hole[[1, 3]] = float("nan")
        if not self.backward:
            return x + hole
        x = x * 1
        x.register_hook(lambda gradient: gradient + hole)
        return x

class Net(nn.Module):
    def __init__(self, place, step, backward):
        super().__init__()
        layers = [nn.Linear(4, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)]
        layers.insert(place, Poison(step, backward))
        self.layers = nn.Sequential(*layers)
    def forward(self, x):
        return self.layers(x)

def rows():
    draw = np.random.default_rng(0)
    y = draw.integers(0, 3, 300)
    X = (draw.normal(size=(300, 4)) + np.eye(4)[y]).astype("float32")
    return {"train": (X[:200], y[:200]), "val": (X[200:250], y[200:250]), "test": (X[250:], y[250:])}
'''
EXPERIMENT = """# @package _global_
# python -m pipeline phase=baseline --config-dir conf experiment=poisoned trust=[poisoned]
defaults: [override /data: null, override /model: null]
seed: 1
data: {_target_: poisoned.rows}
model: {_target_: poisoned.Net, place: 0, step: 0, backward: false}
loader: {batch_size: 20}
trainer: {max_epochs: 4}
task: {target: 0.5}
plan: {purpose: to break, population: any, assumptions: [none], risks: [none], limits: {size_mb: 1}, owner: nobody}
tracking: {kind: none}
"""
STEPS, PLACES, CASES = 40, 7, 50


@pytest.mark.slow
def test_replay_names_every_poisoned_tensor(own_folder: Path, cli: Cli) -> None:
    """Fifty random places, directions and steps: the module, the step and both rows are named fifty times."""
    (own_folder / "conf" / "experiment").mkdir(parents=True)
    (own_folder / "poisoned.py").write_text(PACKAGE)
    (own_folder / "conf" / "experiment" / "poisoned.yaml").write_text(EXPERIMENT)
    code, _, err = cli("phase=planning", "--config-dir", "conf", "experiment=poisoned", "trust=[poisoned]")
    assert code == 0, err
    run = Run(own_folder / "runs" / "poisoned")
    permit = permits.train(run)
    draw, wrong = np.random.default_rng(0), []
    for _ in range(CASES):
        place, step = int(draw.integers(PLACES)), int(draw.integers(1, STEPS + 1))
        backward = bool(draw.integers(2)) and place > 0  # the gradient of the inputs is not computed
        change = {"model.place": place, "model.step": step, "model.backward": backward}
        job = Job(permit.plan.digest, "trial", Delta(overrides=change))
        stopped, again = fit(permit, job), replay(run, step, job)
        assert again.origin is not None
        rows = (again.rows[1], again.rows[3])
        expected = ("gradient" if backward else "output", f"layers.{place}", rows)
        origin = (again.origin.what, again.origin.module, again.origin.rows)
        if (stopped.stop_reason, stopped.steps) != ("nonfinite", step) or origin != expected:
            wrong.append((stopped.stop_reason, stopped.steps, step, origin, expected))
    assert wrong == []
