"""The looks at test rows are counted over all runs of a root, also over copies of a run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from checklists.checks.data import test_opened_once as opened_once
from checklists.checks.data import test_sealed as sealed
from pipeline.data.test_openings import REGISTER, described, models, openings, planning_evidence, record
from pipeline.errors import Refused, UserError
from pipeline.release.verify import faults
from pipeline.results import Evidence
from pipeline.run_store import plan as plans
from pipeline.run_store.ledger import read_ledger
from pipeline.run_store.run import Run, opened
from tests.conftest import SMALL, go
from tests.test_phase_finalization import cut

ROWS = "5" * 64


@pytest.fixture
def run() -> Run:
    """A new run with nothing but its first entry."""
    return new_run("first")


def planned_rows(run: Run) -> str:
    """The digest of the test rows of the run's plan."""
    return str(plans.load(run).facts["splits"]["test"]["digest"])


def new_run(name: str) -> Run:
    run = Run.at("runs", name)
    with opened(run):
        return run


def lines() -> list[str]:
    return Path("runs", REGISTER).read_text().splitlines()


def test_record_counts_each_model_of_a_run_once(run: Run) -> None:
    """An opening that is recorded already, as after a crash, is not recorded again."""
    for candidate in ("a", "b", "a"):
        record(run, ROWS, candidate, budget=3)

    assert [json.loads(line)["candidate"] for line in lines()] == ["a", "b"]
    assert described(openings(Path("runs"), ROWS)) == "2 models of first"
    assert not openings(Path("runs"), "6" * 64)


def test_record_refuses_a_model_beyond_the_budget_of_the_rows(run: Run) -> None:
    """Models of other runs use the budget of the rows up; a model that was scored may be scored again by anybody."""
    record(run, ROWS, "a", budget=2)
    record(new_run("second"), ROWS, "b", budget=2)
    third = new_run("third")

    with pytest.raises(Refused) as stop:
        record(third, ROWS, "c", budget=2)

    assert str(stop.value).startswith("data.test: scored on these test rows before: 2 models of first, second, got ")
    assert str(stop.value).endswith("python -m pipeline phase=planning run.name=third")
    record(third, ROWS, "a", budget=2)
    record(third, "6" * 64, "c", budget=2)
    assert models(openings(Path("runs"), ROWS)) == ["a", "b"]


def test_record_gives_copy_of_run_no_new_budget(run: Run) -> None:
    """A copy that was made before the first opening shares the budget of its original."""
    copy = Run(run.path.with_name("copy"))
    shutil.copytree(run.path, copy.path)
    record(run, ROWS, "a", budget=1)

    with pytest.raises(Refused, match="1 model of first"):
        record(copy, ROWS, "b", budget=1)
    assert planning_evidence(copy, ROWS, 0, print)["test_openings"] == 1
    assert planning_evidence(new_run("neighbour"), ROWS, 0, print) == {
        "test_openings": 0, "scored_before": "1 model of first",
    }  # fmt: skip


def test_record_after_incomplete_line(run: Run) -> None:
    """A line that a kill left incomplete is passed over, and no later line is lost with it."""
    record(run, ROWS, "a")
    with Path("runs", REGISTER).open("ab") as register:
        register.write(b'{"candidate":"b","identi')

    record(run, ROWS, "c")

    assert models(openings(Path("runs"), ROWS)) == ["a", "c"]


@pytest.mark.parametrize("damage", [b"\xff\xfe\x00", b"[" * 100_000, b"null", b'{"rows": 5}', b"1" * 5000])
def test_openings_pass_over_damaged_lines(run: Run, damage: bytes) -> None:
    """Whatever is in a line or in a neighbour's ledger, the other lines count."""
    record(run, ROWS, "a")
    with Path("runs", REGISTER).open("ab") as register:
        register.write(damage + b"\n")
    Path("runs/damaged").mkdir()
    Path("runs/damaged/ledger.jsonl").write_bytes(damage + b"\n")

    assert models(openings(Path("runs"), ROWS)) == ["a"]


def test_openings_are_read_from_ledgers_where_the_register_is_gone(run: Run) -> None:
    """A deleted register forgets no opening that a ledger of the root has."""
    with opened(run) as ledger:
        ledger.append("test.opened", {"candidate": "a", "digest": ROWS, "plan": "p"})

    with pytest.raises(Refused, match="1 model of first"):
        record(new_run("second"), ROWS, "b", budget=1)


def test_record_refuses_where_the_register_cannot_be_written(run: Run) -> None:
    """Without a register nothing is opened."""
    Path("runs", REGISTER).mkdir()

    with pytest.raises(UserError, match=f"runs/{REGISTER}"):
        record(run, ROWS, "a")


def test_record_waits_for_other_processes(run: Run) -> None:
    """Processes that record at the same time never exceed the budget together."""
    children = []
    for number in range(6):
        child = os.fork()
        if child == 0:
            try:
                record(run, ROWS, f"model {number}", budget=3)
            except Refused:
                os._exit(3)
            finally:
                os._exit(0)
        children.append(child)
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)

    assert codes == [0, 0, 0, 3, 3, 3] and len(lines()) == 3


@pytest.mark.process
def test_finalization_of_copies_shares_the_budget(finished: Run) -> None:
    """A copy scores the same model without another look; another model finds the looks of both used up."""
    rows = planned_rows(finished)
    cut(finished, "test.opened", after=False)
    copy = Run(finished.path.with_name("copy"))
    shutil.copytree(finished.path, copy.path)
    root = finished.path.parent
    (root / REGISTER).unlink(missing_ok=True)

    go(root, "phase=finalization", "run.name=digits")
    go(root, "phase=finalization", "run.name=copy")

    found = openings(root, rows)
    assert described(found) == "1 model of digits" and faults(copy)[1] == []
    item = next(i for i in copy.state().gates["finalization"].items if i.id == "test_opened_once")
    assert item.outcome == "passed" and item.why.startswith("model 1 of at most 3")


def test_finalization_is_refused_where_other_runs_used_the_rows_up(finished: Run) -> None:
    """Before the rows are opened, the run is told who used them up; planning of a later run says the same."""
    rows, root = planned_rows(finished), finished.path.parent
    cut(finished, "test.opened", after=False)
    for name in ("one", "two", "three"):
        record(new_run(name), rows, name)

    with pytest.raises(Refused, match="scored on these test rows before: 3 models of one, two, three"):
        go(root, "phase=finalization", "run.name=digits")
    assert not any(entry["kind"] == "test.opened" for entry in read_ledger(finished.ledger_path))

    go(root, "phase=planning", *SMALL, "run.name=later")
    evidence = json.loads((root / "later" / "planning" / "evidence.json").read_text())["values"]
    assert (evidence["test_openings"], evidence["scored_before"]) == (0, "3 models of one, two, three")


def test_checks_say_who_was_scored_before() -> None:
    """Planning and finalization name the runs that opened the rows, and one model too many fails."""
    about = {
        "openings_for_candidate": 1,
        "candidates_that_opened": 1,
        "models_before": 2,
        "runs_before": ["one", "two"],
    }
    assert "model 3 of at most 3" in opened_once(Evidence(about), max_candidates=3).why
    assert "after 2 models of one, two" in opened_once(Evidence(about), max_candidates=3).why
    assert opened_once(Evidence(about), max_candidates=2).outcome == "failed"
    planned = {"test_openings": 0, "test_sealed": True, "rows": {"test": 9}, "scored_before": "2 models of one, two"}
    result = sealed(Evidence(planned), max_openings=2)
    assert result.outcome == "passed" and result.why.endswith("scored on these rows before: 2 models of one, two")
