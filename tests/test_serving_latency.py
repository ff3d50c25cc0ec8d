"""Latency, size and memory of a payload are measured, and a limit that they exceed closes the gate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from checklists.checks.serving import within_limits
from pipeline.evaluation.task import Task
from pipeline.export.served_model import ServedModel
from pipeline.readiness.subject import Subject
from pipeline.results import Evidence, Result
from pipeline.serving import latency
from pipeline.serving.latency import percentile, timing
from tests.serving_payloads import Linear, config, rows, write_payload

ROOMY: dict[str, Any] = {"latency_ms_p99": 10_000.0, "size_mb": 100.0, "memory_mb": 4000.0}


def measured(samples: list[float], load: float = 0.0) -> Evidence:
    """Evidence of calls that took these milliseconds."""
    formats = {"onnxruntime": {"one": timing(samples, 1)}}
    figures = {"size_mb": 0.5, "memory_mb": 60.0, "load": load, "recommended": "either"}
    return Evidence({"within_limits": {"formats": formats, **figures}})


def test_percentile_contains_the_true_value_in_95_of_100_samples() -> None:
    """The exact interval of the 99th percentile has its coverage, and every sample of it lies inside the data."""
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        interval = percentile(generator.exponential(size=1000).tolist(), 0.99)
        assert interval["low"] is not None and interval["high"] is not None
        hits += interval["low"] <= -np.log(0.01) <= interval["high"]
    assert 0.93 <= hits / 400 <= 1.0


@given(st.lists(st.floats(0.001, 1000), min_size=4, max_size=50), st.sampled_from([0.5, 0.95, 0.99]))
def test_percentile_lies_in_its_interval(samples: list[float], q: float) -> None:
    """The value lies between its limits, and few samples have no upper limit of a high percentile."""
    interval = percentile(samples, q)
    assert (interval["low"] or 0) <= interval["value"] <= (interval["high"] or np.inf)
    assert q < 0.95 or interval["high"] is None


@pytest.mark.parametrize(("limit", "outcome"), [(5.0, "passed"), (0.5, "failed"), (None, "inconclusive")])
def test_within_limits_decides_by_the_interval(limit: float | None, outcome: str) -> None:
    """Both limits of the interval below the plan's limit pass, both above fail; no limit is inconclusive."""
    result = within_limits(measured([1.0] * 1000), **{**ROOMY, "latency_ms_p99": limit})
    assert result.outcome == outcome
    assert limit is not None or "plan.limits.latency_ms_p99=NUMBER" in result.why


def test_within_limits_is_inconclusive_on_a_noisy_machine() -> None:
    """An interval that contains the limit names the noise and the remedy."""
    samples = [1.0] * 600 + [3.0] * 388 + [9.0] * 12
    result = within_limits(measured(samples, load=2.0), **{**ROOMY, "latency_ms_p99": 5.0})
    assert result.outcome == "inconclusive"
    assert "load 2.0 per core" in result.why and "quiet machine" in result.why


@pytest.mark.parametrize("key", ["size_mb", "memory_mb"])
def test_within_limits_fails_for_a_model_that_is_too_large(key: str) -> None:
    """A size or a memory above its limit fails with this figure as the value."""
    result = within_limits(measured([1.0] * 1000), **{**ROOMY, key: 0.1})
    assert (result.outcome, result.bound, result.unit) == ("failed", 0.1, "MB")


def measured_payload(folder: Path) -> Evidence:
    schema, golden = (json.loads((folder / name).read_text()) for name in ("schema.json", "golden.json"))
    task: Task = None  # type: ignore[assignment]  # latency needs the model and rows only
    subject = Subject(Linear().eval(), task, rows(), config(), "weights", 0)
    return Evidence({"within_limits": latency.measure(subject, folder, schema, golden)})


def judged(folder: Path, **limits: float) -> Result:
    return within_limits(measured_payload(folder), **{**ROOMY, **limits})


@pytest.mark.process
def test_measure_gives_figures_of_a_real_process(tmp_path: Path) -> None:
    """A small model keeps roomy limits; every format has its percentiles, and memory is that of the child."""
    figures = measured_payload(write_payload(tmp_path))["within_limits"]
    assert {"onnxruntime", "torch", "predict"} <= set(figures["formats"])
    for timed in [timed for batches in figures["formats"].values() for timed in batches.values()]:
        p50, p95, p99 = (timed[name] for name in ("p50", "p95", "p99"))
        assert 0 < p50["value"] <= p95["value"] <= p99["value"] and timed["rows_per_second"] > 0
        assert p50["low"] <= p50["value"] <= p50["high"] and p95["low"] <= p95["value"]
    assert figures["base_memory_mb"] < figures["memory_mb"] < 300
    assert figures["cold_start_ms"] > 0 and figures["formats"]["onnxruntime"]["one"]["calls"] == 1000
    assert within_limits(Evidence({"within_limits": figures}), **ROOMY).outcome == "passed"


@pytest.mark.process
def test_measure_times_the_exported_program(tmp_path: Path) -> None:
    """Where the payload has an exported program, it is timed, and is what is recommended if it is faster."""
    data, payload = rows(), write_payload(tmp_path)
    free = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(ServedModel(Linear()).eval(), (data.val.X[:2],), dynamic_shapes=free)
    torch.export.save(program, payload / "model.pt2")
    figures = measured_payload(payload)["within_limits"]
    assert list(figures["formats"]) == ["onnxruntime", "torch", "torch.export", "predict"]
    assert figures["recommended"] in ("onnxruntime", "torch.export", "either")


@pytest.mark.process
def test_within_limits_fails_for_a_slow_model(tmp_path: Path) -> None:
    """A session that sleeps exceeds a limit of 1 ms."""
    script = write_payload(tmp_path) / "predict.py"
    slow = """

class Slow:
    def __init__(self, session):
        self.session = session

    def run(self, *arguments):
        __import__("time").sleep(0.01)
        return self.session.run(*arguments)


class Predictor(Predictor):
    def __init__(self, folder):
        super().__init__(folder)
        self.session = Slow(self.session)
"""
    script.write_text(script.read_text().partition("if __name__")[0] + slow)
    result = judged(tmp_path, latency_ms_p99=1.0)
    assert (result.outcome, result.unit) == ("failed", "ms"), result.why


@pytest.mark.process
def test_within_limits_fails_for_a_large_file(tmp_path: Path) -> None:
    """The size of the exported file is compared with its limit."""
    assert "size" in judged(write_payload(tmp_path), size_mb=1e-4).why.split(";")[1]
    assert judged(tmp_path, size_mb=1e-4).outcome == "failed"
