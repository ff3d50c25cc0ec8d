"""Baseline models: what a linear model, boosted trees or a bigram model reach on the network's validation rows."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NotRequired, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.dataset import Data
from pipeline.data.splits import Split
from pipeline.evaluation.bigram import bigram_probabilities, token_rows, vocabulary_size
from pipeline.evaluation.intervals.score import confidence_interval
from pipeline.evaluation.metrics import PERPLEXITY
from pipeline.evaluation.predictions import align_predictions
from pipeline.evaluation.tabular_models import Fitted, Infeasible, Predict, Table, log_shares, sample_rows
from pipeline.evaluation.task import Task

if TYPE_CHECKING:
    pass

TOKEN_SECONDS = 1.5e-7  # per token
KINDS = ("classification", "binary", "multilabel", "regression")  # tasks that scikit-learn has models for
MAX_CELLS = 10_000_000  # of a table of probabilities in memory


class BaselineScore(TypedDict):
    """The deciding metric of one baseline model with its 95 % interval, or the reason why it was not fitted."""

    name: str
    metric: NotRequired[str]
    value: NotRequired[float]
    low: NotRequired[float]
    high: NotRequired[float]
    n: NotRequired[int]
    seconds: NotRequired[float]
    how: NotRequired[str]
    not_applicable: NotRequired[str]


class FittedModel(NamedTuple):
    """A baseline model that was fitted on train rows; `predict` gives what `comparable` takes."""

    name: str
    how: str
    predict: Predict


def score_baseline_models(
    task: Task,
    data: Data,
    seed: int,
    seconds: float,
    categories: Sequence[int] | None = None,
    outputs: Tensor | None = None,
) -> list[BaselineScore]:
    """Fit each baseline model on train rows and return its deciding metric on validation.

    All of them together take about `seconds`, estimated from rows and columns: if there are too many train rows, a
    sample of them is used, and `how` says so. `categories` are the columns that hold category codes, by default those
    that the data name. `outputs` are those of the user's model for some rows, where they are known. Equal arguments
    give equal values.
    """
    fits = _fits(task, data, seed, seconds, categories, outputs)
    return [_score_model(name, task, data.val, seed, fit) for name, fit in fits.items()]


def fit_baseline_models(
    task: Task, data: Data, seed: int, seconds: float, outputs: Tensor | None = None
) -> tuple[list[FittedModel], dict[str, str]]:
    """Fit each baseline model on train rows, without predicting; and return by name why others were not fitted.

    The arguments are those of `score_baseline_models`, and the models are the same.
    """
    from threadpoolctl import threadpool_limits

    fitted, reasons = list[FittedModel](), dict[str, str]()
    for name, fit in _fits(task, data, seed, seconds, None, outputs).items():
        try:
            with warnings.catch_warnings(), threadpool_limits(1):
                warnings.simplefilter("ignore")  # the baseline phase reports them
                predict, how = fit()
            fitted.append(FittedModel(name, how, predict))
        except FIT_ERRORS as error:
            reasons[name] = _reason(error)
    return fitted, reasons


def _fits(
    task: Task, data: Data, seed: int, seconds: float, categories: Sequence[int] | None, outputs: Tensor | None
) -> dict[str, Callable[[], Fitted]]:
    """Return by name the functions that fit the models; each raises Infeasible where it cannot."""
    vocabulary = vocabulary_size(task.kind, data)
    if vocabulary is not None:
        return {"bigram": lambda: _fit_bigram(task, data, vocabulary, seed, seconds)}
    names, reason = _model_names(task), _not_applicable(task, data, outputs)
    if reason:
        why = reason

        def refuse() -> Fitted:
            raise Infeasible(why)

        return dict.fromkeys(names, refuse)
    columns = getattr(data, "categories", ()) if categories is None else categories
    table = Table(task, data, seed, tuple(columns))
    return {names[0]: lambda: table.fit_linear(seconds / 4), names[1]: lambda: table.fit_trees(3 * seconds / 4)}


def _model_names(task: Task) -> tuple[str, str]:
    linear = {"regression": "ridge"}.get(task.kind, "logistic_regression" if task.kind in KINDS else "linear_model")
    return linear, "boosted_trees"


def _not_applicable(task: Task, data: Data, outputs: Tensor | None) -> str | None:
    """Return why scikit-learn cannot be fitted on rows and targets of this kind; None if it can."""
    if task.kind == "autoencoder":
        return "the targets are the inputs, which a linear model copies"
    if task.kind not in KINDS or task.step is not None:
        return f"only the step of a {task.kind} task knows what to predict"
    if data.train.dataset is not None:
        return "a Dataset reads its rows again in every epoch"
    if not isinstance(data.train.X, Tensor):
        return "the inputs are nested"
    if not task.measures_references(outputs, data.train.y):
        return f"'{task.metric.name}' measures what task.predict makes of the network's outputs, and nothing else"
    return None


FIT_ERRORS = (Infeasible, ValueError, ArithmeticError, np.linalg.LinAlgError, MemoryError)


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _score_model(name: str, task: Task, val: Split, seed: int, fit: Callable[[], Fitted]) -> BaselineScore:
    """Fit a model and score its predictions by the task's deciding metric; or return why it was not fitted."""
    from threadpoolctl import threadpool_limits

    began = time.perf_counter()
    try:
        with warnings.catch_warnings(record=True) as caught, threadpool_limits(1):
            warnings.simplefilter("always")
            predict, how = fit()
            raw = predict(val)
        value, low, high = _score_raw(task, val, raw, seed)
    except FIT_ERRORS as error:
        return {"name": name, "not_applicable": _reason(error)}
    messages = sorted({str(warning.message).splitlines()[0] for warning in caught})
    return {
        "name": name,
        "metric": task.metric.name,
        "value": value,
        "low": low,
        "high": high,
        "n": len(val),
        "seconds": time.perf_counter() - began,
        "how": "; ".join([how, *messages]),
    }


def comparable(task: Task, rows: Split, raw: NDArray[Any]) -> NDArray[Any]:
    """Return a baseline model's predictions in the form that the deciding metric takes.

    Where the metric needs classes or values, `raw` are these: `task.predict` is made for the network's outputs and
    means nothing here. For perplexity, `raw` are negative log-likelihoods.
    """
    if task.metric.name == "perplexity":
        return raw.reshape(len(rows), -1)
    if task.metric.needs in ("classes", "values"):
        return align_predictions(raw.astype(np.float32) if raw.dtype.kind == "f" else raw, rows.y.numpy().shape)
    return task.reference_inputs(torch.from_numpy(raw).float(), rows.y)


def _score_raw(task: Task, val: Split, raw: NDArray[Any], seed: int) -> tuple[float, float, float]:
    """Return the deciding metric and its interval."""
    targets, inputs = val.y.numpy(), comparable(task, val, raw)
    metric = PERPLEXITY if task.metric.name == "perplexity" else task.metric
    groups = val.row_metadata.groups
    low, high, *_ = confidence_interval(metric, targets, inputs, seed, groups, resample=False)  # it would take seconds
    return metric(targets, inputs), low, high


def _fit_bigram(task: Task, data: Data, vocabulary: int, seed: int, seconds: float) -> Fitted:
    """Fit the bigram model on train windows and their targets; it predicts what the task's metric needs."""
    per_token, name = data.train.y.ndim > 1, task.metric.name
    if per_token and name != "perplexity" and task.metric.needs != "classes":
        raise Infeasible(f"a bigram model is not scored by {name}")
    if vocabulary**2 > MAX_CELLS:
        raise Infeasible(f"a table of {vocabulary} x {vocabulary} tokens is too large")
    train = token_rows(data.train)
    chosen, how = sample_rows(len(train), seconds / (TOKEN_SECONDS * train.shape[1]), seed)
    probabilities = bigram_probabilities(train[chosen], vocabulary)

    def predict(rows: Split) -> NDArray[Any]:
        tokens = token_rows(rows)
        before, following = (tokens[:, :-1], tokens[:, 1:]) if per_token else (tokens[:, -2], tokens[:, -1])
        if name == "perplexity":
            return -np.log(probabilities[before, following])
        if task.metric.needs == "classes":
            return probabilities.argmax(axis=1)[before]
        if len(before) * vocabulary > MAX_CELLS:
            raise Infeasible(f"{len(before)} rows of {vocabulary} probabilities are too large a table")
        outputs = probabilities[before]
        return outputs if task.takes == "probabilities" else log_shares(outputs)

    return predict, f"bigrams, interpolated, {how}"
