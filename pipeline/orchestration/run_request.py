"""From the overrides of a command to a request: the composed config, compared with the frozen plan of the run.

The first command of a run composes its config; later ones work from the frozen plan. The overrides that led to the plan
are stored in the ledger, so that `phase=diagnostics run.name=digits` needs none of them again.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.conf_dir import conf_dir
from pipeline.config.override_keys import key_of, named
from pipeline.errors import Refused, UserError, fault
from pipeline.orchestration.phase import RunRequest
from pipeline.orchestration.plan_revision import changes_since
from pipeline.results import PHASES
from pipeline.run_naming import unquoted
from pipeline.run_store import plan as plans
from pipeline.run_store.plan import NOT_IN_PLAN, Plan
from pipeline.run_store.run import Run, refuse_links
from pipeline.run_store.state import RunState

MAX_SHOWN = 5  # edited keys that are listed
STARTING_PHASES = ("planning", "baseline", "auto")  # the phases that may create a run

Changes = Mapping[str, tuple[Any, Any]]


def override_value(overrides: Sequence[str], key: str) -> str | None:
    """The value that the overrides give a key, the last one if there are several; None when there is none."""
    values = [o.partition("=")[2] for o in overrides if key_of(o) == key and "=" in o]
    return unquoted(values[-1]) if values else None


def plan_overrides(overrides: Sequence[str]) -> list[str]:
    """The overrides that change the plan, without those that name run, phase, trusted packages and variables."""
    return [o for o in overrides if key_of(o).split(".", 1)[0] not in NOT_IN_PLAN]


def resolve_request(overrides: Sequence[str], config_dirs: Sequence[str | Path]) -> RunRequest:
    """The request that these overrides make, compared with the frozen plan of the run that they name.

    Raises UserError with every fault of the config, with every override that differs from a plan that the phase must
    not change, and with every goalpost that only planning may move.
    """
    phase = override_value(overrides, "phase") or "auto"
    if phase not in (*PHASES, "auto"):
        do = "python -m pipeline --help"
        raise UserError(fault("phase", "unknown phase", got=phase, among=(*PHASES, "auto"), do=do))
    dirs = [str(Path(d).resolve()) for d in config_dirs]
    run, config = find_run(overrides, dirs)
    refuse_links(run.path)  # before its plan is read
    if not run.exists() or run.state().plan is None:
        if phase not in STARTING_PHASES and not run.exists():
            Run.find(run.name, run.path.parent)  # raises UserError that names the most similar run
        return RunRequest(config or _compose(overrides, dirs), plan_overrides(overrides), dirs)
    state = run.state()
    if state.gate("planning") == "open" and phase not in ("planning", "baseline"):
        return _request_from_plan(run, state, phase, list(overrides), dirs)
    return _request_from_overrides(run, state, phase, list(overrides), dirs)


def _compose(overrides: Sequence[str], dirs: Sequence[str]) -> dict[str, Any]:
    from pipeline.config.compose import compose

    return compose(overrides, dirs)


def find_run(overrides: Sequence[str], dirs: Sequence[str]) -> tuple[Run, dict[str, Any] | None]:
    """The run that the overrides name, and the config where it had to be composed to learn the name.

    Without `run.name` the config has the name: that of the experiment, which a debug shape may change.
    """
    name, root = override_value(overrides, "run.name"), override_value(overrides, "run.root") or "runs"
    if name:
        return Run.at(root, name), None
    try:
        config = _compose(overrides, dirs)
    except UserError:
        # The overrides may be valid only together with those of the first command, which the run has stored.
        existing = Run.at(root, override_value(overrides, "experiment") or "digits")
        if override_value(overrides, "debug") or not existing.exists():
            raise
        return existing, None
    return Run.at(config["run"]["root"], config["run"]["name"]), config


def _request_from_plan(run: Run, state: RunState, phase: str, overrides: list[str], dirs: list[str]) -> RunRequest:
    """The request of a later phase: the config of the frozen plan, from which no override may differ.

    `auto` also composes the stored overrides anew, since a config file may have been edited, unless they need
    environment variables that this command does not allow. A later phase that is requested by name, without overrides,
    needs no config file; the request only mentions an edit.
    """
    assert state.plan is not None
    dirs = dirs or state.plan.get("config_dirs", [])
    _refuse_new_trust(run, state, overrides)
    plan = plans.load(run, state)
    changing, notice = plan_overrides(overrides), ""
    places = {key: plan.config[key] for key in plans.PLACES if key in plan.config}
    env = [o for o in overrides if key_of(o) == "env"]
    composable = all(Path(folder).is_dir() for folder in dirs) and (env or not plan.facts.get("env"))
    if changing or (phase == "auto" and composable):
        overridden = {key_of(o) for o in changing}
        stored = [o for o in state.plan.get("overrides", []) if key_of(o) not in overridden]
        composed = _compose([*stored, *changing, *env], dirs)
        _refuse_differences(run, phase, changing, changes_since(plan, composed))
        places |= {key: composed[key] for key in places if any(o.partition(".")[0] == key for o in overridden)}
    elif phase != "auto" and composable:
        notice = _edits_since(run, state, plan, phase, dirs, env)
    own_keys = {"phase": phase, "run": {"name": run.name, "root": str(run.path.parent), "sweep": None}}
    config = {**plan.config, **places, **own_keys, "trust": named(overrides, "trust") or []}
    return RunRequest(config, state.plan.get("overrides", []), dirs, ledger_head=state.head, notice=notice)


def _edits_since(run: Run, state: RunState, plan: Plan, phase: str, dirs: Sequence[str], env: Sequence[str]) -> str:
    """Return one line about edits of config files after planning that this phase does not use; empty without any.

    The config is composed, which takes a while, only if a file is newer than that of the plan.
    """
    assert state.plan is not None
    frozen = (run.path / state.plan["file"]).stat().st_mtime
    folders = [conf_dir(), *map(Path, dirs)]
    if not all(folder.is_dir() for folder in folders):
        return ""
    if not any(file.stat().st_mtime > frozen for folder in folders for file in folder.rglob("*.yaml")):
        return ""
    try:
        changes = changes_since(plan, _compose([*state.plan.get("overrides", []), *env], dirs))
    except UserError as error:
        return f"phase={phase} uses the frozen plan; the config files of today have a fault: {error.faults[0]}"
    if not changes:
        return ""
    shown = [f"{key} {old}, now {new}" for key, (old, new) in list(changes.items())[:MAX_SHOWN]]
    more = f" and {len(changes) - MAX_SHOWN} more" if len(changes) > MAX_SHOWN else ""
    again = _command(run, "planning" if plans.moved_goalposts(changes) else "baseline", [])
    edits = f"the config files that were edited since ({', '.join(shown)}{more})"
    return f"phase={phase} uses the frozen plan, not {edits}; to use them: {again}"


def _request_from_overrides(run: Run, state: RunState, phase: str, overrides: list[str], dirs: list[str]) -> RunRequest:
    """The request of planning or baseline: stored and new overrides composed anew and compared with the plan."""
    assert state.plan is not None
    dirs = dirs or state.plan.get("config_dirs", [])
    overridden = {key_of(o) for o in overrides}
    stored = [o for o in state.plan.get("overrides", []) if key_of(o) not in overridden]
    name = [] if "run.name" in overridden else [f"run.name={run.name}"]
    config = _compose([*stored, *overrides, *name], dirs)
    changes = _changes(run, state, config, phase)
    if phase == "baseline":
        refuse_changes(run, state, phase, plan_overrides(overrides), changes)
    return RunRequest(
        config, [*stored, *plan_overrides(overrides)], dirs, changed=bool(changes), ledger_head=state.head
    )


def _changes(run: Run, state: RunState, config: Mapping[str, Any], phase: str) -> Changes:
    """The keys that differ from the frozen plan. A damaged plan file counts as changed for `phase=planning`."""
    try:
        return changes_since(plans.load(run, state), config)
    except Refused:
        if phase != "planning":
            raise
        return {"plan": (None, None)}


def _refuse_new_trust(run: Run, state: RunState, overrides: Sequence[str]) -> None:
    """Raise UserError when a later phase is to trust other packages than those of the plan."""
    trust, names = override_value(overrides, "trust"), named(overrides, "trust")
    trusted = [grant["package"] for grant in state.trust]
    if names is not None and sorted(names) != sorted(trusted):
        do = f"python -m pipeline phase=baseline {run.overrides_for('baseline', state)} 'trust={trust}'"
        expected = f"nothing, or the packages trusted so far ({', '.join(trusted) or 'none'})"
        raise UserError(fault("trust", "must be granted before training", got=trust, expected=expected, do=do))


def refuse_changes(run: Run, state: RunState, phase: str, overrides: list[str], changes: Changes) -> None:
    """Raise UserError for changes of the config that the phase must not make to a plan whose gate is open."""
    if state.gate("planning") != "open" or phase == "planning":
        return
    if phase == "baseline":
        _refuse_moved_goalposts(run, overrides, changes)
    else:
        _refuse_differences(run, phase, overrides, changes)


def _refuse_differences(run: Run, phase: str, changing: list[str], changes: Changes) -> None:
    """Raise UserError when an override or an edited config file differs from what is frozen."""
    if changes:
        what = f"differs from the frozen plan, which phase={phase} uses"
        planner = "planning" if plans.moved_goalposts(changes) else "baseline"
        do = _command(run, planner, changing)
        raise UserError(*(fault(k, what, got=new, expected=str(old), do=do) for k, (old, new) in changes.items()))


def _command(run: Run, phase: str, overrides: list[str]) -> str:
    """The command that runs a phase with these overrides, as a shell accepts it."""
    return " ".join([f"python -m pipeline phase={phase} {run.overrides_for(phase)}", *map(shlex.quote, overrides)])


def _refuse_moved_goalposts(run: Run, overrides: list[str], changes: Changes) -> None:
    """Raise UserError when a change concerns the seed, a target, a limit, a split or a threshold."""
    moved = plans.moved_goalposts(changes)
    if moved:
        do = _command(run, "planning", overrides)
        what = "is part of the frozen plan and changes only with phase=planning"
        raise UserError(*(fault(k, what, got=changes[k][1], expected=str(changes[k][0]), do=do) for k in moved))
