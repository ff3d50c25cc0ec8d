"""The ranking at the end of a sweep: the run of every job in one table, failed jobs last, with the reason."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypedDict

from rich.table import Table

from pipeline.config.override_keys import key_of
from pipeline.reporting import tables
from pipeline.reporting.terminal import console, new_table, print_json, styled
from pipeline.results import PHASES
from pipeline.run_store.plan import NOT_IN_PLAN
from pipeline.run_store.records import ScoreRecord
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState

EXITS = {0: "done", 1: "fault", 2: "wrong input", 3: "gate closed", 4: "waits for a person", 130: "interrupted"}
SHOWN_REASONS = 3  # of one job; `explain` shows all of them
OVERRIDES_WIDTH = 40


class EndedJob(Protocol):
    """A job of a sweep that has ended."""

    @property
    def name(self) -> str: ...

    @property
    def exit_code(self) -> int: ...

    @property
    def overrides(self) -> list[str]: ...


class OverSeeds(TypedDict):
    """The scores of one config over its seeds: mean, standard deviation (None below two scores), and their number."""

    mean: float | None
    std: float | None
    n: int


class RankedRun(TypedDict):
    """One row of the ranking, and of its JSON; `over_seeds` is the same for all runs of one config."""

    run: str
    overrides: list[str]
    exit_code: int
    score: ScoreRecord | None
    branch: str
    why: list[str]
    over_seeds: OverSeeds


def rank(root: Path, jobs: Iterable[EndedJob]) -> list[RankedRun]:
    """Return the runs of all jobs, best score first, runs without a score last."""
    rows = sorted((_describe(root, job) for job in jobs), key=_sort_key)
    for group in group_by_config(rows).values():
        for row in group:
            row["over_seeds"] = _over_seeds(group)
    return rows


def group_by_config(rows: Iterable[RankedRun]) -> dict[tuple[str, ...], list[RankedRun]]:
    """Return the runs of each config, which is the overrides without the seed."""
    groups: dict[tuple[str, ...], list[RankedRun]] = {}
    for row in rows:
        config = tuple(override for override in row["overrides"] if key_of(override) != "seed")
        groups.setdefault(config, []).append(row)
    return groups


def _over_seeds(rows: Sequence[RankedRun]) -> OverSeeds:
    scores = [float(row["score"]["value"]) for row in rows if row["score"]]  # non-finite ones are text
    values = [value for value in scores if math.isfinite(value)]
    return {
        "mean": statistics.fmean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "n": len(values),
    }


def _describe(root: Path, job: EndedJob) -> RankedRun:
    run = Run(root / job.name)
    state = run.state() if run.exists() else None
    return {
        "run": job.name,
        "overrides": [o for o in job.overrides if key_of(o).split(".", 1)[0] not in NOT_IN_PLAN],
        "exit_code": job.exit_code,
        "score": state.score if state else None,
        "branch": (state.branch or "") if state else "",
        "why": _reasons(state, job.exit_code),
        "over_seeds": {"mean": None, "std": None, "n": 0},
    }


def _reasons(state: RunState | None, exit_code: int) -> list[str]:
    """Return why a job did not succeed: its last failure, else the unsatisfied items of its last gate."""
    if exit_code == 0:
        return []
    if state is None:
        return ["stopped before there was a plan; the log above has the reason"]
    if state.failed:
        return [f"{state.failed['phase']}: {tables.failure(state.failed)}"]
    phases = [p for p in PHASES if state.gate(p) in ("closed", "pending")]
    if not phases:
        return []
    items = [i for i in state.gates[phases[-1]].items if not tables.satisfied(i, state, phases[-1])]
    return [f"{phases[-1]}/{i.id}: {i.label}" + (f", {i.why}" if i.why else "") for i in items]


def _sort_key(row: RankedRun) -> tuple[int, float]:
    score = row["score"]
    value = float(score["value"]) if score else math.nan
    if score is None or not math.isfinite(value):
        return 1, float(row["exit_code"])
    return 0, -value if score.get("greater_is_better") else value


def varied_overrides(rows: Sequence[RankedRun]) -> list[list[str]]:
    """Return the overrides of each row without those that all rows share."""
    shared = set.intersection(*(set(row["overrides"]) for row in rows)) if len(rows) > 1 else set()
    return [[override for override in row["overrides"] if override not in shared] for row in rows]


def show(root: Path, jobs: Iterable[EndedJob], as_json: bool) -> int:
    """Print the ranking, and return the highest exit code of the jobs."""
    rows = rank(root, jobs)
    if as_json:
        print_json(rows)
    else:
        _print(rows)
    return max((row["exit_code"] for row in rows), default=0)


def _print(rows: Sequence[RankedRun]) -> None:
    """Print the table, then the first reasons of every job that did not succeed."""
    metrics = {row["score"]["metric"] for row in rows if row["score"]}
    table = new_table("#", "run", " / ".join(sorted(metrics)) or "score")
    table.add_column("95 % interval", no_wrap=True)
    for name in ("validation", "ended"):
        table.add_column(name, overflow="fold")
    overrides = varied_overrides(rows)
    longest = max((len(override) for own in overrides for override in own), default=0)
    # Wide enough for the longest override, so that a line breaks between two of them.
    table.add_column("overrides", overflow="fold", min_width=min(longest, OVERRIDES_WIDTH))
    keys = [_sort_key(row) for row in rows]
    for row, own, key in zip(rows, overrides, keys, strict=True):
        place = keys.index(key) + 1  # equal scores share a rank
        score = row["score"]
        # The ledger writes NaN as text.
        value = f"{float(score['value']):.4f}" if score else "–"
        interval = f"{float(score['low']):.3f} to {float(score['high']):.3f}" if score else ""
        ended = EXITS.get(row["exit_code"], str(row["exit_code"]))
        table.add_row(str(place), row["run"], value, interval, row["branch"], ended, " ".join(own))
    screen = console()
    screen.print(table)
    if configs := _config_table(rows):
        screen.print()
        screen.print(configs)
    for row in rows:
        hidden = len(row["why"]) - SHOWN_REASONS
        rest = [f"and {hidden} more; explain shows all of them"] if hidden > 0 else []
        for line in [*row["why"][:SHOWN_REASONS], *rest]:
            screen.print(styled("{run}: {line}", run=row["run"], line=line), soft_wrap=True)


def config_rows(rows: Sequence[RankedRun]) -> list[tuple[str, str, str, str]]:
    """Return the overrides, mean, standard deviation and number of scores of each config, best mean first.

    Empty where no config has several runs: the ranking of the runs says it all.
    """
    groups = group_by_config(rows)
    if all(len(group) < 2 for group in groups.values()):
        return []
    shared = set.intersection(*map(set, groups))
    greater = any(row["score"] and row["score"].get("greater_is_better") for row in rows)

    def order(group: Sequence[RankedRun]) -> tuple[bool, float]:
        mean = group[0]["over_seeds"]["mean"]
        return mean is None, 0.0 if mean is None else -mean if greater else mean

    cells = []
    for config, group in sorted(groups.items(), key=lambda item: order(item[1])):
        summary, own = group[0]["over_seeds"], " ".join(o for o in config if o not in shared)
        mean, std = ("–" if value is None else f"{value:.4f}" for value in (summary["mean"], summary["std"]))
        n = str(summary["n"]) if summary["n"] == len(group) else f"{summary['n']} of {len(group)}"
        cells.append((own or "all runs", mean, std, n))
    return cells


def _config_table(rows: Sequence[RankedRun]) -> Table | None:
    cells = config_rows(rows)
    if not cells:
        return None
    table = new_table("config, over its seeds", "mean", "std", "n")
    for row in cells:
        table.add_row(*row)
    return table
