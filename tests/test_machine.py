"""The state machine under any sequence of commands: what it never does, whatever is asked of it and found out."""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from checklists.resolve import CHECKS
from pipeline.__main__ import main
from pipeline.errors import FivegateError, Refused
from pipeline.orchestration import state_machine
from pipeline.orchestration.phase import House, PhaseContext, RunRequest
from pipeline.release.bundle import bundle_digest, write_payload
from pipeline.release.verify import faults
from pipeline.results import PHASES, ROUNDED, Evidence, Result
from pipeline.run_store import permits
from pipeline.run_store.ledger import read_ledger
from pipeline.run_store.next_step import next_step
from pipeline.run_store.run import Run, opened
from pipeline.run_store.state import MAX_ROUNDS, fold
from tests.conftest import examples

LATER = (date.today() + timedelta(days=1)).isoformat()
OUTCOMES = st.sampled_from(["passed", "passed", "passed", "failed", "inconclusive", "errored"])
CHANCE = {  # the one item of each gate that chance answers; people may waive it
    "planning": "environment_recorded",
    "baseline": "trained_on_plan",
    "diagnostics": "limits_said",
    "optimization": "enough_seeds",
    "finalization": "lineage",
}


@cache
def questions(phase: str) -> str:
    """The real checklist, with checks that pass, but for the one that chance answers."""
    real = yaml.safe_load((CHECKS.parent / f"{phase}.yaml").read_text())["items"]
    items = []
    for item in real:
        answer = {"sign_off": "owner"} if item.get("sign_off") else {"check": "any.passes"}
        if item["id"] == CHANCE[phase]:
            answer = {"check": "any.chance"}
        items.append({"id": item["id"], "ask": "?", "waivable": item.get("waivable", True), **answer})
    return yaml.safe_dump({"items": items}, sort_keys=False)


def config(lr: float) -> dict[str, Any]:
    """The little of a config that the machine itself reads."""
    phases: dict[str, Any] = {phase: {"checklist": phase, "next": {"sufficient": "finalization"}} for phase in PHASES}
    phases["optimization"]["rounds"] = 3
    return {
        "phase": "baseline",
        "seed": 1,
        "plan": {"owner": "Ada", "purpose": "a walk"},
        "optimizer": {"lr": lr},
        "phases": phases,
    }


class Commands(RuleBasedStateMachine):
    """A run driven by random commands through phases that find whatever chance decides."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.run = Run.at(self.root, "walk")
        self.lr, self.outcome, self.good, self.left = 0.1, "passed", True, False
        self.size, self.entries = 0, list[dict[str, Any]]()
        self.trained: list[bool] = []  # whether the planning gate was open whenever a phase was given a permit
        lists = self.root / "checklists"
        lists.mkdir()
        for phase in PHASES:
            (lists / f"{phase}.yaml").write_text(questions(phase))
        self.house = House(
            phase=lambda name: getattr(self, f"_{name}"),
            check=lambda name: lambda evidence: Result(evidence["outcome"] if name == "any.chance" else "passed"),
            checklists=lists,
            log=lambda text: None,
        )
        self.drive("planning")

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    # --- phases that find what chance decides ---

    def _found(self, **more: Any) -> Evidence:
        return Evidence({"outcome": self.outcome, **more})

    def _planning(self, ctx: PhaseContext) -> Evidence:
        return self._found(facts={"threads": 1, "splits": {"test": {"digest": "rows"}}})

    def _train(self, ctx: PhaseContext) -> dict[str, Any]:
        permit = ctx.train_permit()
        self.trained.append(fold(ctx.ledger.entries).gate("planning") == "open")
        candidate = {"weights": f"{ctx.state.seq}", "checkpoint": "", "job": {}, "score": None}
        branch = {"target": self.good, "trivial": True, "symptoms": []}
        return {"candidate": candidate, "branch": branch, "plan": permit.plan.digest}

    def _baseline(self, ctx: PhaseContext) -> Evidence:
        return self._found(**self._train(ctx))

    def _diagnostics(self, ctx: PhaseContext) -> Evidence:
        return self._found()

    def _optimization(self, ctx: PhaseContext) -> Evidence:
        return self._found(**self._train(ctx), nothing_left=self.left)

    def _finalization(self, ctx: PhaseContext) -> Evidence:
        assert ctx.state.candidate
        permits.test(ctx.run, ctx.ledger, "rows")
        weights = ctx.state.candidate["weights"].encode()
        return self._found(subject=bundle_digest(write_payload(permits.export(ctx.run), {"plan.yaml": weights})))

    # --- commands ---

    def drive(self, wanted: str, changed: bool = False) -> None:
        made = RunRequest(config(self.lr), [], [], changed)
        with contextlib.suppress(Refused), opened(self.run) as ledger:
            state_machine.advance(self.house, self.run, ledger, wanted, made)

    @rule(phase=st.sampled_from([*PHASES, "auto", "auto"]), outcome=OUTCOMES, good=st.booleans(), left=st.booleans())
    def command(self, phase: str, outcome: str, good: bool, left: bool) -> None:
        self.outcome, self.good, self.left = outcome, good, left
        self.drive(phase)

    @rule(lr=st.sampled_from([0.1, 0.2, 0.3]))
    def another_revision(self, lr: float) -> None:
        changed, self.lr, self.outcome = lr != self.lr, lr, "passed"
        self.drive("baseline", changed)

    @rule(item=st.sampled_from(["branch", "owner_approval", *CHANCE.values()]))
    def waive(self, item: str) -> None:
        why = "good enough to rehearse with"
        words = ["waive", str(self.run.path), item, "--who", "Bob", "--why", why, "--expires", LATER]
        self._say(words, 0, 2, 3)

    @rule(who=st.sampled_from(["Ada", "Mallory"]))
    def approve(self, who: str) -> None:
        self._say(["approve", str(self.run.path), "--who", who], *((0, 3) if who == "Ada" else (2, 3)))

    @precondition(lambda self: self.run.state().released)
    @rule()
    def rollback(self) -> None:
        self._say(["rollback", str(self.run.path), "--who", "Ada"], 0)

    @rule()
    def look(self) -> None:
        for command in ("status", "explain", "checklist", "verify"):
            self._say([command, str(self.run.path)], 0)

    def _say(self, words: list[str], *codes: int) -> None:
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
            code = main(words)
        assert code in codes, (words, code, out.getvalue())

    # --- what is always true ---

    def _entries(self) -> list[dict[str, Any]]:
        """The ledger's entries, read anew when it has grown."""
        size = self.run.ledger_path.stat().st_size
        if size != self.size:
            self.size, self.entries = size, read_ledger(self.run.ledger_path)
        return self.entries

    @invariant()
    def never_trained_behind_a_closed_gate(self) -> None:
        assert all(self.trained)

    @invariant()
    def never_more_than_three_rounds(self) -> None:
        assert all(e["data"]["round"] <= MAX_ROUNDS for e in self._entries() if e["kind"] == "phase.started" and
                   e["data"]["phase"] == "optimization")  # fmt: skip

    @invariant()
    def never_released_without_every_gate(self) -> None:
        for e in self._entries():
            if e["kind"] == "released":
                state = fold(self._entries()[: e["seq"]])
                assert all(state.passed(phase) for phase in PHASES)
                assert state.sufficient() and state.gate("finalization") == "open"
                assert any(s.who == "Ada" and s.digest == e["data"]["subject"] for s in state.sign_offs)

    @invariant()
    def the_state_is_a_fold(self) -> None:
        assert fold(self._entries()) == fold(self._entries()) == self.run.state()
        assert faults(self.run)[1] == []

    @invariant()
    def there_is_always_a_way_on(self) -> None:
        advice = next_step(fold(self._entries()))
        assert advice.command.startswith("python -m pipeline ") and advice.why
        assert advice.phase is None or advice.exit_code == 0

    @invariant()
    def what_is_advised_is_not_refused(self) -> None:
        state = fold(self._entries())
        phase = next_step(state).phase
        if phase:
            state_machine._refuse_unless_ready(state, phase, MAX_ROUNDS, "runs")


Commands.TestCase.settings = settings(
    max_examples=examples(3, thorough=200),
    stateful_step_count=14,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestCommands = Commands.TestCase


def test_the_machine_can_end_in_release() -> None:
    """The walk is not empty: with everything passed and the owner's name, the fake run is released."""
    walk = Commands()
    try:
        walk.drive("auto")
        walk._say(["approve", str(walk.run.path), "--who", "Ada"], 0)
        assert walk.run.state().released
    finally:
        walk.teardown()


def test_three_rounds_and_a_person() -> None:
    """Never good enough: three rounds of diagnostics and optimization, then exhausted, exit 3."""
    walk = Commands()
    try:
        walk.good = False
        walk.drive("auto")
        state = walk.run.state()
        assert state.exhausted and state.exhausted["round"] == 3
        assert next_step(state).exit_code == 3 and "a person decides" in next_step(state).why
        assert [g.round for p, g in state.gates.items() if p in ROUNDED] == [3, 3]
    finally:
        walk.teardown()


def test_a_waived_branch_is_a_way_on() -> None:
    """A baseline below its target whose branch was waived goes on to finalization."""
    walk = Commands()
    try:
        walk.good = False
        walk.drive("baseline")
        walk.waive("branch")
        walk.drive("auto")
        assert walk.run.state().gate("finalization") == "pending"
    finally:
        walk.teardown()


def test_what_was_taken_back_stays_back() -> None:
    """After a rollback no command but a new signature or a new model releases again."""
    walk = Commands()
    try:
        walk.drive("auto")
        walk.approve("Ada")
        walk.rollback()
        walk.drive("auto")
        assert not walk.run.state().released
    finally:
        walk.teardown()


def test_a_machine_that_is_not_allowed_says_why() -> None:
    """Each phase behind a closed gate is refused with the command that goes on."""
    walk = Commands()
    try:
        for phase in ("optimization", "finalization"):
            try:
                with opened(walk.run) as ledger:
                    state_machine.advance(walk.house, walk.run, ledger, phase, RunRequest(config(0.1), [], []))
            except FivegateError as error:
                assert "Do: python -m pipeline phase=baseline run.name=walk" in str(error)
            else:
                raise AssertionError(phase)
    finally:
        walk.teardown()
