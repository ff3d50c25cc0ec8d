"""The state of a run is a fold over its ledger. Nothing else stores state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

from pipeline.results import PHASES, ROUNDED, Branch, GateState
from pipeline.run_store import gate as gates
from pipeline.run_store.gate import Gate, Item, Outcomes, SignOff, Waiver, decide, utc_today
from pipeline.run_store.ledger import GENESIS, Entry
from pipeline.run_store.records import (
    BranchRecord,
    CandidateRecord,
    ExhaustionRecord,
    FailureRecord,
    GrantRecord,
    OpeningRecord,
    PhaseRecord,
    PlanRecord,
    ReleaseRecord,
    ReviewRecord,
    ScoreRecord,
    checked,
)

MAX_ROUNDS = 3


@dataclass(frozen=True)
class RunState:
    """The state of a run, created by `fold` only. `not_needed` maps a skipped phase to the seq of its record."""

    name: str = ""
    experiment: str = ""
    head: str = GENESIS
    seq: int = -1
    revisions: tuple[PlanRecord, ...] = ()
    gates: dict[str, Gate] = field(default_factory=dict)
    finished: dict[str, PhaseRecord] = field(default_factory=dict)
    not_needed: dict[str, int] = field(default_factory=dict)
    branches: tuple[BranchRecord, ...] = ()
    candidate: CandidateRecord | None = None
    frozen: CandidateRecord | None = None  # of its trainings on several seeds the one to release
    waivers: tuple[Waiver, ...] = ()
    sign_offs: tuple[SignOff, ...] = ()
    trust: tuple[GrantRecord, ...] = ()
    test_opened: tuple[OpeningRecord, ...] = ()
    failed: FailureRecord | None = None
    exhausted: ExhaustionRecord | None = None
    released: ReleaseRecord | None = None
    review: ReviewRecord | None = None  # the plan of a study that a person has to accept, or has accepted: `who`
    rolled_back_at: int = -1  # seq of the last rollback; signatures before it no longer count
    accepted: tuple[int, ...] = ()  # seqs of the candidates that a rollback can return to, and of the present one
    last_round: int = 0  # the highest round that has begun under the current plan
    abandoned_rounds: int = 0  # rounds that led to candidates from which the run was rolled back
    _items: tuple[Item, ...] = ()

    @property
    def plan(self) -> PlanRecord | None:
        """The newest revision of the plan."""
        return self.revisions[-1] if self.revisions else None

    @property
    def max_rounds(self) -> int:
        """The number of optimization rounds that the plan allows."""
        return self.plan.get("rounds", MAX_ROUNDS) if self.plan else MAX_ROUNDS

    @property
    def round(self) -> int:
        """The round that diagnostics would open now: 1 plus the optimizations that were insufficient or undone."""
        plan_seq = self.plan["seq"] if self.plan else -1
        missed = [b for b in self.branches if b["phase"] == "optimization" and b["branch"] == "insufficient"]
        return 1 + sum(b["seq"] > plan_seq for b in missed) + self.abandoned_rounds

    def basis(self, phase: str, round_: int | None = None) -> int:
        """Ledger seq of what a phase is built on now; -1 when that does not exist yet.

        Planning is built on nothing, baseline on the plan, diagnostics on the last training that needs an
        explanation, optimization on the diagnosis of its round (for a goal besides quality on the baseline's branch),
        finalization on the chosen candidate.
        """
        if phase == "baseline":
            return self.plan["seq"] if self.plan else -1
        trained = [b for b in self.branches if b["phase"] == "baseline" or b["branch"] == "insufficient"]
        if phase == "diagnostics":
            return trained[-1]["seq"] if trained else -1
        if phase == "optimization":
            if self.plan and "goal" in self.plan and trained and trained[-1]["branch"] == "sufficient":
                return trained[-1]["seq"]
            diagnosis = self.finished.get("diagnostics")
            return diagnosis["seq"] if diagnosis and diagnosis["round"] == (round_ or self.round) else -1
        if phase == "finalization":
            return self.candidate["seq"] if self.candidate else -1
        return -1

    def stale(self, phase: str) -> bool:
        """Whether the gate was evaluated on something that has been replaced since."""
        gate = self.gates.get(phase)
        if gate is None or self.plan is None:
            return False
        moved = phase != "planning" and gate.basis != self.basis(phase, gate.round)
        return moved or gate.revision != self.plan["revision"]

    def valid_waivers(self, phase: str, today: date | None = None) -> list[Waiver]:
        """The waivers that apply to a gate: recorded after what the gate is built on, and not expired."""
        today = today or utc_today()
        return [waiver for waiver in self._waivers_of(phase) if waiver.valid(today)]

    def expired_waivers(self, phase: str, today: date | None = None) -> list[Waiver]:
        """The waivers that applied to a gate until their last day, which is over; without those given anew."""
        renewed = {waiver.item for waiver in self.valid_waivers(phase, today)}
        return [w for w in self._waivers_of(phase) if not w.refusal and w.item not in renewed]

    def _waivers_of(self, phase: str) -> list[Waiver]:
        gate = self.gates.get(phase)
        since = self.plan["seq"] if phase == "planning" and self.plan else gate.basis if gate else -1
        return [waiver for waiver in self.waivers if waiver.phase == phase and waiver.seq > since]

    def people(self, role: str = "owner") -> list[str]:
        """Who may waive and withdraw in a role: the person who has it in the plan, and the plan's approvers."""
        return gates.people_in((self.plan and self.plan.get("people")) or {}, role)

    def signers(self, role: str = "owner") -> list[str]:
        """Who may sign in a role: the plan's approvers, or the person who has the role where it names nobody else."""
        return gates.signers_in((self.plan and self.plan.get("people")) or {}, role)

    def outcomes(self, phase: str) -> Outcomes:
        """What a signature in this phase accepts besides the bundle: the outcomes of all items up to it, by phase."""
        evaluated = [p for p in PHASES[: PHASES.index(phase) + 1] if p in self.gates and not self.stale(p)]
        found = {p: {item.id: str(item.outcome) for item in self.gates[p].items} for p in evaluated}
        decision = self.current_branch()
        if decision and decision["phase"] in found:
            found[decision["phase"]]["branch"] = decision["branch"]
        return found

    def waivers_in_force(self, phase: str, today: date | None = None) -> list[Waiver]:
        """The waivers that apply to the gates up to this phase, also that of the branch."""
        evaluated = [p for p in PHASES[: PHASES.index(phase) + 1] if p in self.gates and not self.stale(p)]
        return [waiver for p in evaluated for waiver in self.valid_waivers(p, today)]

    def signature(self, phase: str, item: str, who: str, note: str = "", today: date | None = None) -> dict[str, Any]:
        """The data of the entry `sign_off`: the bundle of the gate with all that its signature accepts today."""
        subject, outcomes = self.gates[phase].subject, self.outcomes(phase)
        waivers = [waiver.terms for waiver in self.waivers_in_force(phase, today)]
        accepted = {"digest": subject, "outcomes": outcomes, "waivers": waivers}
        about = {"phase": phase, "item": item, "who": who, "note": note}
        return {**about, **accepted, "binding": gates.signed_digest(subject or "", outcomes, waivers)}

    def lapse(self, sign_off: SignOff, today: date | None = None) -> str:
        """Why a signature does not count today, as a clause; empty where it counts."""
        if sign_off.seq <= self.rolled_back_at:
            return f"the release that {sign_off.who} signed was withdrawn"
        phase, gate = sign_off.phase, self.gates.get(sign_off.phase)
        if gate is None:
            return f"the gate of {phase} was not evaluated"
        return sign_off.lapse(gate.subject, self.outcomes(phase), self.waivers_in_force(phase, today))

    def valid_sign_offs(self, phase: str, today: date | None = None) -> list[SignOff]:
        """The signatures of a gate that no rollback withdrew, of what the gate and those before it accept now."""
        return [s for s in self.sign_offs if s.phase == phase and not self.lapse(s, today)]

    def gate(self, phase: str, today: date | None = None) -> GateState | None:
        """The gate's state today, with waivers and sign-offs; None when it was not evaluated or is stale."""
        gate = self.gates.get(phase)
        if gate is None or self.stale(phase):
            return None
        signed = self.valid_sign_offs(phase, today)
        return decide(gate.items, self.valid_waivers(phase, today), signed, gate.subject, today)

    def passed(self, phase: str, today: date | None = None) -> bool:
        """Whether the phases after this one may run: its gate is open, or the phase is skipped."""
        return self.gate(phase, today) == "open" or self.skips(phase, today)

    def gate_label(self, phase: str, today: date | None = None) -> str:
        """The state of a gate in words: open, closed, pending, not needed, stale, or not reached."""
        gate = self.gate(phase, today)
        if gate is not None:
            return gate
        if self.skips(phase, today):  # also where the gate was evaluated for an earlier plan or training
            return "not needed"
        return "stale" if self.stale(phase) else "not reached"

    def skips(self, phase: str, today: date | None = None) -> bool:
        """Whether a model that is good enough goes to finalization without this phase.

        Diagnostics and optimization are skipped, unless the plan asks for a diagnosis of a sufficient baseline. A gate
        that was evaluated counts as it is, open or closed.
        """
        if phase not in ROUNDED or self.plan is None or not self.sufficient(today):
            return False
        if phase == "optimization" and self.pursues_goal:
            return False
        decision = self.current_branch()
        wanted = self.plan.get("then", {}).get("baseline", {}).get("sufficient") == "diagnostics"
        if phase == "diagnostics" and wanted and decision and decision["branch"] == "sufficient":
            return False
        return self.gate(phase, today) is None

    def current_branch(self) -> BranchRecord | None:
        """The newest branch under the current plan."""
        if not self.branches or self.plan is None or self.branches[-1]["seq"] < self.plan["seq"]:
            return None
        return self.branches[-1]

    @property
    def pursues_goal(self) -> bool:
        """Whether optimization is to make a sufficient baseline cheaper: the plan has a goal besides quality."""
        decision = self.current_branch()
        sufficient = decision is not None and (decision["phase"], decision["branch"]) == ("baseline", "sufficient")
        return sufficient and self.plan is not None and "goal" in self.plan

    @property
    def branch(self) -> Branch | None:
        """The newest branch under the current plan, in one word."""
        decision = self.current_branch()
        return decision["branch"] if decision else None

    @property
    def score(self) -> ScoreRecord | None:
        """The candidate's score; None without a candidate, or where the training measured none."""
        return self.candidate.get("score") if self.candidate else None

    def awaits_branch(self, phase: str) -> bool:
        """Whether a training passed its gate and its branch is not recorded yet, as after a kill or a late waiver."""
        record, decision = self.finished.get(phase), self.current_branch()
        if phase not in ("baseline", "optimization") or record is None or self.gate(phase) != "open":
            return False
        return decision is None or decision["seq"] < record["seq"]

    def sufficient(self, today: date | None = None) -> bool:
        """Whether the branch leads to finalization: decided as sufficient, or waived by a named person."""
        return self.sufficient_since(today) is not None

    def sufficient_since(self, today: date | None = None) -> int | None:
        """Ledger seq of the branch or the waiver that leads to finalization; None when there is neither.

        A waiver applies to the branch that it was given for: a later training needs a new one.
        """
        decision = self.current_branch()
        if decision is None:
            return None
        if decision["branch"] == "sufficient":
            return decision["seq"]
        today = today or utc_today()
        waivers = [w for w in self.waivers if w.item == "branch" and w.seq > decision["seq"] and w.valid(today)]
        return waivers[0].seq if waivers else None


def _record_gate(state: RunState, data: dict[str, Any], seq: int) -> RunState:
    keys = ("phase", "round", "revision", "basis")
    gate = Gate(**{key: data[key] for key in keys}, seq=seq, items=state._items, subject=data.get("subject"))
    not_needed = {p: s for p, s in state.not_needed.items() if p != data["phase"]}
    return replace(state, gates={**state.gates, data["phase"]: gate}, not_needed=not_needed, _items=())


def _sign_off(state: RunState, data: dict[str, Any], seq: int) -> SignOff:
    items = state.gates[data["phase"]].items if data["phase"] in state.gates else ()
    roles = [item.sign_off for item in items if item.id == data["item"] and item.sign_off]
    return SignOff.recorded(data, seq, (state.plan and state.plan.get("people")) or {}, roles)


def _returned(state: RunState, then: RunState, seq: int) -> RunState:
    """The state after a rollback: `then`, when the earlier candidate's branch was decided, with what stays true.

    Rounds go on with the next number: no file of the undone ones is written again. Waivers of undone gates are void.
    """
    waivers = [w for w in state.waivers if w.seq <= then.seq or (w.item != "branch" and w.phase in PHASES[:2])]
    rounds = then.abandoned_rounds + max(0, state.last_round + 1 - then.round)
    return replace(
        then,
        waivers=tuple(waivers),
        sign_offs=state.sign_offs,
        trust=state.trust,
        test_opened=state.test_opened,
        failed=None,
        rolled_back_at=seq,
        last_round=state.last_round,
        abandoned_rounds=rounds,
        _items=(),
    )


def _apply(state: RunState, kind: str, data: dict[str, Any], seq: int, time: str) -> RunState:
    """The state after one more entry; kinds that do not change it (jobs, exports, notes) pass through."""
    record: Any = {**data, "seq": seq}
    match kind:
        case "run.created":
            return replace(state, name=data["name"], experiment=data.get("experiment") or "")
        case "trust.granted":
            return replace(state, trust=tuple(data["packages"]))
        case "plan.frozen":
            empty: dict[str, Any] = dict.fromkeys(("exhausted", "candidate", "frozen", "released", "review"))
            begun: dict[str, Any] = {"not_needed": {}, "accepted": (), "last_round": 0, "abandoned_rounds": 0}
            return replace(state, revisions=(*state.revisions, record), **empty, **begun)
        case "phase.started":
            last = data.get("round", 1) if data["phase"] in ROUNDED else 0
            return replace(state, _items=(), failed=None, last_round=max(last, state.last_round))
        case "phase.finished":
            return replace(state, finished={**state.finished, data["phase"]: record}, failed=None, review=None)
        case "phase.failed" | "stopped":
            return replace(state, failed=record)
        case "item.evaluated":
            item = {k: v for k, v in data.items() if k not in ("phase", "round")}
            return replace(state, _items=(*state._items, Item(**{**item, "evidence": tuple(item.get("evidence", ()))})))
        case "gate.decided":
            return _record_gate(state, data, seq)
        case "gate.not_needed":
            return replace(state, not_needed={**state.not_needed, data["phase"]: seq})
        case "branch.decided":
            chosen = [state.candidate["seq"]] if state.candidate else []
            accepted = tuple(dict.fromkeys((*state.accepted, *chosen)))
            return replace(state, branches=(*state.branches, record), accepted=accepted)
        case "candidate.chosen":
            accepted = () if data["phase"] == "baseline" else state.accepted  # a new baseline starts over
            return replace(state, candidate=record, frozen=None, accepted=accepted)
        case "waiver":
            return replace(state, waivers=(*state.waivers, Waiver.recorded(data, seq, time, state.people())))
        case "sign_off":
            return replace(state, sign_offs=(*state.sign_offs, _sign_off(state, data, seq)))
        case "test.opened":
            return replace(state, test_opened=(*state.test_opened, record))
        case "exhausted" | "released" | "candidate.frozen":
            return replace(state, **{kind.rpartition(".")[2]: record})
        case "review.requested":
            return replace(state, review=record)
        case "review.approved":  # counts only for the plan that waits, and of a person whom the run's plan names
            counts = state.review and state.review["digest"] == data["digest"] and data.get("who") in state.signers()
            return replace(state, review={**state.review, "who": data["who"]}) if counts else state  # type: ignore[arg-type, dict-item]
        case "rolled_back":
            return replace(state, released=None, rolled_back_at=seq)
    return state


def fold(entries: Iterable[Entry]) -> RunState:
    """The state that follows from a sequence of ledger entries."""
    state = RunState()
    decided: dict[int, RunState] = {}  # by the seq of a candidate, the state when its branch was decided
    for entry in map(checked, entries):
        earlier = entry["data"].get("candidate") if entry["kind"] == "rolled_back" else None
        if earlier is None:
            state = _apply(state, entry["kind"], entry["data"], entry["seq"], entry["time"])
        elif earlier in state.accepted[:-1]:  # any other entry was written by no command, and `verify` says so
            state = _returned(state, decided[earlier], entry["seq"])
        state = replace(state, head=entry["hash"], seq=entry["seq"])
        if entry["kind"] == "branch.decided" and state.candidate:
            decided[state.candidate["seq"]] = state
    return state
