"""Signals: pure functions of measured curves that give one float. A signal is found by its function's name.

Its parameters are curves: float64, in order of measurement, never empty, already cut to the window that the playbook
asks for; a fact is a curve of one point. NaN in the answer means *not measurable*: no bound holds over it. Bounds are
set on what has no scale: ratios, shares, counts. The first line of a docstring, read after the curves' names, is how
the observation is told to people.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Curve = NDArray[np.float64]
Signal = Callable[..., float]

NOT_MEASURABLE = math.nan


def nonfinite(*curves: Curve) -> float:
    """values that are NaN or infinite

    Range 0 and up, a count over all curves given. Measurable from one point on.
    """
    return float(sum(np.count_nonzero(~np.isfinite(y)) for y in curves))


def first(y: Curve) -> float:
    """first value

    Unit of the curve; NaN where that value is not finite.
    """
    return float(y[0]) if np.isfinite(y[0]) else NOT_MEASURABLE


def level(y: Curve) -> float:
    """value at the end (median of the last tenth)

    Unit of the curve. One outlier does not move it; NaN where that tenth holds a non-finite value.
    """
    return float(np.median(y[-max(1, len(y) // 10) :]))


def maximum(y: Curve) -> float:
    """largest value

    Unit of the curve. NaN values are passed over, infinity counts; NaN where nothing else was measured.
    """
    known = y[~np.isnan(y)]
    return float(known.max()) if len(known) else NOT_MEASURABLE


def max_over_first(y: Curve) -> float:
    """largest value over the first

    Range 1 and up, a ratio. NaN values are passed over, infinity counts. NaN for fewer than three numbers
    or where the first is not positive.
    """
    known = y[~np.isnan(y)]
    if len(known) < 3 or not 0 < known[0] < np.inf:
        return NOT_MEASURABLE
    return float(known.max() / known[0])


def median_over_max(y: Curve) -> float:
    """median over largest value

    Range 0 to 1 for a positive curve, a ratio: 1 for a constant, 0.5 for a line or cosine to zero. NaN for non-finite
    values, fewer than three, or a largest value that is not positive.
    """
    if len(y) < 3 or not np.isfinite(y).all() or y.max() <= 0:
        return NOT_MEASURABLE
    return float(np.median(y) / y.max())


def ratio(a: Curve, b: Curve) -> float:
    """ratio of their values at the end

    A ratio of the two levels; NaN where either is not finite or the second is 0.
    """
    below = level(b)
    return level(a) / below if below else NOT_MEASURABLE


def remaining(y: Curve, *guess: Curve) -> float:
    """share of the starting loss that is left at the end

    Range 0 and up: 1 is no better than guessing, above 1 is worse. The start is the first finite of `guess` (what
    guessing costs), else the curve's own first value. NaN for fewer than three points, a non-finite end or a start
    that is not positive.
    """
    start = next((float(g[0]) for g in (*guess, y) if len(g) and np.isfinite(g[0])), 0.0)
    return level(y) / start if len(y) >= 3 and start > 0 else NOT_MEASURABLE


def slope(y: Curve) -> float:
    """relative change along its fitted line

    Range about -2 to 2 for a positive curve: the change over the window, of a least-squares line, over the mean
    absolute value. NaN for non-finite values or fewer than four points.
    """
    if len(y) < 4 or not np.isfinite(y).all():
        return NOT_MEASURABLE
    scale = float(np.abs(y).mean())
    x = np.linspace(-0.5, 0.5, len(y))
    return float(x @ y / (x @ x)) / scale if scale else 0.0


def rise_from_best(y: Curve, *start: Curve) -> float:
    """share of its fall that it has lost again since its best

    Range 0 and up: 0 ends at its best, 1 ends where it began. The fall is counted from the first value of `start`
    where that is given and higher, else from the curve's own first. NaN for fewer than four points, non-finite
    values or a curve that never fell.
    """
    if len(y) < 4 or not np.isfinite(y).all():
        return NOT_MEASURABLE
    began = max([float(y[0]), *(float(s[0]) for s in start if len(s) and np.isfinite(s[0]))])
    best = float(y.min())
    return (level(y) - best) / (began - best) if began > best else NOT_MEASURABLE


def since_best(y: Curve) -> float:
    """share of the run that came after its best

    Range 0 to 1. NaN for fewer than four points or non-finite values.
    """
    if len(y) < 4 or not np.isfinite(y).all():
        return NOT_MEASURABLE
    return 1 - float(np.argmin(y)) / (len(y) - 1)


def gap(train: Curve, val: Curve) -> float:
    """distance between their ends as a share of where they began

    Positive where validation is worse: (val - train) / first train value. The training level is the median over as
    large a share of its curve as one validation stands for. NaN where a level is not finite or the start not positive.
    """
    began = float(train[0])
    if not 0 < began < np.inf:
        return NOT_MEASURABLE
    width = max(1, round(len(train) / len(val)))
    return (level(val) - float(np.median(train[-width:]))) / began


def shortfall(score: Curve, target: Curve, trivial: Curve) -> float:
    """share of the way from the trivial predictor to the target that is still missing

    1 is no better than trivial, 0 reaches the target, negative surpasses it; whatever the metric's direction or unit.
    The score is the best that the curve reached. NaN where target and trivial are equal or something is not finite.
    """
    goal, bottom = float(target[0]), float(trivial[0])
    if goal == bottom or not np.isfinite(score).all():
        return NOT_MEASURABLE
    best = float(score.max() if goal > bottom else score.min())
    return (goal - best) / (goal - bottom)


SIGNALS: dict[str, Signal] = {
    name: function
    for name, function in list(globals().items())
    if inspect.isfunction(function) and function.__module__ == __name__
}


def curves_wanted(name: str) -> tuple[int, float]:
    """The least and the greatest number of curves that a signal takes; the least is 0 where any one of them will do."""
    kinds = [p.kind for p in inspect.signature(SIGNALS[name]).parameters.values()]
    least = kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD)
    open_ended = inspect.Parameter.VAR_POSITIONAL in kinds
    return least, math.inf if open_ended else least


def phrase(name: str) -> str:
    """How the signal is told to people: the first line of its docstring."""
    return (inspect.getdoc(SIGNALS[name]) or name).splitlines()[0]
