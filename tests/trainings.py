"""Small trainings for tests: a complete config, three clouds of points, and the loop under a real permit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.checkpoints import weights
from pipeline.config.sections import TrainingConfig
from pipeline.data.dataset import Data
from pipeline.data.load import seal
from pipeline.engine.fit import result
from pipeline.engine.loop import Training
from pipeline.engine.observer import StepObserver
from pipeline.engine.progress import Fit
from pipeline.engine.resume import find_snapshot
from pipeline.engine.setup import TrainingComponents, build_components
from pipeline.run_store import permits
from pipeline.run_store.job import Job, run_seed
from pipeline.run_store.run import Run
from pipeline.runtime.interrupt import catch_signals
from pipeline.runtime.seeds import derive, seeded

CPU = torch.device("cpu")
Changed = dict[str, Any]

REGRESSION: Changed = {
    "task": {"kind": "regression", "metric": "rmse", "target": 0.5},
    "loss": {"_target_": "torch.nn.MSELoss"},
    "model__out_features": 1,
}


def config(**changed: Any) -> dict[str, Any]:
    """Return a small complete config; `section__key=value` changes one key, `section=...` a whole section."""
    body: dict[str, Any] = {
        "seed": 3,
        "task": {"kind": "classification", "metric": "accuracy", "target": 0.9, "predict": "auto"},
        "model": {"_target_": "pipeline.models.mlp.MLP", "in_features": 4, "out_features": 3, "hidden": [8]},
        "loss": {"_target_": "torch.nn.CrossEntropyLoss"},
        "optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 0.02},
        "scheduler": None,
        "loader": {"batch_size": 16, "shuffle": True},
        "trainer": {"max_epochs": 3, "deterministic": True, "max_minutes": 10, "accelerator": "cpu"},
        "surgery": [],
    }
    for key, value in changed.items():
        section, _, name = key.partition("__")
        if name:
            body[section] = {**body[section], name: value}
        else:
            body[section] = value
    return body


PERMIT: list[permits.TrainPermit] = []


@pytest.fixture(autouse=True, scope="module")
def permitted(_planned: Path) -> None:
    """Issue the permit of a planned run, which the training loop requires."""
    PERMIT[:] = [permits.train(Run(_planned))]


def blobs(rows: int = 100, kind: str = "classification", seed: int = 0) -> Data:
    """Return three clouds of points, or a linear target; 37 rows leave a partial last batch."""
    draw = np.random.default_rng(seed)

    def part(n: int) -> tuple[np.ndarray, np.ndarray]:
        y = draw.integers(0, 2 if kind == "binary" else 3, n)
        X = draw.normal(size=(n, 4)) + 2 * np.eye(4)[y]
        return X, (X[:, 0] - X[:, 1] if kind == "regression" else y)

    return seal({"train": part(rows), "val": part(40), "test": part(40)}, kind)


def train(
    body: Mapping[str, Any], data: Data, *observers: Any, purpose: str = "trial", folder: Path | None = None, **job: Any
) -> Fit:
    """Train under a real permit with a config that no run has planned."""
    trial = Job("", purpose, **job)
    typed = TrainingConfig.from_mapping(trial.config(body))
    seed = run_seed(typed.seed, trial.seed_index)
    with seeded(derive(seed, "fit")):
        components = build_components(typed, trial, data, seed, ())
        return run(Training(PERMIT[0], components, trial), *observers, folder=folder)


def components_of(body: Mapping[str, Any], data: Data, job: Job) -> TrainingComponents:
    """Build the components of a training with seed 3, for tests that replace one of them."""
    return build_components(TrainingConfig.from_mapping(body), job, data, 3, ())


def run(training: Training, *observers: Any, folder: Path | None = None) -> Fit:
    """Run a training as `fit` does, without a plan."""
    snapshot = find_snapshot(training.components, training.job, folder) if folder is not None else None
    with catch_signals() as training.stop_request, training.session(observers, snapshot=snapshot, folder=folder):
        training.run()
    return result(training)


class Watcher(StepObserver):
    """An observer that records its calls."""

    def __init__(self, every: int) -> None:
        self.every, self.seen = every, list[Any]()

    def start(self, model: nn.Module, optimizer: Any, history: Any, step: int) -> None:
        self.model = model
        self.seen.append("start")

    def before_update(self, step: int, inputs: Tensor, targets: Tensor, outputs: Tensor, loss: Tensor) -> None:
        assert len(inputs) == len(targets) == len(outputs) and loss.ndim == 0
        assert all(p.grad is not None for p in self.model.parameters())
        self.before = weights.weights_digest(self.model.state_dict())

    def after_update(self, step: int) -> None:
        assert self.before != weights.weights_digest(self.model.state_dict())
        self.seen.append(step)

    def validated(self, epoch: int, metrics: Mapping[str, float]) -> None:
        assert {"val/loss", "val/accuracy"} == set(metrics)
        self.seen.append(f"epoch {epoch}")

    def flush(self) -> None:
        """Nothing is buffered here."""

    def finish(self) -> None:
        self.seen.append("finish")
