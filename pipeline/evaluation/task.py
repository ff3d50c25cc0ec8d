"""The task: how outputs are compared with targets, what they predict, and which metrics measure them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.data.tree import Tree, count_rows
from pipeline.errors import UserError, fault
from pipeline.evaluation.metric_config import metrics_from_config, with_columns
from pipeline.evaluation.metrics import Metric, Needs
from pipeline.evaluation.predictions import (
    Takes,
    align_predictions,
    as_column,
    class_axis,
    default_predictor,
    identity,
    predicted_array,
    same_values,
    to_array,
)
from pipeline.evaluation.step import CustomStep, Step, build_step
from pipeline.evaluation.tokens import TokenLoss, token_losses
from pipeline.preprocess.modules import ScaledLoss, scale_loss, unscaled, unwrap

KINDS = ("classification", "binary", "multilabel", "regression", "autoencoder", "language_model", "custom")

Loss = Callable[[Tensor, Tensor], Tensor]
Forward = Callable[[nn.Module, Tree, Tree], tuple[Tensor | None, Tensor]]

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


ROWS = 64  # that show what a predictor of the user's own returns
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
    """Return whether torch computes the loss, also in a subclass of the user's own that changes only its options."""
    loss = _innermost(loss)
    inner: Any = loss.func if isinstance(loss, functools.partial) else loss
    computed = type(inner).forward if isinstance(inner, nn.Module) else inner
    return str(getattr(computed, "__module__", "")).startswith("torch.nn")


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

    With `column_targets` the user's class ids have the shape [N, 1]. They are [N] here, and a loss, step or metric of
    the user's own gets them as [N, 1].
    """

    kind: str
    loss: Loss
    metrics: tuple[Metric, ...]
    predict: Callable[[Tensor], Tensor]
    takes: Takes
    forward: Forward
    step: Step | None = None
    column_targets: bool = False
    own_predict: bool = False  # `predict` is the user's
    default_predict: Callable[[Tensor], Tensor] = identity  # what `task.predict: auto` would be

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

    def user_targets(self, y: Tree) -> Tree:
        """Return targets in the shape in which the user's data give them."""
        return as_column(y) if self.column_targets and isinstance(y, Tensor) else y

    def loss_targets(self, y: Tree, outputs: Tensor | None) -> Tree:
        """Return targets in the dtype that the loss needs, in the user's shape, and for torch's losses in theirs.

        torch's elementwise losses broadcast [N] and [N, 1] to [N, N]; equal shapes prevent it. Its losses of classes
        take ids [N]. A step gets the targets unchanged.
        """
        if self.step is not None or outputs is None:
            return self.user_targets(y)
        from_torch = _from_torch(self.loss)
        two_columns = outputs.ndim == 2 and outputs.shape[1] > 1
        if self.kind in ("classification", "language_model") or (self.kind == "binary" and two_columns):
            return y if from_torch else self.user_targets(y)
        y = y.to(torch.float32)
        if not from_torch:
            return self.user_targets(y)
        shape = (len(y), *outputs.shape[1:])
        return y.reshape(shape) if same_values(y.shape, shape) else y

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
        """Return the predictions that the deciding metric needs, in the shape of the targets ([N] for [N, 1]).

        NaN for every row if any output is not finite, since argmax or ranks of such outputs mean nothing. Raises
        UserError for predictions that have another shape than the targets.
        """
        array = self._inputs(outputs, y, self.metric.needs, finite(outputs), self.predict)
        return self._aligned(self.metric, array, y)

    def reference_inputs(self, outputs: Tensor, y: Tensor) -> NDArray[Any]:
        """Return what the deciding metric needs of a reference model's outputs, such as the trivial baseline's.

        `task.predict` of the user's own is made for the user's model, and is not called with outputs of another.
        """
        array = self._inputs(outputs, y, self.metric.needs, finite(outputs), self.default_predict)
        return self._aligned(self.metric, array, y)

    def measures_references(self, outputs: Tensor | None, y: Tensor) -> bool:
        """Return whether the deciding metric can compare a reference model's predictions with the targets.

        `outputs` are the user's model's for some rows. Predictions that only `task.predict` of the user's own can make,
        or only the user's own metric can compare with targets, mean nothing of another model.
        """
        needs, of_values = self.metric.needs, self.kind in ("regression", "autoencoder")
        if needs not in ("classes", "values") or not (self.own_predict or self.metric.users_own):
            return True
        if needs == "values" and not of_values:
            return not self.own_predict
        if not self.metric.users_own or outputs is None:
            return True
        predicted = predicted_array(self.predict, outputs[:ROWS])
        ids = of_values or bool((predicted == np.round(predicted)).all())
        return ids and same_values((1, *predicted.shape[1:]), (1, *y.shape[1:]))

    def _inputs(
        self,
        outputs: Tensor,
        y: Tensor,
        needs: Needs,
        outputs_finite: bool,
        predict: Callable[[Tensor], Tensor],
    ) -> NDArray[Any]:
        if needs == "token_losses":
            array = to_array(token_losses(outputs, y, self.takes))
        elif needs == "values" and self.kind == "custom":
            array = to_array(outputs)
        else:
            array = self._predicted(predict, outputs, y) if needs != "scores" else to_array(self.probabilities(outputs))
        return array if outputs_finite else np.full(array.shape, np.nan, np.float32)

    def _predicted(self, predict: Callable[[Tensor], Tensor], outputs: Tensor, y: Tree) -> NDArray[Any]:
        """Return predictions; where `auto` predicts a class for each of several targets per row, from their shape."""
        by_class = self.kind == "custom" and predict is self.default_predict and predict is not identity
        if by_class and isinstance(y, Tensor) and outputs.is_floating_point():
            axis = class_axis(outputs.shape, y.shape)
            if axis is not None:
                return to_array(outputs.argmax(dim=axis))
        return predicted_array(predict, outputs)

    def _aligned(self, metric: Metric, array: NDArray[Any], y: Tensor) -> NDArray[Any]:
        """Return predictions in the shape of the targets; probabilities of more than two classes have their own."""
        if metric.needs == "scores" and array.ndim == 2 and y.ndim == 1:
            return array
        return align_predictions(array, y.shape, users_metric=metric.users_own)

    def check_predictions(self, outputs: Tensor, y: Tensor) -> None:
        """Raise UserError if the predictions of a metric cannot be compared with targets, whatever their values are."""
        for metric in self.metrics:
            if metric.needs not in ("step", "token_losses"):
                self._aligned(metric, self._inputs(outputs, y, metric.needs, True, self.predict), y)

    def predictions(self, outputs: Tensor, y: Tree) -> NDArray[Any]:
        """Return what the task predicts, in the shape of the targets where it can have it."""
        array = self._predicted(self.predict, outputs, y)
        return align_predictions(array, y.shape, users_metric=True) if isinstance(y, Tensor) else array

    def metric_values(self, outputs: Tensor, y: Tensor) -> dict[str, float]:
        """Return the value of each metric that is computed from outputs, by name."""
        outputs_finite, targets = finite(outputs), y.cpu().numpy()
        values: dict[str, float] = {}
        inputs: dict[Needs, NDArray[Any]] = {}  # metrics that need the same predictions share them
        for metric in self.metrics:
            if metric.needs != "step":
                if metric.needs not in inputs:
                    inputs[metric.needs] = self._inputs(outputs, y, metric.needs, outputs_finite, self.predict)
                values[metric.name] = metric(targets, self._aligned(metric, inputs[metric.needs], y))
        return values

    def deciding_value(self, outputs: Tensor, y: Tensor) -> float:
        """Return the deciding metric's value for these outputs."""
        return self.metric(y.cpu().numpy(), self.metric_inputs(outputs, y))


def finite(outputs: Tensor) -> bool:
    """Return whether every output is finite. Their sum shows it at a tenth of the cost, unless it overflows."""
    return math.isfinite(outputs.sum().item()) or bool(torch.isfinite(outputs).all())


def _loss_normalizer(loss: Loss | None, targets: Tree) -> float:
    """Return the number that the mean loss of a batch is divided by."""
    if not isinstance(targets, Tensor):
        return float(count_rows(targets))
    loss = loss.inner if isinstance(loss, TokenLoss) else loss
    if not isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) or targets.is_floating_point():
        return float(targets.numel())
    counted_targets = targets[targets != loss.ignore_index]
    return float(counted_targets.numel() if loss.weight is None else loss.weight[counted_targets].sum())


def build_task(
    config: Mapping[str, Any],
    loss: Loss,
    model: nn.Module | None = None,
    trust: Sequence[str] = (),
    column_targets: bool = False,
) -> Task:
    """Return the task of a config; its loss compares targets on the scale that the model is trained on.

    `column_targets` as in `Data`. Raises UserError for an unknown kind, metric, predictor or step.
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
    metrics = tuple(with_columns(m) if column_targets and m.users_own else m for m in metrics)
    predictor = section.get("predict", "auto")
    default: Any = default_predictor(section["kind"], takes, any(m.needs == "classes" for m in metrics))
    predict = default
    if section["kind"] == "autoencoder" and loss_name(loss) in BINARY_LOGIT_LOSSES:
        predict = torch.sigmoid  # the outputs are logits of the inputs
    if isinstance(predictor, Mapping):
        from pipeline.config.build import build_function

        predict = build_function(predictor, 1, trust=trust, where="task.predict")
        if not callable(predict):
            got = type(predict).__name__
            raise UserError(fault("task.predict", "is not callable", got=got, expected="outputs -> ids or values"))
    elif predictor != "auto":
        raise UserError(fault("task.predict", "unknown predictor", got=predictor, expected="auto or a _target_"))
    forward = CustomStep(step) if step is not None else _model_then_loss(loss)
    own = predictor != "auto"
    return Task(section["kind"], loss, metrics, predict, takes, forward, step, column_targets, own, default)


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
