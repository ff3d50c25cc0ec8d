"""Records say what they show: no count, tick or sentence for what was not judged, or was judged for something else."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.reporting.page import collect, write_report
from pipeline.reporting.tables import items_table
from pipeline.run_store.gate import Item
from pipeline.run_store.ledger import Ledger
from pipeline.run_store.next_step import next_step
from pipeline.run_store.run import Run, opened
from pipeline.run_store.state import fold
from tests.conftest import Cli
from tests.ledger_fixtures import CONFIG, LATER, baseline_done, freeze, gate, mended, passed

NAMED = "3 candidate causes named: test a fix"
UNDECIDED = "not decided: the diagnosis names no cause, and diagnostics/1/incident.md says what would decide;"


def decide_branch(ledger: Ledger, branch: str) -> None:
    good = branch == "sufficient"
    about = {"phase": "baseline", "round": 1, "branch": branch, "target": good, "trivial": good, "symptoms": []}
    ledger.append("branch.decided", about)


def planned_again(root: Path, branch: str) -> Run:
    """A run that was optimized, then planned and trained anew with another learning rate."""
    run = mended(root)
    with opened(run) as ledger:
        freeze(run, ledger, {**CONFIG, "optimizer": {**CONFIG["optimizer"], "lr": 0.1}})
        gate(ledger, "planning", passed("seeds_fixed", waivable=False))
        if branch:
            gate(ledger, "baseline", passed("one_batch_overfits"))
            decide_branch(ledger, branch)
    return run


# --- the step after the diagnosis ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("causes", "why"), [(3, NAMED), (1, "1 candidate cause named: test a fix"), (0, UNDECIDED)])
def test_next_step_after_diagnosis(tmp_path: Path, causes: int, why: str) -> None:
    """A fix is tested where a cause is named; else nothing is decided, and optimization says what can be tried."""
    run = baseline_done(tmp_path, branch="insufficient")
    with opened(run) as ledger:
        gate(ledger, "diagnostics", passed("causes_known", value=causes))
    step = next_step(run.state(), run.path)

    assert step.phase == "optimization" and step.why.startswith(why)
    assert "test a fix" not in step.why or causes


def test_next_step_without_count_of_causes_claims_none(tmp_path: Path) -> None:
    """A gate that does not record how many causes there are is not said to name any."""
    run = baseline_done(tmp_path, branch="insufficient")
    with opened(run) as ledger:
        gate(ledger, "diagnostics", passed("limits_said"))

    assert next_step(run.state(), run.path).why == "the diagnosis is done: test a fix"


# --- gates of an earlier plan ----------------------------------------------------------------------------------------


def test_explain_claims_nothing_for_stale_gate(tmp_path: Path, cli: Cli) -> None:
    """A stale gate is named with the command that continues; only gates of the present plan are called satisfied."""
    run = planned_again(tmp_path, branch="")
    _, out, _ = cli("explain", run.path, "--gate", "baseline")
    _, whole, _ = cli("explain", run.path)

    assert "baseline: stale" in out and "earlier plan or training" in out and "phase=baseline" in out
    assert "is satisfied" not in out
    assert "every evaluated check is satisfied: planning\n" in whole and "baseline: stale" in whole


def test_explain_claims_nothing_for_gate_not_reached(tmp_path: Path, cli: Cli) -> None:
    """A gate that was never evaluated has no satisfied items."""
    run = baseline_done(tmp_path, branch="insufficient")
    _, out, _ = cli("explain", run.path, "--gate", "optimization")

    assert "optimization: not reached" in out and "the phase has not run" in out and "is satisfied" not in out


def test_checklist_ticks_nothing_of_stale_gate(tmp_path: Path, cli: Cli) -> None:
    """No box is ticked for what was evaluated for an earlier plan."""
    run = planned_again(tmp_path, branch="")
    _, planning, _ = cli("checklist", run.path, "--gate", "planning")
    _, baseline, _ = cli("checklist", run.path, "--gate", "baseline")

    assert "- [x] **seeds_fixed**" in planning
    assert "## baseline: stale" in baseline and "[x]" not in baseline


def test_gate_label_of_skipped_phase_that_ran_before(tmp_path: Path, cli: Cli) -> None:
    """Optimization of an earlier plan is not needed by a baseline that is sufficient now; no count of it is shown."""
    run = planned_again(tmp_path, branch="sufficient")
    state = run.state()
    _, out, _ = cli("status", run.path)
    section = next(phase for phase in collect(run).phases if phase.name == "optimization")

    assert [state.gate_label(p) for p in ("diagnostics", "optimization")] == ["not needed"] * 2
    assert re.search(r"optimization +not needed +–/", out) and "optimization: checks" not in out
    assert (section.rows, section.reason) == ([], "The branch was sufficient after baseline.")


def test_gate_label_of_phase_that_must_run_again(tmp_path: Path) -> None:
    """Optimization of an earlier plan is stale where the present baseline is insufficient."""
    state = planned_again(tmp_path, branch="insufficient").state()

    assert [state.gate_label(p) for p in ("baseline", "diagnostics", "optimization")] == ["open", "stale", "stale"]


def test_report_does_not_call_waived_branch_sufficient(tmp_path: Path) -> None:
    """The page says why diagnostics is not needed: a person waived the branch, the baseline was insufficient."""
    run = baseline_done(tmp_path, branch="insufficient")
    with opened(run) as ledger:
        about = {
            "phase": "baseline",
            "item": "branch",
            "who": "Ada",
            "why": "a rehearsal of it",
            "expires": LATER,
        }
        ledger.append("waiver", about)
    section = next(phase for phase in collect(run).phases if phase.name == "diagnostics")

    assert section.reason == "The branch was insufficient after baseline, and a named person waived it."
    assert "was sufficient" not in write_report(run.path).read_text()


# --- items -----------------------------------------------------------------------------------------------------------


def test_status_does_not_count_what_does_not_apply(tmp_path: Path, cli: Cli) -> None:
    """`1/2` with one n/a: an item that does not apply lets the gate open, and is not counted as an answer."""
    run = baseline_done(tmp_path)
    with opened(run) as ledger:
        gate(ledger, "baseline", passed("scored"), passed("folds", outcome="not_applicable", why="not requested"))
    _, out, _ = cli("status", run.path)
    section = next(phase for phase in collect(run).phases if phase.name == "baseline")

    assert re.search(r"baseline +open +1/2 +1 ", out)
    assert (section.count, section.label) == ("1/2, 1 n/a", "open")
    assert "1/2, 1 n/a" in write_report(run.path).read_text()


def test_item_label_is_not_implemented_everywhere(tmp_path: Path, cli: Cli) -> None:
    """Page, JSON and Markdown say `not implemented`; the recorded outcome keeps its word."""
    run = mended(tmp_path)
    item = next(item for item in run.state().gates["finalization"].items if item.id == "latency")
    _, out, _ = cli("status", run.path, "--json")
    said = next(i for i in json.loads(out)["items"]["finalization"] if i["id"] == "latency")
    _, markdown, _ = cli("checklist", run.path, "--gate", "finalization")
    row = next(r for r in collect(run).phases[-1].rows if r.item.id == "latency")

    assert (said["outcome"], said["label"]) == ("errored", "not implemented") == (item.outcome, item.label)
    assert row.label == "not implemented" and re.search(r"\*\*latency\*\* .* \*not implemented\*", markdown)
    assert fold(()).gate_label("planning") == "not reached"


def test_items_table_prints_brackets_as_they_are(finished: Run) -> None:
    """Code and lists in the details of a check are text, not markup, in a table and below each other."""
    why = "X, y = X[order], y[order]; trust=[spirals]; [/home]"
    item = Item("a", "Is it?", "failed", why=why)
    for width in (200, 80):
        console = Console(width=200, file=io.StringIO(), no_color=True)
        console.print(items_table("baseline", [item], finished.state(), width))
        assert why in console.file.getvalue()  # type: ignore[attr-defined]
