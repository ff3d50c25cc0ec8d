"""The ledger as a timeline: what happened to a run, in the order in which it was recorded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pipeline.reporting.tables import number
from pipeline.results import counted
from pipeline.run_store.ledger import Entry

GATE_TONES = {"open": "good", "closed": "bad", "pending": "warn"}
BRANCH_TONES = {"sufficient": "good", "insufficient": "warn"}
ENTRY_CHARS = 160  # of an entry in the table of entries


@dataclass(frozen=True)
class Event:
    """One step of the timeline; `tone` is the colour of its dot, `is_main` says that it stands out."""

    day: str
    time: str
    text: str
    detail: str
    tone: str = "plain"
    is_main: bool = False


def timeline(entries: Iterable[Entry]) -> list[Event]:
    """Return the events of a ledger; trainings are counted with the phase that ran them."""
    events: list[Event] = []
    started: datetime | None = None
    trainings = 0
    for entry in entries:
        kind, data, at = entry["kind"], entry["data"], _time(entry)
        if kind == "phase.started":
            started, trainings = at, 0
        elif kind == "job.finished":
            trainings += 1
        elif kind == "phase.finished":
            took = [_duration(at - started)] if started and at else []
            took += [counted(trainings, "training")] if trainings else []
            events.append(_event(entry, f"{_phase(data)} ran", ", ".join(took), "plain"))
        elif (description := _said(kind, data)) is not None:
            events.append(_event(entry, *description))
    return events


def _said(kind: str, data: Mapping[str, Any]) -> tuple[str, str, str, bool] | None:
    """Return text, detail, tone and weight of an entry's event; None for one that has no event of its own."""
    if kind == "gate.decided":
        state = data.get("state") or "decided"
        return f"{data['phase']} gate {state}", "", GATE_TONES.get(state, "plain"), True
    if kind == "branch.decided":
        branch = data["branch"]
        return f"branch: {branch}", _score(data.get("score")), BRANCH_TONES[branch], True
    if kind == "waiver":
        terms = f"{data['why']} (until {data['expires']})"
        return f"{data['who']} waived {data['phase']}/{data['item']}", terms, "warn", True
    if kind == "sign_off":
        return f"{data['who']} signed {data['phase']}/{data['item']}", data.get("note", ""), "good", True
    if kind in ("phase.failed", "stopped"):
        return f"{data['phase']} {'failed' if kind == 'phase.failed' else 'was stopped'}", data["why"], "bad", True
    return _lesser(kind, data)


def _lesser(kind: str, data: Mapping[str, Any]) -> tuple[str, str, str, bool] | None:
    if kind == "run.created":
        return "run created", "", "plain", False
    if kind == "plan.frozen":
        changed = ", ".join(data.get("changed") or {})
        return f"plan revision {data['revision']} frozen", f"changed: {changed}" if changed else "", "plain", True
    if kind == "review.requested":
        return f"the plan of the study of round {data['round']} waits for a person", "", "warn", False
    if kind == "review.approved":
        what = f"accepted the plan of the study of round {data['round']}"
        return f"{data['who']} {what}", data.get("note", ""), "good", True
    if kind == "study.decided":
        winner = data["winner"]
        arms = counted(len(data["arms"]), "configuration")
        return f"{arms} compared", f"chosen: {winner}" if winner else "none chosen", "plain", False
    if kind == "candidate.chosen":
        return f"candidate of {data['phase']}", f"weights {data['weights'][:12]}", "plain", False
    if kind == "test.opened":
        return "sealed test rows opened", f"for {data['candidate'][:12]}", "warn", False
    if kind == "test.scored":
        return "scored on the test rows", _score(data["score"]), "plain", False
    if kind == "exhausted":
        return f"exhausted after round {data['round']}", data["why"], "bad", True
    if kind == "released":
        return "released", f"bundle {data['subject'][:12]}", "good", True
    if kind == "rolled_back":
        what = "returned to an earlier candidate" if data.get("candidate") is not None else "withdrew the release"
        return f"{data.get('who') or 'a person'} {what}", data.get("why", ""), "bad", True
    if kind == "trust.granted":
        return "code trusted", ", ".join(grant["package"] for grant in data["packages"]), "plain", False
    return None


def _score(score: Mapping[str, Any] | None) -> str:
    return f"{score['metric']} {number(score['value'])} on {score['split']}" if score else ""


def _phase(data: Mapping[str, Any]) -> str:
    return f"{data['phase']}, round {data['round']}" if data.get("round", 1) > 1 else str(data["phase"])


def _event(entry: Entry, text: str, detail: str, tone: str, is_main: bool = False) -> Event:
    day, _, clock = str(entry["time"])[:19].partition("T")
    return Event(day, clock, text, detail, tone, is_main)


def _time(entry: Entry) -> datetime | None:
    try:
        return datetime.fromisoformat(str(entry["time"])[:19])
    except ValueError:
        return None


def _duration(elapsed: timedelta) -> str:
    seconds = max(0, round(elapsed.total_seconds()))
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes} min {seconds:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def entry_summary(entry: Entry) -> str:
    """Return the plain values of an entry's data on one line."""
    values = [(key, value) for key, value in entry["data"].items() if isinstance(value, str | int | float)]
    text = "  ".join(f"{key}={value}" for key, value in values if value != "")
    return text if len(text) <= ENTRY_CHARS else text[: ENTRY_CHARS - 3] + "…"


def time_text(entry: Entry) -> str:
    """Return the time of an entry in UTC, to the second."""
    return str(entry["time"])[:19].replace("T", " ")
