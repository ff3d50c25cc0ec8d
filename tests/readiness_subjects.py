"""Small subjects of finalization's measurements: a model, its task and its data, without a run."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from pipeline.building.builder import build_training_task
from pipeline.checkpoints.weights import weights_digest
from pipeline.data.dataset import Data
from pipeline.data.load import seal
from pipeline.readiness.subject import Subject
from tests.trainings import config

CLASSES = {"task": {"kind": "classification", "metric": "accuracy", "target": 0.9, "predict": "auto"}}


def subject_of(model: nn.Module, data: Data, **changed: Any) -> Subject:
    """The model as it is, in eval mode, with the task of a small config."""
    body = config(**changed)
    task = build_training_task(body, model)
    return Subject(model.eval(), task, data, body, weights_digest(model.state_dict()), seed=1)


def table(rows: Any, labels: Any, kind: str = "classification", **more: Any) -> Data:
    """Half of the rows for training, a quarter each for validation and test."""
    half, rest = len(rows) // 2, len(rows) * 3 // 4
    cuts = {"train": slice(0, half), "val": slice(half, rest), "test": slice(rest, None)}
    return seal({**{name: (rows[cut], labels[cut]) for name, cut in cuts.items()}, **more}, kind)


def uniform_rows(rows: int = 800, columns: int = 6, seed: int = 0) -> np.ndarray:
    """Rows of independent numbers between -1 and 1."""
    return np.random.default_rng(seed).uniform(-1, 1, (rows, columns)).astype(np.float32)
