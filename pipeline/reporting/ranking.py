"""The end of a sweep: every job's run in one ranked table, the failed ones below with what became of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from pipeline.config.override_keys import key_of
from pipeline.reporting import tables
from pipeline.results import PHASES
from pipeline.run_store.plan import NOT_IN_PLAN
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState

ENDS = {0: "done", 1: "fault", 2: "wrong input", 3: "gate closed", 4: "waits for a person", 130: "interrupted"}


def row(root: Path, end: Mapping[str, Any]) -> dict[str, Any]:
    """One job: its run, what set it apart, how it ended, its score with interval and its branch where it has them."""
    run = Run(root / end["name"])
    state = run.state() if run.exists() else None
    return {
        "run": end["name"],
        "overrides": [o for o in end["overrides"] if key_of(o).split(".", 1)[0] not in NOT_IN_PLAN],
        "exit_code": end["exit_code"],
        "score": state.score if state else None,
        "branch": (state.branch if state else None) or "",
        "why": _why(state, int(end["exit_code"])),
    }


def _why(state: RunState | None, exit_code: int) -> list[str]:
    """What a job that did not end well stopped at: its last failure, else the items that hold its last gate shut."""
    if exit_code == 0:
        return []
    if state is None:
        return ["stopped before there was a plan; the log above says why"]
    if state.failed:
        return [f"{state.failed['phase']}: {state.failed['why']}"]
    shut = [p for p in PHASES if state.gate(p) in ("closed", "pending")]
    items = [i for i in state.gates[shut[-1]].items if not tables.satisfied(i, state, shut[-1])] if shut else []
    return [f"{shut[-1]}/{i.id}: {i.outcome}" + (f", {i.why}" if i.why else "") for i in items]


def apart(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Each job's words without those that all of them share."""
    common = set.intersection(*(set(entry["overrides"]) for entry in rows)) if len(rows) > 1 else set()
    return [[word for word in entry["overrides"] if word not in common] for entry in rows]


def _place(entry: Mapping[str, Any]) -> tuple[int, float]:
    """Best score first in the metric's own direction, then those without a score."""
    score = entry["score"]
    value = float(score["value"]) if score else math.nan
    if math.isnan(value):
        return 1, float(entry["exit_code"])
    return 0, -value if score["greater_is_better"] else value


def ranked(root: Path, ends: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """All jobs of a sweep, best first; one that failed is last, never absent."""
    return sorted((row(root, end) for end in ends), key=_place)


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The ranking as people read it. An interval that overlaps its neighbour's is no proof of a difference."""
    found = Table(box=None, pad_edge=False, header_style="bold")
    metrics = {entry["score"]["metric"] for entry in rows if entry["score"]}
    words = apart(rows)
    for name in ("#", "run", " / ".join(sorted(metrics)) or "score", "95 % interval", "branch", "ended"):
        found.add_column(name, overflow="fold", no_wrap=name in ("run", "95 % interval"))
    longest = max((len(word) for own in words for word in own), default=0)
    found.add_column("overrides", overflow="fold", min_width=min(longest, 40))  # folds between words
    for place, (entry, own) in enumerate(zip(rows, words, strict=True), 1):
        score = entry["score"]
        value = f"{score['value']:.4f}" if score else "–"
        interval = f"{score['low']:.3f} to {score['high']:.3f}" if score else ""
        ended = ENDS.get(entry["exit_code"], str(entry["exit_code"]))
        found.add_row(str(place), entry["run"], value, interval, entry["branch"], ended, " ".join(own))
    return found


def _in_few(lines: Sequence[str], most: int = 3) -> list[str]:
    """The first reasons, and how many more there are."""
    return [*lines[:most], *([f"and {len(lines) - most} more: explain says which"] if len(lines) > most else [])]


def show(root: Path, ends: Sequence[Mapping[str, Any]], as_json: bool, log: Callable[[str], None] = print) -> int:
    """Print the ranking; the worst exit code of the jobs comes back."""
    rows = ranked(root, ends)
    if as_json:
        log(json.dumps(rows))
    else:
        console = tables.console()
        console.print(table(rows))
        for entry in rows:
            for line in _in_few(entry["why"]):
                console.print(f"{entry['run']}: {line}", markup=False, soft_wrap=True)
    return max((int(entry["exit_code"]) for entry in rows), default=0)
