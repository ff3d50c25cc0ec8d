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

from pipeline.data.tree import Tree, rows_of
from pipeline.errors import UserError, fault
from pipeline.evaluation.metrics import Metric, Needs, all_metrics
from pipeline.evaluation.step import CustomStep, Step, build_step
from pipeline.evaluation.tokens import TokenLoss, token_losses
from pipeline.preprocess.modules import ScaledLoss, scale_loss, unscaled, unwrap

KINDS = ("classification", "binary", "multilabel", "regression", "autoencoder", "language_model", "custom")

Loss = Callable[[Tensor, Tensor], Tensor]
Forward = Callable[[nn.Module, Tree, Tree], tuple[Any, Tensor]]
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


LOGITS_OF_SHARES = ("BCEWithLogitsLoss", "binary_cross_entropy_with_logits")


def _innermost(loss: Loss) -> Loss:
    """The loss of the config, without what the task puts around it."""
    return loss.inner if isinstance(loss, TokenLoss) else unscaled(loss)


def loss_name(loss: Loss) -> str:
    """The name of a loss's class or function, whatever it is wrapped in."""
    loss = _innermost(loss)
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
    loss = _innermost(loss)
    inner = loss.func if isinstance(loss, functools.partial) else type(loss)
    return str(getattr(inner, "__module__", "")).startswith("torch.nn")


def _apart(loss: Loss) -> Forward:
    """The forward pass of a task whose model and loss are two calls."""

    def forward(model: nn.Module, inputs: Tree, targets: Tree) -> tuple[Any, Tensor]:
        outputs = model(inputs)
        return outputs, loss(outputs, targets)

    return forward


@dataclass(frozen=True)
class Task:
    """One task, resolved: `loss` for training, `metrics` for judging, `predict` from outputs to ids or values.

    The first metric decides, the others are measured beside it. `forward(model, inputs, targets) -> (outputs, loss)`
    is one pass with its loss, targets as `targets` gave them; with a `step` it is the step, and outputs may be None.
    """

    kind: str
    loss: Loss
    metrics: tuple[Metric, ...]
    predict: Callable[[Tensor], Tensor]
    takes: Takes
    forward: Forward
    step: Step | None = None

    @property
    def metric(self) -> Metric:
        """The metric that decides."""
        return self.metrics[0]

    @property
    def takes_targets_shape(self) -> bool:
        """Whether the loss is torch's own and compares values one by one."""
        return self.kind != "classification" and _from_torch(self.loss)

    def shares(self, window: Sequence[Tree]) -> list[float]:
        """What each batch of a window counts in one update, so that the window gives the gradient of one large batch.

        By what the loss averages over: elements, or for torch's losses of classes those not ignored, by their weight.
        A loss that sums is summed.
        """
        if getattr(self.loss, "reduction", "mean") == "sum" and self.step is None:
            return [1.0] * len(window)
        sizes = [_counted(self.loss if self.step is None else None, targets) for targets in window]
        return [size / (sum(sizes) or 1.0) for size in sizes]

    def targets(self, y: Tree, outputs: Tensor | None) -> Tree:
        """Targets as the loss needs them beside outputs like these: dtype by kind, and for torch's losses the shape.

        torch's pointwise losses broadcast [N] against [N, 1] to [N, N] without a word; equal shapes prevent it.
        A step gets the targets as the data have them.
        """
        if self.step is not None or outputs is None:
            return y
        two_columns = outputs.ndim == 2 and outputs.shape[1] > 1
        if self.kind in ("classification", "language_model") or (self.kind == "binary" and two_columns):
            return y
        y = y.to(torch.float32)
        per_row = outputs.shape[1:]
        fits = y.shape[1:] != per_row and math.prod(y.shape[1:]) == math.prod(per_row)
        return y.reshape(len(y), *per_row) if fits and _from_torch(self.loss) else y

    def probabilities(self, outputs: Tensor) -> Tensor:
        """[N] of class 1 for two classes, else [N, C]; of several labels each by itself, [N, L]."""
        if self.kind == "multilabel":
            return outputs if self.takes == "probabilities" else outputs.sigmoid()
        if outputs.ndim == 2 and outputs.shape[1] > 1:
            if self.takes == "logits":
                outputs = outputs.softmax(dim=1)
            elif self.takes == "log_probabilities":
                outputs = outputs.exp()
            return outputs[:, 1] if outputs.shape[1] == 2 else outputs
        outputs = outputs.reshape(len(outputs))
        return outputs if self.takes == "probabilities" else outputs.sigmoid()

    def judged(self, outputs: Tensor, y: Tensor, needs: Needs | None = None) -> NDArray[Any]:
        """What the metric needs of the outputs, values in the targets' own shape ([N] for [N, 1]).

        NaN for every row when any output is not finite, since no class or rank is meant by it. `needs` asks for what
        another metric needs.
        """
        return self._array(outputs, y, needs or self.metric.needs, finite(outputs))

    def _array(self, outputs: Tensor, y: Tensor, needs: Needs, whole: bool) -> NDArray[Any]:
        if needs == "token_losses":
            needed = token_losses(outputs, y, self.takes)
        elif needs == "values" and self.kind == "custom":
            needed = outputs
        else:
            needed = self.probabilities(outputs) if needs == "scores" else self.predict(outputs)
        array: NDArray[Any] = needed.detach().cpu().numpy()
        if not whole:
            return np.full(array.shape, np.nan, np.float32)
        return array.reshape(tuple(y.shape)) if needs == "values" and array.size == y.numel() else array

    def values(self, outputs: Tensor, y: Tensor) -> dict[str, float]:
        """The value of each metric that is computed from outputs, by name."""
        whole, targets = finite(outputs), y.cpu().numpy()
        found: dict[str, float] = {}
        arrays: dict[Needs, NDArray[Any]] = {}
        for metric in self.metrics:
            if metric.needs != "step":
                if metric.needs not in arrays:
                    arrays[metric.needs] = self._array(outputs, y, metric.needs, whole)
                found[metric.name] = metric(targets, arrays[metric.needs])
        return found

    def measure(self, outputs: Tensor, y: Tensor) -> float:
        """The deciding metric's value for these outputs."""
        return self.metric(y.cpu().numpy(), self.judged(outputs, y))


def finite(outputs: Tensor) -> bool:
    """Whether every output is finite; their sum tells it at a tenth of the price, unless it overflows."""
    return math.isfinite(outputs.sum().item()) or bool(torch.isfinite(outputs).all())


def _themselves(outputs: Tensor) -> Tensor:
    return outputs


def _counted(loss: Any, targets: Tree) -> float:
    """What the mean of a batch's loss is divided by."""
    if not isinstance(targets, Tensor):
        return float(rows_of(targets))
    loss = loss.inner if isinstance(loss, TokenLoss) else loss
    if not isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) or targets.is_floating_point():
        return float(targets.numel())
    kept = targets[targets != loss.ignore_index]
    return float(kept.numel() if loss.weight is None else loss.weight[kept].sum())


def _predict(kind: str, takes: Takes, classes: bool) -> Callable[[Tensor], Tensor]:
    """`task.predict: auto`: argmax over classes, a threshold for yes or no, the outputs themselves for values.

    A custom task predicts `classes` where one of its metrics asks for them.
    """
    if kind in ("regression", "autoencoder"):
        return _themselves
    if kind in ("classification", "language_model"):
        return lambda outputs: outputs.argmax(dim=1 if kind == "classification" else -1)
    if kind == "custom" and not classes:
        return _themselves
    threshold = 0.5 if takes == "probabilities" else 0.0
    if kind == "multilabel":
        return lambda outputs: (outputs > threshold).long()

    def decide(outputs: Tensor) -> Tensor:
        if outputs.ndim == 2 and outputs.shape[1] > 1:
            return outputs.argmax(dim=1)
        if kind == "custom" and not outputs.is_floating_point():
            return outputs  # the step has decided
        return (outputs.reshape(len(outputs)) > threshold).long()

    return decide


def build_task(
    config: Mapping[str, Any], loss: Loss, model: nn.Module | None = None, trust: Sequence[str] = ()
) -> Task:
    """The task of a config, its loss on the scale on which the model learns.

    Raises UserError for a kind, metric, predictor or step that cannot be.
    """
    section = config["task"]
    if section["kind"] not in KINDS:
        raise UserError(fault("task.kind", "unknown kind", got=section["kind"], among=KINDS))
    step = build_step(section, model, trust)
    takes = loss_takes(loss, unwrap(model) if model is not None else None)
    loss = TokenLoss(loss) if section["kind"] == "language_model" and step is None else scale_loss(model, loss)
    if section["kind"] == "multilabel" and section.get("class_weights") not in (None, "none"):
        got, expected = section["class_weights"], "none where a row has several labels"
        raise UserError(fault("task.class_weights", "weighs one class per row", got=got, expected=expected))
    metrics = all_metrics(section, trust)
    asked = section.get("predict", "auto")
    predict: Any = _predict(section["kind"], takes, any(m.needs == "classes" for m in metrics))
    if section["kind"] == "autoencoder" and loss_name(loss) in LOGITS_OF_SHARES:
        predict = torch.sigmoid  # such outputs are logits of the inputs
    if isinstance(asked, Mapping):
        from pipeline.config.build import build

        predict = build(dict(asked), trust=trust, where="task.predict")
    elif asked != "auto":
        raise UserError(fault("task.predict", "unknown predictor", got=asked, expected="auto or a _target_"))
    forward = CustomStep(step) if step is not None else _apart(loss)
    return Task(section["kind"], loss, metrics, predict, takes, forward, step)


def expected_loss(task: Task, y: Tree, classes: int | None) -> float | None:
    """The loss of a model that knows nothing but the targets' scale; None where the loss has no known theory.

    ln C for cross entropy over C classes or tokens, ln 2 for binary ones and labels; for values the loss of predicting
    the mean (squared error: their variance) or the median (absolute error).
    """
    if task.step is not None or not isinstance(y, Tensor):
        return None
    y = task.loss.standardize(y) if isinstance(task.loss, ScaledLoss) else y
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
