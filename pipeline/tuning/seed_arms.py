"""Two arms with one score per seed, and the CSV files that hold them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import UserError, fault
from pipeline.foreign_files import read_bytes
from pipeline.tuning.comparison import Comparison, compare_by_seed
from pipeline.tuning.own_training import NO_NAME

ARM_COLUMNS = ("arm", "config", "name", "model", "run")
SEED = "seed"
EXPECTED = "the columns seed and one per arm, or arm, seed and a metric"
MAX_FAULTS = 20

Scores = Mapping[str, float]  # by seed


class Cell(NamedTuple):
    """A score as text: in which row, of which arm and seed."""

    row: int
    arm: str
    seed: str
    text: str


@dataclass(frozen=True)
class SeedArms:
    """The scores of two arms by seed, NaN for a training without one, and what the score is."""

    names: tuple[str, str]
    scores: tuple[Scores, Scores]
    metric: str
    greater: bool

    def compare(self) -> Comparison:
        """Compare both arms on the seeds that both have; a note names the others."""
        first, second = self.scores
        seeds = [seed for seed in first if seed in second]
        pairs = [first[seed] for seed in seeds], [second[seed] for seed in seeds]
        notes = [
            f"left out, since {name} alone has them: the seeds {', '.join(only)}"
            for name, own, other in ((self.names[0], first, second), (self.names[1], second, first))
            if (only := [seed for seed in own if seed not in other])
        ]
        return compare_by_seed(pairs, seeds, self.names, self.metric, self.greater, notes)


def read_csv(path: Path, metric: str | None) -> tuple[tuple[str, str], tuple[Scores, Scores], str]:
    """Return names, scores by seed, and metric of two arms in a CSV file with a header.

    The file has either the columns `seed` and one per arm, or `arm` (or config, name, model, run), `seed` and metrics,
    of which `metric` names one. An empty cell is a training without a score. Raises UserError with all faults.
    """
    text = read_bytes(path, "a CSV file").decode("utf-8-sig", errors="replace")
    rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text)) if any(map(str.strip, row))]
    header = rows[0] if rows else []
    names = [name.lower() for name in header]
    if SEED not in names or len(set(names)) < len(names) or len(header) < 3:
        got = ", ".join(header) or "an empty file"
        raise UserError(fault(str(path), "has no columns to compare", got=got, expected=EXPECTED))
    if ragged := [number for number, row in enumerate(rows) if len(row) != len(header)]:
        got = ", ".join(map(str, ragged[:MAX_FAULTS]))
        raise UserError(fault(str(path), f"has rows without {len(header)} cells", got=f"rows {got}"))
    arm_column = next((names.index(name) for name in ARM_COLUMNS if name in names), None)
    others = [i for i in range(len(header)) if i not in (names.index(SEED), arm_column)]
    if arm_column is None:
        metric = metric or NO_NAME
        cells = [
            Cell(n, header[i], row[names.index(SEED)], row[i]) for n, row in enumerate(rows[1:], 1) for i in others
        ]
    else:
        column = _metric_column(path, header, others, metric)
        metric = header[column]
        cells = [Cell(n, row[arm_column], row[names.index(SEED)], row[column]) for n, row in enumerate(rows[1:], 1)]
    arms = _arms(path, cells)
    if len(arms) != 2:
        got = f"{len(arms)} of them: {', '.join(list(arms)[:8])}"
        raise UserError(fault(str(path), "does not have two arms", got=got, expected=EXPECTED))
    (first, of_first), (second, of_second) = arms.items()
    return (first, second), (of_first, of_second), metric


def _metric_column(path: Path, header: Sequence[str], others: Sequence[int], metric: str | None) -> int:
    names = [header[i] for i in others]
    if metric is None and len(others) == 1:
        return others[0]
    if metric is None:
        raise UserError(fault(str(path), "has several metrics", got=", ".join(names), expected="--metric NAME"))
    if metric not in names:
        raise UserError(fault("--metric", f"is no column of {path}", got=metric, among=names))
    return others[names.index(metric)]


def _arms(path: Path, cells: Sequence[Cell]) -> dict[str, dict[str, float]]:
    """Return the scores by arm and seed. Raises UserError for cells that are no number and for seeds that repeat."""
    arms: dict[str, dict[str, float]] = {}
    faults: list[str] = []
    for row, arm, seed, text in cells:
        where = f"{path}, row {row}"
        try:
            score = float(text) if text else math.nan
        except ValueError:
            faults.append(fault(where, f"the score of {arm} is not a number", got=text))
            continue
        if not seed:
            faults.append(fault(where, "has no seed"))
        elif seed in arms.setdefault(arm, {}):
            faults.append(fault(where, f"repeats a seed of {arm}", got=seed, expected="one score per arm and seed"))
        else:
            arms[arm][seed] = score
    if faults:
        raise UserError(*list(dict.fromkeys(faults))[:MAX_FAULTS])
    return arms
