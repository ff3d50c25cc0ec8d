"""What an incident leaves behind: items that every later fix of the run is held to, and their regression trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

from pipeline.history import History
from pipeline.repair.diagnosis_record import DiagnosisRecord

ROOM = 2.0  # times the largest value of the fixed training, which a later one may reach


class PreventionItem(TypedDict):
    """One thing that has to stay as the fix left it: a symptom that stays away, a signal that stays under a bound."""

    id: str
    round: int
    ask: str
    symptom: str | None
    signal: str | None
    bound: float | None


class RegressionTrial(TypedDict):
    """An item that was held against the training of a fix: the value that was measured, and whether it passes."""

    id: str
    ask: str
    value: float | str | None
    passed: bool


@dataclass(frozen=True)
class Regression:
    """What was run again on an adopted change: sanity checks, and the items that incidents of the run left behind.

    `prevention` are the items of this incident and of earlier ones.
    """

    prevention: Sequence[PreventionItem] = ()
    trials: Sequence[RegressionTrial] = ()
    sanity: Sequence[tuple[str, str]] = ()  # ids of items, and their outcomes

    @property
    def checks(self) -> list[tuple[str, bool]]:
        """Every check in words, and whether it passes."""
        sanity = [(f"sanity check {name}", outcome in ("passed", "not_applicable")) for name, outcome in self.sanity]
        return [*sanity, *((trial["ask"], trial["passed"]) for trial in self.trials)]


def prevention_items(diagnosis: DiagnosisRecord, round_: int, history: History) -> list[PreventionItem]:
    """Return what the fix of a round leaves: each symptom of the incident stays away, and gradients stay in bounds."""
    items: list[PreventionItem] = [
        {
            "id": f"round-{round_}-{symptom['id']}",
            "round": round_,
            "ask": f"Does the symptom {symptom['id']} stay away?",
            "symptom": symptom["id"],
            "signal": None,
            "bound": None,
        }
        for symptom in diagnosis["symptoms"]
        if symptom["severity"] == "blocking"
    ]
    if (largest := _largest(history, "grad_norm")) is not None:
        bound = float(f"{ROOM * largest:.2g}")
        ask = f"Does the gradient norm stay under {bound:g}?"
        items.append({
            "id": f"round-{round_}-grad_norm", "round": round_, "ask": ask, "symptom": None, "signal": "grad_norm",
            "bound": bound,
        })  # fmt: skip
    return items


def regression_trials(
    items: Sequence[PreventionItem], history: History, symptoms: Sequence[str]
) -> list[RegressionTrial]:
    """Return the items held against a training with this history, which shows these symptoms."""
    trials: list[RegressionTrial] = []
    for item in items:
        if item["symptom"] is not None:
            shown = item["symptom"] in symptoms
            value: float | str | None = "there" if shown else "away"
            passed = not shown
        else:
            assert item["signal"] is not None and item["bound"] is not None
            value = _largest(history, item["signal"])
            passed = value is not None and value <= item["bound"]
        trials.append({"id": item["id"], "ask": item["ask"], "value": value, "passed": passed})
    return trials


def _largest(history: History, name: str) -> float | None:
    """Return the largest value of a signal, infinite where one was not finite; None where it was not measured."""
    if name not in history.names():
        return None
    _, values = history.series(name)
    if not len(values):
        return None
    return float(np.max(values)) if np.isfinite(values).all() else float("inf")


def items_of(record: Mapping[str, Any]) -> list[PreventionItem]:
    """Return the items that the evidence of an earlier round recorded."""
    items: list[PreventionItem] = list(record.get("prevention", []))
    return items
