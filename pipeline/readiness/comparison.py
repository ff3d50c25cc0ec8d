"""Paired comparison of two predictors on the same rows, with a one-sided 95 % bound of their difference.

The bound of accuracy is Tango's score limit for paired proportions (Statistics in Medicine 17, 1998), which also holds
where the predictors differ on few rows or on none. Every other metric is resampled by rows, or by declared groups.
"""

from __future__ import annotations

import math
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.intervals.score import VALUE_LOSSES
from pipeline.evaluation.metrics import Metric
from pipeline.runtime.seeds import derive

Z = 1.6448536269514722  # the 95 % quantile of the normal distribution
RESAMPLES, SLOW_RESAMPLES = 1000, 300  # of means per row, and of metrics that are computed again each time
MIN_UNITS = 10  # rows or groups; fewer give no bound
CELLS = 20_000_000  # numbers that are drawn at most

Array = NDArray[Any]


class Comparison(TypedDict):
    """Another predictor's score on the same rows; `difference` and its lower bound are positive where ours is better.

    `bound` is None where too few rows, or an undefined metric, give none.
    """

    name: str
    how: str
    value: float
    difference: float
    bound: float | None
    method: str


def compare(
    name: str,
    how: str,
    metric: Metric,
    targets: Array,
    ours: Array,
    theirs: Array,
    seed: int,
    groups: Array | None = None,
) -> Comparison:
    """Compare two predictors, given in the form that the metric takes, on the same rows."""
    sign = 1 if metric.greater_is_better else -1
    value = metric(targets, theirs)
    difference = sign * (metric(targets, ours) - value)
    bound, method = _bound(metric, targets, ours, theirs, seed, groups)
    finite = math.isfinite(difference) and bound is not None and math.isfinite(bound)
    return {
        "name": name,
        "how": how,
        "value": value,
        "difference": difference,
        "bound": bound if finite else None,
        "method": method,
    }


def _bound(
    metric: Metric, targets: Array, ours: Array, theirs: Array, seed: int, groups: Array | None
) -> tuple[float | None, str]:
    units = len(targets) if groups is None else len(np.unique(groups))
    if units < MIN_UNITS:
        return None, f"{units} independent {'rows' if groups is None else 'groups'} give no bound"
    if metric.name == "accuracy" and not metric.users_own and groups is None and targets.ndim == 1:
        right, other = ours == targets, theirs == targets
        return paired_proportions_bound(int((right & ~other).sum()), int((other & ~right).sum()), units), "score limit"
    rng = np.random.default_rng(derive(seed, "readiness", "paired"))
    unit = "rows" if groups is None else "groups"
    losses = row_losses(metric, targets, ours), row_losses(metric, targets, theirs)
    if losses[0] is not None and losses[1] is not None:
        means = _resampled_means(np.stack([losses[0][0], losses[1][0]]), groups, rng)
        from_mean = np.vectorize(losses[0][1])
        values = from_mean(means[1]) - from_mean(means[0])
    else:
        values = _resampled_values(metric, targets, ours, theirs, groups, rng)
    values = values[np.isfinite(values)]
    if len(values) < SLOW_RESAMPLES / 2:
        return None, "the metric is undefined on most resamples"
    return float(np.quantile(values, 0.05)), f"bootstrap of {unit}, {len(values)} resamples"


def paired_proportions_bound(gains: int, losses: int, n: int) -> float:
    """Return the lower one-sided 95 % limit of the difference (gains - losses) / n of two paired proportions."""
    from scipy.optimize import brentq

    def statistic(difference: float) -> float:
        """The score statistic at a difference, less the quantile."""
        b = -gains - losses + (2 * n - gains + losses) * difference
        c = -losses * difference * (1 - difference)
        share = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
        variance = n * (2 * share + difference * (1 - difference))
        return (gains - losses - n * difference) / math.sqrt(max(variance, 1e-12)) - Z

    observed = (gains - losses) / n
    low = -1 + 1e-9
    if observed <= low or statistic(low) <= 0:
        return -1.0
    return float(brentq(statistic, low, observed))


def row_losses(metric: Metric, targets: Array, predictions: Array) -> tuple[Array, Any] | None:
    """Return losses [N] per row of which the metric's loss is a function of the mean; None for another metric."""
    if metric.users_own or not np.isfinite(predictions).all():
        return None
    if metric.row_losses is not None:
        return metric.row_losses[0](targets, predictions), metric.row_losses[1]
    if metric.name == "accuracy" and targets.shape == predictions.shape:
        wrong = (targets != predictions).reshape(len(targets), -1)
        if wrong.shape[1] == 1:
            return wrong[:, 0].astype(float), float
    if metric.name in VALUE_LOSSES and targets.size == len(targets):
        loss, from_mean = VALUE_LOSSES[metric.name]
        y, p = (values.astype(np.float64).reshape(-1) for values in (targets, predictions))
        return loss(y, p), from_mean
    return None


def _resampled_means(losses: Array, groups: Array | None, rng: np.random.Generator) -> Array:
    """Return means [2, resamples] of two rows of losses [2, N]; whole groups are drawn where there are any."""
    numbers = np.arange(losses.shape[1]) if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)
    units = int(numbers.max()) + 1
    sums = np.stack([np.bincount(numbers, row, units) for row in losses])
    sizes = np.bincount(numbers, minlength=units).astype(float)
    resamples = int(np.clip(CELLS // units, SLOW_RESAMPLES, RESAMPLES))
    means = []
    for _ in range(resamples):
        drawn = np.bincount(rng.integers(0, units, units), minlength=units)
        means.append(sums @ drawn / (sizes @ drawn))
    return np.stack(means, axis=1)


def _resampled_values(
    metric: Metric, targets: Array, ours: Array, theirs: Array, groups: Array | None, rng: np.random.Generator
) -> Array:
    """Return the differences of a metric that is computed again on each resample; NaN where it is undefined."""
    n, sign = len(targets), 1 if metric.greater_is_better else -1
    members = None
    if groups is not None:
        numbers = np.unique(groups, return_inverse=True)[1].reshape(-1)
        members = np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers))[:-1])
    values = []
    for _ in range(SLOW_RESAMPLES):
        if members is None:
            rows = rng.integers(0, n, n)
        else:
            rows = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        values.append(sign * (metric(targets[rows], ours[rows]) - metric(targets[rows], theirs[rows])))
    return np.array(values)
