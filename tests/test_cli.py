"""The command line: every command answers, every stop has its exit code and the command that goes on."""

from __future__ import annotations

import json
import operator
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.__main__ import COMMANDS, make_hooks, make_registry
from pipeline.errors import UserError
from pipeline.orchestration.execute import RunOutcome
from pipeline.results import GateState
from pipeline.run_store import plan as plans
from pipeline.run_store.next_step import NextStep
from pipeline.run_store.run import Run, opened
from pipeline.run_store.state import RunState
from tests.check_helpers import judge, open_items
from tests.conftest import SMALL, Cli
from tests.ledger_fixtures import baseline_done, passed
from tests.ledger_fixtures import gate as record_gate

ROOT = Path(__file__).resolve().parents[1]
OWNER = "Example Owner"
LATER = (date.today() + timedelta(days=9)).isoformat()
NEXT = re.compile(r"^next: .+\n  python -m pipeline \S.*$", re.MULTILINE)


def process(*arguments: str, python: tuple[str, ...] = ("-m", "pipeline")) -> subprocess.Popen[str]:
    """The command line in a process of its own, importing this checkout.

    It hears Ctrl-C also where these tests run in the background of a shell, which has it ignored.
    """
    options: dict[str, Any] = {
        "env": {**os.environ, "PYTHONPATH": str(ROOT)},
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    }
    return subprocess.Popen([sys.executable, *python, *arguments], text=True, **options)


# --- records ---------------------------------------------------------------------------------------------------------


def test_status_shows_gates_and_next_command(finished: Run, cli: Cli) -> None:
    """Gates, items that did not pass, branch and the next command."""
    code, out, err = cli("status", "digits")

    assert (code, err) == (0, "")
    assert re.search(r"baseline +open +16/19 +3 ", out) and re.search(r"diagnostics +not needed", out)
    assert (
        "validation: target reached (accuracy " in out
        and "test: target " in out
        and all(item.id in out for item in open_items(finished))
    )
    assert NEXT.search(out)


def test_status_json_has_the_whole_state(finished: Run, cli: Cli) -> None:
    """`--json` gives one object that says the same."""
    _, out, _ = cli("status", "digits", "--json")
    answer = json.loads(out)

    assert answer["gates"]["finalization"] == "closed" and answer["branch"]["branch"] == "sufficient"
    assert answer["head"] == finished.state().head and len(answer["items"]["finalization"]) == 24
    assert answer["next"]["command"].startswith("python -m pipeline ")


def test_status_lists_all_runs(finished: Run, cli: Cli) -> None:
    """Without a name every run is listed, also as JSON."""
    code, out, _ = cli("status")
    assert code == 0 and "digits" in out
    assert [r["run"] for r in json.loads(cli("status", "--json")[1])] == ["digits"]


def test_status_previews_finalization_gate(planned: Run, cli: Cli) -> None:
    """Before anything is trained it is said which of the 24 items cannot pass yet, and why."""
    code, out, _ = cli("status", "digits", "--gate", "finalization")

    assert code == 0 and "24 checks" in out
    counts = re.search(r"(\d+) of 24 checks cannot pass yet: (\d+) needs? a signature", out)
    assert counts and counts[1] == counts[2] == "1"
    assert "owner_approval: needs the owner's signature after phase=finalization" in out


def test_cannot_pass_names_missing_key() -> None:
    """An item whose declaration is missing says which key to set."""
    from pipeline.commands.status import cannot_pass

    items = [{"id": "documents", "check": "x.y", "needs": ["plan.purpose", "plan.owner"]}, {"id": "fine"}]
    plan = plans.Plan(1, {"plan": {"owner": "Ada", "purpose": None}}, {"finalization": items}, {})
    reasons = cannot_pass(plan, "finalization", Run.at("runs", "mine"))

    assert list(reasons) == ["documents"]
    assert "add: python -m pipeline phase=planning run.name=mine plan.purpose=VALUE" in reasons["documents"]
    assert "plan.owner" not in reasons["documents"]


def test_verify_names_changed_entry_and_file(finished: Run, cli: Cli) -> None:
    """An intact run verifies; one changed byte is named by its entry, one changed file by its path. Exit 3."""
    assert cli("verify", "digits")[0] == 0
    curve = finished.inside("baseline", "learning_curve.svg")
    curve.write_text(curve.read_text() + " ")
    code, out, _ = cli("verify", "digits")
    assert code == 3 and "baseline/learning_curve.svg: is not the file that entry" in out

    raw = finished.ledger_path.read_bytes()
    third = raw.split(b"\n")[3]
    finished.ledger_path.write_bytes(raw.replace(third, third.replace(b'"seq":3', b'"seq":4')))
    code, out, _ = cli("verify", "digits")
    assert code == 3 and "entry 3" in out
    code, _, err = cli("status", "digits")
    assert code == 3 and "the ledger was changed: entry 3" in err and "Do: python -m pipeline verify digits" in err


def test_checklist_prints_markdown_boxes(finished: Run, cli: Cli) -> None:
    """Ticked where satisfied, empty where not; a waiver is written beside its item."""
    code, _, _ = cli("waive", "digits", "reproducible", "--who", OWNER, "--why", "no slices here", "--expires", LATER)
    assert code == 0
    code, out, _ = cli("checklist", "digits", "--gate", "finalization")
    boxes = re.findall(r"^- \[([ x])\] \*\*(\w+)\*\*", out, re.MULTILINE)

    assert code == 0 and len(boxes) == 24
    assert ("x", "onnx_parity") in boxes and (" ", "supply_chain") in boxes and ("x", "reproducible") in boxes
    assert f"waived by {OWNER} until {LATER}: no slices here" in out
    assert len(re.findall(r"^## ", cli("checklist", "digits")[1], re.MULTILINE)) == 5


def test_checklist_ignores_expired_waiver(finished: Run, cli: Cli) -> None:
    """A waiver whose last day is over leaves its box empty."""
    with opened(finished) as ledger:
        over = {
            "phase": "finalization",
            "item": "reproducible",
            "who": OWNER,
            "why": "no slices",
            "expires": "2020-01-01",
        }
        ledger.append("waiver", over)

    assert "- [ ] **reproducible**" in cli("checklist", "digits", "--gate", "finalization")[1]
    assert "\nwaived:" not in cli("status", "digits")[1] and "/reproducible: " in cli("explain", "digits")[1]


def test_waived_item_counts_as_satisfied(finished: Run, cli: Cli) -> None:
    """The table of gates counts a valid waiver, explain asks for nothing more, and the report is up to date."""
    before = re.search(r"finalization +closed +(\d+)/24", cli("status", "digits")[1])
    finished.inside("report.html").unlink(missing_ok=True)
    cli("waive", "digits", "reproducible", "--who", OWNER, "--why", "no slices here", "--expires", LATER)
    _, out, _ = cli("status", "digits")
    after = re.search(r"finalization +closed +(\d+)/24", out)

    assert before and after and int(after[1]) == int(before[1]) + 1
    assert f"waived: finalization/reproducible by {OWNER}" in out
    assert "reproducible: " not in cli("explain", "digits")[1]
    assert "no slices here" in finished.inside("report.html").read_text()


def test_commands_name_run_of_another_root(finished: Run, cli: Cli, tmp_path: Path) -> None:
    """Under another root every proposed command says where the run is, and works as printed."""
    (tmp_path / "runs").rename(tmp_path / "other")
    _, out, _ = cli("status", "other/digits")
    command = NEXT.search(out)[0].split("python -m pipeline ")[1].split()  # type: ignore[index]

    assert command[:2] == ["explain", "other/digits"] and cli(*command)[0] == 0
    assert "waive other/digits reproducible --who" in cli(*command)[1]
    assert "approve other/digits --who" in cli("status", "other/digits", "--gate", "finalization")[1]
    assert "Do: python -m pipeline status other/digits" in cli("rollback", "other/digits", "--who", "Ada")[2]


@pytest.mark.parametrize(
    ("plan", "names", "signers"),
    [
        ({"owner": "Ada", "approvers": []}, ["Ada"], ["Ada"]),
        ({"owner": "Ada", "approvers": ["Ada"]}, ["Ada"], ["Ada"]),
        ({"owner": "Ada", "approvers": ["Bob"]}, ["Ada", "Bob"], ["Bob"]),
        ({"owner": " Ada", "approvers": ["Bob", "Ada "]}, ["Ada", "Bob"], ["Bob"]),
        ({"owner": None, "approvers": ["Bob"]}, ["Bob"], ["Bob"]),
        ({"owner": None, "approvers": []}, [], []),
    ],
)
def test_approve_refuses_owner_where_others_are_named(
    plan: dict[str, object], names: list[str], signers: list[str]
) -> None:
    """The owner may act always, and approve only where the plan names nobody else; strangers may do neither."""
    from pipeline.commands import approve
    from pipeline.errors import UserError

    state = RunState(revisions=({"seq": 1, "people": plan},))  # type: ignore[arg-type,typeddict-item]
    add = r"Do: python -m pipeline phase=planning run\.name=x plan\.owner=Mallory"

    assert (state.people(), state.signers()) == (names, signers)
    with pytest.raises(UserError, match="Do: ask one of them" if names else add):
        approve.require_role(Run(Path("runs/x").resolve()), state, "owner", "Mallory", "may not sign it")


def test_status_names_keys_that_finalization_needs(cli: Cli) -> None:
    """Without a margin or an owner the lines to add are known before anything is trained."""
    people = ("plan.owner=null", "plan.small_sample=null", "plan.not_audited=null")  # the owner makes both statements
    cli("phase=planning", *SMALL, "plan.margins.target=null", *people)
    _, out, _ = cli("status", "digits", "--gate", "finalization")

    assert re.search(r"target_on_test: add: .*phase=planning run.name=digits plan.margins.target=VALUE", out)
    assert re.search(r"owner_approval: add: .* plan.owner=VALUE", out)


@pytest.mark.parametrize(("value", "outcome"), [(0.9, "inconclusive"), (0.4, "failed")])
def test_target_on_test_needs_margin(value: float, outcome: str) -> None:
    """The outcome says which line to add; no TypeError."""
    score = {"metric": "accuracy", "value": value, "low": 0.3, "high": 0.95, "n": 9, "greater_is_better": True}
    item = judge("release.target_on_test", {"test_score": score}, target=0.5, margin=None)

    assert item.outcome == outcome and "plan.margins.target=NUMBER" in item.why


def test_sweep_table_shows_differing_overrides(cli: Cli) -> None:
    """Words that all jobs share are left out, no word is cut, and a job that did not end well says why."""
    code, out, _ = cli("-m", "phase=baseline", *SMALL, "trainer.max_epochs=1", "seed=1,null")
    table = out[out.index("#  run") : out.index("digits-1-1: planning")]

    assert code == 3
    assert "seed=1" in table and "seed=null" in table and "max_epochs" not in table and "experiment" not in table
    assert re.search(r"^digits-1-1: planning/seeds_fixed: failed, no seed", out, re.MULTILINE)
    assert not re.search(r"^digits-1-0: ", out, re.MULTILINE)
    assert "more; explain shows all of them" in out


def test_explain_prints_reason_and_command(finished: Run, cli: Cli) -> None:
    """One paragraph per item that is not satisfied; a single item on demand, satisfied or not."""
    code, out, _ = cli("explain", "digits", "--gate", "finalization")
    assert code == 0 and out.count("  question:") == 1 + len(open_items(finished))
    assert "finalization/reproducible: inconclusive" in out and "replay_seconds is 0" in out
    assert "python -m pipeline waive digits reproducible --who NAME" in out
    assert "python -m pipeline approve digits --who NAME" in out
    _, out, _ = cli("explain", "digits", "reproducible")
    assert "finalization/reproducible: inconclusive" in out and "supply_chain" not in out
    _, out, _ = cli("explain", "digits", "split_integrity")
    assert "finalization/split_integrity: passed" in out and "question:" in out
    code, _, err = cli("explain", "digits", "split_integrty")
    assert code == 2 and "did you mean 'split_integrity'?" in err


def test_explain_says_what_helps_against_a_missed_test_target(tmp_path: Path, cli: Cli) -> None:
    """The test score of a model is final: another model, or a waiver; running the phase again is not proposed."""
    run = baseline_done(tmp_path / "runs")
    figures = {"value": 0.944, "bound": 0.95, "unit": "accuracy", "relation": ">="}
    with opened(run) as ledger:
        record_gate(ledger, "finalization", passed("target_on_test", outcome="failed", **figures))

    code, out, _ = cli("explain", "digits-hot", "target_on_test", "--root", run.path.parent)

    assert code == 0 and "result:   0.944 accuracy" in out and "required: >= 0.95" in out
    assert "may be scored on these test rows" in out and "phase=baseline run.name=digits-hot" in out
    assert "phase=finalization" not in out and "target_on_test --who NAME" in out
    assert "test: target missed (accuracy 0.944 < 0.95)" in cli("status", "digits-hot", "--root", run.path.parent)[1]


def test_diff_prints_differing_keys(
    finished: Run, cli: Cli, copied: Callable[[Path], Run], _trained: Path, tmp_path: Path
) -> None:
    """Config, gates and outcome of two runs side by side; a run agrees with itself."""
    finished.path.rename(tmp_path / "other")
    copied(_trained)
    code, out, _ = cli("diff", "digits", tmp_path / "other")

    assert code == 0 and "task.target" in out and "0.99" in out and "0.5" in out
    assert "agree in config" in cli("diff", "digits", "digits")[1]


def test_report_writes_page(finished: Run, cli: Cli) -> None:
    """The page stands in the run's folder and its path is printed."""
    finished.inside("report.html").unlink(missing_ok=True)
    code, out, _ = cli("report", "digits")

    assert code == 0 and Path(out.strip().replace("\n", "")) == finished.inside("report.html")
    assert finished.inside("report.html").read_text().startswith("<!")


def test_diagnose_reads_history_file(mended: Run, cli: Cli, tmp_path: Path) -> None:
    """A history from anywhere is explained, on paper, as JSON and as files."""
    path = mended.inside("baseline", "history.npz")
    code, out, _ = cli("diagnose", path, "--out", tmp_path / "said")
    assert code == 0 and "learning_rate_too_high" in out
    assert {p.name for p in (tmp_path / "said").iterdir()} >= {"diagnosis.json", "diagnosis.md"}
    answer = json.loads(cli("diagnose", path, "--json")[1])
    assert answer["root_causes"][0]["issue"] == "learning_rate_too_high"
    code, out, _ = cli("diagnose", path, "--symptom", "the loss diverged", "--at", "epoch=7")
    assert code == 0 and "since epoch 7" in out


# --- exits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "gate", "stopped", "code"),
    [
        ("auto", "open", 0, 0),
        ("auto", "open", 3, 3),
        ("auto", "closed", 3, 3),
        ("auto", "pending", 4, 4),
        ("baseline", "open", 3, 0),
        ("baseline", "closed", 3, 3),
        ("finalization", "pending", 4, 4),
    ],
)
def test_exit_code_of_run_outcome(wanted: str, gate: GateState, stopped: int, code: int) -> None:
    """Only `auto` answers for where the run stops next; a single phase answers for its own gate."""
    step = NextStep(None, "", "", stopped)
    assert RunOutcome(Run(Path("runs/x")), gate, step).exit_code(wanted) == code


def test_insufficient_baseline_exits_with_0(cli: Cli) -> None:
    """Exit 0, the branch printed and in --json, where stdout is one JSON object and nothing else."""
    code, out, err = cli("phase=baseline", *SMALL, "task.target=0.99", "--json")
    answer = json.loads(out)

    assert code == 0 and answer["branch"]["branch"] == "insufficient"
    assert answer["next"]["command"] == "python -m pipeline phase=diagnostics run.name=digits"
    assert "baseline: accuracy" in err and "Traceback" not in err


def test_execute_run_records_program_fault(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is nobody's input is recorded as a failed phase and gets out as it is: Python's exit code for it is 1."""
    from pipeline.orchestration.execute import execute_run
    from pipeline.orchestration.run_request import resolve_request

    # The phase is a function of C, so that the exception is raised from a line of ours, not of a user's.
    registry = replace(make_registry(), phase=lambda name: operator.attrgetter("nothing"))
    with pytest.raises(AttributeError):
        execute_run(registry, make_hooks(print), resolve_request(["phase=diagnostics", "run.name=digits"], ()))
    assert trained.state().failed and "AttributeError" in trained.state().failed["why"]


@pytest.mark.parametrize("arguments", [["--help"], [], ["-h"]])
def test_help_fits_one_screen(cli: Cli, arguments: list[str]) -> None:
    """No word at all, or a cry for help, prints the commands and the exit codes."""
    code, out, _ = cli(*arguments)
    assert code == 0 and len(out.splitlines()) <= 24
    assert all(word in out for word in ("phase=auto", "status", "diagnose", "130 interrupted"))


@pytest.mark.parametrize("command", COMMANDS)
def test_command_help_answers(cli: Cli, command: str) -> None:
    """`-h` of every record command answers."""
    code, out, _ = cli(command, "-h")
    assert code == 0 and f"python -m pipeline {command}" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["statsu"], "did you mean 'status'?  Do: python -m pipeline status"),
        (["worker"], "worker: takes one job"),
        (["worker", "nowhere"], "is not inside a run directory"),
        (["status", "nothing"], "RUN: no such run, got 'nothing'"),
        (["status"], "there is no run yet  Do: python -m pipeline phase="),
        (["diagnose", "nowhere.csv"], "nowhere.csv: does not exist"),
        (["--jsn"], "--jsn: unknown flag, got '--jsn'; expected"),
    ],
)
def test_wrong_command_is_one_message(cli: Cli, arguments: list[str], says: str) -> None:
    """Exit 2, one line on stderr, nothing on stdout."""
    code, out, err = cli(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err


def test_worker_refuses_invalid_job(trained: Run, cli: Cli) -> None:
    """A worker takes only what a run wrote."""
    folder = trained.inside("optimization", "1", "trials", "x")
    folder.mkdir(parents=True)
    (folder / "job.json").write_text("{}")
    code, _, err = cli("worker", folder)
    assert code == 2 and "job.json: is not a job" in err


# --- processes -------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_status_imports_nothing_heavy(finished: Run) -> None:
    """`status` of a finished run imports neither hydra nor torch nor numpy, and answers at once."""
    script = (
        "import sys, pipeline.__main__ as m\n"
        "code = m.main(['status', 'digits'])\n"
        "print([n for n in ('hydra', 'torch', 'numpy', 'omegaconf', 'sklearn') if n in sys.modules], file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    ended = process(script, python=("-c",))
    _, err = ended.communicate(timeout=60)
    assert (ended.returncode, err.strip()) == (0, "[]")


@pytest.mark.process
def test_help_is_quick() -> None:
    """Under half a second of work; the best of three, with room for a busy machine."""
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        process("--help").communicate(timeout=60)
        taken.append(time.perf_counter() - started)
    assert min(taken) < 1.5


@pytest.mark.process
def test_interrupt_keeps_recorded_facts(own_folder: Path) -> None:
    """Ctrl-C in the middle of training: exit 130, a message that says how to go on, `stopped` on record."""
    arguments = ["phase=baseline", *SMALL, "trainer.max_epochs=5000"]
    running = process(*arguments)
    ledger = own_folder / "runs" / "digits" / "ledger.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (ledger.exists() and b'"phase":"baseline"' in ledger.read_bytes()):
        time.sleep(0.05)
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    run = Run(own_folder / "runs" / "digits")

    assert running.returncode == 130, err
    assert "interrupted" in err and "Do: python -m pipeline phase=baseline" in err and "Traceback" not in err
    assert run.state().failed and run.state().failed["phase"] == "baseline"
    assert run.state().gate("planning") == "open" and run.state().gate("baseline") is None


@pytest.mark.process
@pytest.mark.parametrize("command", ["checklist", "status", "explain"])
def test_closed_pipe_ends_record_command_quietly(finished: Run, command: str) -> None:
    """A record command whose reader closed the pipe exits with 0 and writes nothing to stderr."""
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-m", "pipeline", command, "digits"]
    ended = subprocess.run(arguments, env=environment, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)

    assert (ended.returncode, ended.stderr) == (0, "")


def test_makefile_has_documented_targets() -> None:
    """Every target that users and CI name is there, with a line of help."""
    makefile = (ROOT / "Makefile").read_text()
    targets = (
        "train-baseline diagnose optimize finalize auto status report smoke test test-process coverage test-crash "
        "lint check bench help"
    )
    for name in re.findall(r"\S+", targets):
        assert re.search(rf"^{name}:.*  ## \S", makefile, re.MULTILINE), name


def test_main_prints_brackets_of_a_message(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line such as `X = X[order]` is printed as it is: what stands in brackets is not markup."""

    def log_and_stop(registry: Any, hooks: Any, request: Any) -> None:
        hooks.log("X, y = X[order], y[order]")
        raise UserError("stop: here")

    monkeypatch.setattr("pipeline.orchestration.execute.execute_run", log_and_stop)
    code, printed, errors = cli("phase=planning", "experiment=digits")
    assert (code, printed, errors) == (2, "X, y = X[order], y[order]\n", "stop: here\n")
