"""One run's turn at the machine: what was typed, held against what is frozen, and then driven.

The first command of a run composes its config; later ones work from the frozen plan. What was typed then is
remembered in the ledger, so that `phase=diagnostics run.name=digits` needs nothing repeated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import machine
from pipeline.config.keys import key_of
from pipeline.errors import Refused, UserError, fault
from pipeline.phase import Draft, House
from pipeline.record import files
from pipeline.record import plan as plans
from pipeline.record.advice import Advice
from pipeline.record.ledger import Ledger
from pipeline.record.run import Run, opened
from pipeline.record.state import RunState, fold
from pipeline.records import GateState

PLANNING = ("planning", "baseline")
LATER = ("diagnostics", "optimization", "finalization")
OUTSIDE = plans.OUTSIDE


def _typed(overrides: Sequence[str], key: str) -> str | None:
    """The value typed for a key, the last one counting; None when it was not typed."""
    values = [o.partition("=")[2] for o in overrides if key_of(o) == key and "=" in o]
    return values[-1].strip("'\"") if values else None


def about_the_plan(overrides: Sequence[str]) -> list[str]:
    """The overrides that change what is trained, without those that say where, which phase and whom to trust."""
    return [o for o in overrides if key_of(o).split(".", 1)[0] not in OUTSIDE]


def _existing(overrides: Sequence[str]) -> Run | None:
    """The run that the words name by run.name or by its experiment, when it has a plan already."""
    name = _typed(overrides, "run.name") or _typed(overrides, "experiment")
    if not name:
        return None
    run = Run.at(_typed(overrides, "run.root") or "runs", name)
    return run if run.exists() and run.state().plan else None


def _replan_command(run: Run, words: Sequence[str]) -> str:
    return " ".join(["python -m pipeline phase=planning", f"run.name={run.name}", *words])


def _refuse_differences(run: Run, phase: str, words: list[str], dirs: list[str], record: Mapping[str, Any]) -> None:
    """Raise UserError when what was typed for a later phase differs from what is frozen."""
    from pipeline.config.compose import compose

    known = {key_of(w) for w in words}
    remembered = record["overrides"]
    before = compose(remembered, dirs)
    after = compose([o for o in remembered if key_of(o) not in known] + words, dirs)
    changed = plans.changed_config(before, after)
    if changed:
        what = f"differs from the frozen plan, and phase={phase} works from that"
        do = f"python -m pipeline phase=baseline run.name={run.name} " + " ".join(words)
        if plans.moved_goalposts(changed):
            do = _replan_command(run, words)
        raise UserError(*(fault(k, what, got=new, expected=str(old), do=do) for k, (old, new) in changed.items()))


def _refuse_moved_goalposts(run: Run, words: list[str], changed: Mapping[str, tuple[Any, Any]]) -> None:
    moved = plans.moved_goalposts(changed)
    if moved:
        do = _replan_command(run, words)
        what = "is a goalpost of the frozen plan and moves only by an explicit phase=planning"
        raise UserError(*(fault(k, what, got=changed[k][1], expected=str(changed[k][0]), do=do) for k in moved))


def draft(overrides: Sequence[str], config_dirs: Sequence[str | Path]) -> Draft:
    """What these words ask for, held against the frozen plan of the run they name.

    Raises UserError with every fault of the config, with every override that differs from a plan that is not to be
    changed by this phase, and with every goalpost that only planning may move.
    """
    run = _existing(overrides)
    wanted = _typed(overrides, "phase") or "auto"
    words = about_the_plan(overrides)
    dirs = [str(Path(d).resolve()) for d in config_dirs]
    if run is None:
        if wanted in LATER and _typed(overrides, "run.name"):
            Run.find(str(_typed(overrides, "run.name")), _typed(overrides, "run.root") or "runs")
        from pipeline.config.compose import compose

        return Draft(compose(overrides, dirs), words, dirs)
    state = run.state()
    assert state.plan is not None
    record, plan = state.plan, plans.load(run, state)
    dirs = dirs or record["config_dirs"]
    outside = {"phase": wanted, "run": {"name": run.name, "root": str(run.path.parent), "sweep": None}, "trust": []}
    settled = state.gate("planning") == "open"
    if wanted not in PLANNING and settled:
        if words:
            _refuse_differences(run, wanted, words, dirs, record)
        return Draft({**plan.config, **outside}, record["overrides"], dirs)
    return _revised(run, plan, record, [*overrides], dirs, settled and wanted == "baseline")


def _revised(
    run: Run, plan: plans.Plan, record: Mapping[str, Any], overrides: list[str], dirs: list[str], settled: bool
) -> Draft:
    """The remembered words with the new ones over them, composed anew."""
    from pipeline.config.compose import compose

    typed = {key_of(o) for o in overrides}
    remembered = [o for o in record["overrides"] if key_of(o) not in typed]
    named = [] if "run.name" in typed else [f"run.name={run.name}"]
    config = compose([*remembered, *overrides, *named], dirs)
    changed = plans.changed_config(plan.config, config)
    if settled:
        _refuse_moved_goalposts(run, about_the_plan(overrides), changed)
    return Draft(config, [*remembered, *about_the_plan(overrides)], dirs, changed=bool(changed))


def _trust(run: Run, book: Ledger, made: Draft) -> None:
    """The packages that the user trusts are importable, on record, and unchanged since they were recorded."""
    from pipeline.config import trust

    names = made.config.get("trust") or []
    state: RunState = fold(book.entries)
    if names:
        grants = trust.grant(names, trust.roots(made.config_dirs))
        if list(state.trust) != list(grants):
            book.append("trust.granted", {"packages": grants})
    trust.activate(fold(book.entries).trust)


def drive(house: House, made: Draft) -> tuple[Run, GateState, Advice]:
    """Run what the draft asks for, with the run locked; the gate it stopped at and the advice come back.

    A run that is stopped before its first plan by wrong input, or refused, leaves nothing behind.
    """
    wanted = made.config["phase"]
    run = Run.at(made.config["run"]["root"], made.config["run"]["name"])
    fresh_root = not run.path.parent.exists()
    with opened(run, experiment=_typed(made.overrides, "experiment")) as book:
        fresh = len(book.entries) == 1
        try:
            _trust(run, book, made)
            gate, advice = machine.advance(house, run, book, wanted, made)
        except (UserError, Refused):
            if fresh and not fold(book.entries).plan:
                files.remove_folder(run.path)
                if fresh_root and not any(run.path.parent.iterdir()):
                    files.remove_folder(run.path.parent)
            raise
    return run, gate, advice


def sweep(
    house: House, words: Sequence[str], config_dirs: Sequence[str | Path], code: Any
) -> tuple[Path, list[dict[str, Any]]]:
    """Every job of a sweep as a run of its own; the root folder and how each job ended come back.

    `code(wanted, gate, stopped)` is the exit code of a job.
    """
    from pipeline.config.sweep import multirun

    dirs = [str(Path(d).resolve()) for d in config_dirs]
    roots: set[Path] = set()

    def job(config: dict[str, Any], overrides: list[str]) -> int:
        roots.add(Path(config["run"]["root"]).resolve())
        _, gate, advice = drive(house, Draft(config, about_the_plan(overrides), dirs))
        return int(code(config["phase"], gate, advice.exit_code))

    ends = multirun(words, job)
    root = next(iter(roots), Path(_typed(words, "run.root") or "runs").resolve())
    return root, [end._asdict() for end in ends]
