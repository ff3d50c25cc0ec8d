"""What a command asks for, held against what is frozen: composed config, remembered words, refused differences.

The first command of a run composes its config; later ones work from the frozen plan. What was typed then is
remembered in the ledger, so that `phase=diagnostics run.name=digits` needs nothing repeated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.override_keys import key_of
from pipeline.errors import Refused, UserError, fault
from pipeline.orchestration.phase import RunRequest
from pipeline.results import PHASES
from pipeline.run_store import plan as plans
from pipeline.run_store.plan import OUTSIDE
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState

PLANNERS = ("planning", "baseline", "auto")  # the phases that may begin a run


def typed(overrides: Sequence[str], key: str) -> str | None:
    """The value typed for a key, the last one counting; None when it was not typed."""
    values = [o.partition("=")[2] for o in overrides if key_of(o) == key and "=" in o]
    return values[-1].strip("'\"") if values else None


def about_the_plan(overrides: Sequence[str]) -> list[str]:
    """The overrides that change what is trained, without those that say where, which phase and whom to trust."""
    return [o for o in overrides if key_of(o).split(".", 1)[0] not in OUTSIDE]


def draft(overrides: Sequence[str], config_dirs: Sequence[str | Path]) -> RunRequest:
    """What these words ask for, held against the frozen plan of the run they name.

    Raises UserError with every fault of the config, with every override that differs from a plan that is not to be
    changed by this phase, and with every goalpost that only planning may move.
    """
    wanted = typed(overrides, "phase") or "auto"
    if wanted not in (*PHASES, "auto"):
        do = "python -m pipeline --help"
        raise UserError(fault("phase", "there is no such phase", got=wanted, among=(*PHASES, "auto"), do=do))
    dirs = [str(Path(d).resolve()) for d in config_dirs]
    run, config = _named(overrides, dirs)
    if not run.exists() or run.state().plan is None:
        if wanted not in PLANNERS and not run.exists():
            Run.find(run.name, run.path.parent)  # refuses, naming the nearest run there is
        return RunRequest(config or _compose(overrides, dirs), about_the_plan(overrides), dirs)
    return _held_against_the_plan(run, run.state(), wanted, list(overrides), dirs)


def _compose(overrides: Sequence[str], dirs: Sequence[str]) -> dict[str, Any]:
    from pipeline.config.compose import compose

    return compose(overrides, dirs)


def _named(overrides: Sequence[str], dirs: Sequence[str]) -> tuple[Run, dict[str, Any] | None]:
    """The run that the words speak of, with their config where finding the name needed it.

    Without `run.name` the config says it: an experiment's own name, changed by a debug shape.
    """
    name, root = typed(overrides, "run.name"), typed(overrides, "run.root") or "runs"
    if name:
        return Run.at(root, name), None
    try:
        config = _compose(overrides, dirs)
    except UserError:
        remembered = Run.at(root, typed(overrides, "experiment") or "digits")
        if typed(overrides, "debug") or not remembered.exists():
            raise
        return remembered, None  # the words may only make sense beside those of the first command
    return Run.at(config["run"]["root"], config["run"]["name"]), config


def _held_against_the_plan(run: Run, state: RunState, wanted: str, overrides: list[str], dirs: list[str]) -> RunRequest:
    """The draft for a run that has a plan: that plan for later phases, the words composed anew for the first two."""
    assert state.plan is not None
    record = state.plan
    dirs = dirs or record["config_dirs"]
    settled = state.gate("planning") == "open"
    if settled and wanted not in ("planning", "baseline"):
        _refuse_new_trust(run, state, overrides)
        words = about_the_plan(overrides)
        if words:
            _refuse_differences(run, wanted, words, dirs, record)
        outside = {"phase": wanted, "run": {"name": run.name, "root": str(run.path.parent), "sweep": None}, "trust": []}
        return RunRequest({**plans.load(run, state).config, **outside}, record["overrides"], dirs, head=state.head)
    changing = {key_of(o) for o in overrides}
    remembered = [o for o in record["overrides"] if key_of(o) not in changing]
    named = [] if "run.name" in changing else [f"run.name={run.name}"]
    config = _compose([*remembered, *overrides, *named], dirs)
    changed = _changed(run, state, config, wanted)
    if settled and wanted == "baseline":
        _refuse_moved_goalposts(run, about_the_plan(overrides), changed)
    words = [*remembered, *about_the_plan(overrides)]
    return RunRequest(config, words, dirs, changed=bool(changed), head=state.head)


def _changed(run: Run, state: RunState, config: Mapping[str, Any], wanted: str) -> dict[str, tuple[Any, Any]]:
    """The keys that differ from the frozen plan. A plan file that is lost counts as changed for `phase=planning`."""
    try:
        return plans.changed_config(plans.load(run, state).config, config)
    except Refused:
        if wanted != "planning":
            raise
        return {"plan": (None, None)}


def _refuse_new_trust(run: Run, state: RunState, overrides: Sequence[str]) -> None:
    asked = typed(overrides, "trust")
    known = [grant["package"] for grant in state.trust]
    if asked is not None and sorted(n.strip() for n in asked.strip("[]").split(",") if n.strip()) != sorted(known):
        do = f"python -m pipeline phase=baseline run.name={run.name} 'trust={asked}'"
        expected = f"nothing, or the packages trusted so far ({', '.join(known) or 'none'})"
        raise UserError(
            fault("trust", "is granted before training, not behind it", got=asked, expected=expected, do=do)
        )


def _refuse_differences(run: Run, phase: str, words: list[str], dirs: list[str], record: Mapping[str, Any]) -> None:
    """Raise UserError when what was typed for a later phase differs from what is frozen."""
    changing = {key_of(w) for w in words}
    remembered = record["overrides"]
    before = _compose(remembered, dirs)
    after = _compose([o for o in remembered if key_of(o) not in changing] + words, dirs)
    changed = plans.changed_config(before, after)
    if changed:
        what = f"differs from the frozen plan, and phase={phase} works from that"
        planner = "planning" if plans.moved_goalposts(changed) else "baseline"
        do = " ".join([f"python -m pipeline phase={planner} run.name={run.name}", *words])
        raise UserError(*(fault(k, what, got=new, expected=str(old), do=do) for k, (old, new) in changed.items()))


def _refuse_moved_goalposts(run: Run, words: list[str], changed: Mapping[str, tuple[Any, Any]]) -> None:
    moved = plans.moved_goalposts(changed)
    if moved:
        do = " ".join([f"python -m pipeline phase=planning run.name={run.name}", *words])
        what = "is a goalpost of the frozen plan and moves only by an explicit phase=planning"
        raise UserError(*(fault(k, what, got=changed[k][1], expected=str(changed[k][0]), do=do) for k in moved))
