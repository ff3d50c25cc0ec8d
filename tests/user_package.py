"""Somebody's own package and experiment, and every bit that a training of it leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.checkpoints import generation
from pipeline.checkpoints.weights import weights_digest

WORDS = ["--config-dir", "conf", "experiment=somebody", "trust=[somebody]"]

# A package of somebody's own: rows read one by one, changed by every generator there is; sizes that align with nothing.
PACKAGE = """
import random
import numpy as np
import torch
from torch import nn

def _table(n=421, features=13, seed=0):
    draw = np.random.default_rng(seed)
    y = draw.integers(0, 3, n)
    return (draw.normal(size=(n, features)) + 1.5 * np.eye(features)[y]).astype("float32"), y

class Rows:
    def __init__(self, X, y):
        self.X, self.y = X, y
    def __len__(self):
        return len(self.X)
    def __getitem__(self, i):
        x = self.X[i] * (1 + 0.1 * random.random()) + 0.1 * np.random.normal(size=self.X.shape[1])
        return torch.as_tensor(x, dtype=torch.float32) + 0.1 * torch.randn(len(x)), self.y[i]

def table(items=False):
    X, y = _table()
    parts = {"train": (X[:310], y[:310]), "val": (X[310:361], y[310:361]), "test": (X[361:], y[361:])}
    return {**parts, "train": Rows(*parts["train"])} if items else parts

def step(model, batch):
    outputs = model(batch[0])
    return {"loss": nn.functional.cross_entropy(outputs, batch[1]), "outputs": outputs}

def net():
    return nn.Sequential(nn.Linear(13, 37), nn.BatchNorm1d(37), nn.ReLU(), nn.Dropout(0.3), nn.Linear(37, 3))
"""

EXPERIMENT = """# @package _global_
# python -m pipeline phase=baseline --config-dir conf experiment=somebody trust=[somebody]
defaults: [override /data: null, override /model: null]
seed: 5
plan: {purpose: to be, population: any, assumptions: [none], risks: [none], limits: {size_mb: 1}, owner: nobody}
data: {_target_: somebody.table}
model: {_target_: somebody.net}
task: {kind: classification, metric: accuracy, target: 0.5, metrics: [balanced_accuracy]}
optimizer: {lr: 0.01}
loader: {batch_size: 25, augment: [{_target_: pipeline.data.augmentations.Noise, std: 0.1}]}
trainer: {max_epochs: 12, accumulate_grad_batches: 2, gradient_clip_val: 1.0, checkpoint_steps: 3}
phases:
  baseline: {overfit_steps: 20, sanity_check_steps: 20, reproducibility_steps: 0, folds: 0, baseline_model_seconds: 0}
  finalization: {seeds: 1, replay_seconds: 0}
tracking: {kind: none}
"""


def write_package(folder: Path) -> None:
    """Write the package and its experiment into the folder."""
    (folder / "conf" / "experiment").mkdir(parents=True)
    (folder / "somebody.py").write_text(PACKAGE)
    (folder / "conf" / "experiment" / "somebody.yaml").write_text(EXPERIMENT)


def trace(folder: Path) -> dict[str, Any]:
    """What the newest checkpoints of a training hold, apart from how long it took."""
    newest = {state["role"]: path for path in generation.generations(folder) for state in [generation.state_of(path)]}
    last = generation.read(newest["last"])
    assert last.history is not None
    return {
        "weights": {role: generation.state_of(path)["weights_digest"] for role, path in newest.items()},
        "training": weights_digest(last.parts["training"]),
        "others": last.state["others"],
        "best": last.state["best"],
        "history": last.history.digest(),
    }
