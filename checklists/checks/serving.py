"""Checks of serving: the payload answers in an isolated process, and keeps its limits of time, size and memory."""

from __future__ import annotations

from typing import Any

from pipeline.results import Evidence, Outcome, Result

NOISY = 0.5  # the interquartile range of a quiet machine is a tenth of the median
BUSY = 0.7  # load per core


def serves_alone(evidence: Evidence) -> Result:
    """Pass when a process without torch, this project and network answers every golden request within its tolerance,
    and refuses every malformed one with the typed error that is expected.
    """
    served = evidence["sandbox_serve"]
    if served.get("why"):
        return Result("failed", why=served["why"])
    faults = _isolation_faults(served["proof"])
    largest = 0.0
    for answer in served["answers"]:
        wrong = answer["got"] != answer["expected"]
        if answer["request"].startswith("golden"):
            largest = max(largest, answer["error"] or 0.0)
            wrong = answer["error"] is None or not answer["error"] <= served["tolerance"]
        if wrong:
            got = answer["got"] if answer["error"] is None else f"a difference of {answer['error']:.3g}"
            faults.append(f"{answer['request']}: got {got}, expected {answer['expected']}")
    golden = sum(answer["request"].startswith("golden") for answer in served["answers"])
    if not golden or golden == len(served["answers"]):
        return Result("errored", why="no golden or no malformed request was made")
    if faults:
        return Result("failed", len(faults), 0, "faults", "; ".join(faults))
    why = f"{golden} golden requests answered, largest difference {largest:.2g}; "
    why += f"{len(served['answers']) - golden} malformed requests refused; no torch, network cut off by "
    why += {"namespace": "the kernel", "blocked": "an audit hook"}[served["network"]]
    return Result("passed", 0, 0, "faults", why)


def _isolation_faults(proof: dict[str, str]) -> list[str]:
    """What the process could do although it should not."""
    return [f"{attempt} worked in the isolated process" for attempt, got in proof.items() if got == "worked"] + (
        [] if proof["loaded"] == "none of the blocked" else [f"the process loaded {proof['loaded']}"]
    )


def within_limits(
    evidence: Evidence, *, latency_ms_p99: float | None, size_mb: float | None, memory_mb: float | None
) -> Result:
    """Pass when the 99th percentile of the time for one row, the size of the ONNX file and the peak memory keep the
    plan's limits.

    The latency decides with the limits of its 95 % interval: passed when the upper one keeps the limit, failed when the
    lower one exceeds it, else inconclusive. So is a limit that is not declared. The value is that of the first figure
    that does not pass, else the latency.
    """
    measured = evidence["within_limits"]
    if measured.get("why"):
        return Result("failed", why=measured["why"])
    judged = [
        _latency(measured, latency_ms_p99),
        _figure("size", measured["size_mb"], size_mb, "size_mb"),
        _figure("peak memory", measured["memory_mb"], memory_mb, "memory_mb"),
    ]
    order: tuple[Outcome, ...] = ("failed", "inconclusive", "passed")
    first = min(judged, key=lambda result: order.index(result.outcome))
    recommended = measured["recommended"]
    faster = "torch and onnxruntime are equally fast" if recommended == "either" else f"{recommended} is faster"
    why = "; ".join([*(result.why for result in judged), faster])
    return Result(first.outcome, first.value, first.bound, first.unit, why)


def _latency(measured: dict[str, Any], limit: float | None) -> Result:
    p99 = measured["formats"]["onnxruntime"]["one"]["p99"]
    value, low, high = p99["value"], p99["low"], p99["high"]
    interval = f"{'-' if low is None else f'{low:.3g}'} to {'-' if high is None else f'{high:.3g}'}"
    why = f"p99 {value:.3g} ms for one row (95 % interval {interval})"
    if limit is None:
        line = "add plan.limits.latency_ms_p99=NUMBER with phase=planning"
        return Result("inconclusive", value, None, "ms", f"{why}, no limit is declared: {line}")
    if high is not None and high <= limit:
        return Result("passed", value, limit, "ms", f"{why} <= {limit:g}")
    if low is not None and low > limit:
        return Result("failed", value, limit, "ms", f"{why} > {limit:g}")
    do = "run phase=finalization again on a quiet machine"
    why += f": the interval contains the limit {limit:g}{_noise(measured)}; {do}"
    return Result("inconclusive", value, limit, "ms", why)


def _noise(measured: dict[str, Any]) -> str:
    """What speaks for a busy machine; empty if nothing does."""
    spread, load = measured["formats"]["onnxruntime"]["one"]["spread"], measured["load"]
    signs = [f"interquartile range {spread:.0%} of the median"] * (spread > NOISY)
    signs += [f"load {load:.1f} per core"] * (load is not None and load > BUSY)
    return f", the machine is noisy ({', '.join(signs)})" if signs else ""


def _figure(name: str, value: float, limit: float | None, key: str) -> Result:
    if limit is None:
        line = f"add plan.limits.{key}=NUMBER with phase=planning"
        return Result("inconclusive", value, None, "MB", f"{name} {value:.3g} MB, no limit is declared: {line}")
    within = value <= limit
    why = f"{name} {value:.3g} {'<=' if within else '>'} {limit:g} MB"
    return Result("passed" if within else "failed", value, limit, "MB", why)
