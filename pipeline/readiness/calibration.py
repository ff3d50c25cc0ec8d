"""Calibration on validation: a temperature for probabilities, and a conformal interval for predicted values.

Both are fitted before the test rows are opened, and become part of the exported model. The temperature (Guo et al.,
On Calibration of Modern Neural Networks, 2017) divides the logits and leaves the predicted class as it is. The
half width (split conformal prediction, by MAPIE) contains 90 % of new targets if they come from the same population.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.evaluation.evaluate import outputs_of
from pipeline.evaluation.task import Task
from pipeline.readiness.subject import Subject

KINDS = ("classification", "binary", "multilabel")  # tasks whose outputs become probabilities
COVERAGE = 0.9
TEMPERATURES = (0.05, 20.0)
MIN_ROWS = 30  # a quantile or a temperature of fewer rows says little about other rows
# Why the question has no meaning for a kind of task.
WITHOUT = {
    "language_model": "a language model predicts every token of a row, and calibration is of one prediction per row",
    "autoencoder": "an autoencoder reconstructs its inputs: its outputs are no predictions of a target",
    "custom": "nothing says what the outputs of a custom task mean",
}

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """The fitted temperature or half width (in the unit of the target), from so many rows; None where not fitted.

    `why` is the reason for having neither, in one word in `reason`.
    """

    temperature: float | None = None
    half_width: float | None = None
    rows: int = 0
    why: str = ""
    reason: Literal["", "meaningless", "not_finite", "few_rows"] = ""


def fit(subject: Subject) -> Calibration:
    """Fit the temperature or the conformal interval of a model on its validation rows."""
    task, val = subject.task, subject.data.val
    if task.kind not in (*KINDS, "regression"):
        return Calibration(why=WITHOUT[task.kind], reason="meaningless")
    outputs = outputs_of(subject.model, val, task)
    if outputs is None:
        return Calibration(why="task.step returns no outputs", reason="meaningless")
    if task.kind in KINDS and outputs.ndim > 2:
        return Calibration(why="several predictions per row have no single temperature", reason="meaningless")
    if not bool(torch.isfinite(outputs).all()):
        return Calibration(why="the model has outputs that are not finite", reason="not_finite")
    if len(val) < MIN_ROWS:
        return Calibration(why=f"{len(val)} validation rows are fewer than {MIN_ROWS}", reason="few_rows")
    if task.kind == "regression":
        return _conformal(task, outputs, val.y)
    return Calibration(temperature=_temperature(logits_of(task, outputs), val.y.numpy()), rows=len(val))


def logits_of(task: Task, outputs: Tensor) -> Floats:
    """Return logits: [N, C] for classes, [N] for two classes with one output, [N, L] for several labels.

    Outputs that are probabilities or their logarithms become logits of the same probabilities.
    """
    values: Floats = outputs.detach().cpu().numpy().astype(np.float64)
    several = task.kind != "multilabel" and values.ndim == 2 and values.shape[1] > 1
    if task.kind != "multilabel" and not several:
        values = values.reshape(len(values))
    tiny = 1e-12
    if task.takes == "probabilities":
        values = np.clip(values, tiny, 1 - tiny)
        return np.log(values) if several else np.log(values) - np.log1p(-values)
    return values


def probabilities(task: Task, logits: Floats, temperature: float | None) -> Floats:
    """Return calibrated probabilities: [N, C] of classes, else of the positive class or each label, as the logits."""
    from scipy.special import expit, softmax

    scaled = logits / (temperature or 1.0)
    shares: Floats = expit(scaled) if task.kind == "multilabel" or logits.ndim == 1 else softmax(scaled, axis=1)
    return shares


def _temperature(logits: Floats, targets: NDArray[Any]) -> float:
    """Return the temperature with the lowest negative log-likelihood; it has one minimum in 1 / temperature.

    The logarithm has a standard normal prior: without it, a few rows that are all right would lead to temperature 0.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_expit, log_softmax

    ids = targets.reshape(len(targets), -1).astype(int) if targets.shape != logits.shape else targets.astype(int)

    def loss(log_temperature: float) -> float:
        scaled, prior = logits / math.exp(log_temperature), log_temperature**2 / (2 * len(logits))
        if ids.shape == logits.shape:  # each label, or the one class, by itself
            return prior - float(np.where(ids == 1, log_expit(scaled), log_expit(-scaled)).mean())
        return prior - float(np.take_along_axis(log_softmax(scaled, axis=1), ids, axis=1).mean())

    low, high = map(math.log, TEMPERATURES)
    return math.exp(float(minimize_scalar(loss, bounds=(low, high), method="bounded").x))


class _Predictions:
    """A fitted regressor as scikit-learn knows it: its inputs are the numbers of the rows."""

    def __init__(self, values: Floats) -> None:
        self.values = values
        self.is_fitted = True  # MAPIE looks for it

    def fit(self, X: Any, y: Any) -> _Predictions:
        return self

    def predict(self, X: NDArray[Any]) -> Floats:
        return self.values[np.asarray(X)[:, 0]]


def _conformal(task: Task, outputs: Tensor, y: Tensor) -> Calibration:
    """Return the half width of the interval around predictions of one value per row."""
    predicted = np.asarray(task.predictions(outputs, y), np.float64)
    targets = y.numpy().astype(np.float64)
    if targets.size != len(targets) or predicted.size != len(targets):
        return Calibration(why="several values per row have no single interval", reason="meaningless")
    from mapie.regression import SplitConformalRegressor  # type: ignore[import-untyped]

    rows = np.arange(len(targets))[:, None]
    regressor = SplitConformalRegressor(_Predictions(predicted.reshape(-1)), confidence_level=COVERAGE, prefit=True)
    _, intervals = regressor.conformalize(rows, targets.reshape(-1)).predict_interval(rows[:1])
    low, high = (float(end) for end in np.asarray(intervals)[0, :, 0])
    return Calibration(half_width=(high - low) / 2, rows=len(rows))
