"""What comes next: one pure function from the state of a run to the phase, the exit code and the command."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.record.state import MAX_ROUNDS, RunState
from pipeline.records import PHASES


@dataclass(frozen=True)
class Advice:
    """The next step: `phase` when the machine can take it, else None with the reason and the exit code of stopping."""

    phase: str | None
    why: str
    command: str
    exit_code: int = 0


def _go(state: RunState, phase: str, why: str) -> Advice:
    return Advice(phase, why, f"python -m pipeline phase={phase} run.name={state.name}")


def _blocked(state: RunState, phase: str) -> Advice:
    """The stop at a gate that was evaluated and did not open."""
    gate = state.gate(phase)
    if gate == "pending":
        who = f"python -m pipeline approve {state.name} --who NAME"
        return Advice(None, f"the {phase} gate waits for a person", who, 4)
    return Advice(None, f"the {phase} gate is closed", f"python -m pipeline explain {state.name} --gate {phase}", 3)


def _finish(state: RunState) -> Advice:
    gate = state.gate("finalization")
    if gate is None:
        return _go(state, "finalization", "the model is good enough to be finished")
    if gate == "open":
        return _go(state, "finalization", "every question is answered: the bundle can be released")
    return _blocked(state, "finalization")


def advise(state: RunState, max_rounds: int = MAX_ROUNDS) -> Advice:
    """Where the run goes from here, or why it stops and what continues it."""
    if state.released:
        return Advice(None, "released", f"python -m pipeline verify {state.name}")
    for phase in PHASES[:2]:
        gate = state.gate(phase)
        if gate is None:
            return _go(
                state, phase, "stale: what it was built on has changed" if state.stale(phase) else "not done yet"
            )
        if gate != "open":
            return _blocked(state, phase)
    if state.sufficient():
        for phase in PHASES[2:4]:
            if not state.passed(phase) and state.gate(phase) in ("closed", "pending"):
                return _blocked(state, phase)
        return _finish(state)
    if state.gate("optimization") in ("closed", "pending"):
        return _blocked(state, "optimization")
    if state.exhausted or state.round > max_rounds:
        why = state.exhausted["why"] if state.exhausted else f"{max_rounds} rounds did not reach the target"
        return Advice(None, f"exhausted: {why}; a person decides", f"python -m pipeline status {state.name}", 3)
    gate = state.gate("diagnostics")
    if gate is None:
        return _go(state, "diagnostics", "the run is not good enough yet: find out why")
    if gate != "open":
        return _blocked(state, "diagnostics")
    return _go(state, "optimization", "the causes are named: prove a cure")
