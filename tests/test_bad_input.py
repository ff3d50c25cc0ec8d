"""Wrong input: one message in the house form, the right exit code, no traceback, nothing half-written."""

from __future__ import annotations

import errno
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from checklists.resolve import CHECKS, resolve_check
from pipeline.config.compose import compose
from pipeline.errors import Refused, UserError
from pipeline.run_store import checklist, files
from pipeline.run_store import plan as plans
from pipeline.run_store.ledger import read_ledger
from pipeline.run_store.lock import RunLock
from pipeline.run_store.run import Run, opened
from tests.conftest import SMALL, Cli, go
from tests.user_package import write_package

HOUSE_FORM = re.compile(r"^\S[^:]*(\.\w+)*: .+$")


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything under a folder, with its bytes; the lock file, which never goes away, apart."""
    paths = sorted(p for p in folder.rglob("*") if p.name != "lock")
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in paths}


def refused(ended: tuple[int, str, str], code: int, *says: str) -> None:
    """The command ended as wrong input ends: its exit code, and one line per fault that says all this."""
    got, _, err = ended
    assert got == code, err
    assert "Traceback" not in err
    assert all(HOUSE_FORM.match(line) for line in err.splitlines()), err
    for message in says:
        assert message in err


BAD = [
    (["optimizr.lr=1"], ["optimizr.lr: unknown key", "did you mean 'optimizer.lr'?"]),
    (["trainer.max_epoch=1"], ["did you mean 'trainer.max_epochs'?"]),
    (["optimizr.lr=1", "trainer.max_epoch=1", "task.target=high"], ["optimizr.lr", "trainer.max_epoch", "task.target"]),
    (["trainer.max_epochs=many"], ["trainer.max_epochs: has the wrong type, got 'many'; expected an integer"]),
    (["seed=-1"], ["seed: "]),
    (["run.name=../evil"], ["run.name: cannot name a run, got '../evil'"]),
    (["run.name=mlartifacts"], ["run.name: cannot name a run"]),
    (["experiment=digts"], ["did you mean 'digits'?"]),
    (["--config-dir", "nowhere"], ["--config-dir: there is no such folder"]),
    (["model._target_=os.system"], ["model._target_: is not allowed, got 'os.system'"]),
    (["loss._target_=builtins.eval"], ["loss._target_: is not allowed"]),
    (["data._target_=my_pkg.data.load"], ["is not allowed, got 'my_pkg.data.load'", "trust=[my_pkg]"]),
    (["model.out_features=3"], ["outputs do not fit the classes, got 'shape [B, 3]'; expected [B, 10]"]),
    (["model.in_features=32"], ["model: fails"]),
    (["+model.init_from=nowhere.safetensors"], ["model.init_from: there is no such file, got 'nowhere.safetensors'"]),
    (["trust=[no_such_package_here]"], ["trust: there is no such package"]),
    (["trust=[torch]"], ["trust"]),
    (["task.metric=acuracy"], ["accuracy"]),
    (["phase=trainig"], ["phase: unknown phase, got 'trainig'"]),
    (["export.formats=[onx]"], ["export.formats"]),
    (["trainer.accelerator=cuda"], ["trainer.accelerator: no CUDA device is available"]),
    (
        ["+loss.reduction=none"],
        ["loss: CrossEntropyLoss does not return a scalar, got 'shape (2,)'", "set the reduction of the loss to mean"],
    ),
    (
        ["surgery=[{freeze: {match: '*'}}]"],
        ["model: has no trainable parameters, got '4 parameters, none of which requires"],
    ),
    (["trainer.accelerator=mps"], ["trainer.accelerator: no Apple GPU is available, got 'mps'; expected auto or cpu"]),
    (["trainer.devices=2"], ["trainer.devices: is not built in this version"]),
    (["phases.optimization.rounds=4"], ["phases.optimization.rounds"]),
    (["hparams_search=digits_optuna"], ["hparams_search: is a search, which needs -m, got 'digits_optuna'"]),
    (["executor=dask"], ["executor: there is no such option, got 'dask'; expected one of local, ray, submitit"]),
    (["executor=submitt", "seed=x"], ["executor: there is no such option, got 'submitt'", "seed: "]),
    (["run.root=/proc/nowhere"], ["/proc/nowhere", "cannot make the folder"]),
    (["run.root=/sys/fs/x"], ["/sys/fs/x", "cannot make the folder", "Do: choose a writable folder with run.root=DIR"]),
]


@pytest.mark.parametrize(("arguments", "says"), BAD, ids=lambda v: v[0] if isinstance(v, list) else None)
def test_bad_input_is_reported_and_leaves_no_run(
    cli: Cli, own_folder: Path, arguments: list[str], says: list[str]
) -> None:
    """Exit 2 with every fault in its line; the folder is as it was."""
    if arguments[0].startswith("trainer.accelerator"):
        import torch

        if torch.cuda.is_available():
            pytest.skip("there is a CUDA card here")
    experiment = SMALL[1:] if arguments[0].startswith("experiment") else SMALL
    phase = () if arguments[0].startswith("phase=") else ("phase=baseline",)

    refused(cli(*phase, *experiment, *arguments), 2, *says)

    assert tree(own_folder) == {}


@pytest.mark.process
def test_bad_input_prints_no_traceback(own_folder: Path) -> None:
    """The same through a process of its own: stderr holds the messages and nothing else."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    arguments = [sys.executable, "-m", "pipeline", "phase=baseline", *SMALL, "optimizr.lr=1", "trainer.max_epochs=many"]

    ended = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60)

    refused((ended.returncode, ended.stdout, ended.stderr), 2, "optimizr.lr", "trainer.max_epochs")
    assert len(ended.stderr.splitlines()) == 2
    assert ended.stdout in ("", "composing the configuration\n")  # the line that a slow machine prints
    assert tree(own_folder) == {}


@pytest.mark.parametrize("error", ["EROFS", "ENOSPC", "EACCES"])
@pytest.mark.parametrize("where", ["ledger.jsonl", "1.yaml", "evidence.json"])
def test_full_disk_is_one_message(cli: Cli, own_folder: Path, where: str, error: str) -> None:
    """A disk that refuses in the middle of planning is one message; what stands is whole and goes on later."""

    def hook(operation: str, path: Path) -> bool:
        if operation == "open" and where in path.name:
            raise OSError(getattr(errno, error), os.strerror(getattr(errno, error)))
        return False

    with files.fault_points(hook):
        refused(cli("phase=planning", *SMALL), 2, "cannot ", where)
    assert not [p for p in own_folder.rglob("*.tmp")]

    assert cli("phase=planning", *SMALL)[0] == 0
    assert cli("verify", "digits")[0] == 0


def test_locked_run_is_one_message(cli: Cli, trained: Run) -> None:
    """While somebody works on a run, another command on it is one message, and reading it goes on."""
    before = tree(trained.path.parent)
    with RunLock(trained.path):
        refused(cli("phase=diagnostics", "run.name=digits"), 2, "another process is using this run", "run.name=NAME")
        refused(cli("approve", "digits", "--who", "Ada"), 2, "another process")
        assert cli("status", "digits")[0] == 0
    assert tree(trained.path.parent) == before


def test_mistyped_run_name_creates_no_run(cli: Cli, own_folder: Path) -> None:
    """A later phase of a run that does not exist leaves no run behind."""
    code, _, err = cli("phase=diagnostics", "run.name=digts")

    assert code in (2, 3) and "Traceback" not in err
    assert tree(own_folder) == {}


# --- plan revisions --------------------------------------------------------------------------------------------------


def test_changed_hyperparameter_makes_new_revision(cli: Cli, finished: Run) -> None:
    """`phase=baseline` with another rate makes revision 2 with its difference; what stood on the first is stale."""
    code, out, err = cli("phase=baseline", "run.name=digits", "optimizer.lr=0.01")
    state = finished.state()

    assert code == 0, err
    assert "planning: revision 2 of the plan: optimizer.lr 0.001 → 0.01" in out
    assert [r["revision"] for r in state.revisions] == [1, 2]
    assert state.revisions[1]["changed"] == {"optimizer.lr": [0.001, 0.01]}
    assert state.gate("baseline") == "open" and state.gates["baseline"].revision == 2
    assert state.stale("finalization") and not state.stale("baseline")
    assert plans.load(finished, state, 1).config["optimizer"]["lr"] == 0.001
    assert cli("verify", "digits")[0] == 0


@pytest.mark.parametrize(
    "word",
    ["task.target=0.1", "seed=2", "data.seed=9", "plan.limits.size_mb=9.0", "phases.optimization.seeds_per_arm=9"],
)
def test_moved_goalpost_is_refused(cli: Cli, trained: Run, word: str) -> None:
    """A changed target, seed, split, limit or threshold is refused with the command that plans it openly."""
    before = tree(trained.path)

    ended = cli("phase=baseline", "run.name=digits", word)

    refused(ended, 2, word.split("=")[0], f"Do: python -m pipeline phase=planning run.name=digits {word}")
    assert tree(trained.path) == before


def test_planning_moves_goalposts(cli: Cli, trained: Run) -> None:
    """The command that the refusal names works, and the release will show the revision."""
    assert cli("phase=planning", "run.name=digits", "task.target=0.1")[0] == 0

    assert trained.state().revisions[1]["changed"] == {
        "task.target": [0.99, 0.1],
        "checklists.finalization.target_on_test.with.target": [0.99, 0.1],
        "checklists.finalization.seed_stability.with.target": [0.99, 0.1],
    }
    assert trained.state().stale("baseline")


def test_later_phases_work_from_the_frozen_plan(cli: Cli, trained: Run) -> None:
    """An override that differs is refused with the command that would re-plan; the same one is accepted."""
    before = tree(trained.path)

    refused(
        cli("phase=diagnostics", "run.name=digits", "optimizer.lr=0.5"), 2, "optimizer.lr: differs", "phase=baseline"
    )
    refused(cli("phase=diagnostics", "run.name=digits", "task.target=0.5"), 2, "task.target: differs", "phase=planning")
    refused(cli("phase=diagnostics", "run.name=digits", "optimzer.lr=1"), 2, "did you mean 'optimizer.lr'?")
    assert tree(trained.path) == before
    assert cli("phase=diagnostics", "run.name=digits", "trainer.max_epochs=3", "seed=1")[0] == 0


def test_overrides_of_default_experiment_are_compared(cli: Cli, trained: Run) -> None:
    """Without a name the words speak of the default experiment's run, and are held against its plan."""
    refused(cli("phase=baseline", "task.target=0.5"), 2, "task.target: is part of the frozen plan")
    refused(cli("phase=diagnostics", "optimizer.lr=7"), 2, "optimizer.lr: differs")


def test_debug_shape_is_its_own_run(cli: Cli, trained: Run) -> None:
    """`debug=smoke` beside a run of that experiment leaves the run alone."""
    before = tree(trained.path)

    assert cli("phase=planning", "experiment=digits", "debug=smoke")[0] == 0

    assert tree(trained.path) == before
    assert (trained.path.parent / "digits-smoke" / "ledger.jsonl").is_file()


def test_changed_checklist_is_refused(cli: Cli, trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A threshold that moved in a checklist stops a new revision by `phase=baseline`, and is named."""
    from pipeline.run_store import checklist

    real = checklist.read

    def laxer(path: Path, *arguments: Any) -> list[dict[str, Any]]:
        items = real(path, *arguments)
        for item in items:
            item["with"] = {**item["with"], **({"min_steps": 1} if "min_steps" in item["with"] else {})}
        return items

    monkeypatch.setattr(checklist, "read", laxer)
    ended = cli("phase=baseline", "run.name=digits", "optimizer.lr=0.002")

    refused(
        ended, 2, "checklists.baseline.one_batch_tried.with.min_steps: is part of the frozen plan", "phase=planning"
    )
    assert len(trained.state().revisions) == 1


@pytest.mark.parametrize(
    ("phase", "edit", "message"),
    [
        ("planning", lambda items: items.pop(0), "seeds_fixed: is missing, and no configuration can remove it"),
        ("planning", lambda items: items.reverse(), "seeds_fixed: must come first and not be waivable"),
        ("planning", lambda items: items[0].update(waivable=True), "seeds_fixed: must come first and not be waivable"),
        ("baseline", lambda items: items.clear(), "scored_on_validation: is missing"),
        ("optimization", lambda items: items.clear(), "arms_compared_fairly: is missing"),
        ("finalization", lambda items: items.clear(), "owner_approval: is missing"),
        ("finalization", lambda items: items.append({**items[1], "id": "another"}), "got 25; expected 24"),
        ("planning", lambda items: items.append(dict(items[1])), "is used twice in the checklist"),
    ],
)
def test_checklist_keeps_what_no_configuration_can_remove(
    phase: str, edit: Callable[[list[dict[str, Any]]], object], message: str, tmp_path: Path
) -> None:
    """An edited checklist without an indispensable item is refused, and the items are named."""
    document = yaml.safe_load((CHECKS.parent / f"{phase}.yaml").read_text())
    edit(document["items"])
    (tmp_path / f"{phase}.yaml").write_text(yaml.safe_dump(document))
    config = compose(["experiment=digits"], [])

    with pytest.raises(UserError, match=message):
        checklist.read(tmp_path / f"{phase}.yaml", config, resolve_check)


def test_planning_restores_lost_plan(cli: Cli, planned: Run) -> None:
    """A plan file that is gone stops everything but the command that mends it, which the message names."""
    (planned.path / "plan" / "1.yaml").unlink()

    refused(cli("phase=baseline", "run.name=digits"), 3, "phase=planning run.name=digits")
    assert cli("phase=planning", "run.name=digits")[0] == 0
    assert cli("verify", "digits")[0] == 0


def test_lost_diagnosis_runs_diagnostics_again(cli: Cli, trained: Run) -> None:
    """A file of an earlier phase that is gone is named, and the phase that left it runs again."""
    assert cli("phase=diagnostics", "run.name=digits")[0] == 0
    (trained.path / "diagnostics" / "1" / "diagnosis.json").unlink()

    refused(cli("phase=optimization", "run.name=digits"), 3, "diagnosis.json: is not the file that the ledger recorded")
    assert cli("phase=diagnostics", "run.name=digits")[0] == 0
    assert (trained.path / "diagnostics" / "1" / "diagnosis.json").is_file()


def test_trust_is_renewed_by_the_command_of_the_message(tmp_path: Path) -> None:
    """A file that the run does not import changes nothing; one that it imports stops it until the trust is renewed."""
    write_package(tmp_path)
    (tmp_path / "somebody.py").rename(tmp_path / "whole.py")
    (tmp_path / "somebody").mkdir()
    (tmp_path / "whole.py").rename(tmp_path / "somebody" / "__init__.py")
    (tmp_path / "somebody" / "other.py").write_text("")
    arguments = ("phase=planning", "experiment=somebody", "trust=[somebody]", "run.name=mine")
    run = go(tmp_path / "runs", *arguments, config_dirs=["conf"]).run

    (tmp_path / "somebody" / "other.py").write_text("changed = True\n")
    go(tmp_path / "runs", "phase=planning", "run.name=mine")
    go(tmp_path / "runs", *arguments, config_dirs=["conf"])
    assert revision(run) == 1

    source = tmp_path / "somebody" / "__init__.py"
    source.write_text(source.read_text() + "changed = True\n")
    with pytest.raises(
        Refused, match=r"somebody: has changed since it was trusted: somebody/__init__\.py  Do: "
    ) as refusal:
        go(tmp_path / "runs", "phase=planning", "run.name=mine")
    command = str(refusal.value).partition("then python -m pipeline ")[2]
    assert command == "phase=planning run.name=mine 'trust=[somebody]'"
    go(tmp_path / "runs", *shlex.split(command))
    assert revision(run) == 2


def revision(run: Run) -> int:
    plan = run.state().plan
    assert plan is not None
    return plan["revision"]


def test_new_trust_after_training_is_refused(cli: Cli, trained: Run) -> None:
    """A package that a later phase is told to trust is refused aloud."""
    refused(cli("phase=diagnostics", "run.name=digits", "trust=[os_evil]"), 2, "trust: must be granted before training")


def test_run_without_seed_trains_nothing(cli: Cli, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`seed=null` is exit 3 by the planning gate; no baseline is begun, and asking for more does not help."""
    import torch

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("an optimizer made a step")

    monkeypatch.setattr(torch.optim.AdamW, "step", never)
    for phase in ("baseline", "auto", "planning"):
        assert cli(f"phase={phase}", *SMALL, "seed=null")[0] == 3
    for phase in ("optimization", "finalization"):
        refused(cli(f"phase={phase}", "run.name=digits"), 3, "planning gate is closed")
    entries = read_ledger(own_folder / "runs" / "digits" / "ledger.jsonl")
    assert {e["data"]["phase"] for e in entries if e["kind"] == "phase.started"} == {"planning"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "old"],
        ["status"],
        ["report", "old"],
        ["verify", "old"],
        ["approve", "old", "--who", "Ada"],
        ["waive", "old", "branch", "--who", "Ada", "--why", "it is old and fine", "--expires", "2999-01-01"],
        ["rollback", "old", "--who", "Ada"],
        ["checklist", "old"],
        ["explain", "old"],
        ["diff", "old", "old"],
        ["phase=auto", "run.name=old"],
        ["phase=planning", "run.name=old"],
        ["phase=diagnostics", "run.name=old"],
    ],
)
def test_run_of_older_schema_is_refused(
    arguments: list[str], cli: Cli, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command gives the same single message and changes nothing."""
    run = Run.at("runs", "old")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.run_store.run.SCHEMA", 1)
        with opened(run):
            pass
    before = tree(own_folder / "runs")

    ended = cli(*arguments)

    refused(ended, 3, f"{run.path}: was written by schema 1, got 1; expected 3  Do: read it with the version")
    assert len(ended[2].splitlines()) == 1
    assert tree(own_folder / "runs") == before
