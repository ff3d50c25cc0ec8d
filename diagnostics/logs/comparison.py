"""Several runs of one folder or file: which went well, which did not, and what differs between the two."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from diagnostics.derived import score_spread
from diagnostics.logs.columns import LogRun

CURVES = ("val/loss", "train/loss")  # the first one that both runs have is compared
REPEATED = ("seed", "name", "run")  # settings with which a training is repeated
RATIO = 1.1  # runs whose final losses differ by less are not told apart


def differences(runs: Sequence[LogRun]) -> list[str]:
    """Return what tells the best run from the worst one, in sentences; nothing if none is better than another.

    Runs are compared by the median of the last tenth of their validation loss, or of their training loss where one of
    them has no validation loss. A loss that ends in NaN is the worst.
    """
    curve = next((name for name in CURVES if all(name in run.history.names() for run in runs)), None)
    if len(runs) < 2 or curve is None:
        return []
    ends = {run.name: _end(run, curve) for run in runs}
    best, worst = min(runs, key=lambda run: ends[run.name]), max(runs, key=lambda run: ends[run.name])
    if ends[worst.name] <= RATIO * ends[best.name]:
        return []
    lines = [f"{worst.name} ends at {curve} {ends[worst.name]:.4g}, {best.name} at {ends[best.name]:.4g}"]
    settings = sorted({*best.header, *worst.header})
    for name in settings:
        one, other = worst.header.get(name, "not stated"), best.header.get(name, "not stated")
        if one != other:
            lines.append(f"{name}: {one} in {worst.name}, {other} in {best.name}")
    if "lr" not in settings:
        lines += _difference_in_rate(worst, best)
    if len(lines) == 1:
        lines.append("nothing else in the logs differs: compare the settings of both runs, beginning with batch size,")
        lines[-1] += " gradient accumulation and learning rate"
    return lines


def spread_of_equal_runs(runs: Sequence[LogRun]) -> float | None:
    """Return the range of the final losses, as a share of their mean, if all runs state the same settings; else None.

    Seeds and names may differ: they are what a sweep repeats a setting with.
    """
    curve = next((name for name in CURVES if all(name in run.history.names() for run in runs)), None)
    settings = [{k: v for k, v in run.header.items() if k not in REPEATED} for run in runs]
    if len(runs) < 2 or curve is None or not settings[0] or any(other != settings[0] for other in settings):
        return None
    return score_spread([_end(run, curve) for run in runs])


def _end(run: LogRun, curve: str) -> float:
    _, values = run.history.series(curve)
    end = float(np.median(values[-max(1, len(values) // 10) :]))
    return end if math.isfinite(end) else math.inf


def _difference_in_rate(worst: LogRun, best: LogRun) -> list[str]:
    rates = [run.history.series("lr")[1] for run in (worst, best)]
    if not all(len(rate) for rate in rates):
        return []
    one, other = (float(np.nanmax(rate)) for rate in rates)
    return [] if one == other else [f"largest learning rate: {one:g} in {worst.name}, {other:g} in {best.name}"]
