"""Signals: pure functions that reduce measured curves to one float. The id of a signal is the name of its function.

Parameters are curves: float64 arrays in order of measurement, never empty, already cut to the window that the playbook
asks for; a fact is a curve of one point. A signal returns NaN where it cannot be computed, and no bound holds for NaN.
Signals are ratios, shares and counts, so that one bound fits losses of any scale. A NaN is a `NotMeasurable` and says
why. The first line of a docstring is the text of an observation: `{0}` and `{1}` are names of curves, `{start}` that of
the initial value.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from diagnostics.derived import DERIVED
from pipeline.results import counted

BLOCKS = 10  # parts of a run whose medians are its levels
Curve = NDArray[np.float64]
Signal = Callable[..., float]


class NotMeasurable(float):
    """NaN as the result of a signal. `why` says what is missing in which curve; `{0}` is the name of the first one."""

    why: str

    def __new__(cls, why: str) -> NotMeasurable:
        number = super().__new__(cls, math.nan)
        number.why = why
        return number


def _shortage(y: Curve, least: int) -> NotMeasurable | None:
    """Why the first curve has too few finite values, or None: it needs `least` values, all of them finite."""
    if len(y) < least:
        return NotMeasurable(f"{{0}} has {counted(len(y), 'value')}, at least {least} are needed")
    broken = int(np.count_nonzero(~np.isfinite(y)))
    if broken:
        return NotMeasurable(f"{broken} of {len(y)} values of {{0}} {'is' if broken == 1 else 'are'} NaN or infinite")
    return None


def _not_above_zero(value: float, what: str) -> NotMeasurable:
    return NotMeasurable(f"{what} is {value:.3g}, not above 0" if np.isfinite(value) else f"{what} is {value:g}")


def _without_finite_end(*ends: float) -> NotMeasurable:
    """Which of the curves, in their order, ends with a value that is not finite."""
    names = [f"{{{i}}}" for i, end in enumerate(ends) if not math.isfinite(end)]
    return NotMeasurable(f"{' and '.join(names)} end{'s' * (len(names) == 1)} with values that are NaN or infinite")


def nonfinite(*curves: Curve) -> float:
    """number of values of {0} that are NaN or infinite

    At least 0, counted over all curves. Measurable from one point on; never NaN.
    """
    return float(sum(np.count_nonzero(~np.isfinite(y)) for y in curves))


def first(y: Curve) -> float:
    """first value of {0}

    In the unit of the curve; NaN if that value is not finite.
    """
    return float(y[0]) if np.isfinite(y[0]) else NotMeasurable(f"the first value of {{0}} is {y[0]:g}")


def level(y: Curve) -> float:
    """final value of {0} (median of the last tenth)

    In the unit of the curve. The median ignores a single outlier. NaN if the last tenth contains a non-finite value.
    """
    value = float(np.median(y[-max(1, len(y) // 10) :]))  # long enough to smooth noise, short enough to be the end
    return NotMeasurable("{0} ends with values that are NaN or infinite") if math.isnan(value) else value


def maximum(y: Curve) -> float:
    """largest value of {0}

    In the unit of the curve. Ignores NaN values, counts infinity. NaN if every value is NaN.
    """
    known = y[~np.isnan(y)]
    return float(known.max()) if len(known) else NotMeasurable("every value of {0} is NaN")


def max_over_first(y: Curve) -> float:
    """largest value of {0} divided by its first value

    A ratio, at least 1. Ignores NaN values, counts infinity. NaN for fewer than three numbers and if the first number
    is not positive and finite.
    """
    known = y[~np.isnan(y)]  # a run that ends in NaN exploded before, and its finite part shows it
    if len(known) < 3:
        return NotMeasurable(f"{{0}} has {counted(len(known), 'number')}, at least 3 are needed")
    if not 0 < known[0] < np.inf:
        return _not_above_zero(known[0], "the first number of {0}")
    return float(known.max() / known[0])


def median_over_max(y: Curve) -> float:
    """median of {0} divided by its largest value

    A ratio, 0 to 1 for a positive curve: 1 for a constant, 0.5 for a line or a cosine that ends at zero. NaN for
    non-finite values, for fewer than three values and if the largest value is not positive.
    """
    if shortage := _shortage(y, 3):
        return shortage
    if y.max() <= 0:
        return _not_above_zero(float(y.max()), "the largest value of {0}")
    return float(np.median(y) / y.max())


def over_lowest(y: Curve) -> float:
    """final value of {0} divided by its lowest level

    A ratio, at least 1 for a positive curve. Levels are medians of tenths of the run, so that a single low step is no
    minimum. NaN for fewer than four points, for non-finite values and if the lowest level is not positive.
    """
    if shortage := _shortage(y, 4):
        return shortage
    levels = [float(np.median(block)) for block in np.array_split(y, min(BLOCKS, len(y) // 2))]
    if min(levels) <= 0:
        return _not_above_zero(min(levels), "the lowest level of {0}")
    return levels[-1] / min(levels)


def max_over_median(y: Curve) -> float:
    """largest value of {0} divided by its median

    A ratio, at least 1 for a positive curve. Ignores NaN values, counts infinity. NaN for fewer than four numbers and
    if the median is not positive and finite.
    """
    known = y[~np.isnan(y)]
    if len(known) < 4:
        return NotMeasurable(f"{{0}} has {counted(len(known), 'number')}, at least 4 are needed")
    middle = float(np.median(known))
    return float(known.max() / middle) if 0 < middle < np.inf else _not_above_zero(middle, "the median of {0}")


def spikes(y: Curve) -> float:
    """number of spikes of {0} that recovered

    A spike is at least twice the median of the block of values before it, more than 6 robust deviations and a tenth of
    the fall from the first to the lowest block above it; the curve falls below that again within a block. Blocks have
    128 values, or a quarter of a shorter curve. NaN for fewer than 16 values and for non-finite ones.
    """
    if shortage := _shortage(y, 16):
        return shortage
    size = min(128, len(y) // 4)
    whole = y[: len(y) // size * size].reshape(-1, size)
    middles = np.median(whole, 1)
    deviations = 1.4826 * np.median(np.abs(whole - middles[:, None]), 1)
    fall = float(middles[0] - middles.min())
    limits = np.maximum(middles + np.maximum(6 * deviations, fall / 10), 2 * np.abs(middles))
    block = np.minimum(np.arange(size, len(y)) // size - 1, len(limits) - 1)
    high = np.concatenate([[False], y[size:] > limits[block], [False]])
    begins, ends = np.flatnonzero(high[1:] & ~high[:-1]), np.flatnonzero(~high[1:] & high[:-1])
    return float(np.count_nonzero((ends - begins <= size) & (ends < len(y) - size)))


def oscillation(y: Curve) -> float:
    """usual change of {0} from point to point, as a share of its range

    0 to 1: the median absolute change in the second half of the run, divided by the range of the whole curve. NaN for
    fewer than eight points, for non-finite values and for a constant curve.
    """
    if shortage := _shortage(y, 8):
        return shortage
    span = float(y.max() - y.min())
    if span == 0:
        return NotMeasurable("{0} is constant")
    return float(np.median(np.abs(np.diff(y[len(y) // 2 :])))) / span


def ratio(a: Curve, b: Curve) -> float:
    """final value of {0} divided by that of {1}

    A ratio of the two levels; NaN if either is not finite or the second is 0.
    """
    numerator, denominator = level(a), level(b)
    if denominator == 0:
        return NotMeasurable("the final value of {1} is 0")
    quotient = numerator / denominator
    return _without_finite_end(numerator, denominator) if math.isnan(quotient) else quotient


def remaining(y: Curve, *start: Curve) -> float:
    """final value of {0} divided by {start}

    At least 0. For a loss, 1 equals random guessing, above 1 is worse. The initial value is the first finite
    value of the curves `start` (the loss of random guessing), else the curve's own first value. NaN for fewer than
    three points, a non-finite end and an initial value that is not positive.
    """
    if len(y) < 3:
        return NotMeasurable(f"{{0}} has {counted(len(y), 'value')}, at least 3 are needed")
    firsts = [(f"the first value of {{{i}}}", float(s[0])) for i, s in [*enumerate(start, 1), (0, y)] if len(s)]
    what, initial = next(((what, value) for what, value in firsts if np.isfinite(value)), firsts[-1])
    if not 0 < initial < np.inf:
        return _not_above_zero(initial, what)
    end = level(y)
    return end if math.isnan(end) else end / initial


def slope(y: Curve) -> float:
    """relative change of {0} along a fitted line

    About -2 to 2 for a positive curve: the change of a least-squares line over the window, divided by the mean absolute
    value. NaN for non-finite values and for fewer than four points.
    """
    if shortage := _shortage(y, 4):
        return shortage
    scale = float(np.abs(y).mean())
    x = np.linspace(-0.5, 0.5, len(y))  # centred and one long, so that the slope is the change over the whole window
    squares = len(y) * (len(y) + 1) / (12 * (len(y) - 1))  # the sum of x², in closed form
    return float((x * y).sum() / squares) / scale if scale else 0.0  # `x @ y` would wait for threads


def rise_from_best(y: Curve, *start: Curve) -> float:
    """share of its improvement that {0} lost again after its minimum

    At least 0: 0 ends at the minimum, 1 ends where the curve began. The improvement is counted from the first value of
    `start` if that is given and higher, else from the curve's own first value. NaN for fewer than four points, for
    non-finite values and for a curve that never fell.
    """
    if shortage := _shortage(y, 4):
        return shortage
    initial = max([float(y[0]), *(float(s[0]) for s in start if len(s) and np.isfinite(s[0]))])
    best = float(y.min())
    if initial <= best:
        return NotMeasurable("{0} never fell below its first value, so the improvement that could be lost is zero")
    return (level(y) - best) / (initial - best)


def since_best(y: Curve) -> float:
    """share of the run after the minimum of {0}

    0 to 1. NaN for fewer than four points and for non-finite values.
    """
    if shortage := _shortage(y, 4):
        return shortage
    return 1 - float(np.argmin(y)) / (len(y) - 1)


def gap(train: Curve, val: Curve) -> float:
    """final {1} minus final {0}, as a share of the initial {0}

    (val - train) / first train value; positive if validation is worse. NaN if a level is not finite and if the first
    train value is not positive.
    """
    initial = float(train[0])
    if not 0 < initial < np.inf:
        return _not_above_zero(initial, "the first value of {0}")
    width = max(1, round(len(train) / len(val)))  # the steps since the last validation: an epoch against an epoch
    ends = float(np.median(train[-width:])), level(val)
    difference = (ends[1] - ends[0]) / initial
    return _without_finite_end(*ends) if math.isnan(difference) else difference


def shortfall(score: Curve, target: Curve, trivial: Curve) -> float:
    """share of the gap between the trivial baseline and the target that {0} leaves open

    1 equals the trivial baseline, 0 reaches the target, below 0 exceeds it, whatever the metric's direction
    or unit. The score is the best value of its curve. NaN if target and trivial baseline are equal and for non-finite
    values.
    """
    goal, baseline = float(target[0]), float(trivial[0])
    if shortage := _shortage(score, 1):
        return shortage
    if goal == baseline:
        return NotMeasurable(f"{{1}} and {{2}} are both {goal:.3g}, so the distance between them is zero")
    best = float(score.max() if goal > baseline else score.min())  # the two also tell the direction of the metric
    share = (goal - best) / (goal - baseline)
    return NotMeasurable(f"{{1}} is {goal:g} and {{2}} is {baseline:g}") if math.isnan(share) else share


WORDS = {  # for curves whose names do not say what they measure
    **DERIVED,
    "loss_expected": "the loss of random guessing",
    "loss_at_init": "the loss before the first step",
    "lr": "the learning rate",
    "lr_over_suggested": "the planned learning rate, divided by the suggested one",
    "update_ratio": "the norm of an update, divided by that of the weights",
    "grad_norm": "the gradient norm",
    "weight_norm": "the norm of the weights",
    "input_rms": "the root mean square of the inputs",
    "inputs_gain": "the share of the loss that the inputs remove",
    "output_std": "the spread of the outputs over the rows of a batch",
    "target_rms": "the root mean square of the targets",
    "score_spread": "the range of the final losses of runs with equal settings, divided by their mean",
    "resume_loss_ratio": "the training loss of repeated steps, divided by that of the first time",
    "resume_repeat_change": "the factor by which the training loss of repeated steps changes",
    "time/data_wait": "the share of a step that waits for data",
    "time/memory_share": "the share of the memory that is used",
    "rerun_differs": "whether a repeated training differs",
    "val_rows": "the number of validation rows",
    "cross_entropy": "whether the loss is a cross-entropy (1: yes)",
    "share_untrained": "the share of parameters that are not trained",
    "val/metric": "the validation metric",
    "train/metric": "the training metric",
}
PER_MODULE = {
    "dead": "the share of dead units",
    "saturated": "the share of saturated units",
    "grad_norm": "the gradient norm",
    "update_ratio": "the norm of an update, divided by that of the weights,",
}

SIGNALS: dict[str, Signal] = {
    name: function
    for name, function in list(globals().items())
    if inspect.isfunction(function) and function.__module__ == __name__ and not name.startswith("_")
}


def curve_limits(name: str) -> tuple[int, float]:
    """Return the smallest and the largest number of curves that a signal takes.

    The smallest is 0 for a signal that takes any number of curves; the largest is infinite where it is not limited.
    """
    kinds = [p.kind for p in inspect.signature(SIGNALS[name]).parameters.values()]
    required = kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD)
    variadic = inspect.Parameter.VAR_POSITIONAL in kinds
    return required, math.inf if variadic else required


def description(name: str, curves: Sequence[str]) -> str:
    """Return the words that an observation uses for the signal of these curves: the first line of its docstring."""
    template = (inspect.getdoc(SIGNALS[name]) or name).splitlines()[0]
    template = "{0}" if name == "first" and curves[0] in WORDS else template  # a number by itself has no first value
    curve_names = [_in_words(curve) for curve in curves]
    if curve_limits(name)[0] == 0:
        return template.format(", ".join(curve_names))
    return template.format(*curve_names, start=curve_names[1] if len(curve_names) > 1 else "its initial value")


def _in_words(curve: str) -> str:
    """Return what a curve measures, if its name does not say it; `dead/body.0` is that of one module."""
    kind, _, module = curve.partition("/")
    of_module = f"{PER_MODULE.get(kind)} of {'a module' if module == '*' else module}"
    return of_module if kind in PER_MODULE and module else WORDS.get(curve, curve)
