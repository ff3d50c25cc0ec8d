"""Revisions of the plan: how a plan is frozen, and what may change from one revision to the next without planning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.config.override_keys import OPEN
from pipeline.errors import Refused, UserError, fault
from pipeline.orchestration.phase import RunRequest
from pipeline.repair.config_edits import MISSING, get
from pipeline.results import exact, plain
from pipeline.run_store import plan as plans
from pipeline.run_store.ledger import Ledger
from pipeline.run_store.plan import Plan
from pipeline.run_store.records import ChecklistItem
from pipeline.run_store.run import Run
from pipeline.run_store.state import fold

MAX_SHOWN = 5  # changes that are listed in the one line about a new revision

Checklists = dict[str, list[ChecklistItem]]


def changes_since(plan: Plan, config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the config keys that differ from the plan, as (old, new).

    A key that the plan lacks does not differ if it has its default value: an earlier version, which did not know the
    key, made the plan, and behaved as the default does.
    """
    changes = plans.changes_from(plan, config)
    has_key = {key: get(plan.config, key) is not MISSING for key in changes}
    if all(known or key.partition(".")[0] in OPEN for key, known in has_key.items()):
        return changes
    from pipeline.config.compose import default_config  # composing takes half a second, and few plans need it

    defaults = default_config()
    return {
        key: (old, new)
        for key, (old, new) in changes.items()
        if has_key[key] or key.partition(".")[0] in OPEN or plans.differences(get(defaults, key), new)
    }


def freeze(run: Run, ledger: Ledger, request: RunRequest, checklists: Checklists, facts: dict[str, Any]) -> Plan:
    """Write the plan as a new revision and record how it differs; an unchanged plan keeps its revision.

    Raises UserError when goalposts moved although the gate was open and `phase=planning` was not requested.
    """
    state = fold(ledger.entries)
    revision = state.plan["revision"] if state.plan else 0
    config = {k: v for k, v in plans.with_resolved(request.config, facts).items() if k not in plans.NOT_IN_PLAN}
    plan = Plan(revision + 1, exact(config), exact(checklists), plain(facts))
    previous = _previous_plan(run, ledger)
    if previous and request.phase != "planning" and state.gate("planning") == "open":
        _refuse_moved_goalposts(run, previous, plan)
    if state.plan and state.plan["digest"] == plan.digest:
        same = Plan(revision, plan.config, plan.checklists, plan.facts)
        plans.write(run, same)  # restores a file that was lost or damaged
        return same
    path = plans.write(run, plan)
    ledger.append(
        "plan.frozen",
        {
            "revision": plan.revision,
            "digest": plan.digest,
            "file": run.relative(path),
            "overrides": request.overrides,
            "config_dirs": request.config_dirs,
            "changed": _changes(previous, plan),
            **plans.recorded_facts(plan),
        },
    )
    return plan


def _previous_plan(run: Run, ledger: Ledger) -> Plan | None:
    """The current plan; None when there is none or its file is damaged, which `phase=planning` repairs."""
    state = fold(ledger.entries)
    try:
        return plans.load(run, state) if state.plan else None
    except Refused:
        return None


def _refuse_moved_goalposts(run: Run, previous: Plan, plan: Plan) -> None:
    """Raise UserError when questions, thresholds or rows changed although only a hyperparameter was to change."""
    moved = plans.differences(_goalposts(previous), _goalposts(plan))
    if moved:
        do = f"python -m pipeline phase=planning {run.overrides_for('planning')}"
        what = "is part of the frozen plan and changes only with phase=planning"
        raise UserError(*(fault(k, what, got=new, expected=str(old), do=do) for k, (old, new) in moved.items()))


def _goalposts(plan: Plan) -> dict[str, Any]:
    """What a model is judged by, apart from the config: the checklists with their thresholds, and the splits.

    Items are keyed by id, so that a difference names the item.
    """
    splits = {name: split["digest"] for name, split in plan.facts.get("splits", {}).items()}
    checklists = {phase: {item["id"]: item for item in items} for phase, items in plan.checklists.items()}
    return {"checklists": checklists, "splits": splits}


def _changes(previous: Plan | None, plan: Plan) -> dict[str, list[Any]]:
    """Every config key, goalpost and trusted package that differs from the previous revision, as [old, new]."""
    if previous is None:
        return {}
    changes = plans.differences(previous.config, plan.config)
    changes |= plans.differences(_goalposts(previous), _goalposts(plan))
    changes |= plans.differences({"trust": _package_digests(previous)}, {"trust": _package_digests(plan)})
    return {key: list(values) for key, values in changes.items()}


def _package_digests(plan: Plan) -> dict[str, str]:
    """The trusted packages, each with the first characters of its source's digest."""
    return {grant["package"]: grant["digest"][:12] for grant in plan.facts.get("trust", ())}


def format_revision(plan: Plan, changed: Mapping[str, list[Any]]) -> str:
    """One line about a new revision of the plan: what changed, from which value to which."""
    changes = [f"{key} {old} → {new}" for key, (old, new) in changed.items()]
    rest = f" and {len(changes) - MAX_SHOWN} more" if len(changes) > MAX_SHOWN else ""
    return f"planning: revision {plan.revision} of the plan: {', '.join(changes[:MAX_SHOWN])}{rest}"
