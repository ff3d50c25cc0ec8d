"""The score of live rows whose labels are known, beside the figure of the release."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import numpy as np

from pipeline import safe_yaml
from pipeline.drift.features import Array, Takes, probabilities
from pipeline.drift.reference import Reference
from pipeline.errors import UserError, fault
from pipeline.evaluation.intervals.score import confidence_interval
from pipeline.evaluation.metrics import Metric, named_metric
from pipeline.foreign_files import read_bytes
from pipeline.run_store.run import Run

if TYPE_CHECKING:
    from pipeline.serving.schema_file import Schema

PLAN = "plan.yaml"
MAX_PLAN_BYTES = 2**24
MAX_SCORED = 100_000  # rows: more do not change an interval that matters
KINDS = ("classification", "binary", "multilabel", "regression", "language_model")


class OwnCode(NamedTuple):
    """The owner's metric, and why labels cannot be scored; both are empty where the release used none of their code."""

    metric: Metric | None = None
    why: str = ""


class LiveScore(TypedDict):
    """The metric on live rows with its 95 % interval, and that of the release on its test rows.

    `worse`: the intervals do not overlap, and the live one is the worse. `why` is the reason for no score.
    """

    metric: str
    value: float | None
    low: float | None
    high: float | None
    rows: int
    released: float | None
    released_low: float | None
    released_high: float | None
    worse: bool
    why: str


def score_labels(
    reference: Reference,
    schema: Schema,
    labels: Sequence[Any] | Array,
    outputs: Mapping[str, Array],
    answered: Array,
    own: OwnCode = OwnCode(),  # noqa: B008  a tuple
) -> LiveScore | None:
    """Return the score of the rows that the model answered; None where the reference has no released figure.

    `own` is the metric of the owner of the release, where it is none of ours. Raises UserError for a label that is no
    class or no number, or of another shape than the outputs.
    """
    about = reference.about
    released = about["released"]
    if released is None:
        return None
    task = about["task"]
    metric = own.metric or named_metric(str(released["metric"]), task)
    if why := _obstacle(metric, released, task, outputs, own.why):
        return _scored(released, 0, None, why)
    assert metric is not None
    targets = _targets(labels, schema["class_names"], task)[answered]
    labelled = np.isfinite(targets.reshape(len(targets), -1)).all(1)
    chosen = np.flatnonzero(labelled)[:MAX_SCORED]
    if len(chosen) < 2:
        return _scored(released, len(chosen), None, "fewer than two rows have a label")
    truth = targets[chosen] if task == "regression" else targets[chosen].astype(np.int64)
    some = {key: values[chosen] for key, values in outputs.items()}
    if task == "language_model":
        given = _of_tokens(some, truth, about["takes"], metric)
    else:
        given = _predictions(some, task, about["takes"], metric)
    if given.shape != truth.shape and given.size == truth.size:
        given = given.reshape(truth.shape)
    interval = confidence_interval(metric, truth, given, about["seed"])
    return _scored(released, len(chosen), (metric(truth, given), interval.low, interval.high), "")


def _obstacle(
    metric: Metric | None, released: Mapping[str, Any], task: str, outputs: Mapping[str, Array], of_own: str
) -> str:
    """Return why labels give no score; empty where they do."""
    if not outputs:
        return "the model answers none of these rows"
    if of_own:
        return of_own
    if task == "autoencoder":
        return "a reconstruction is compared with its input, not with a label: see the feature 'reconstruction error'"
    if task not in KINDS or metric is None or metric.needs == "step":
        return f"{released['metric']} of a {task} task needs more than labels"
    return ""


def _scored(released: Mapping[str, Any], rows: int, interval: tuple[float, float, float] | None, why: str) -> LiveScore:
    value, low, high = (_finite(number) for number in interval) if interval else (None, None, None)
    limits = [_finite(released[key]) for key in ("value", "low", "high")]
    worse = False
    if low is not None and high is not None and limits[1] is not None and limits[2] is not None:
        worse = high < limits[1] if released["greater_is_better"] else low > limits[2]
    return {
        "metric": str(released["metric"]),
        "value": value,
        "low": low,
        "high": high,
        "rows": rows,
        "released": limits[0],
        "released_low": limits[1],
        "released_high": limits[2],
        "worse": worse,
        "why": why,
    }


def _finite(value: Any) -> float | None:
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else None


def _targets(labels: Sequence[Any] | Array, names: Sequence[str], task: str) -> Array:
    """Return class ids or values as floats, NaN where there is no label."""
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "biuf":
        return labels.astype(np.float64)
    if task in ("multilabel", "language_model"):
        return _rows_of_numbers(labels)
    ids = {name: float(place) for place, name in enumerate(names)} if task != "regression" else {}
    values = np.full(len(labels), np.nan)
    for row, label in enumerate(labels):
        text = "" if label is None else str(label).strip()
        if not text:
            continue
        if text in ids:
            values[row] = ids[text]
            continue
        try:
            values[row] = float(text)
        except ValueError:
            where = f"row {row + 1}"
            if ids:
                raise UserError(fault(where, "label is not a class", got=text[:60], among=names)) from None
            raise UserError(fault(where, "label is not a number", got=text[:60], expected="a number")) from None
    return values


def _rows_of_numbers(labels: Sequence[Any] | Array) -> Array:
    """Return labels that are a list of numbers each. Raises UserError for others."""
    try:
        values = np.array([np.asarray(label, np.float64) for label in labels])
    except (TypeError, ValueError):
        values = np.zeros(0)
    if values.ndim < 2:
        got = str(labels[0])[:60] if len(labels) else "none"
        expected = "a list of numbers for every row, all equally long, in a .json or .npz file"
        raise UserError(fault("labels", "are no lists of numbers", got=got, expected=expected))
    return values


def _of_tokens(outputs: Mapping[str, Array], targets: Array, takes: Takes, metric: Metric) -> Array:
    """Return what the metric compares with targets [N, T]: the most probable tokens, or the losses of the targets.

    Raises UserError for targets that are no token for each place.
    """
    main = outputs.get("probabilities", outputs.get("output", next(iter(outputs.values()))))
    if targets.shape != main.shape[:-1]:
        expected = f"the next token of every place, {list(main.shape[1:-1])} of each row"
        raise UserError(fault("labels", "have another shape", got=str(list(targets.shape[1:])), expected=expected))
    if targets.min(initial=0) < 0 or targets.max(initial=0) >= main.shape[-1]:
        got, expected = f"{targets.min()} to {targets.max()}", f"0 to {main.shape[-1] - 1}"
        raise UserError(fault("labels", "are not tokens of the model", got=got, expected=expected))
    if metric.needs != "token_losses":
        return np.asarray(main.argmax(-1))
    scores = np.take_along_axis(main, targets[..., None], axis=-1)[..., 0].astype(np.float64)
    if "probabilities" in outputs or takes == "probabilities":
        return np.asarray(-np.log(np.maximum(scores, np.finfo(np.float32).tiny)))
    if takes == "log_probabilities":
        return np.asarray(-scores)
    highest = main.max(-1).astype(np.float64)
    with np.errstate(under="ignore"):
        return np.asarray(highest + np.log(np.exp(main - highest[..., None]).sum(-1)) - scores)


def _predictions(outputs: Mapping[str, Array], task: str, takes: Takes, metric: Metric) -> Array:
    """Return what the metric compares with targets: classes, probabilities or values."""
    main = outputs.get("output", next(iter(outputs.values())))
    if task == "regression":
        return np.asarray(main, np.float64)
    scores = outputs.get("probabilities")
    if scores is None:
        scores = probabilities(main, takes, several=task == "multilabel")
    if task == "multilabel":
        return scores if metric.needs == "scores" else (scores > 0.5).astype(np.int64)
    of_two = scores.ndim == 1 or scores.shape[1] <= 2
    positive = scores.reshape(len(scores), -1)[:, -1]
    if metric.needs == "scores":
        return positive if of_two else scores
    single = scores.ndim == 1 or scores.shape[1] == 1
    return (positive > 0.5).astype(np.int64) if single else np.asarray(scores.argmax(1))


def own_code(payload: Path) -> OwnCode:
    """Return the owner's metric for the payload of a run, and why a payload elsewhere cannot be scored by it.

    A bundle does not contain the owner's code, but the run that it is in says where the code is and who trusts it.
    Raises Refused for code that this user did not trust or that changed since, as every phase does.
    """
    if not (payload / PLAN).is_file():
        return OwnCode()
    plan = safe_yaml.load(read_bytes(payload / PLAN, "a plan", MAX_PLAN_BYTES).decode(), PLAN)
    task: dict[str, Any] = ((plan or {}).get("config") or {}).get("task") or {}
    if task.get("step"):
        return OwnCode(why="predictions come from task.step, which is not part of a bundle")
    if task.get("predict", "auto") != "auto":
        return OwnCode(why="predictions come from task.predict, which is not part of a bundle")
    metric = task.get("metric")
    if not isinstance(metric, dict):
        return OwnCode()
    target, run = metric.get("_target_"), Run(payload.parent.parent)
    if payload.parent.name != "bundle" or not run.exists():
        return OwnCode(why=f"{target} is not part of a bundle: give the run of the release instead of its bundle")
    from pipeline.evaluation.metric_config import metric_from_config
    from pipeline.trust.grants import activate_recorded

    grants = run.state().trust
    activate_recorded(grants, run.path, run.overrides)
    return OwnCode(metric_from_config(task, [grant["package"] for grant in grants]))
