"""The task: how outputs are compared with targets, what they predict, and which metrics measure them."""

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

from pipeline.data.tree import Tree, count_rows
from pipeline.errors import UserError, fault
from pipeline.evaluation.metrics import Metric, Needs, metrics_from_config
from pipeline.evaluation.step import CustomStep, Step, build_step
from pipeline.evaluation.tokens import TokenLoss, token_losses
from pipeline.preprocess.modules import ScaledLoss, scale_loss, unscaled, unwrap

KINDS = ("classification", "binary", "multilabel", "regression", "autoencoder", "language_model", "custom")

Loss = Callable[[Tensor, Tensor], Tensor]
Forward = Callable[[nn.Module, Tree, Tree], tuple[Tensor | None, Tensor]]
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


BINARY_LOGIT_LOSSES = ("BCEWithLogitsLoss", "binary_cross_entropy_with_logits")


def _innermost(loss: Loss) -> Loss:
    """Return the loss of the config without the task's wrappers."""
    return loss.inner if isinstance(loss, TokenLoss) else unscaled(loss)


def loss_name(loss: Loss) -> str:
    """The name of a loss's class or function, whatever it is wrapped in."""
    loss = _innermost(loss)
    inner = loss.func if isinstance(loss, functools.partial) else loss
    return getattr(inner, "__name__", type(inner).__name__)


def loss_takes(loss: Loss, model: nn.Module | None = None) -> Takes:
    """Return what a loss takes outputs for: from its attribute `takes`, its name, else the model's last module."""
    known = getattr(loss, "takes", None) or _TAKES.get(loss_name(loss))
    if known:
        return known
    last = [type(m).__name__ for m in model.modules()][-1] if model is not None else ""
    if last in ("Sigmoid", "Softmax"):
        return "probabilities"
    return "log_probabilities" if last == "LogSoftmax" else "logits"


def _from_torch(loss: Loss) -> bool:
    loss = _innermost(loss)
    inner = loss.func if isinstance(loss, functools.partial) else type(loss)
    return str(getattr(inner, "__module__", "")).startswith("torch.nn")


def _model_then_loss(loss: Loss) -> Forward:
    """Return the forward pass of a task without a custom step: the model, then the loss."""

    def forward(model: nn.Module, inputs: Tree, targets: Tree) -> tuple[Tensor, Tensor]:
        outputs = model(inputs)
        return outputs, loss(outputs, targets)

    return forward


@dataclass(frozen=True)
class Task:
    """A resolved task: `loss` for training, `metrics` for evaluation, `predict` from outputs to ids or values.

    The first metric decides, the others are only reported. `forward(model, inputs, targets) -> (outputs, loss)` is one
    forward pass with targets from `loss_targets`; with a `step` it calls the step, and outputs may be None.
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
        """The deciding metric."""
        return self.metrics[0]

    @property
    def takes_targets_shape(self) -> bool:
        """Whether the loss is one of torch's and compares values elementwise."""
        return self.kind != "classification" and _from_torch(self.loss)

    def loss_weights(self, batches: Sequence[Tree]) -> list[float]:
        """Return the weight of each batch's loss in one update, from the batches' targets.

        With them, accumulated gradients equal the gradient of one large batch. A loss that averages is weighted by
        what it averages over: elements, or for torch's classification losses the class weights of the targets that
        are not ignored. A loss that sums has weight 1.
        """
        if getattr(self.loss, "reduction", "mean") == "sum" and self.step is None:
            return [1.0] * len(batches)
        sizes = [_loss_normalizer(self.loss if self.step is None else None, targets) for targets in batches]
        return [size / (sum(sizes) or 1.0) for size in sizes]

    def loss_targets(self, y: Tree, outputs: Tensor | None) -> Tree:
        """Return targets in the dtype that the loss needs, and for torch's losses in the shape of the outputs.

        torch's elementwise losses broadcast [N] and [N, 1] to [N, N]; equal shapes prevent it. A step gets the targets
        unchanged.
        """
        if self.step is not None or outputs is None:
            return y
        two_columns = outputs.ndim == 2 and outputs.shape[1] > 1
        if self.kind in ("classification", "language_model") or (self.kind == "binary" and two_columns):
            return y
        y = y.to(torch.float32)
        per_row = outputs.shape[1:]
        same_size = y.shape[1:] != per_row and math.prod(y.shape[1:]) == math.prod(per_row)
        return y.reshape(len(y), *per_row) if same_size and _from_torch(self.loss) else y

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return probabilities: [N] of class 1 for two classes, else [N, C]; [N, L] for several labels."""
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

    def metric_inputs(self, outputs: Tensor, y: Tensor) -> NDArray[Any]:
        """Return the predictions that the deciding metric needs, values in the shape of the targets ([N] for [N, 1]).

        NaN for every row if any output is not finite, since argmax or ranks of such outputs mean nothing.
        """
        return self._inputs(outputs, y, self.metric.needs, finite(outputs))

    def _inputs(self, outputs: Tensor, y: Tensor, needs: Needs, outputs_finite: bool) -> NDArray[Any]:
        if needs == "token_losses":
            tensor = token_losses(outputs, y, self.takes)
        elif needs == "values" and self.kind == "custom":
            tensor = outputs
        else:
            tensor = self.probabilities(outputs) if needs == "scores" else self.predict(outputs)
        array: NDArray[Any] = tensor.detach().cpu().numpy()
        if not outputs_finite:
            return np.full(array.shape, np.nan, np.float32)
        return array.reshape(tuple(y.shape)) if needs == "values" and array.size == y.numel() else array

    def metric_values(self, outputs: Tensor, y: Tensor) -> dict[str, float]:
        """Return the value of each metric that is computed from outputs, by name."""
        outputs_finite, targets = finite(outputs), y.cpu().numpy()
        values: dict[str, float] = {}
        inputs: dict[Needs, NDArray[Any]] = {}  # metrics that need the same predictions share them
        for metric in self.metrics:
            if metric.needs != "step":
                if metric.needs not in inputs:
                    inputs[metric.needs] = self._inputs(outputs, y, metric.needs, outputs_finite)
                values[metric.name] = metric(targets, inputs[metric.needs])
        return values

    def deciding_value(self, outputs: Tensor, y: Tensor) -> float:
        """Return the deciding metric's value for these outputs."""
        return self.metric(y.cpu().numpy(), self.metric_inputs(outputs, y))


def finite(outputs: Tensor) -> bool:
    """Return whether every output is finite. Their sum shows it at a tenth of the cost, unless it overflows."""
    return math.isfinite(outputs.sum().item()) or bool(torch.isfinite(outputs).all())


def _identity(outputs: Tensor) -> Tensor:
    return outputs


def _loss_normalizer(loss: Loss | None, targets: Tree) -> float:
    """Return the number that the mean loss of a batch is divided by."""
    if not isinstance(targets, Tensor):
        return float(count_rows(targets))
    loss = loss.inner if isinstance(loss, TokenLoss) else loss
    if not isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) or targets.is_floating_point():
        return float(targets.numel())
    kept = targets[targets != loss.ignore_index]
    return float(kept.numel() if loss.weight is None else loss.weight[kept].sum())


def _default_predict(kind: str, takes: Takes, classes: bool) -> Callable[[Tensor], Tensor]:
    """Return `task.predict: auto`: argmax over classes, a threshold for binary outputs, the outputs for values.

    A custom task predicts classes where one of its metrics needs them.
    """
    if kind in ("regression", "autoencoder"):
        return _identity
    if kind in ("classification", "language_model"):
        return lambda outputs: outputs.argmax(dim=1 if kind == "classification" else -1)
    if kind == "custom" and not classes:
        return _identity
    threshold = 0.5 if takes == "probabilities" else 0.0
    if kind == "multilabel":
        return lambda outputs: (outputs > threshold).long()

    def decide(outputs: Tensor) -> Tensor:
        if outputs.ndim == 2 and outputs.shape[1] > 1:
            return outputs.argmax(dim=1)
        if kind == "custom" and not outputs.is_floating_point():
            return outputs  # the step returns class ids
        return (outputs.reshape(len(outputs)) > threshold).long()

    return decide


def build_task(
    config: Mapping[str, Any], loss: Loss, model: nn.Module | None = None, trust: Sequence[str] = ()
) -> Task:
    """Return the task of a config; its loss compares targets on the scale that the model is trained on.

    Raises UserError for an unknown kind, metric, predictor or step.
    """
    section = config["task"]
    if section["kind"] not in KINDS:
        raise UserError(fault("task.kind", "unknown kind", got=section["kind"], among=KINDS))
    step = build_step(section, model, trust)
    takes = loss_takes(loss, unwrap(model) if model is not None else None)
    loss = TokenLoss(loss) if section["kind"] == "language_model" and step is None else scale_loss(model, loss)
    if section["kind"] == "multilabel" and section.get("class_weights") not in (None, "none"):
        got, expected = section["class_weights"], "none where a row has several labels"
        raise UserError(fault("task.class_weights", "needs one class per row", got=got, expected=expected))
    metrics = metrics_from_config(section, trust)
    predictor = section.get("predict", "auto")
    predict: Any = _default_predict(section["kind"], takes, any(m.needs == "classes" for m in metrics))
    if section["kind"] == "autoencoder" and loss_name(loss) in BINARY_LOGIT_LOSSES:
        predict = torch.sigmoid  # the outputs are logits of the inputs
    if isinstance(predictor, Mapping):
        from pipeline.config.build import build

        predict = build(dict(predictor), trust=trust, where="task.predict")
    elif predictor != "auto":
        raise UserError(fault("task.predict", "unknown predictor", got=predictor, expected="auto or a _target_"))
    forward = CustomStep(step) if step is not None else _model_then_loss(loss)
    return Task(section["kind"], loss, metrics, predict, takes, forward, step)


def expected_loss(task: Task, y: Tree, classes: int | None) -> float | None:
    """Return the expected loss of an untrained model; None for losses without a known value.

    ln C for cross entropy over C classes or tokens, ln 2 for binary cross entropy; for values the loss of predicting
    the mean (squared error: the variance) or the median (absolute error).
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
