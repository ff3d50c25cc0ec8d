"""The trivial baseline: the constant prediction that is best for the deciding metric, without looking at any input.

The constant is chosen on the train targets and scored on validation. Which one is best depends on the metric: the
median has the lowest absolute error and the mean the lowest squared one, and always answering the positive class has
a recall of 1. Therefore the metric itself chooses among candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.data.splits import Split
from pipeline.errors import UserError
from pipeline.evaluation.evaluate import loss_and_metrics
from pipeline.evaluation.metrics import Metric
from pipeline.evaluation.task import Task
from pipeline.runtime.seeds import derive, seeded

Floats = NDArray[np.float64]

CHOICE_CELLS = 1_000_000  # numbers of train targets that a choice looks at, so that it takes little of the training
CHOICE_ROWS = 10_000  # and rows, since a metric of the user's own may take long
MOST_NAMED = 5  # labels in a description
MOST_CLASSES = 100  # whose constant answers are tried, the most frequent ones
QUANTILES = np.linspace(0.05, 0.95, 19)
SEARCH_STEPS = 25
CLEARLY = 1e-3  # by how much of its own size a searched constant must be better than one that has a name


class TrivialBaseline(TypedDict):
    """The deciding metric of the constant prediction on `n` validation rows; `how` says what is predicted."""

    metric: str
    n: int
    value: float
    how: str


@dataclass(frozen=True)
class Constant:
    """A prediction that is the same for every row, in the form that the metric needs, and what it is called."""

    row: NDArray[Any]
    how: str

    def predictions(self, rows: int) -> NDArray[Any]:
        """Return it for so many rows."""
        return np.repeat(self.row[None], rows, axis=0)


def _class_constants(y: NDArray[Any], count: int, scores: bool, class_names: Sequence[str]) -> list[Constant]:
    """Return every class, the most frequent one first; for scores the frequencies first, then certainty."""
    counts = np.bincount(y, minlength=count)
    order = np.argsort(-counts, kind="stable")[:MOST_CLASSES]
    names = [str(class_names[c]) if c < len(class_names) else str(c) for c in range(len(counts))]
    if not scores:
        return [Constant(np.asarray(c), f"always answers {names[c]}") for c in order]
    shares = counts / counts.sum()
    rows = [(shares, "always answers the class frequencies of the train rows")]
    rows += [(np.eye(len(counts))[c], f"always answers {names[c]}, with certainty") for c in order]
    rows.append((np.full(len(counts), 1 / len(counts)), "always answers equal probabilities"))
    binary = len(counts) == 2
    return [Constant(np.asarray(row[1] if binary else row), how) for row, how in rows]


def _label_constants(y: Floats, scores: bool, names: Sequence[str]) -> list[Constant]:
    """Return the majority of each label, the most frequent row, no label, and every label; for scores frequencies."""
    shares = y.mean(axis=0)
    if scores:
        equal = Constant(np.full_like(shares, 0.5), "always answers 0.5 for each label")
        return [Constant(shares, "frequency of each label in the train rows"), equal]
    rows, counts = np.unique(y, axis=0, return_counts=True)
    answers = (shares > 0.5, rows[counts.argmax()], np.zeros_like(shares), np.ones_like(shares))
    return [_labels(answer.astype(np.int64), names) for answer in answers]


def _labels(row: NDArray[np.int64], names: Sequence[str]) -> Constant:
    """Return the constant that answers these labels, by their names."""
    present = [str(names[i]) if i < len(names) else str(i) for i in np.flatnonzero(row).tolist()]
    few = f"label{'s' if len(present) > 1 else ''} {', '.join(present)}"
    what = few if 0 < len(present) <= MOST_NAMED else f"{len(present)} of {len(row)} labels"
    what = "no label" if not present else "every label" if len(present) == len(row) else what
    return Constant(row, f"always answers {what}")


def _shortest_half(values: Floats) -> Floats:
    """Return the middle of the shortest interval with half of the sorted values, per column."""
    half = len(values) // 2
    widths = values[half:] - values[: len(values) - half]
    start = widths.argmin(axis=0)
    columns = np.arange(values.shape[1])
    return (values[start, columns] + values[start + half, columns]) / 2


def _relative_median(values: Floats) -> Floats:
    """Return the median of each sorted column with weights 1/|value|, which has the lowest percentage error."""
    weights = np.cumsum(1 / np.maximum(np.abs(values), np.finfo(np.float64).eps), axis=0)
    return values[(weights < weights[-1] / 2).sum(axis=0), np.arange(values.shape[1])]


def _log_mean(values: Floats) -> Floats:
    return np.expm1(np.log1p(values).mean(axis=0))


def _value_constants(y: Floats) -> list[Constant]:
    """Return the constants that are best for a known error, and quantiles; those of several targets by column."""
    shape, values = y.shape[1:], np.sort(y.reshape(len(y), -1), axis=0)
    named: list[tuple[str, Floats]] = [
        ("the mean", values.mean(axis=0)),  # squared errors
        ("the median", np.median(values, axis=0)),  # absolute errors
        ("the middle between lowest and highest", (values[0] + values[-1]) / 2),  # the largest error
        ("the middle of the shortest half", _shortest_half(values)),  # the median of the absolute errors
        ("the median weighted by 1/|target|", _relative_median(values)),  # percentage errors
    ]
    if (values > -1).all():
        named.append(("the mean of the logarithms", _log_mean(values)))  # errors of log(1 + value)
    named += [
        (f"the {100 * q:.0f} % quantile", row)
        for q, row in zip(QUANTILES, np.quantile(values, QUANTILES, axis=0), strict=True)
    ]
    return [Constant(row.reshape(shape), f"{name}{_number(row)}") for name, row in named]


def _number(row: Floats) -> str:
    return f" {row[0]:.6g}" if row.size == 1 else " of each column"


def _constants(task: Task, y: NDArray[Any], classes: int | None, class_names: Sequence[str]) -> list[Constant]:
    """Return the candidates for this kind of task, the usual one first."""
    scores = task.metric.needs == "scores"
    if task.kind in ("classification", "binary"):
        return _class_constants(y, max(classes or 0, 2), scores, class_names)
    if task.kind == "multilabel":
        return _label_constants(y.astype(np.float64), scores, class_names)
    return _value_constants(y.astype(np.float64))


def _value_of(metric: Metric, targets: NDArray[Any], constant: Constant) -> float:
    """Return the metric of a constant; NaN where it does not take it, as logarithms take no negative numbers."""
    try:
        return metric(targets, constant.predictions(len(targets)))
    except UserError:
        return math.nan


def _searched(metric: Metric, targets: NDArray[Any], best: Constant, known: Sequence[float]) -> Iterator[Constant]:
    """Yield the constant that SciPy's bounded search finds between the neighbours of the best one: for one target."""
    from scipy.optimize import minimize_scalar

    known = sorted(set(known))
    place = known.index(best.row.item())
    low, high = known[max(place - 1, 0)], known[min(place + 1, len(known) - 1)]
    if not low < high:
        return
    sign = -1 if metric.greater_is_better else 1

    def loss(constant: float) -> float:
        value = _value_of(metric, targets, Constant(np.full_like(best.row, constant), ""))
        return sign * value if math.isfinite(value) else math.inf

    found = float(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"maxiter": SEARCH_STEPS}).x)
    yield Constant(np.full_like(best.row, found), f"the constant {found:.6g}, the best that a search finds")


def _flipped(best: Constant, names: Sequence[str]) -> Iterator[Constant]:
    """Yield the answers that differ from the best one in one label."""
    for label in range(len(best.row)):
        row = best.row.copy()
        row[label] = 1 - row[label]
        yield _labels(row, names)


def _best(metric: Metric, targets: NDArray[Any], candidates: Sequence[Constant], margin: float = 0.0) -> Constant:
    """Return the best of the candidates on these targets, the first of equals; others must be better by a margin."""
    best, best_value = candidates[0], _value_of(metric, targets, candidates[0])
    for constant in candidates[1:]:
        value = _value_of(metric, targets, constant)
        # Sums in another order differ in their last digits.
        ahead = abs(value - best_value) > max(margin, 1e-9) * max(abs(best_value), 1e-9)
        if metric.better(value, best_value) and (math.isnan(best_value) or ahead):
            best, best_value = constant, value
    return best


def best_constant(task: Task, train: Split, classes: int | None, class_names: Sequence[str] = ()) -> Constant:
    """Return the constant prediction that is best for the deciding metric on the train targets.

    More than `CHOICE_ROWS` rows are sampled, always the same ones. A metric that fails on every candidate takes the
    usual one: the most frequent class, the mean.
    """
    y = train.y.numpy()
    rows = min(len(y), CHOICE_ROWS, max(1, CHOICE_CELLS // max(1, math.prod(y.shape[1:]))))
    targets = y
    if rows < len(y):
        targets = y[np.sort(np.random.default_rng(derive(0, "trivial")).permutation(len(y))[:rows])]
    candidates = _constants(task, targets, classes, class_names)
    with seeded(0):  # a metric of the user's own may draw
        best = _best(task.metric, targets, candidates)
        if task.kind == "multilabel" and task.metric.needs != "scores":
            while (better := _best(task.metric, targets, [best, *_flipped(best, class_names)])) is not best:
                best = better
        elif task.kind == "regression" and best.row.size == 1:
            known = [constant.row.item() for constant in candidates]
            best = _best(task.metric, targets, [best, *_searched(task.metric, targets, best, known)], CLEARLY)
    return best


def _token_frequencies(task: Task, y: Tensor, rows: int, classes: int | None) -> tuple[Tensor, str]:
    """Return outputs for `rows` rows, in the form that the loss takes: the best constant of a language model."""
    counts = torch.bincount(y.flatten(), minlength=classes or 0).double() + 1
    shares = (counts / counts.sum()).float()
    outputs = shares if task.takes == "probabilities" else shares.log()
    return outputs.expand(rows, y.shape[1], -1), "frequency of each token in the train rows, add-one"


def fit_constant(
    task: Task, train: Split, classes: int | None, class_names: Sequence[str] = (), outputs: Tensor | None = None
) -> tuple[Callable[[Split], NDArray[Any]], str] | None:
    """Choose the best constant on train rows. Return what gives the deciding metric's inputs for other rows, and how.

    None where only code of the user's own can interpret outputs, as in `score_trivial_baseline`.
    """
    known = task.kind != "custom" and task.metric.needs != "step" and isinstance(train.y, Tensor)
    if not known or not task.measures_references(outputs, train.y):
        return None
    if classes and outputs is not None and outputs.ndim == 2 and task.kind == "classification":
        classes = max(classes, outputs.shape[1]) if task.metric.users_own else classes
    if task.kind == "language_model":
        _, how = _token_frequencies(task, train.y, 1, classes)

        def of_tokens(rows: Split) -> NDArray[Any]:
            return task.reference_inputs(_token_frequencies(task, train.y, len(rows), classes)[0], rows.y)

        return of_tokens, how
    constant = best_constant(task, train, classes, class_names)
    return lambda rows: constant.predictions(len(rows)), constant.how


def score_trivial_baseline(
    task: Task,
    train: Split,
    val: Split,
    classes: int | None,
    model: nn.Module | None = None,
    class_names: Sequence[str] = (),
    outputs: Tensor | None = None,
) -> TrivialBaseline:
    """Return the deciding metric, on validation, of the constant prediction that is best for it on the train targets.

    Where only code of the user's own can interpret outputs, no constant output is known: the baseline is `model` before
    its first step, NaN without a model. `outputs` are the model's for some rows: a metric of the user's own gets
    predictions in their shape, or none of ours.
    """
    name, n = task.metric.name, len(val)
    constant, why = fit_constant(task, train, classes, class_names, outputs), ""
    if constant is not None:
        predict, how = constant
        try:
            return {"metric": name, "n": n, "value": task.metric(val.y.numpy(), predict(val)), "how": how}
        except UserError:
            if not task.metric.users_own:
                raise
            why = f", since {task.metric.where} does not take a constant prediction"
    if model is None:
        return {"metric": name, "n": n, "value": math.nan, "how": "no untrained model to measure"}
    value = loss_and_metrics(model, val.X, val.y, task).metrics[name]
    return {"metric": name, "n": n, "value": value, "how": f"the model before its first step{why}"}
