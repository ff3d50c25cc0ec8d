"""What a baseline measured beside its score, as the report shows it: each part where the evidence holds it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.reporting.tables import number
from pipeline.run_store import files
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState

ROWS = 40  # of a table with a row per class: those of the lowest recall
ABSENT = {"not_applicable": "", "how": "", "seconds": 0.0}  # what an entry may lack


def measures(run: Run, state: RunState, missing: list[str]) -> dict[str, Any]:
    """The baseline's measures, each empty where there is none; evidence that is not as recorded goes to `missing`."""
    values = _recorded(run, state, missing)
    score, classes = values.get("score"), _by_recall([_known(row) for row in values.get("per_class") or ()])
    simple = [{**ABSENT, **one, "ahead": _ahead(one, score)} for one in values.get("baseline_models") or ()]
    folds = values.get("cross_validation")
    return {
        **{part: values.get(part) for part in ("worst_pairs", "warnings", "score", "trivial_baseline")},
        "cross_validation": {**ABSENT, **folds} if folds else None,
        "baseline_models": simple,
        "metric": score["metric"] if score else next((one["metric"] for one in simple if "metric" in one), None),
        "per_class": classes[:ROWS],
        "classes_left_out": len(classes[ROWS:]),
    }


def _recorded(run: Run, state: RunState, missing: list[str]) -> Mapping[str, Any]:
    """The values of the baseline's evidence, where the file is what the ledger recorded."""
    done = state.finished.get("baseline")
    if done is None:
        return {}
    path = run.path / done["evidence"]["path"]
    if not path.is_file() or files.sha256(path) != done["evidence"]["sha256"]:
        missing.append(f"{done['evidence']['path']} is not what the ledger recorded")
        return {}
    values: Mapping[str, Any] = json.loads(path.read_text())["values"]
    return values


def _known(row: Mapping[str, Any]) -> dict[str, Any]:
    """A class's figures, None for those that are undefined."""
    return {key: None if value == "nan" and key != "class" else value for key, value in row.items()}


def _by_recall(rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """As they stand where all have room; else those of the lowest recall first, those without rows last."""
    return rows if len(rows) <= ROWS else sorted(rows, key=lambda row: _number(row["recall"], math.inf))


def _number(value: Any, otherwise: float) -> float:
    """A number of the evidence, where NaN is a word."""
    return float(value) if isinstance(value, int | float) else otherwise


def _ahead(one: Mapping[str, Any], score: Mapping[str, Any] | None) -> str:
    """Whether a simple model is better than the trained one, or within its interval."""
    value = _number(one.get("value"), math.nan)
    if score is None or math.isnan(value) or math.isnan(_number(score["value"], math.nan)):
        return ""
    sign = 1 if score["greater_is_better"] else -1
    if sign * (value - score["value"]) > 0:
        return "better"
    bound = _number(score["low"] if sign > 0 else score["high"], score["value"])
    return "as good" if sign * (value - bound) >= 0 else ""


def words(name: str) -> str:
    """A name of the code as one reads it."""
    return str(name).replace("_", " ")


def interval(found: Mapping[str, Any]) -> str:
    """`0.94 to 0.98` of something with `low` and `high`; nothing where it has none."""
    low, high = (_number(found.get(end), math.nan) for end in ("low", "high"))
    return "" if math.isnan(low) or math.isnan(high) else f"{number(low)} to {number(high)}"
