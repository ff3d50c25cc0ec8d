"""Calibration measured on rows that it was not fitted on: reliability of probabilities, coverage of intervals."""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from pipeline.data.splits import Split
from pipeline.evaluation.evaluate import Evaluation
from pipeline.evaluation.intervals.classes import proportion_interval
from pipeline.evaluation.task import Task
from pipeline.readiness.calibration import COVERAGE, Calibration, Floats, logits_of, probabilities
from pipeline.runtime.seeds import derive

BINS, RESAMPLES = 15, 1000
CELLS = 20_000_000  # labels that are drawn at most


class Reliability(TypedDict):
    """Calibration on test rows after the temperature, or coverage of the conformal interval.

    `error` is the expected calibration error over bins of equal mass; `error_before` is that of temperature 1.
    `p_value` is the share of label sets, drawn from the model's own probabilities, whose error is at least as large.
    `why` says why nothing could be measured, in one word in `reason`; all other fields are then None.
    """

    kind: str
    rows: int
    bins: int
    error: float | None
    error_before: float | None
    p_value: float | None
    brier_score: float | None
    temperature: float | None
    coverage: float | None
    coverage_low: float | None
    coverage_high: float | None
    nominal_coverage: float | None
    half_width: float | None
    why: str
    reason: str


def measure_reliability(
    task: Task, rows: Split, evaluation: Evaluation, calibration: Calibration, seed: int
) -> Reliability:
    """Measure the calibration that was fitted on validation on other rows."""
    result = _nothing(task.kind, len(rows), calibration)
    if evaluation.outputs is None or (calibration.temperature is None and calibration.half_width is None):
        return result
    if calibration.half_width is not None:
        predicted = np.asarray(task.predictions(evaluation.outputs, rows.y), np.float64).reshape(-1)
        inside = np.abs(predicted - rows.y.numpy().astype(np.float64).reshape(-1)) <= calibration.half_width
        interval = proportion_interval(inside.astype(float), np.ones(len(inside)), rows.row_metadata.groups)
        result |= {
            "coverage": float(inside.mean()),
            "coverage_low": interval.low,
            "coverage_high": interval.high,
            "nominal_coverage": COVERAGE,
            "half_width": calibration.half_width,
        }
        return result
    logits, targets = logits_of(task, evaluation.outputs), rows.y.numpy()
    if not np.isfinite(logits).all():
        result |= {"why": "the model has outputs that are not finite", "reason": "not_finite"}
        return result
    after, before = (probabilities(task, logits, temperature) for temperature in (calibration.temperature, 1.0))
    shares, hits = events(after, targets)
    result |= {
        "bins": BINS,
        "error": expected_calibration_error(shares, hits),
        "error_before": expected_calibration_error(*events(before, targets)),
        "p_value": resampled_p_value(shares, hits, seed),
        "brier_score": brier_score(after, targets),
        "temperature": calibration.temperature,
    }
    return result


def _nothing(kind: str, rows: int, calibration: Calibration) -> Reliability:
    return {
        "kind": kind,
        "rows": rows,
        "bins": 0,
        "error": None,
        "error_before": None,
        "p_value": None,
        "brier_score": None,
        "temperature": None,
        "coverage": None,
        "coverage_low": None,
        "coverage_high": None,
        "nominal_coverage": None,
        "half_width": None,
        "why": calibration.why,
        "reason": calibration.reason,
    }


def events(shares: Floats, targets: NDArray[Any]) -> tuple[Floats, NDArray[np.bool_]]:
    """Return predicted probabilities of events [M] and whether they occurred.

    The event of a row of several classes is that the predicted class is right; with one probability per row it is the
    positive class, and with several labels every label of every row is one.
    """
    if shares.ndim == 2 and targets.ndim == 1 and shares.shape[1] > 1:
        return shares.max(axis=1), shares.argmax(axis=1) == targets
    return shares.reshape(-1), targets.reshape(-1) == 1


def _bins(shares: Floats, hits: NDArray[Any]) -> Floats:
    """Return the expected calibration error of rows of outcomes [R, M] of the same sorted probabilities [M]."""
    starts = np.unique(np.linspace(0, len(shares), min(BINS, len(shares)) + 1).astype(int)[:-1])
    error: Floats = np.abs(np.add.reduceat(hits - shares, starts, axis=1)).sum(axis=1) / len(shares)
    return error


def expected_calibration_error(shares: Floats, hits: NDArray[np.bool_]) -> float:
    """Return the mean difference of predicted and observed shares over `BINS` bins of equal mass.

    Naeini, Cooper and Hauskrecht, Obtaining Well Calibrated Probabilities Using Bayesian Binning, 2015.
    """
    order = np.argsort(shares, kind="stable")
    return float(_bins(shares[order], hits[order][None].astype(float))[0])


def resampled_p_value(shares: Floats, hits: NDArray[np.bool_], seed: int) -> float:
    """Return how often labels drawn from the probabilities themselves give at least as large an error.

    A calibrated model has a uniform p-value. It bounds what few rows can show: the error of a perfectly calibrated
    model is not 0. Vaicenavicius et al., Evaluating model calibration in classification, 2019.
    """
    order = np.argsort(shares, kind="stable")
    sorted_shares, observed = shares[order], expected_calibration_error(shares, hits)
    rng = np.random.default_rng(derive(seed, "readiness", "calibration"))
    resamples = int(np.clip(CELLS // len(shares), 100, RESAMPLES))
    block, at_least = max(1, 2_000_000 // len(shares)), 0
    for start in range(0, resamples, block):
        draws = rng.random((min(block, resamples - start), len(shares))) < sorted_shares
        at_least += int((_bins(sorted_shares, draws) >= observed).sum())
    return (at_least + 1) / (resamples + 1)


def brier_score(shares: Floats, targets: NDArray[Any]) -> float:
    """Return the mean squared error of probabilities; over several classes it is summed, from 0 to 2."""
    if shares.ndim == 2 and targets.ndim == 1 and shares.shape[1] > 1:
        squares = (shares - np.eye(shares.shape[1])[targets.astype(int)]) ** 2
        return float(squares.sum(axis=1).mean())
    return float(((shares - targets.reshape(shares.shape)) ** 2).mean())
