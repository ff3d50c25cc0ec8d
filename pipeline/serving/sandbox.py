"""Does a payload serve in a process of its own, without torch, this project and the network?"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from pipeline.serving.golden import Golden
from pipeline.serving.schema_file import Column, Schema
from pipeline.serving.standalone import answer_requests

SECONDS = 90  # for the whole process


class Answer(TypedDict):
    """One request: what it was, the expected answer, and what came; `error` is the largest difference of an output.

    `message` is what a refusal said.
    """

    request: str
    expected: str
    got: str
    error: float | None
    message: str


class Served(TypedDict, total=False):
    """What the process proved and answered; `why` where it gave no answer at all."""

    why: str
    proof: dict[str, str]
    network: str
    tolerance: float
    answers: list[Answer]
    seconds: float


def measure(payload: Path, schema: Schema, golden: Golden) -> Served:
    """Return how `predict.py` of a payload answers golden and malformed requests in an isolated process.

    The process runs `python -I` with an empty environment in the payload's folder. `network` says how it is cut off:
    `namespace` by the kernel (`unshare -n`), `blocked` by an audit hook where the kernel forbids that.
    """
    malformed = malformed_requests(schema, golden["requests"][0]["rows"][0])
    requests = [{"rows": request["rows"]} for request in golden["requests"]] + [m["request"] for m in malformed]
    network = "namespace" if _can_unshare() else "blocked"
    try:
        report = run_isolated(answer_requests.__file__, [str(payload), network], requests, network)
    except ChildFailed as failure:
        return {"why": str(failure), "network": network}
    if report["failed"]:
        return {"why": report["failed"], "network": network, "proof": report["proof"]}
    answers: list[Answer] = []
    given = report["answers"]
    for number, request in enumerate(golden["requests"]):
        answers.append(
            _compared(f"golden request {number + 1}", request["outputs"], given[number], golden["tolerance"], schema)
        )
    for wrong, got in zip(malformed, given[len(golden["requests"]) :], strict=True):
        answers.append(
            {
                "request": wrong["name"],
                "expected": wrong["expected"],
                "got": _kind(got),
                "error": None,
                "message": str(got.get("why", "")),
            }
        )
    return {
        "proof": report["proof"],
        "network": network,
        "tolerance": golden["tolerance"],
        "answers": answers,
        "seconds": report["seconds"],
    }


class ChildFailed(Exception):
    """A child process crashed, gave no JSON, or did not end in time."""


def run_isolated(script: str | None, arguments: list[str], given: object, network: str = "") -> dict[str, Any]:
    """Return the JSON that a stand-alone script prints. Raises ChildFailed, with the end of its messages."""
    prefix = ["unshare", "-rn"] if network == "namespace" else []
    command = [*prefix, sys.executable, "-I", "-B", str(script), *arguments]
    try:
        process = subprocess.run(
            command,
            input=json.dumps(given),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env={"PATH": "/usr/bin:/bin"} if prefix else {},
        )
    except subprocess.TimeoutExpired:
        raise ChildFailed(f"the process did not end within {SECONDS} seconds") from None
    if process.returncode:
        last = (process.stderr.strip().splitlines() or ["no message"])[-1]
        how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
        raise ChildFailed(f"the process crashed with {how}: {last[:300]}")
    try:
        report: dict[str, Any] = json.loads(process.stdout)
    except ValueError:
        raise ChildFailed(f"the process printed something else than its report: {process.stdout[:200]!r}") from None
    return report


@cache
def _can_unshare() -> bool:
    try:
        return subprocess.run(["unshare", "-rn", "true"], capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _kind(answer: dict[str, Any]) -> str:
    if "answered" in answer:
        return "answered"
    return str(answer["refused"]) if "refused" in answer else f"crashed: {answer['crashed']}"


def _compared(
    name: str, expected: dict[str, list[Any]], answer: dict[str, Any], tolerance: float, schema: Schema
) -> Answer:
    result: Answer = {
        "request": name,
        "expected": f"{', '.join(expected)} within {tolerance:g}",
        "got": _kind(answer),
        "error": None,
        "message": str(answer.get("why", "")),
    }
    errors = [0.0]
    for output, values in expected.items() if "answered" in answer else ():
        want = np.asarray(values, np.float64)
        rows = [row.get(output) for row in answer["answered"]]
        got = np.full(0, np.nan) if any(row is None for row in rows) else np.asarray(rows, np.float64)
        if got.shape != want.shape:
            wrong = f"'{output}' of shape {list(got.shape)}, not {list(want.shape)}" if got.size else f"no '{output}'"
            return {**result, "got": wrong}
        errors.append(float((np.abs(got - want) / np.maximum(1.0, np.abs(want))).max(initial=0.0)))
    if wrong := _wrong_label(expected, answer.get("answered", []), tolerance, schema["class_names"]):
        return {**result, "got": wrong}
    return {**result, "error": max(errors) if "answered" in answer else None}


def _wrong_label(
    expected: dict[str, list[Any]], rows: list[dict[str, Any]], tolerance: float, class_names: list[str]
) -> str:
    """Return the first class name that is not the one of the largest expected score; "" where all are, or none is."""
    scores = np.asarray(expected.get("probabilities", expected.get("output", ())), np.float64)
    if scores.ndim != 2 or not rows or "label" not in rows[0]:
        return ""
    names = class_names or [str(number) for number in range(scores.shape[1])]
    if scores.shape[1] != len(names) or len(names) < 2:
        return ""
    ordered = np.sort(scores, axis=1)
    clear = ordered[:, -1] - ordered[:, -2] > 2 * tolerance * np.maximum(1.0, np.abs(ordered[:, -1]))
    for number in np.flatnonzero(clear):
        label, name = rows[number]["label"], names[scores[number].argmax()]
        if label != name:
            return f"label {label!r} in row {number + 1}, not {name!r}"
    return ""


def malformed_requests(schema: Schema, row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return requests that must be refused, each with a name and the type of the error that is expected."""
    column = next((c for c in schema["inputs"] if c["kind"] != "category"), schema["inputs"][0])
    name = column["name"]

    def case(what: str, expected: str, rows: object, **more: object) -> dict[str, Any]:
        return {"name": what, "expected": expected, "request": {"rows": rows, **more}}

    cases = [
        case("no rows", "EmptyInput", []),
        case("rows that are not a list", "WrongShape", "rows"),
        case("too many rows", "TooLarge", [row], repeat=schema["max_rows"] + 1),
        case("a missing column", "ColumnsDiffer", [{n: v for n, v in row.items() if n != name}]),
        case("an unknown column", "ColumnsDiffer", [{**row, "unknown column": 1.0}]),
        case("a value of another rank", "WrongShape", [{**row, name: [[row[name]]]}]),
    ]
    cases.append(case("text for a number", "WrongType", [{**row, name: _filled(column, "text")}]))
    is_float = column["dtype"].startswith("float")
    if is_float and not column["nan_allowed"]:
        cases.append(case("NaN", "MissingValue", [{**row, name: _filled(column, float("nan"))}]))
    if is_float and column["kind"] != "category":
        cases.append(case("infinity", "NotFinite", [{**row, name: _filled(column, float("inf"))}]))
    if column["kind"] == "category":
        cases = [c for c in cases if c["name"] not in ("text for a number", "NaN")]
        cases.append(case("a list for a category", "WrongType", [{**row, name: True}]))
    return cases


def _filled(column: Column, value: object) -> object:
    """A value of the column's shape."""
    for size in reversed(column["shape"]):
        value = [value] * size
    return value
