"""What a task asks of a model: how outputs meet targets, what they predict, and which number judges them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.errors import UserError, fault
from pipeline.evaluation.metrics import Metric, metric

BUILT = ("classification", "binary", "regression")
LATER = ("multilabel", "autoencoder", "language_model", "custom")

Loss = Callable[[Tensor, Tensor], Tensor]
Takes = Literal["logits", "log_probabilities", "probabilities"]

_TAKES: dict[str, Takes] = {
    "CrossEntropyLoss": "logits",
    "cross_entropy": "logits",
    "BCEWithLogitsLoss": "logits",
    "binary_cross_entropy_with_logits": "logits",
    "MultiMarginLoss": "logits",
    "SoftMarginLoss": "logits",
    "NLLLoss": "log_probabilities",
    "nll_loss": "log_probabilities",
    "BCELoss": "probabilities",
    "binary_cross_entropy": "probabilities",
}


def require_built(kind: str) -> None:
    """Raises UserError for a kind of task that this version does not train."""
    if kind in LATER:
        raise UserError(
            fault("task.kind", "is not built in this version", got=kind, expected="one of " + ", ".join(BUILT))
        )
    if kind not in BUILT:
        raise UserError(fault("task.kind", "unknown kind", got=kind, among=(*BUILT, *LATER)))


def loss_name(loss: Loss) -> str:
    """The name of a loss's class or function, whatever it is wrapped in."""
    inner = loss.func if isinstance(loss, functools.partial) else loss
    return getattr(inner, "__name__", type(inner).__name__)


def loss_takes(loss: Loss, model: nn.Module | None = None) -> Takes:
    """What a loss reads outputs as: by its name, by an attribute `takes`, else by the model's last module."""
    known = getattr(loss, "takes", None) or _TAKES.get(loss_name(loss))
    if known:
        return known
    last = [type(m).__name__ for m in model.modules()][-1] if model is not None else ""
    return (
        "probabilities" if last in ("Sigmoid", "Softmax") else "log_probabilities" if last == "LogSoftmax" else "logits"
    )


def _from_torch(loss: Loss) -> bool:
    inner = loss.func if isinstance(loss, functools.partial) else type(loss)
    return str(getattr(inner, "__module__", "")).startswith("torch.nn")


@dataclass(frozen=True)
class Task:
    """One task, resolved: `loss` for training, `metric` for judging, `predict` from outputs to ids or values."""

    kind: str
    loss: Loss
    metric: Metric
    predict: Callable[[Tensor], Tensor]
    takes: Takes

    @property
    def takes_targets_shape(self) -> bool:
        """Whether the loss is torch's own and compares values one by one."""
        return self.kind != "classification" and _from_torch(self.loss)

    def targets(self, y: Tensor, outputs: Tensor) -> Tensor:
        """Targets as the loss needs them beside outputs like these: dtype by kind, and for torch's losses the shape.

        torch's pointwise losses broadcast [N] against [N, 1] to [N, N] without a word; equal shapes prevent it.
        """
        two_columns = outputs.ndim == 2 and outputs.shape[1] > 1
        if self.kind == "classification" or (self.kind == "binary" and two_columns):
            return y
        y = y.to(torch.float32)
        per_row = outputs.shape[1:]
        fits = y.shape[1:] != per_row and math.prod(y.shape[1:]) == math.prod(per_row)
        return y.reshape(len(y), *per_row) if fits and _from_torch(self.loss) else y

    def probabilities(self, outputs: Tensor) -> Tensor:
        """[N] of class 1 for two classes, else [N, C]."""
        if outputs.ndim == 2 and outputs.shape[1] > 1:
            if self.takes == "logits":
                outputs = outputs.softmax(dim=1)
            elif self.takes == "log_probabilities":
                outputs = outputs.exp()
            return outputs[:, 1] if outputs.shape[1] == 2 else outputs
        outputs = outputs.reshape(len(outputs))
        return outputs if self.takes == "probabilities" else outputs.sigmoid()

    def judged(self, outputs: Tensor, y: Tensor) -> NDArray[Any]:
        """What the metric needs of the outputs, values in the targets' own shape ([N] for [N, 1]).

        NaN for every row when any output is not finite, since no class or rank is meant by it.
        """
        needed = self.probabilities(outputs) if self.metric.needs == "scores" else self.predict(outputs)
        array: NDArray[Any] = needed.detach().cpu().numpy()
        if not bool(torch.isfinite(outputs).all()):
            return np.full(array.shape, np.nan, np.float32)
        return array.reshape(tuple(y.shape)) if self.metric.needs == "values" and array.size == y.numel() else array

    def measure(self, outputs: Tensor, y: Tensor) -> float:
        """The metric's value for these outputs."""
        return self.metric(y.cpu().numpy(), self.judged(outputs, y))


def _predict(kind: str, takes: Takes) -> Callable[[Tensor], Tensor]:
    """`task.predict: auto`: argmax over classes, a threshold for one output, the outputs themselves for values."""
    if kind == "regression":
        return lambda outputs: outputs
    if kind == "classification":
        return lambda outputs: outputs.argmax(dim=1)
    threshold = 0.5 if takes == "probabilities" else 0.0

    def decide(outputs: Tensor) -> Tensor:
        if outputs.ndim == 2 and outputs.shape[1] > 1:
            return outputs.argmax(dim=1)
        return (outputs.reshape(len(outputs)) > threshold).long()

    return decide


def build_task(
    config: Mapping[str, Any], loss: Loss, model: nn.Module | None = None, trust: Sequence[str] = ()
) -> Task:
    """The task of a config. Raises UserError for a kind, metric or predictor that cannot be."""
    section = config["task"]
    require_built(section["kind"])
    if section.get("step"):
        raise UserError(fault("task.step", "is not built in this version", got=section["step"], expected="null"))
    takes = loss_takes(loss, model)
    asked = section.get("predict", "auto")
    predict: Any = _predict(section["kind"], takes)
    if isinstance(asked, Mapping):
        from pipeline.config.build import build

        predict = build(dict(asked), trust=trust, where="task.predict")
    elif asked != "auto":
        raise UserError(fault("task.predict", "unknown predictor", got=asked, expected="auto or a _target_"))
    return Task(section["kind"], loss, metric(section, trust), predict, takes)


def expected_loss(task: Task, y: Tensor, classes: int | None) -> float | None:
    """The loss of a model that knows nothing but the targets' scale; None where the loss has no known theory.

    ln C for cross entropy over C classes, ln 2 for binary ones; for values the loss of predicting the mean (squared
    error: their variance) or the median (absolute error).
    """
    name = loss_name(task.loss)
    if name in ("CrossEntropyLoss", "cross_entropy", "NLLLoss", "nll_loss"):
        return math.log(classes) if classes else None
    if name in ("BCEWithLogitsLoss", "binary_cross_entropy_with_logits", "BCELoss", "binary_cross_entropy"):
        return math.log(2)
    if not y.is_floating_point():
        return None
    if name in ("MSELoss", "mse_loss"):
        return float(y.var(dim=0, correction=0).mean())
    if name in ("L1Loss", "l1_loss"):
        return float((y - y.median(dim=0).values).abs().mean())
    return None
