"""Calls a user's own training function, and reads the score from its result."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, SupportsFloat

from pipeline.errors import UserError, fault, nearest
from pipeline.history import History

Train = Callable[..., object]
Mode = Literal["max", "min"]

NO_NAME = "score"  # of a metric that was not named
LOWER_IS_BETTER = frozenset(
    {"loss", "error", "err", "mse", "rmse", "mae", "mape", "msle", "rmsle", "nll", "perplexity", "ppl", "deviance"}
    | {"brier", "wer", "cer", "fid", "ece", "bpc", "bpb"}
)
EXPECTED = "a number, a mapping of metrics, a History, or epochs of them as a sequence or generator"


def greater_is_better(metric: str | None, mode: str | None = None) -> bool:
    """Return whether a higher metric is better: as `mode` says (`max` or `min`), else by the metric's name.

    A name with a word such as `loss`, `error` or `rmse` is lower-is-better; all others, and `neg_...`, higher.
    """
    if mode not in (None, "max", "min"):
        raise UserError(fault("mode", "is no direction", got=str(mode), among=("max", "min")))
    if mode is not None:
        return mode == "max"
    words = re.findall("[a-z]+", (metric or NO_NAME).lower())
    return "neg" in words or not LOWER_IS_BETTER.intersection(words)


def call_training(train: Train, config: object, seed: int) -> object:
    """Call `train` on a copy of the config and return what it returns.

    The seed is passed as `seed=` where the function takes it, else in the config: as the key `seed` of a mapping or the
    field `seed` of a dataclass. Raises UserError where it can be passed in neither.
    """
    config = copy.deepcopy(config)
    if _takes_seed(train):
        return train(config, seed=seed)
    if isinstance(config, Mapping):
        return train({**config, "seed": seed})
    if dataclasses.is_dataclass(config) and any(field.name == "seed" for field in dataclasses.fields(config)):
        return train(dataclasses.replace(config, seed=seed))  # type: ignore[type-var]  # an instance, since deep-copied
    got = f"a config of type {type(config).__name__}"
    raise UserError(fault("train", "takes no seed", got=got, expected="a parameter `seed`, or a mapping as config"))


def _takes_seed(train: Train) -> bool:
    try:
        parameters = inspect.signature(train).parameters
    except (TypeError, ValueError):  # built-in functions may have no signature
        return False
    return "seed" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def score_of(result: object, metric: str | None) -> float:
    """Return the last value of the metric in what a training returned; NaN if its history is empty."""
    last = math.nan
    for last in scores_of(result, metric):  # noqa: B007
        pass
    return last


def scores_of(result: object, metric: str | None) -> Iterator[float]:
    """Yield the metric of each epoch, as it comes, from what a training returned; one value of a single score.

    A result is a number, a mapping of metrics to numbers or to values per epoch, a `History` of Fivegate or Keras, or a
    sequence or generator of numbers or mappings, one per epoch. Raises UserError for anything else, and where `metric`
    is not in it.
    """
    if isinstance(result, History):
        yield from _series(result, metric)
    elif isinstance(result, Mapping):
        yield from _per_epoch(_metric_in(result, metric))
    elif isinstance(getattr(result, "history", None), Mapping):  # Keras
        yield from scores_of(getattr(result, "history"), metric)  # noqa: B009
    elif _is_number(result):
        yield _number(result)
    elif isinstance(result, Iterable) and not isinstance(result, str | bytes):
        for epoch in result:
            yield _number(_metric_in(epoch, metric) if isinstance(epoch, Mapping) else epoch)
    else:
        raise UserError(fault("train", "does not return a score", got=_shown(result), expected=EXPECTED))


def _series(history: History, metric: str | None) -> Sequence[float]:
    names = history.names()
    if metric is None or history.table(metric) is None:
        raise UserError(_missing(metric, names))
    return [float(value) for value in history.series(metric)[1]]


def _metric_in(result: Mapping[str, object], metric: str | None) -> object:
    if metric is None and len(result) == 1:
        return next(iter(result.values()))
    if metric is None or metric not in result:
        raise UserError(_missing(metric, [*map(str, result)]))
    return result[metric]


def _missing(metric: str | None, names: Sequence[str]) -> str:
    if metric is None:
        return fault("metric", "is needed, since the training returns several", got=None, among=names)
    what = "is not in what the training returns"
    return fault("metric", what, got=metric, among=names, close=nearest(metric, names))


def _per_epoch(value: object) -> Iterator[float]:
    if _is_number(value) or isinstance(value, str) or not isinstance(value, Iterable):
        yield _number(value)
    else:
        yield from map(_number, value)


def _is_number(value: object) -> bool:
    """Return whether a value is one number; a tensor or array is one if it has no axis."""
    return isinstance(value, SupportsFloat) and not getattr(value, "shape", ()) and not isinstance(value, str)


def _number(value: object) -> float:
    if not _is_number(value):
        raise UserError(fault("train", "does not return a score", got=_shown(value), expected=EXPECTED))
    return float(value)  # type: ignore[arg-type]  # _is_number


def _shown(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
