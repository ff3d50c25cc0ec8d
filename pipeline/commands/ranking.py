"""The end of a sweep: every job's run in one ranked table, the failed ones below with what became of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from pipeline.commands import tables
from pipeline.config.keys import key_of
from pipeline.record.plan import OUTSIDE
from pipeline.record.run import Run

ENDS = {0: "done", 1: "fault", 2: "wrong input", 3: "gate closed", 4: "waits for a person", 130: "interrupted"}


def row(root: Path, end: Mapping[str, Any]) -> dict[str, Any]:
    """One job: its run, what set it apart, how it ended, its score with interval and its branch where it has them."""
    run = Run(root / end["name"])
    state = run.state() if run.exists() else None
    score = (state.candidate or {}).get("score") if state else None
    return {
        "run": end["name"],
        "overrides": [o for o in end["overrides"] if key_of(o).split(".", 1)[0] not in OUTSIDE],
        "exit_code": end["exit_code"],
        "score": score,
        "branch": (state.current_branch() or {}).get("branch", "") if state else "",
    }


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
    for name in ("#", "run", " / ".join(sorted(metrics)) or "score", "95 % interval", "branch", "ended", "overrides"):
        found.add_column(name, overflow="fold", no_wrap=name in ("run", "95 % interval"))
    for place, entry in enumerate(rows, 1):
        score = entry["score"]
        value = f"{score['value']:.4f}" if score else "–"
        interval = f"{score['low']:.3f} to {score['high']:.3f}" if score else ""
        ended = ENDS.get(entry["exit_code"], str(entry["exit_code"]))
        found.add_row(str(place), entry["run"], value, interval, entry["branch"], ended, " ".join(entry["overrides"]))
    return found


def show(root: Path, ends: Sequence[Mapping[str, Any]], as_json: bool, say: Callable[[str], None] = print) -> int:
    """Print the ranking; the worst exit code of the jobs comes back."""
    rows = ranked(root, ends)
    if as_json:
        say(json.dumps(rows))
    else:
        tables.console().print(table(rows))
    return max((int(entry["exit_code"]) for entry in rows), default=0)
