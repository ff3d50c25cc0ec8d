"""What `Run.advance` returns: the phase that ran, what its gate said, and what comes next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.escaping import visible
from pipeline.python_api import html
from pipeline.reporting import tables
from pipeline.results import plain
from pipeline.run_store.gate import branch_conditions
from pipeline.run_store.next_step import NextStep
from pipeline.run_store.records import BranchRecord, ScoreRecord
from pipeline.run_store.state import RunState


@dataclass(frozen=True)
class OpenItem:
    """A check of the gate that is not satisfied: its question, its outcome, and why."""

    id: str
    ask: str
    outcome: str
    why: str


@dataclass(frozen=True)
class PhaseOutcome:
    """What the gate said.

    - `phase`: the phase that ran; None where none could.
    - `status`: `open`, `closed` or `pending`, the state of its gate; `released` after the release. Where no phase ran,
      that of the gate that keeps the run from going on, or `exhausted`.
    - `open_items`: the checks of this gate that are not satisfied.
    - `score`: of the candidate on validation, with its 95 % interval; None before there is one.
    - `branch`: what was decided on validation after a training; None before.
    - `next_phase`: what `advance` would run next; None where a person has to act first.
    - `why` and `next_command`: what comes next, and the command line that does it.
    - `exit_code`: with which the command line would have ended: 0, 3 for a closed gate or an exhausted run, 4 for one
      that waits for a person.
    """

    run: str
    phase: str | None
    status: str
    open_items: tuple[OpenItem, ...]
    score: ScoreRecord | None
    branch: BranchRecord | None
    next_phase: str | None
    why: str
    next_command: str
    exit_code: int

    @property
    def passed(self) -> bool:
        """Whether the gate is open, or the run released."""
        return self.exit_code == 0

    def headline(self) -> str:
        """Return what happened in one line."""
        ran = f"{self.phase} has run, its gate is {self.status}" if self.phase else f"nothing to run: {self.why}"
        return visible(f"{self.run}: {'released' if self.status == 'released' else ran}")

    def lines(self) -> list[str]:
        """Return the checks that are not satisfied, the validation, and the next command, one line each."""
        items = [f"{item.id}: {item.outcome}{f', {item.why}' if item.why else ''}" for item in self.open_items]
        decided = [f"validation: {', '.join(branch_conditions(self.branch))}"] if self.branch else []
        return [*map(visible, (*items, *decided)), visible(f"next: {self.why}: {self.next_command}")]

    def to_json(self) -> dict[str, object]:
        """Return all fields as JSON."""
        body: dict[str, object] = plain(self)
        return body

    def __repr__(self) -> str:
        return "\n  ".join([self.headline(), *self.lines()])

    def _repr_html_(self) -> str:
        """Return the same for notebooks; every text is escaped."""
        return html.outcome(self.headline(), self.status, self.open_items, self.lines()[len(self.open_items) :])


def outcome_of(run: str, phase: str | None, state: RunState, step: NextStep, exit_code: int) -> PhaseOutcome:
    """Return what the state says after `phase` has run, or where none could."""
    shown = phase or _stopping(state)
    status = _status(state, shown)
    return PhaseOutcome(
        run=run,
        phase=phase,
        status=status,
        open_items=_open_items(state, shown) if shown and status in ("closed", "pending") else (),
        score=state.score,
        branch=state.current_branch(),
        next_phase=step.phase,
        why=step.why,
        next_command=step.command,
        exit_code=exit_code,
    )


def _stopping(state: RunState) -> str | None:
    """Return the phase whose gate keeps the run from going on."""
    return next((phase for phase in state.gates if state.gate(phase) in ("closed", "pending")), None)


def _status(state: RunState, phase: str | None) -> str:
    if state.released:
        return "released"
    if phase in (None, "optimization") and state.review and not state.review.get("who"):
        return "pending"  # the plan of its study waits for a person
    if phase is None:
        return "exhausted" if state.exhausted else "open"
    return state.gate(phase) or state.gate_label(phase)


def _open_items(state: RunState, phase: str) -> tuple[OpenItem, ...]:
    gate = state.gates.get(phase)
    items = (item for item in (gate.items if gate else ()) if not tables.satisfied(item, state, phase))
    return tuple(OpenItem(item.id, item.ask, item.label, item.why) for item in items)


def summary_lines(state: RunState, step: NextStep) -> list[str]:
    """Return the gates, the score and the next step of a run, one line each."""
    gates = ", ".join(f"{phase} {label}" for phase, label in labels(state).items())
    decided: Mapping[str, object] | None = state.current_branch()
    validation = [f"validation: {', '.join(branch_conditions(decided))}"] if decided else []
    return [visible(f"gates: {gates}"), *map(visible, validation), visible(f"next: {step.why}: {step.command}")]


def labels(state: RunState) -> dict[str, str]:
    """Return the state of each gate in words."""
    from pipeline.results import PHASES

    return {phase: state.gate_label(phase) for phase in PHASES}
