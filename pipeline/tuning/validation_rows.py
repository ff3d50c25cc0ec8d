"""Two runs of one seed each, compared by the losses of the same validation rows."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError, fault
from pipeline.evaluation.intervals.bounded import exact_limits, sums_by
from pipeline.foreign_files import read_bytes, read_npz
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState
from pipeline.tuning.comparison import Comparison, answer_of
from pipeline.tuning.paired_test import PairedTest, student_test

DTYPES = {"losses": np.float64, "groups": np.int64}
EXPECTED = "the losses of validation rows that a baseline wrote"
FEWEST_UNITS = 10  # rows or groups; fewer give no interval
SHARES = ("accuracy",)  # metrics of which a row's loss is 0 or 1, and the score 1 less their mean
ONE_SEED = "one seed: whether the difference is more than another seed's luck, only several seeds show"

Losses = NDArray[np.float64]


class RowLosses(NamedTuple):
    """The loss of each validation row, and the number of its group; rows are groups of their own without any."""

    losses: Losses
    groups: NDArray[np.int64]


def to_bytes(losses: NDArray[Any], groups: NDArray[Any] | None) -> bytes:
    """Return losses [N] with the groups [N] that the owner of the data declared as npz."""
    numbers = np.zeros(0, np.int64) if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, losses=losses.astype(np.float64), groups=numbers.astype(np.int64))
    return buffer.getvalue()


def compare_runs(runs: tuple[Run, Run], names: tuple[str, str], metric: str | None) -> Comparison:
    """Return whether the model of the second run is better than that of the first, on the validation rows of both.

    Raises UserError with all faults for runs without such losses, of different metrics or of different rows.
    """
    states = runs[0].state(), runs[1].state()
    scores = [_score(run, state) for run, state in zip(runs, states, strict=True)]
    faults = [found for found in scores if isinstance(found, str)]
    if faults:
        raise UserError(*faults)
    measured = [str(score["metric"]) for score in scores if not isinstance(score, str)]
    if measured[0] != measured[1]:
        faults.append(fault("compare", "compares runs of different metrics", got=" and ".join(measured)))
    elif metric not in (None, measured[0]):
        faults.append(fault("--metric", "is not recorded by row", got=metric, expected=measured[0]))
    if _rows_digest(runs[0]) != _rows_digest(runs[1]):
        what = "compares runs with different validation rows, which cannot be paired"
        faults.append(fault("compare", what, do=_over_seeds()))
    if faults:
        raise UserError(*faults)
    first, second = (_read(run, state) for run, state in zip(runs, states, strict=True))
    return compare_rows(first, second, names, measured[0])


def compare_rows(first: RowLosses, second: RowLosses, names: tuple[str, str], metric: str) -> Comparison:
    """Compare two predictors by their losses of the same rows.

    For accuracy the test counts the rows of which one predictor alone is right (McNemar's exact test), with the
    interval of the same distribution. Other losses, and rows in groups, get Student's paired test of the groups' sums.
    """
    differences = first.losses - second.losses  # positive where the second is better
    grouped = len(first.groups) > 0
    shares = metric in SHARES
    if shares and not grouped:
        test = _exact(int((differences > 0).sum()), int((differences < 0).sum()), len(differences))
    else:
        test = _group_test(differences, first.groups if grouped else np.arange(len(differences)))
    means = float(first.losses.mean()), float(second.losses.mean())
    units = f" in {len(np.unique(first.groups))} groups" if grouped else ""
    return Comparison(
        answer=answer_of(test),
        effect=test.effect,
        low=test.low,
        high=test.high,
        p=test.p,
        noise_floor=None,
        metric=metric if shares else f"{metric} (mean loss of a row)",
        greater_is_better=shares,
        names=names,
        means=(1 - means[0], 1 - means[1]) if shares else means,
        basis=f"one seed, {len(differences)} validation rows{units}",
        notes=(ONE_SEED,),
    )


def _exact(gains: int, losses: int, rows: int) -> PairedTest:
    """Return McNemar's exact test; the interval is that of the gains' share of the rows that differ."""
    from scipy.special import bdtr

    differing = gains + losses
    if not differing:
        most = float(exact_limits(np.array([0]), np.array([rows]))[1][0])
        return PairedTest(0.0, -most, most, 1.0)
    low, high = (float(limit[0]) for limit in exact_limits(np.array([gains]), np.array([differing])))
    share = differing / rows
    p = min(1.0, 2 * float(bdtr(min(gains, losses), differing, 0.5)))
    return PairedTest((gains - losses) / rows, (2 * low - 1) * share, (2 * high - 1) * share, p)


def _group_test(differences: Losses, groups: NDArray[np.int64]) -> PairedTest:
    """Return Student's test of the mean difference, in which the rows of a group count as one value."""
    sums = sums_by(groups, differences) / len(differences)
    count, effect = len(sums), float(sums.sum())
    if count < FEWEST_UNITS:
        return PairedTest(effect, -math.inf, math.inf, 1.0)
    return student_test(effect, float(sums.std(ddof=1)) * math.sqrt(count), count)


def _score(run: Run, state: RunState) -> Mapping[str, Any] | str:
    """Return the score of the run's candidate whose losses are recorded by row, or what is wrong."""
    candidate, score = state.candidate, state.score
    if candidate is None or score is None:
        do = f"python -m pipeline status {run.argument}"
        return fault(run.name, "has no scored model to compare", expected="a run whose baseline was scored", do=do)
    if candidate["phase"] != "baseline":
        what = f"has a model of {candidate['phase']}, whose losses are not recorded by row"
        return fault(run.name, what, expected="a model of the baseline", do=_over_seeds())
    if "row_losses" not in state.finished["baseline"].get("artifacts", {}):
        what = f"has no losses by row: {score['metric']} is no mean over rows, or the run is of an earlier version"
        return fault(run.name, what, do=_over_seeds())
    return {**score}


def _over_seeds() -> str:
    return "compare sweeps over seeds: python -m pipeline -m phase=baseline ... seed=1,2,3,4,5,6,7"


def _read(run: Run, state: RunState) -> RowLosses:
    path = run.inside(state.finished["baseline"]["artifacts"]["row_losses"]["path"])
    arrays = read_npz(read_bytes(path, EXPECTED), str(path), DTYPES, EXPECTED)
    return RowLosses(arrays["losses"], arrays["groups"])


def _rows_digest(run: Run) -> object:
    """Return the digest of the validation rows in the manifest of the plan."""
    path = run.inside("planning", "manifest.json")
    manifest = json.loads(read_bytes(path, "the manifest of a plan"))
    return manifest["splits"]["val"]
