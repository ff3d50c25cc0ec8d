"""A guess at what a model and its data are for, from the targets and from what the model puts out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.runtime.seeds import seeded

LOOKED_AT = 1000  # targets
LOSSES = {
    "classification": "torch.nn.CrossEntropyLoss",
    "binary": "torch.nn.BCEWithLogitsLoss",
    "multilabel": "torch.nn.BCEWithLogitsLoss",
    "regression": "torch.nn.MSELoss",
    "autoencoder": "torch.nn.MSELoss",
    "language_model": "torch.nn.CrossEntropyLoss",
}


@dataclass(frozen=True)
class InferredTask:
    """A kind of task, a loss, and why it was taken for that."""

    kind: str
    loss: str
    why: str


def guess(source: Any, build_model: Any) -> InferredTask:
    """What the data of a `data` target, and a model of `build_model()`, most probably are for.

    Nothing is raised: what cannot be read is taken for a classification, and the planning says what is wrong with it.
    """
    X, y = _first_rows(source)
    if y is None:
        return InferredTask("classification", LOSSES["classification"], "the targets could not be looked at")
    if y.dtype.kind == "f":
        return InferredTask("regression", LOSSES["regression"], "targets are floats")
    if y.ndim == 2 and y.shape[1] > 1 and set(np.unique(y).tolist()) <= {0, 1}:
        return InferredTask("multilabel", LOSSES["multilabel"], f"targets are {y.shape[1]} columns of 0 and 1")
    if y.dtype.kind not in "biu":
        return InferredTask("classification", LOSSES["classification"], "targets are no numbers")
    if y.ndim == 2 and isinstance(X, Tensor) and X.shape[1:] == y.shape[1:]:
        return InferredTask(
            "language_model", LOSSES["language_model"], "targets are integers, one for each place of a row"
        )
    many = len(np.unique(y))
    outputs, last = _outputs(X, build_model)
    if many <= 2 and outputs is not None and outputs[1:].numel() == len(outputs) - 1:
        loss = "torch.nn.BCELoss" if last == "Sigmoid" else LOSSES["binary"]
        return InferredTask("binary", loss, f"targets are integers of {many} classes, and the model has one output")
    loss = "torch.nn.NLLLoss" if last == "LogSoftmax" else LOSSES["classification"]
    return InferredTask("classification", loss, f"targets are integers of {many} classes")


def _first_rows(source: Any) -> tuple[Any, NDArray[Any] | None]:
    """The first two rows of X, and up to a thousand targets, of the train split; (None, None) where there are none."""
    train = source.get("train") if isinstance(source, Mapping) else getattr(source, "train", None)
    try:
        if isinstance(train, tuple | list) and len(train) == 2:
            y = train[1][:LOOKED_AT] if hasattr(train[1], "__getitem__") else train[1]
            return _two(train[0]), np.asarray(y)
        rows: Any = train
        read = [rows[i] for i in range(min(len(rows), LOOKED_AT))]
        return None, np.asarray([np.asarray(row[1]) for row in read])
    except Exception:  # anybody's data may be anything; who loads it says what is wrong
        return None, None


def _two(part: Any) -> Any:
    """Two rows of whatever X is, as tensors in its structure."""
    if isinstance(part, Mapping):
        return {name: _two(inner) for name, inner in part.items()}
    if isinstance(part, tuple):
        return tuple(map(_two, part))
    tensor = part[:2] if isinstance(part, Tensor) else torch.from_numpy(np.array(part[:2]))
    return tensor if tensor.dtype in (torch.int64, torch.bool) else tensor.float()


def _outputs(X: Any, build_model: Any) -> tuple[Tensor | None, str]:
    """What the model says to the two rows, None where it says nothing yet; and the kind of its last module."""
    try:
        with seeded(0), torch.no_grad():
            model: nn.Module = build_model()
            last = [type(module).__name__ for module in model.modules()][-1]
            outputs = model.eval()(X)
        return (outputs if isinstance(outputs, Tensor) and outputs.ndim else None), last
    except Exception:  # the probe meets it again, and says it in its words
        return None, ""
