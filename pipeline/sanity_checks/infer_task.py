"""Infer the task kind and the loss from the targets of the data and the outputs of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.config.conf_dir import loss_target
from pipeline.data.tree import Tree
from pipeline.error_attribution import reraise_stop
from pipeline.runtime.seeds import seeded

TARGETS_READ = 1000


@dataclass(frozen=True)
class InferredTask:
    """A task kind, the path of a loss, and the reason for both."""

    kind: str
    loss: str
    why: str


def infer_task(source: object, build_model: Callable[[], nn.Module]) -> InferredTask:
    """Return the most probable task of a `data` source and the model that `build_model()` returns.

    Nothing is raised: data that cannot be read count as a classification, and planning reports what is wrong.
    """
    X, y = _read_train(source)
    if y is None:
        return _task("classification", "the targets cannot be read")
    if y.dtype.kind == "f":
        return _task("regression", "targets are floats")
    if y.ndim == 2 and y.shape[1] > 1 and set(np.unique(y).tolist()) <= {0, 1}:
        return _task("multilabel", f"targets are {y.shape[1]} columns of 0 and 1")
    if y.dtype.kind not in "biu":
        return _task("classification", "targets are not numbers")
    if y.ndim == 2 and isinstance(X, Tensor) and X.shape[1:] == y.shape[1:]:
        return _task("language_model", "targets are integers, one for each position of a row")
    classes = len(np.unique(y))
    outputs, last_module = _run_model(X, build_model)
    if classes <= 2 and outputs is not None and outputs[1:].numel() == len(outputs) - 1:
        loss = "torch.nn.BCELoss" if last_module == "Sigmoid" else loss_target("binary")
        return InferredTask("binary", loss, f"targets are integers of {classes} classes, and the model has one output")
    loss = "torch.nn.NLLLoss" if last_module == "LogSoftmax" else loss_target("classification")
    return InferredTask("classification", loss, f"targets are integers of {classes} classes")


def _task(kind: str, why: str) -> InferredTask:
    return InferredTask(kind, loss_target(kind), why)


def _read_train(source: object) -> tuple[Tree | None, NDArray[Any] | None]:
    """Return the first two rows of X and up to `TARGETS_READ` targets of the train split; None for what is missing."""
    train: Any = source.get("train") if isinstance(source, Mapping) else getattr(source, "train", None)
    try:
        if isinstance(train, tuple | list) and len(train) == 2:
            y = train[1][:TARGETS_READ] if hasattr(train[1], "__getitem__") else train[1]
            return _first_two(train[0]), np.asarray(y)
        rows = [train[i] for i in range(min(len(train), TARGETS_READ))]
        return None, np.asarray([np.asarray(row[1]) for row in rows])
    except BaseException as error:  # a user's data may be anything; the error is reported when the data are loaded
        reraise_stop(error)
        return None, None


def _first_two(X: Any) -> Tree:
    """Return the first two rows as tensors, in the same nested structure."""
    if isinstance(X, Mapping):
        return {name: _first_two(inner) for name, inner in X.items()}
    if isinstance(X, tuple):
        return tuple(map(_first_two, X))
    tensor = X[:2] if isinstance(X, Tensor) else torch.from_numpy(np.array(X[:2]))
    return tensor if tensor.dtype in (torch.int64, torch.bool) else tensor.float()


def _run_model(X: Tree | None, build_model: Callable[[], nn.Module]) -> tuple[Tensor | None, str]:
    """Return the model's outputs for two rows (None if it fails) and the class name of its last module."""
    try:
        with seeded(0), torch.no_grad():
            model = build_model()
            last_module = [type(module).__name__ for module in model.modules()][-1]
            outputs = model.eval()(X)
        return (outputs if isinstance(outputs, Tensor) and outputs.ndim else None), last_module
    except BaseException as error:  # planning runs the model again, and reports the error
        reraise_stop(error)
        return None, ""
