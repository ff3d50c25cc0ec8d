"""Permits: objects that are issued only where the ledger shows the required gates to be open.

Training needs a `TrainPermit`, reading the test rows a `TestKey`, exporting an `ExportPermit`. A `ProbePermit` allows
the short trainings of diagnostics behind a closed gate. None can be constructed directly, and none is issued while a
recorded file that it stands on is damaged. This prevents mistakes, not
manipulation: a user who edits the code is found by `verify`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import Refused, fault
from pipeline.results import PHASES, ROUNDED
from pipeline.run_store import plan as plans
from pipeline.run_store.ledger import Entry, Ledger, changed_files, read_ledger
from pipeline.run_store.next_step import obstacle
from pipeline.run_store.records import CandidateRecord
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState, fold

_ISSUER = object()


class _Permit:
    """The base class: the run, the plan that the permit is valid for, and the ledger's head when it was issued."""

    def __init__(self, issuer: object, run: Run, plan: plans.Plan, head: str) -> None:
        if issuer is not _ISSUER:
            raise TypeError(f"a {type(self).__name__} is issued by an open gate and cannot be constructed")
        self.run = run
        self.plan = plan
        self.head = head

    @property
    def run_dir(self) -> Path:
        return self.run.path

    def __reduce__(self) -> Any:
        raise TypeError(
            f"a {type(self).__name__} cannot be copied into another process; issue it there from the ledger"
        )


class FitPermit(_Permit):
    """What the engine trains with: a `TrainPermit`, or a `ProbePermit` for an experiment of diagnostics."""


class TrainPermit(FitPermit):
    """The planning gate of this plan is open: training is permitted."""


class ProbePermit(FitPermit):
    """The plan has a seed and its rows could be read: diagnostics may train to explain the run, whatever its gates say.

    The engine trains only jobs of diagnostics with it, and keeps no checkpoint of them, so that no weights exist that
    could become a candidate.
    """


class TestKey(_Permit):
    """The planned test rows may be read once, to score the recorded `candidate` (the digest of its weights)."""

    __test__ = False  # pytest would collect the class because of its name

    def __init__(self, issuer: object, run: Run, plan: plans.Plan, head: str, candidate: str = "") -> None:
        super().__init__(issuer, run, plan, head)
        self.candidate = candidate
        self._spent = False

    def spend(self, rows: str) -> None:
        """Use the key for rows of this digest. Raises Refused for a used key and for other rows."""
        _need_planned_rows(self.plan, rows)
        if self._spent:
            do = f"python -m pipeline phase=finalization {self.run.overrides}"
            raise Refused(fault("permit", "this key to the test rows was used before", expected="a new one", do=do))
        self._spent = True


class ExportPermit(_Permit):
    """Every gate before finalization is open or not needed: the model may be exported."""


P = TypeVar("P", bound=_Permit)


def _named(kind: type) -> str:
    kind = TrainPermit if kind is FitPermit else kind  # the one that a reader of the message can get
    return f"{'an' if kind.__name__[0] in 'AEIO' else 'a'} {kind.__name__}"


def require(permit: object, kind: type[P]) -> P:
    """The permit itself. Raises Refused when `permit` is anything else."""
    if not isinstance(permit, kind):
        raise Refused(
            fault(
                "permit",
                f"this needs {_named(kind)}",
                got=type(permit).__name__,
                expected=f"{_named(kind)} issued by an open gate",
                do="python -m pipeline phase=planning experiment=NAME seed=1",
            )
        )
    return permit


def damaged_file(run: Run, state: RunState, path: str, what: str, entry: Entry) -> str:
    """The message for a file that is not as this entry recorded it, with its phase as the command, if it may run."""
    phase, round_ = entry["data"].get("phase"), entry["data"].get("round", 1)
    current = phase not in ROUNDED or round_ == state.round
    if phase in PHASES and current and obstacle(state, phase) is None:
        do = f"python -m pipeline phase={phase} {run.overrides_for(phase, state)}"
        return fault(path, what, expected="the recorded bytes: restore the file, or run the phase again", do=do)
    do = "python -m pipeline phase=auto run.name=NAME"
    return fault(path, what, expected="the recorded bytes: restore the file from a copy, or start a new run", do=do)


def _running_phase(entries: list[Entry]) -> tuple[str, int] | None:
    """The phase that started last, with its round, unless it has finished; also one that was killed."""
    started = [e for e in entries if e["kind"] == "phase.started"]
    if not started:
        return None
    phase = (started[-1]["data"]["phase"], started[-1]["data"]["round"])
    after = (e for e in entries[started[-1]["seq"] :] if e["kind"] == "phase.finished")
    return None if any((e["data"]["phase"], e["data"]["round"]) == phase for e in after) else phase


def _intact_state(run: Run) -> RunState:
    """The state of the run, on whose files everything is built that a permit allows.

    Raises Refused when a recorded file was changed. A running phase is replacing its own files, so that these count
    only when it has finished; those of later phases, which it makes stale, count for them alone.
    """
    entries = read_ledger(run.ledger_path)
    state = fold(entries)
    changed = changed_files(run.path, entries, _running_phase(entries))
    what = "is not the file that the ledger recorded"
    if changed:
        raise Refused(*(damaged_file(run, state, path, what, entry) for path, entry in changed))
    return state


def _need_open(run: Run, state: RunState, *phases: str) -> None:
    for phase in phases:
        if not state.passed(phase):
            raise Refused(
                fault(
                    f"gate {phase}",
                    "is not open",
                    got="stale" if state.stale(phase) else state.gate(phase) or "not evaluated",
                    expected="open",
                    do=f"python -m pipeline status {run.argument}",
                )
            )


def train(run: Run) -> TrainPermit:
    """A permit to train under the run's current plan. Raises Refused unless the planning gate is open in the ledger."""
    state = _intact_state(run)
    _need_open(run, state, "planning")
    return TrainPermit(_ISSUER, run, plans.load(run, state), state.head)


def probe(run: Run) -> ProbePermit:
    """A permit for the experiments of diagnostics, behind any closed gate.

    Raises Refused for a plan without a seed, and for one whose rows planning could not read.
    """
    state = _intact_state(run)
    plan = plans.load(run, state)
    if plan.config.get("seed") is None or not plan.facts.get("splits"):
        lacks = "has no seed" if plan.config.get("seed") is None else "has no rows: planning could not read the data"
        do = f"python -m pipeline phase=planning {run.overrides_for('planning', state)} seed=1"
        raise Refused(fault(f"plan {plan.revision}", lacks, expected="fixed seeds and readable data", do=do))
    return ProbePermit(_ISSUER, run, plan, state.head)


def _need_candidate(run: Run, state: RunState) -> CandidateRecord:
    _need_open(run, state, "planning", "baseline", "diagnostics", "optimization")
    if not state.candidate or not state.sufficient():
        do = f"python -m pipeline phase=auto {run.overrides_for('auto', state)}"
        raise Refused(
            fault(run.name, "there is no model that may be finalized", expected="a sufficient candidate", do=do)
        )
    return state.candidate


def _need_frozen(run: Run, state: RunState) -> CandidateRecord:
    _need_candidate(run, state)
    if state.frozen is None:
        do = f"python -m pipeline phase=finalization {run.overrides}"
        what, expected = "no model of this candidate is frozen for release", "one that finalization has chosen"
        raise Refused(fault(run.name, what, expected=expected, do=do))
    return state.frozen


def _need_planned_rows(plan: plans.Plan, rows: str) -> None:
    planned = plan.facts["splits"]["test"]["digest"]
    if rows != planned:
        what = "are not the test rows that the plan froze"
        raise Refused(fault("data.test", what, got=rows[:12], expected=planned[:12]))


def _unscored_opening(ledger: Ledger, candidate: str, rows: str) -> Entry | None:
    """The newest opening of these rows for this candidate that was not followed by a score, or None."""
    kinds = ("test.opened", "test.scored")
    entries = [e for e in ledger.entries if e["kind"] in kinds and e["data"]["candidate"] == candidate]
    entries = [e for e in entries if e["data"].get("digest") == rows]
    return entries[-1] if entries and entries[-1]["kind"] == "test.opened" else None


def test(run: Run, ledger: Ledger, rows: str, register: Callable[[str], None] | None = None) -> TestKey:
    """A key to the test rows of this digest. Raises Refused, and records nothing, for rows that are not planned.

    `register` is called with the candidate before anything is recorded, and may refuse it. The opening is recorded
    before the key is created, so that it counts even after a crash. An opening whose score is missing because of a
    crash is used again and not counted twice.
    """
    state = _intact_state(run)
    candidate = _need_frozen(run, state)["weights"]
    plan = plans.load(run, state)
    _need_planned_rows(plan, rows)
    if register is not None:
        register(candidate)
    opening = _unscored_opening(ledger, candidate, rows)
    if opening is None:
        opening = ledger.append("test.opened", {"candidate": candidate, "digest": rows, "plan": plan.digest})
    return TestKey(_ISSUER, run, plan, opening["hash"], candidate)


def export(run: Run) -> ExportPermit:
    """A permit to export the frozen candidate.

    Raises Refused unless every gate before finalization is open or not needed, and a candidate is frozen.
    """
    state = _intact_state(run)
    _need_frozen(run, state)
    return ExportPermit(_ISSUER, run, plans.load(run, state), state.head)
