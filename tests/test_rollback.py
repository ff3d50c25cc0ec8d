"""`rollback`: the run returns to the candidate before, by a new entry; nothing is deleted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from phases.diagnostics import _intake
from pipeline.__main__ import make_hooks, make_registry
from pipeline.adoption.records import adopted_change
from pipeline.orchestration.phase import PhaseContext, RunRequest
from pipeline.orchestration.state_machine import _phase_context
from pipeline.run_store.job import Delta
from pipeline.run_store.ledger import read_ledger
from pipeline.run_store.run import Run, opened
from pipeline.run_store.state import fold
from tests.check_helpers import assert_schema
from tests.conftest import Cli


def files_of(run: Run) -> dict[str, bytes]:
    """Every file of a run but its ledger, its report and its lock."""
    changing = ("ledger.jsonl", "report.html", "lock")
    paths = (p for p in run.path.rglob("*") if p.is_file() and p.name not in changing)
    return {run.relative(path): path.read_bytes() for path in paths}


def context(run: Run, phase: str) -> PhaseContext:
    """What a phase of the run would be given now."""
    with opened(run) as ledger:
        request = RunRequest({}, [], [])
        return _phase_context(make_registry(), make_hooks(print), run, ledger, phase, request)


@pytest.mark.process  # no process of its own, but the run that it starts from takes more than a quick test may
def test_rollback_returns_to_the_baseline(mended: Run, cli: Cli) -> None:
    """The adopted change is undone by one entry: candidate, branch and next command are the baseline's again."""
    before, entries = files_of(mended), read_ledger(mended.ledger_path)
    adopted = mended.state().candidate
    code, out, _ = cli("rollback", mended.path, "--who", "Ada", "--why", "too slow", "--json")
    answer = json.loads(out)
    assert_schema("rollback", answer)
    assert (code, answer["undone"], answer["left"]["phase"]) == (0, "candidate", "optimization")
    assert answer["returned_to"]["phase"] == "baseline" and answer["next"]["phase"] == "diagnostics"
    state = mended.state()
    assert adopted and state.candidate and state.candidate["phase"] == "baseline"
    assert (state.branch, state.round, state.gate("diagnostics"), state.frozen) == ("insufficient", 2, None, None)
    assert read_ledger(mended.ledger_path)[: len(entries)] == entries
    assert {path: content for path, content in files_of(mended).items() if path in before} == before
    code, out, _ = cli("verify", mended.path)
    assert code == 0, out
    assert "rolled back, entry" in (shown := cli("status", mended.path)[1]) and "by Ada: too slow" in shown
    assert json.loads(cli("status", mended.path, "--json")[1])["rolled_back"]["candidate"] < len(entries)
    # The next round explains the baseline and starts from the plan, without the change that was undone.
    assert _intake(context(mended, "diagnostics")).path == mended.inside("baseline", "history.npz")
    assert adopted_change(context(mended, "optimization")) == Delta()
    assert context(mended, "diagnostics").folder == mended.inside("diagnostics", 2)
    code, _, err = cli("rollback", mended.path)
    assert code == 3 and "no earlier candidate to return to, got 'one candidate, that of baseline'" in err


def test_rollback_refuses_where_there_is_nothing_to_return_to(trained: Run, cli: Cli) -> None:
    """Without an adopted change there is no earlier candidate."""
    entries = read_ledger(trained.ledger_path)
    code, _, err = cli("rollback", trained.path)
    assert code == 3 and "has no release to withdraw and no earlier candidate to return to" in err
    assert read_ledger(trained.ledger_path) == entries
    assert cli("rollback", trained.path, "--why", "a\u200bb")[0] == 2


def test_rollback_of_a_run_without_a_training(planned: Run, cli: Cli) -> None:
    """A run that is only planned has no candidate at all."""
    code, _, err = cli("rollback", planned.path)
    assert code == 3 and "got 'no candidate'" in err


def entries_of_two_candidates(*more: tuple[str, dict[str, Any]]) -> list[Any]:
    """A ledger of two baselines' worth of facts: a candidate of the baseline, one of round 1, and more entries."""
    decided = {"target": False, "trivial": True, "symptoms": []}
    facts: list[tuple[str, dict[str, Any]]] = [
        (
            "plan.frozen",
            {
                "revision": 1,
                "file": "plan/1.yaml",
                "digest": "d",
                "overrides": [],
                "config_dirs": [],
                "changed": {},
                "questions": {},
            },
        ),
        ("candidate.chosen", {"phase": "baseline", "round": 1, "weights": "a"}),
        ("branch.decided", {"phase": "baseline", "round": 1, "branch": "insufficient", **decided}),
        ("phase.started", {"phase": "diagnostics", "round": 1, "basis": 2}),
        ("candidate.chosen", {"phase": "optimization", "round": 1, "weights": "b"}),
        ("branch.decided", {"phase": "optimization", "round": 1, "branch": "insufficient", **decided}),
        ("phase.started", {"phase": "diagnostics", "round": 2, "basis": 5}),
        *more,
    ]
    stamp = {"time": "2026-01-01T00:00:00+00:00", "prev": "", "hash": ""}
    return [{"seq": seq, "kind": kind, "data": data, **stamp} for seq, (kind, data) in enumerate(facts)]


def test_fold_of_a_rollback_numbers_the_next_round_after_all_that_began() -> None:
    """No file of an undone round is written again, and a waiver of the undone branch does not count for the old one."""
    waiver = {"phase": "optimization", "item": "branch", "who": "Ada", "why": "w", "expires": "2026-06-01"}
    back = ("rolled_back", {"who": "", "why": "", "candidate": 1})
    state = fold(entries_of_two_candidates(("waiver", waiver), back))
    assert state.candidate and state.candidate["weights"] == "a" and state.accepted == (1,)
    assert (state.round, state.waivers, state.rolled_back_at) == (3, (), 8)
    again = fold(entries_of_two_candidates(back, back))
    assert (again.candidate, again.round) == (state.candidate, 3)  # the second one has nothing to return to


@pytest.mark.parametrize("target", [0, 4, 99])
def test_fold_ignores_a_rollback_to_what_was_no_earlier_candidate(target: int) -> None:
    """An entry that no command wrote changes neither candidate nor round."""
    forged = ("rolled_back", {"who": "", "why": "", "candidate": target})
    state, before = fold(entries_of_two_candidates(forged)), fold(entries_of_two_candidates())
    assert (state.candidate, state.round, state.branch) == (before.candidate, before.round, before.branch)


def test_verify_finds_a_forged_rollback(trained: Run, cli: Cli) -> None:
    """An entry that returns to something that was no candidate is a fault of the records."""
    with opened(trained) as ledger:
        ledger.append("rolled_back", {"who": "", "why": "", "candidate": 0})
    code, out, _ = cli("verify", trained.path)
    assert code == 3 and "which is not an earlier candidate of this plan" in out


@pytest.mark.process
def test_rollback_refuses_a_candidate_whose_weights_are_gone(mended: Run, cli: Cli) -> None:
    """What the run would return to has to be there: its weights are as the ledger recorded them."""
    state = mended.state()
    weights = read_ledger(mended.ledger_path)[state.accepted[0]]["data"]["file"]["path"]
    Path(mended.inside(weights)).unlink()
    code, _, err = cli("rollback", mended.path)
    assert code == 3 and "so that nothing can return to it" in err and mended.state().rolled_back_at == -1
