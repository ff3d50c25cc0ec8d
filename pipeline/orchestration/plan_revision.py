"""Freezing: how a plan becomes a revision, and what may change from one to the next without being asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import Refused, UserError, fault
from pipeline.orchestration.phase import RunRequest
from pipeline.results import plain
from pipeline.run_store import plan as plans
from pipeline.run_store.ledger import Ledger
from pipeline.run_store.plan import Plan
from pipeline.run_store.run import Run
from pipeline.run_store.state import fold

SHOWN = 5  # changes that are told in a line


def _by_id(checklists: Mapping[str, Any]) -> dict[str, Any]:
    """Checklists with their items under their ids, so that a difference names the item."""
    return {phase: {item["id"]: item for item in items} for phase, items in checklists.items()}


def _goalposts(plan: Plan) -> dict[str, Any]:
    """What decides how a model is judged, beside the config: the questions with their thresholds, and the rows."""
    splits = {name: known["digest"] for name, known in plan.facts.get("splits", {}).items()}
    return {"checklists": _by_id(plan.checklists), "splits": splits}


def _older(run: Run, ledger: Ledger) -> Plan | None:
    """The plan in force, or None where there is none or its file is lost (which `phase=planning` mends)."""
    state = fold(ledger.entries)
    try:
        return plans.load(run, state) if state.plan else None
    except Refused:
        return None


def _refuse_moved(run: Run, old: Plan, fresh: Plan) -> None:
    """Raise UserError when questions, thresholds or rows moved though only a hyperparameter was to change."""
    moved = plans.differences(_goalposts(old), plain(_goalposts(fresh)))
    if moved:
        do = f"python -m pipeline phase=planning run.name={run.name}"
        what = "is a goalpost of the frozen plan and moves only by an explicit phase=planning"
        raise UserError(*(fault(k, what, got=new, expected=str(was), do=do) for k, (was, new) in moved.items()))


def freeze(run: Run, ledger: Ledger, draft: RunRequest, lists: dict[str, Any], facts: dict[str, Any]) -> Plan:
    """The plan stands as a revision of its own, recorded with its difference; an unchanged one keeps its revision.

    Raises UserError when goalposts moved and nobody asked for `phase=planning` while the gate stood open.
    """
    state = fold(ledger.entries)
    number = state.plan["revision"] if state.plan else 0
    config = {k: v for k, v in draft.config.items() if k not in plans.OUTSIDE}
    fresh = Plan(number + 1, plain(config), plain(lists), plain(facts))
    old = _older(run, ledger)
    if old and draft.config["phase"] != "planning" and state.gate("planning") == "open":
        _refuse_moved(run, old, fresh)
    if state.plan and state.plan["digest"] == fresh.digest:
        same = Plan(number, fresh.config, fresh.checklists, fresh.facts)
        plans.write(run, same)  # restores a file that was lost or damaged
        return same
    path = plans.write(run, fresh)
    ledger.append(
        "plan.frozen",
        {
            "revision": fresh.revision,
            "digest": fresh.digest,
            "file": run.relative(path),
            "overrides": draft.overrides,
            "config_dirs": draft.config_dirs,
            "changed": _changed(old, fresh),
            "questions": {phase: len(items) for phase, items in lists.items()},
            "then": {phase: settings["next"] for phase, settings in config["phases"].items()},
        },
    )
    return fresh


def _changed(old: Plan | None, fresh: Plan) -> dict[str, list[Any]]:
    """Every config key and goalpost that differs from the revision before, as [old, new]."""
    if old is None:
        return {}
    found = plans.differences(old.config, fresh.config)
    found |= plans.differences(_goalposts(old), _goalposts(fresh))
    found |= plans.differences({"trust": _packages(old)}, {"trust": _packages(fresh)})
    return {key: list(values) for key, values in found.items()}


def _packages(plan: Plan) -> dict[str, str]:
    """The trusted packages with the beginning of their source's digest."""
    return {grant["package"]: grant["digest"][:12] for grant in plan.facts.get("trust", ())}


def told(plan: Plan, changed: Mapping[str, list[Any]]) -> str:
    """A new revision in a line: what is not as it was."""
    some = [f"{key} {old} → {new}" for key, (old, new) in changed.items()]
    more = f" and {len(some) - SHOWN} more" if len(some) > SHOWN else ""
    return f"planning: revision {plan.revision} of the plan: {', '.join(some[:SHOWN])}{more}"
