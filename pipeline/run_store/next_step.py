"""What comes next: one pure function from the state of a run to the phase, the exit code and the command."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.results import PHASES, ROUNDED
from pipeline.run_store.state import MAX_ROUNDS, RunState

HOME = "runs"  # where runs live unless run.root says otherwise


@dataclass(frozen=True)
class NextStep:
    """The next step: `phase` when the machine can take it, else None with the reason and the exit code of stopping."""

    phase: str | None
    why: str
    command: str
    exit_code: int = 0


@dataclass(frozen=True)
class _Adviser:
    """Words commands for one run: by name under the usual root, with its place elsewhere."""

    state: RunState
    root: str

    @property
    def _run(self) -> str:
        return self.state.name if self.root == HOME else f"{self.root}/{self.state.name}"

    def go(self, phase: str, why: str) -> NextStep:
        place = "" if self.root == HOME else f" run.root={self.root}"
        return NextStep(phase, why, f"python -m pipeline phase={phase} run.name={self.state.name}{place}")

    def blocked(self, phase: str) -> NextStep:
        """The stop at a gate that was evaluated and did not open."""
        if self.state.gate(phase) == "pending":
            why = f"the {phase} gate waits for a person"
            return NextStep(None, why, f"python -m pipeline approve {self._run} --who NAME", 4)
        return NextStep(
            None, f"the {phase} gate is closed", f"python -m pipeline explain {self._run} --gate {phase}", 3
        )

    def released(self) -> NextStep:
        return NextStep(None, "released", f"python -m pipeline verify {self._run}")

    def exhausted(self, why: str) -> NextStep:
        waive = f"python -m pipeline waive {self._run} branch --who NAME --why '...' --expires YYYY-MM-DD"
        return NextStep(None, f"exhausted: {why}; a person decides", waive, 3)


def next_step(state: RunState, max_rounds: int = MAX_ROUNDS, root: str = HOME) -> NextStep:
    """Where the run goes from here, or why it stops and what continues it. `root` is where the run lives."""
    words = _Adviser(state, root)
    if state.released:
        return words.released()
    for phase in PHASES[:2]:
        gate = state.gate(phase)
        if gate is None:
            return words.go(phase, "stale: what it was built on has changed" if state.stale(phase) else "not done yet")
        if gate != "open":
            return words.blocked(phase)
    return _finish(state, words) if state.sufficient() else _mend(state, words, max_rounds)


def _finish(state: RunState, words: _Adviser) -> NextStep:
    """The way of a model that is good enough: what the route asks for on the way, then finalization."""
    for phase in ROUNDED:
        if not state.passed(phase):
            if state.gate(phase) in ("closed", "pending"):
                return words.blocked(phase)
            return words.go(phase, "the plan asks for it before finalization")
    gate = state.gate("finalization")
    if gate is None:
        return words.go("finalization", "the model is good enough to be finished")
    if gate == "open":
        return words.go("finalization", "every question is answered: the bundle can be released")
    return words.blocked("finalization")


def _mend(state: RunState, words: _Adviser, max_rounds: int) -> NextStep:
    """The way of a model that is not: diagnosis and cure in turn, until a round is the last."""
    if state.gate("optimization") in ("closed", "pending"):
        return words.blocked("optimization")
    if state.exhausted or state.round > max_rounds:
        return words.exhausted(
            state.exhausted["why"] if state.exhausted else f"{max_rounds} rounds did not reach the target"
        )
    gate = state.gate("diagnostics")
    if gate is None:
        return words.go("diagnostics", "the run is not good enough yet: find out why")
    if gate != "open":
        return words.blocked("diagnostics")
    return words.go("optimization", "the causes are named: prove a cure")
