"""Intervals of any other metric, by resampling of rows or groups with a fixed seed."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from pipeline.errors import UserError
from pipeline.evaluation.intervals.bounded import NO_INTERVAL, TAIL, Array, Floats, Interval
from pipeline.evaluation.intervals.losses import unseen_share

RESAMPLES = 1000
FEWEST = 200  # resamples of many rows
CELLS = 2_000_000  # rows of all resamples together, above which there are fewer of them
CANDIDATES = 8  # pairs of rows that are tried for one row more

Measure = Callable[[Array, Array], float]  # of row numbers for the targets, and for the predictions


def bootstrap_interval(measure: Measure, targets: Array, groups: Array | None, seed: int) -> Interval:
    """Return the interval of a function of rows, from resamples of rows, or of groups, with replacement.

    `measure` takes the numbers of the rows whose targets, and whose predictions, it compares. For each limit the rows
    are resampled together with one row more that changes the value in its direction, so that a perfect score has an
    interval too: the target of some row with the prediction of another one, or a row that is there already.
    """
    n = len(targets)
    clusters = np.arange(n) if groups is None else groups
    number = int(clusters.max()) + 1
    if number < 2:
        return NO_INTERVAL
    value = measure(np.arange(n), np.arange(n))
    rng = np.random.Generator(np.random.Philox(seed))
    members = np.split(np.argsort(clusters, kind="stable"), np.cumsum(np.bincount(clusters))[:-1])
    lowering, raising = _one_more(measure, targets, value, members, rng)
    resamples = max(min(RESAMPLES, FEWEST), min(RESAMPLES, CELLS // n))
    low, of_low = _resample(measure, [*members, *lowering], number, rng, (resamples + 1) // 2, TAIL)
    high, of_high = _resample(measure, [*members, *raising], number, rng, resamples // 2, 1 - TAIL)
    return Interval(min(low, value), max(high, value), of_low + of_high, resamples)


Rows = Array | tuple[Array, Array]  # of a cluster; or those of its targets, and those of its predictions


def _one_more(
    measure: Measure, targets: Array, value: float, members: list[Array], rng: np.random.Generator
) -> tuple[list[Rows], list[Rows]]:
    """Return the cluster more that lowers the value most, and the one that raises it most; none if none does."""
    candidates: list[Rows] = []
    rows = np.arange(len(targets))
    for cluster in rng.permutation(len(members))[:CANDIDATES]:
        mine = members[cluster]
        # Each row gets the prediction of a row with another target, where there is one.
        others = [rows[_differs(targets, row)] for row in mine]
        wrong = np.array([rng.choice(o) if len(o) else row for row, o in zip(mine, others, strict=True)])
        candidates += [(mine, wrong), mine]
    changes = []
    for candidate in candidates:
        of_targets, of_predictions = candidate if isinstance(candidate, tuple) else (candidate, candidate)
        changes.append(_measured(measure, np.append(rows, of_targets), np.append(rows, of_predictions)) - value)
    if np.isnan(changes).all():
        return [], []
    least, most = int(np.nanargmin(changes)), int(np.nanargmax(changes))
    return [candidates[least]] * (changes[least] < 0), [candidates[most]] * (changes[most] > 0)


def _differs(targets: Array, row: int) -> Array:
    differs: Array = (targets != targets[row]).reshape(len(targets), -1).any(axis=1)
    return differs


def _measured(measure: Measure, of_targets: Array, of_predictions: Array) -> float:
    """Return the value, NaN where the metric does not take a pair that its model never gave."""
    try:
        return measure(of_targets, of_predictions)
    except UserError:
        return math.nan


def _resample(
    measure: Measure, clusters: list[Rows], drawn_each: int, rng: np.random.Generator, resamples: int, quantile: float
) -> tuple[float, int]:
    """Return a quantile of the function over resamples of clusters, and the number of resamples it is undefined in."""
    pairs = [c if isinstance(c, tuple) else (c, c) for c in clusters]
    targets, predictions = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
    starts = np.cumsum([0, *(len(pair[0]) for pair in pairs)])
    single = starts[-1] == len(pairs)  # one row each
    values: Floats = np.empty(resamples)
    for i in range(resamples):
        drawn = rng.integers(0, len(pairs), drawn_each)
        if not single:
            drawn = np.concatenate([np.arange(starts[c], starts[c + 1]) for c in drawn])
        values[i] = _measured(measure, targets[drawn], predictions[drawn])
    undefined = int(np.isnan(values).sum())
    return (math.nan if undefined == resamples else float(np.nanquantile(values, quantile))), undefined


def half_sample_interval(measure: Measure, n: int, groups: Array | None, seed: int) -> Interval:
    """Return the interval of a function that compares rows with each other, such as the label of the nearest row.

    A bootstrap would repeat rows, and a repeated row is nearest to itself. The function of half of the rows, drawn
    without replacement, varies as a bootstrap of all rows does: its deviations are added to the value of all rows.
    The interval contains the value with so many predictions exchanged as unseen rows may be wrong, so that a perfect
    score has an interval too.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    clusters = np.arange(n) if groups is None else groups
    number = int(clusters.max()) + 1
    if number < 2:
        return NO_INTERVAL
    rows, resamples = np.arange(n), max(min(RESAMPLES, FEWEST), min(RESAMPLES, CELLS // n))
    values: Floats = np.empty(resamples)
    for i in range(resamples):
        half = np.isin(clusters, rng.permutation(number)[: number // 2])
        values[i] = measure(rows[half], rows[half])
    undefined, value = int(np.isnan(values).sum()), measure(rows, rows)
    if undefined == resamples:
        return NO_INTERVAL._replace(undefined=undefined, resamples=resamples)
    low, high = value + np.nanquantile(values, [TAIL, 1 - TAIL]) - np.nanmean(values)
    exchanged = math.ceil(unseen_share(number) * n)
    for _ in range(CANDIDATES):
        order = rows.copy()
        chosen = rng.permutation(n)[:exchanged]
        order[chosen] = rng.permutation(order[chosen]) if exchanged > 1 else rng.integers(0, n)
        worse = _measured(measure, rows, order)
        low, high = min(low, worse if worse < value else low), max(high, worse if worse > value else high)
    return Interval(float(min(low, value)), float(max(high, value)), undefined, resamples)
