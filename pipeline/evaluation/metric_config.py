"""From `task.metric` and `task.metrics` of a config to metrics, with a message for each that does not fit the task."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np

from pipeline.errors import UserError, fault, nearest
from pipeline.evaluation.metrics import (
    BUILT_IN,
    METRICS_BY_KIND,
    Array,
    Metric,
    Needs,
    named_metric,
    without_warnings,
)
from pipeline.evaluation.predictions import as_column


def _user_metric(node: Mapping[str, Any], kind: str, trust: Sequence[str], where: str) -> Metric:
    """Return a user's `(targets, predictions) -> float` with its attributes `needs` and `greater_is_better`.

    Raises UserError for a function without `greater_is_better`: the wrong direction would choose the worst epoch.
    """
    from pipeline.config.build import build_function

    function: Any = build_function(node, 2, trust=trust, where=where)
    if not callable(function):
        got = type(function).__name__
        raise UserError(fault(where, "is not callable", got=got, expected="(targets, predictions) -> float"))
    # A partial function has the attributes of the function that it completes.
    attributes = function.func if isinstance(function, functools.partial) else function
    needs: Any = getattr(
        attributes, "needs", "values" if kind in ("regression", "autoencoder", "custom") else "classes"
    )
    if needs not in (known := [n for n in get_args(Needs) if n != "step"]):
        raise UserError(fault(where, "needs unknown predictions", got=needs, among=known))
    name = str(getattr(attributes, "name", str(node["_target_"]).rsplit(".", 1)[-1]))
    if name == "loss":
        raise UserError(fault(where, "has the loss's name", got=name, do="give the function an attribute `name`"))
    better = getattr(attributes, "greater_is_better", None)
    if not isinstance(better, bool | np.bool_):
        raise UserError(_no_direction(str(node["_target_"]), better, where))
    called = functools.partial(without_warnings, function=function)
    return Metric(name, called, needs, bool(better), where, users_own=True)


def _no_direction(target: str, got: object, where: str) -> str:
    """The message for a metric of the user's own that does not say whether a higher value is better."""
    own = target.rpartition(".")[2]
    # A class has its attributes inside, a function below it.
    line = "greater_is_better = False" if own[:1].isupper() else f"{own}.greater_is_better = False"
    place = "in the class" if own[:1].isupper() else "below the function"
    what, expected = "does not say whether a higher value is better", "an attribute greater_is_better, True or False"
    do = f"write {place}: {line} (an error: lower is better), or True (a score: higher is better)"
    return fault(where, f"{target} {what}", got=got, expected=expected, do=do)


def with_columns(metric: Metric) -> Metric:
    """Return a metric that passes targets and predictions [N] to its function as [N, 1], as the user's data are."""
    return replace(metric, function=functools.partial(_of_columns, function=metric.function))


def _of_columns(targets: Array, predictions: Array, *, function: Callable[..., float]) -> float:
    return function(as_column(targets), as_column(predictions))


def _read_from_step(targets: Array, predictions: Array) -> float:
    raise AssertionError("a scalar of task.step is read, not computed")


def metric_from_config(task: Mapping[str, Any], trust: Sequence[str] = (), where: str = "task.metric") -> Metric:
    """Return the metric that `task.metric` names: a scikit-learn scorer, `rmse`, `mae`, `perplexity`, or a `_target_`.

    With a `task.step`, also `loss`, and any other name for a scalar that the step returns; a leading `-` says that
    lower is better. Raises UserError for an unknown name, and for a metric that does not measure this kind of task.
    """
    name, kind = task["metric"], task["kind"]
    if isinstance(name, Mapping):
        return _user_metric(name, kind, trust, where)
    has_step = bool(task.get("step"))
    if has_step and (name == "loss" or name.startswith("-")):
        return Metric(name.removeprefix("-"), _read_from_step, "step", False, where)
    known = named_metric(str(name), kind)
    if known is None and has_step:
        return Metric(name, _read_from_step, "step", True, where)
    if known is None:
        raise UserError(_unknown_metric(str(name), task, where))
    if kind != "custom" and known.needs not in METRICS_BY_KIND[kind][0]:
        expected, first = f"one like {METRICS_BY_KIND[kind][1]}", METRICS_BY_KIND[kind][1].partition(" ")[0].strip(",")
        do = _correction(task, where, first)
        raise UserError(fault(where, f"does not measure a {kind} task", got=name, expected=expected, do=do))
    return replace(known, where=where)


def _unknown_metric(name: str, task: Mapping[str, Any], where: str) -> str:
    """The message for an unknown metric: the one that other libraries call so, else the most similar one."""
    from sklearn.metrics import get_scorer_names

    from pipeline.config.override_keys import familiar_value

    names = [known for known in [*BUILT_IN, "perplexity", *get_scorer_names()] if _measures(known, task["kind"])]
    advice = familiar_value("task.metric", name)
    meant = advice.overrides[0].partition("=")[2] if advice else ""
    close = meant if meant in names else nearest(name, names)
    expected, first = "a scikit-learn scorer, rmse, mae, perplexity, or a _target_", "loss"
    if task["kind"] in METRICS_BY_KIND:
        expected += f", like {METRICS_BY_KIND[task['kind']][1]}"
        first = METRICS_BY_KIND[task["kind"]][1].partition(" ")[0].strip(",")
    return fault(
        where, "unknown metric", got=name, expected=expected, close=close, do=_correction(task, where, close or first)
    )


def _measures(name: str, kind: str) -> bool:
    known = named_metric(name, kind)
    return known is not None and (kind == "custom" or known.needs in METRICS_BY_KIND[kind][0])


def _correction(task: Mapping[str, Any], where: str, name: str) -> str:
    """The command that puts a metric in this place; an override replaces the whole list of further metrics."""
    if where == "task.metric":
        return f"python -m pipeline ... task.metric={name}"
    place = int(where.partition("[")[2].rstrip("]"))
    metrics = [name if i == place else m for i, m in enumerate(task.get("metrics") or ())]
    if not all(isinstance(m, str) for m in metrics):
        return f"write {name} in its place in task.metrics"
    return f"python -m pipeline ... 'task.metrics=[{','.join(metrics)}]'"


def metrics_from_config(task: Mapping[str, Any], trust: Sequence[str] = ()) -> tuple[Metric, ...]:
    """Return the deciding metric (`task.metric`), then those of `task.metrics`, each once.

    Raises UserError naming the key of a metric that does not measure this task, or whose name is taken.
    """
    metrics = {_identity(task["metric"]): metric_from_config(task, trust)}
    for i, name in enumerate(task.get("metrics") or ()):
        if _identity(name) in metrics:
            continue
        metric = metric_from_config({**task, "metric": name}, trust, f"task.metrics[{i}]")
        if metric.name in (m.name for m in metrics.values()):
            raise UserError(fault(metric.where, "another metric has this name already", got=metric.name))
        metrics[_identity(name)] = metric
    return tuple(metrics.values())


def _identity(name: str | Mapping[str, Any]) -> str:
    return repr(sorted(name.items(), key=str)) if isinstance(name, Mapping) else str(name)
