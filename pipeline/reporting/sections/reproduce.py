"""How a run is repeated: its command, what it depends on by digest, and the environment that it was measured in."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.run_store.plan import Plan
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState


@dataclass(frozen=True)
class Reproduction:
    """Commands with what each does, and facts by name; empty before there is a plan."""

    commands: list[tuple[str, str]]
    facts: list[tuple[str, str]]


def reproduction(run: Run, state: RunState, plan: Plan | None) -> Reproduction:
    """Return how the run is repeated, from the overrides and facts of its plan."""
    if plan is None or state.plan is None:
        return Reproduction([], [])
    record = state.plan
    name = run.argument
    again_name = f"{run.path.name}_again"
    root = [] if name == run.path.name else [f"run.root={run.path.parent}"]
    overrides = shlex.join([*record.get("overrides", []), *root, f"run.name={again_name}"])
    folders = "".join(f" --config-dir {shlex.quote(folder)}" for folder in record.get("config_dirs", []))
    trust = ",".join(grant["package"] for grant in state.trust)
    again = f"python -m pipeline phase=auto{folders} {overrides}" + (f" 'trust=[{trust}]'" if trust else "")
    commands = [
        ("run it again from the start, as a run of its own", again),
        ("compare the two", f"python -m pipeline diff {name} {shlex.quote(str(Path(name).with_name(again_name)))}"),
        ("check that no record or file was changed", f"python -m pipeline verify {name}"),
    ]
    return Reproduction(commands, [*_identity(state, plan), *_environment(plan.facts.get("environment") or {})])


def _identity(state: RunState, plan: Plan) -> list[tuple[str, str]]:
    """Return what the result follows from: plan, seed, data and weights, by digest."""
    assert state.plan is not None
    facts = [("plan", f"revision {plan.revision}, {state.plan['digest'][:12]}"), ("seed", str(plan.config.get("seed")))]
    splits: Mapping[str, Any] = plan.facts.get("splits") or {}
    facts += [
        (f"{name} rows", f"{_count(split.get('rows'))}, {str(split.get('digest', ''))[:12]}")
        for name, split in splits.items()
        if isinstance(split, Mapping)
    ]
    chosen = state.frozen or state.candidate
    return facts + ([("weights", chosen["weights"][:12])] if chosen else [])


def _count(rows: object) -> str:
    return f"{rows:,}" if isinstance(rows, int) else "?"


def _environment(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(str(name), str(value)) for name, value in environment.items() if isinstance(value, str | int | float)]
