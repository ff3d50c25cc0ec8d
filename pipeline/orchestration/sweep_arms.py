"""The runs of sweeps as two arms with one score per seed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.config.override_keys import key_of
from pipeline.errors import UserError, fault
from pipeline.history import History
from pipeline.orchestration.sweep_directory import SweepDirectory
from pipeline.reporting.ranking import RankedRun, group_by_config, rank, varied_overrides
from pipeline.run_store import plan as plans
from pipeline.run_store.run import Run
from pipeline.tuning.own_training import greater_is_better, score_of
from pipeline.tuning.seed_arms import SeedArms

VARY_SEEDS = "python -m pipeline -m phase=baseline ... seed=1,2,3,4,5,6,7"


def find_sweep(name: str, root: Path) -> SweepDirectory | None:
    """Return the sweep that a name means: its number, the common name of its runs (`digits-1`), or its folder."""
    path = Path(name)
    if path.parent.name == ".sweeps" and (path / "sweep.json").is_file():
        return SweepDirectory(path)
    match = re.fullmatch(r"(?:(.+)-)?(\d+)", name)
    if not match:
        return None
    directory = SweepDirectory(root / ".sweeps" / match[2])
    ends = directory.ends() if directory.path.is_dir() else []
    named = not match[1] or any(end.name.startswith(f"{name}-") for end in ends)
    return directory if ends and named else None


def arms_of_sweeps(sweeps: Sequence[tuple[str, SweepDirectory]], metric: str | None, mode: str | None) -> SeedArms:
    """Return one sweep of two configs, or two sweeps of one config each, as two arms.

    Raises UserError where there is another number of configs, or where the runs have different metrics.
    """
    arms: dict[str, list[RankedRun]] = {}
    for name, sweep in sweeps:
        jobs = sweep.ends()
        rows = {row["run"]: row for row in rank(sweep.path.parent.parent, jobs)}
        in_order = [rows[job.name] for job in jobs]  # of the command, not of the scores
        groups = [*group_by_config(in_order).values()]
        if len(groups) != (2 if len(sweeps) == 1 else 1):
            raise UserError(_wrong_number(name, groups, len(sweeps)))
        labels = [name] if len(sweeps) == 2 else _labels(groups)
        arms |= dict(zip(labels, groups, strict=True))
    if len(arms) < 2:
        raise UserError(fault("compare", "compares a sweep with itself", got=sweeps[0][0], expected="two sweeps"))
    every = [row for group in arms.values() for row in group]
    measured = sorted({row["score"]["metric"] for row in every if row["score"]})
    if len(measured) > 1:
        raise UserError(fault("compare", "compares runs of different metrics", got=" and ".join(measured)))
    roots = [sweep.path.parent.parent for _, sweep in sweeps]
    (first, of_first), (second, of_second) = arms.items()
    own = metric is None or metric in measured
    scores = (
        _scores(first, of_first, roots[0], None if own else metric),
        _scores(second, of_second, roots[-1], None if own else metric),
    )
    greater = any(row["score"] and row["score"].get("greater_is_better") for row in every)
    direction = greater if own and mode is None else greater_is_better(metric, mode)
    name = metric or (measured[0] if measured else "score")
    return SeedArms((first, second), scores, name if own else f"{name} of the last epoch", direction)


def _labels(groups: Sequence[Sequence[RankedRun]]) -> list[str]:
    """Return what tells the configs apart: their overrides, without the seed and what all share."""
    own = varied_overrides([group[0] for group in groups])
    return [" ".join(o for o in overrides if key_of(o) != "seed") or "reference" for overrides in own]


def _wrong_number(name: str, groups: Sequence[Sequence[RankedRun]], sweeps: int) -> str:
    shown = "; ".join(_labels(groups)) if len(groups) > 1 else "one, over seeds"
    expected = "two configs, each over seeds" if sweeps == 1 else "one config over seeds in each of two sweeps"
    do = f"name a second sweep, or {VARY_SEEDS}"
    return fault(name, f"is a sweep of {len(groups)} configs", got=shown, expected=expected, do=do)


def _scores(name: str, rows: Sequence[RankedRun], root: Path, metric: str | None) -> Mapping[str, float]:
    """Return the score of each run by its seed; that of the last epoch's `val/<metric>` where one is named."""
    scores: dict[str, float] = {}
    for row in rows:
        overridden = [o.partition("=")[2] for o in row["overrides"] if key_of(o) == "seed"]
        seed = overridden[-1] if overridden else _planned_seed(root, row)
        if seed in scores:
            raise UserError(fault(name, "has several runs with one seed", got=seed, do=VARY_SEEDS))
        value = float(row["score"]["value"]) if row["score"] else math.nan
        scores[seed] = value if metric is None else _last(root / row["run"], metric)
    return scores


def _planned_seed(root: Path, row: RankedRun) -> str:
    run = Run(root / row["run"])
    state = run.state() if run.exists() else None
    return str(plans.load(run, state).config["seed"]) if state and state.plan else "none"


def _last(run: Path, metric: str) -> float:
    path = run / "baseline" / "history.npz"
    if not path.is_file():
        return math.nan
    history = History.load(path)
    measured = [metric, f"val/{metric}"]
    return score_of(history, next((name for name in measured if history.table(name)), metric))
