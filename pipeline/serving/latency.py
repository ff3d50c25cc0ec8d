"""How fast and how large is the released model, in onnxruntime and in torch?"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import nn

from pipeline.data.tree import take_rows
from pipeline.export.exported import serving
from pipeline.export.runners import load_program
from pipeline.readiness.subject import Subject
from pipeline.serving.golden import Golden
from pipeline.serving.sandbox import ChildFailed, run_isolated
from pipeline.serving.schema_file import Schema
from pipeline.serving.standalone import time_predictions

CALLS = 1000  # of one row
BATCH_CALLS = 200
SECONDS = 1.0  # for the calls of one format at one batch size, at most
QUANTILES = (0.5, 0.95, 0.99)
PROGRAM = "model.pt2"
CONFIDENCE = 0.95


class Percentile(TypedDict):
    """Milliseconds, with the limits of their 95 % interval; None where there are too few calls for a limit."""

    value: float
    low: float | None
    high: float | None


class Timing(TypedDict):
    """How long calls with one batch take; `spread` is the interquartile range divided by the median."""

    rows: int
    calls: int
    p50: Percentile
    p95: Percentile
    p99: Percentile
    rows_per_second: float
    spread: float


class Latency(TypedDict, total=False):
    """Timings by format and batch (`one`, `batch`), and what the served process needs; `why` where it gave none.

    `recommended` is the faster of the files for onnxruntime and torch, or `either`.

    `load` is the system's load per core before the measurement.
    """

    why: str
    formats: dict[str, dict[str, Timing]]
    recommended: str
    cold_start_ms: float
    memory_mb: float
    base_memory_mb: float
    size_mb: float
    threads: dict[str, int]
    load: float | None


def percentile(samples: Sequence[float], q: float) -> Percentile:
    """Return a percentile with its exact distribution-free 95 % interval, whose limits are order statistics.

    The number of samples below the true percentile is binomial (Hahn and Meeker, Statistical Intervals, 5.2). A limit
    beyond the smallest or largest sample is None.
    """
    from scipy.stats import binom

    ordered, n = np.sort(np.asarray(samples)), len(samples)
    tail = (1 - CONFIDENCE) / 2
    lower = int(binom.ppf(tail, n, q))  # P(fewer than `lower` samples lie below the percentile) <= tail
    upper = int(binom.ppf(1 - tail, n, q)) + 1
    return {
        "value": float(np.quantile(ordered, q, method="inverted_cdf")),
        "low": float(ordered[lower - 1]) if lower >= 1 else None,
        "high": float(ordered[upper - 1]) if upper <= n else None,
    }


def timing(samples: Sequence[float], rows: int) -> Timing:
    """Return the percentiles of samples in milliseconds, and the throughput at the median."""
    p50, p95, p99 = (percentile(samples, q) for q in QUANTILES)
    first, third = np.quantile(samples, (0.25, 0.75))
    return {
        "rows": rows,
        "calls": len(samples),
        "p50": p50,
        "p95": p95,
        "p99": p99,
        "rows_per_second": rows / p50["value"] * 1e3,
        "spread": float((third - first) / p50["value"]),
    }


def measure(
    subject: Subject, payload: Path, schema: Schema, golden: Golden, served: nn.Module | None = None
) -> Latency:
    """Return latency, size and memory of a payload served by onnxruntime, beside the times of torch.

    `torch` is the model as it is served, uncompiled, and `torch.export` the exported program, where the payload has
    one. All compute one row, and the rows of a training batch. onnxruntime has a process of its own and one thread;
    `cold_start_ms` is from its start to its first answer, `memory_mb` its peak, of which the interpreter alone needs
    `base_memory_mb`. `predict` is `predict.py` from a raw row to its answer.
    """
    batch = max(1, min(int(subject.config["loader"]["batch_size"]), schema["max_rows"]))
    load = os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else None
    options = {
        "rows": golden["requests"][0]["rows"],
        "batches": [["one", 1, CALLS], ["batch", batch, BATCH_CALLS]],
        "seconds": SECONDS,
    }
    try:
        report = run_isolated(time_predictions.__file__, [str(payload), repr(time.monotonic())], options)
    except ChildFailed as failure:
        return {"why": str(failure), "load": load}
    samples = report["samples"]
    formats = {
        "onnxruntime": {"one": timing(samples["one"], 1), "batch": timing(samples["batch"], batch)},
        **_torch(subject, payload, batch, served or subject.model),
        "predict": {"one": timing(samples["predict"], 1)},
    }
    return {
        "formats": formats,
        "recommended": _faster(formats),
        "cold_start_ms": report["cold_start_ms"],
        "memory_mb": report["peak_bytes"] / 1e6,
        "base_memory_mb": report["base_bytes"] / 1e6,
        "size_mb": (payload / "model.onnx").stat().st_size / 1e6,
        "threads": {"onnxruntime": 1, "torch": torch.get_num_threads()},
        "load": load,
    }


def _torch(subject: Subject, payload: Path, batch: int, served: nn.Module) -> dict[str, dict[str, Timing]]:
    """Return the timings of the model and of its exported program in this process."""
    with serving(served) as model:
        timings = {"torch": _timed(model, subject, batch)}
    if (payload / PROGRAM).is_file():
        timings["torch.export"] = _timed(load_program(payload / PROGRAM), subject, batch)
    return timings


def _timed(compute: Callable[[Any], object], subject: Subject, batch: int) -> dict[str, Timing]:
    X, rows = subject.data.val.X, len(subject.data.val)
    timings = {}
    for name, size, calls in (("one", 1, CALLS), ("batch", batch, BATCH_CALLS)):
        inputs: Any = take_rows(X, torch.arange(size) % rows)
        samples = time_predictions.timed(lambda inputs=inputs: compute(inputs), calls, SECONDS / 2)  # type: ignore[misc]
        timings[name] = timing(samples, size)
    return timings


def _faster(formats: dict[str, dict[str, Timing]]) -> str:
    """Return the format whose median for one row is shown to be smaller: the intervals do not touch; else `either`."""
    in_torch = "torch.export" if "torch.export" in formats else "torch"
    first, second = formats["onnxruntime"]["one"]["p50"], formats[in_torch]["one"]["p50"]
    if first["high"] is not None and second["low"] is not None and first["high"] < second["low"]:
        return "onnxruntime"
    if second["high"] is not None and first["low"] is not None and second["high"] < first["low"]:
        return in_torch
    return "either"
