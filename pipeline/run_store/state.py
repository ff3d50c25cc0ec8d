"""The state of a run is a fold over its ledger; nothing else remembers anything."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

from pipeline.results import GateState
from pipeline.run_store.gate import Item, SignOff, Waiver, decide, utc_today
from pipeline.run_store.ledger import GENESIS, Entry

MAX_ROUNDS = 3


@dataclass(frozen=True)
class Gate:
    """One evaluation of a phase's exit gate: its items, and what it was built on (`basis`, a ledger seq)."""

    phase: str
    round: int
    revision: int
    basis: int
    seq: int
    items: tuple[Item, ...]
    subject: str | None = None


@dataclass(frozen=True)
class RunState:
    """Where a run stands. Made only by `fold`."""

    name: str = ""
    experiment: str = ""
    head: str = GENESIS
    seq: int = -1
    revisions: tuple[dict[str, Any], ...] = ()
    gates: dict[str, Gate] = field(default_factory=dict)
    finished: dict[str, dict[str, Any]] = field(default_factory=dict)
    not_needed: dict[str, int] = field(default_factory=dict)
    branch: dict[str, Any] | None = None
    branches: tuple[dict[str, Any], ...] = ()
    candidate: dict[str, Any] | None = None
    waivers: tuple[Waiver, ...] = ()
    sign_offs: tuple[SignOff, ...] = ()
    trust: tuple[dict[str, Any], ...] = ()
    test_opened: tuple[dict[str, Any], ...] = ()
    failed: dict[str, Any] | None = None
    exhausted: dict[str, Any] | None = None
    released: dict[str, Any] | None = None
    taken_back: int = -1  # seq of the last rollback; signatures before it count no more
    _items: tuple[Item, ...] = ()

    @property
    def plan(self) -> dict[str, Any] | None:
        """The newest revision of the plan: {revision, digest, file, changed, seq}."""
        return self.revisions[-1] if self.revisions else None

    @property
    def round(self) -> int:
        """The round that diagnostics would open now: one more than the optimizations that stayed insufficient."""
        plan_seq = self.plan["seq"] if self.plan else -1
        lost = [b for b in self.branches if b["phase"] == "optimization" and b["branch"] == "insufficient"]
        return 1 + sum(b["seq"] > plan_seq for b in lost)

    def basis(self, phase: str, round_: int | None = None) -> int:
        """Ledger seq of what a phase is built on now; -1 when there is nothing yet.

        Planning stands on nothing, baseline on the plan, diagnostics on the last training that needs an
        explanation, optimization on the diagnosis of its round, finalization on the chosen candidate.
        """
        if phase == "baseline":
            return self.plan["seq"] if self.plan else -1
        if phase == "diagnostics":
            asked = [b for b in self.branches if b["phase"] == "baseline" or b["branch"] == "insufficient"]
            return asked[-1]["seq"] if asked else -1
        if phase == "optimization":
            diagnosis = self.finished.get("diagnostics")
            return diagnosis["seq"] if diagnosis and diagnosis["round"] == (round_ or self.round) else -1
        if phase == "finalization":
            return self.candidate["seq"] if self.candidate else -1
        return -1

    def stale(self, phase: str) -> bool:
        """Whether the phase was judged on something that has been replaced since."""
        gate = self.gates.get(phase)
        if gate is None or self.plan is None:
            return False
        if phase == "planning":
            return gate.revision != self.plan["revision"]
        return gate.revision != self.plan["revision"] or gate.basis != self.basis(phase, gate.round)

    def valid_waivers(self, phase: str, today: date | None = None) -> list[Waiver]:
        """The waivers that lie over a gate as it stands: given after what it was built on, and not expired."""
        gate = self.gates.get(phase)
        since = self.plan["seq"] if phase == "planning" and self.plan else gate.basis if gate else -1
        today = today or utc_today()
        return [w for w in self.waivers if w.phase == phase and w.seq > since and w.valid(today)]

    def valid_sign_offs(self, phase: str) -> list[SignOff]:
        """The signatures under a gate's very subject, none of which a rollback has taken back."""
        subject = self.gates[phase].subject if phase in self.gates else None
        mine = (s for s in self.sign_offs if s.phase == phase and s.seq > self.taken_back)
        return [s for s in mine if subject and s.digest == subject]

    def gate(self, phase: str, today: date | None = None) -> GateState | None:
        """The gate's state today, waivers and sign-offs counted in; None when it was never evaluated or is stale."""
        gate = self.gates.get(phase)
        if gate is None or self.stale(phase):
            return None
        return decide(gate.items, self.valid_waivers(phase, today), self.valid_sign_offs(phase), gate.subject, today)

    def passed(self, phase: str, today: date | None = None) -> bool:
        """Whether what stands behind the phase's gate may go on: open, or recorded as not needed."""
        return self.gate(phase, today) == "open" or (phase in self.not_needed and not self._replanned(phase))

    def _replanned(self, phase: str) -> bool:
        return bool(self.plan) and self.not_needed[phase] < self.plan["seq"]  # type: ignore[index]

    def current_branch(self) -> dict[str, Any] | None:
        """The newest branch decided under the current plan."""
        if self.branch is None or self.plan is None or self.branch["seq"] < self.plan["seq"]:
            return None
        return self.branch

    def sufficient(self, today: date | None = None) -> bool:
        """Whether the branch leads to finalization: decided sufficient, or waived by a named person."""
        decided = self.current_branch()
        if decided is None:
            return False
        waived = (w for w in self.waivers if w.item == "branch" and w.seq > decided["seq"])
        return decided["branch"] == "sufficient" or any(w.valid(today or utc_today()) for w in waived)


def _record_gate(state: RunState, data: dict[str, Any], seq: int) -> RunState:
    gate = Gate(
        phase=data["phase"],
        round=data["round"],
        revision=data["revision"],
        basis=data["basis"],
        seq=seq,
        items=state._items,
        subject=data.get("subject"),
    )
    not_needed = {p: s for p, s in state.not_needed.items() if p != data["phase"]}
    return replace(state, gates={**state.gates, data["phase"]: gate}, not_needed=not_needed, _items=())


def _step(state: RunState, kind: str, data: dict[str, Any], seq: int) -> RunState:
    """The state after one more entry; kinds that change no state (jobs, exports, notes) pass through."""
    stamped = {**data, "seq": seq}
    match kind:
        case "run.created":
            return replace(state, name=data["name"], experiment=data.get("experiment") or "")
        case "trust.granted":
            return replace(state, trust=tuple(data["packages"]))
        case "plan.frozen":
            revisions = (*state.revisions, stamped)
            return replace(state, revisions=revisions, exhausted=None, candidate=None, released=None)
        case "phase.started":
            return replace(state, _items=(), failed=None)
        case "phase.finished":
            return replace(state, finished={**state.finished, data["phase"]: stamped}, failed=None)
        case "phase.failed" | "stopped":
            return replace(state, failed=stamped)
        case "item.evaluated":
            item = {k: v for k, v in data.items() if k not in ("phase", "round")}
            return replace(state, _items=(*state._items, Item(**{**item, "evidence": tuple(item.get("evidence", ()))})))
        case "gate.decided":
            return _record_gate(state, data, seq)
        case "gate.not_needed":
            return replace(state, not_needed={**state.not_needed, data["phase"]: seq})
        case "branch.decided":
            return replace(state, branch=stamped, branches=(*state.branches, stamped))
        case "candidate.chosen":
            return replace(state, candidate=stamped)
        case "waiver":
            return replace(state, waivers=(*state.waivers, Waiver(**data, seq=seq)))
        case "sign_off":
            return replace(state, sign_offs=(*state.sign_offs, SignOff(**data, seq=seq)))
        case "test.opened":
            return replace(state, test_opened=(*state.test_opened, stamped))
        case "exhausted":
            return replace(state, exhausted=stamped)
        case "released":
            return replace(state, released=stamped)
        case "rolled_back":
            return replace(state, released=None, taken_back=seq)
    return state


def fold(entries: Iterable[Entry]) -> RunState:
    """The state that a sequence of ledger entries amounts to."""
    state = RunState()
    for entry in entries:
        state = _step(state, entry["kind"], entry["data"], entry["seq"])
        state = replace(state, head=entry["hash"], seq=entry["seq"])
    return state
