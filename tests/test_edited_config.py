"""A config file that is edited after planning: no command ignores it, and each says what differs and what to type."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.orchestration.execute import SweepJob
from pipeline.orchestration.run_request import resolve_request
from pipeline.run_store.run import Run
from tests.conftest import SMALL, go

HEAD = "# @package _global_\ndefaults:\n  - digits\n  - _self_\n"
HYPERPARAMETER = HEAD + "optimizer:\n  lr: 0.02\n"
GOALPOST = HEAD + "task:\n  target: 0.5\n"


def planned_from_file(root: Path) -> Run:
    """A run that was planned from an experiment file of the user's own."""
    file = root / "conf" / "experiment" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(HEAD)
    arguments = ("phase=planning", "experiment=mine", "run.name=mine", *SMALL[1:])
    run, gate, _ = go(root, *arguments, config_dirs=[root / "conf"])
    assert gate == "open"
    return run


def edit(run: Run, text: str) -> None:
    (run.path.parent / "conf" / "experiment" / "mine.yaml").write_text(text)


def resolve(run: Run, *words: str) -> bool:
    """Whether the request of a command changes the plan."""
    root = run.path.parent
    return resolve_request([*words, f"run.root={root}"], [root / "conf"]).changed


@pytest.mark.parametrize("named", [True, False], ids=["experiment", "run.name"])
def test_auto_refuses_edited_file(own_folder: Path, named: bool) -> None:
    """`auto` says what differs, with the command that makes a new revision; that command is accepted."""
    run = planned_from_file(own_folder)
    arguments = ["phase=auto", *(["experiment=mine"] if named else []), "run.name=mine"]
    assert resolve(run, *arguments) is False
    edit(run, HYPERPARAMETER)
    message = r"optimizer\.lr: differs from the frozen plan, which phase=auto uses, got 0\.02; expected 0\.001"
    with pytest.raises(UserError, match=message) as refused:
        resolve(run, *arguments)
    do = re.search(r"Do: python -m pipeline (.*)", str(refused.value))

    assert do and "phase=baseline" in do[1]
    assert resolve_request(shlex.split(do[1]), [own_folder / "conf"]).changed


@pytest.mark.parametrize("phase", ["auto", "baseline"])
def test_moved_goalpost_in_file_needs_planning(own_folder: Path, phase: str) -> None:
    """A target that was edited in the file changes only with phase=planning, and the message says so."""
    run = planned_from_file(own_folder)
    edit(run, GOALPOST)
    with pytest.raises(
        UserError, match=r"task\.target: .*got 0\.5; .*Do: python -m pipeline phase=planning"
    ) as refused:
        resolve(run, f"phase={phase}", "run.name=mine")
    do = str(refused.value).partition("Do: python -m pipeline ")[2]

    assert resolve_request(shlex.split(do), [own_folder / "conf"]).changed


@pytest.mark.parametrize(
    ("text", "notice"),
    [
        (
            HYPERPARAMETER,
            "phase=diagnostics uses the frozen plan, not the config files that were edited since "
            "(optimizer.lr 0.001, now 0.02); to use them: python -m pipeline phase=baseline run.name=mine run.root=",
        ),
        (GOALPOST, "python -m pipeline phase=planning run.name=mine run.root="),
        (HEAD + "trainer:\n  epoch: 2\n", "the config files of today have a fault: trainer.epoch: unknown key"),
        (HEAD + "# a remark\n", ""),
    ],
)
def test_later_phase_mentions_edited_file_that_it_does_not_use(own_folder: Path, text: str, notice: str) -> None:
    """With the run's name alone a later phase works from the plan, and says in one line what was edited since."""
    run = planned_from_file(own_folder)
    arguments = ["phase=diagnostics", "run.name=mine", f"run.root={own_folder}"]
    assert resolve_request(arguments, []).notice == ""
    edit(run, text)
    file = own_folder / "conf" / "experiment" / "mine.yaml"
    os.utime(file, (file.stat().st_atime, (run.path / "plan" / "1.yaml").stat().st_mtime + 1))
    said = resolve_request(arguments, []).notice

    assert notice in said
    assert bool(said) == bool(notice) and "\n" not in said


def test_later_phase_refuses_edited_file_that_it_names(own_folder: Path) -> None:
    """A later phase that names the experiment is told of the edit; with the run alone it works from the plan."""
    run = planned_from_file(own_folder)
    edit(run, HYPERPARAMETER)
    with pytest.raises(UserError, match=r"optimizer\.lr: differs from the frozen plan, which phase=diagnostics uses"):
        resolve(run, "phase=diagnostics", "experiment=mine", "run.name=mine")

    assert resolve(run, "phase=diagnostics", "run.name=mine") is False


def test_auto_continues_without_config_folder(own_folder: Path) -> None:
    """A run whose config folder was moved away goes on from its frozen plan."""
    run = planned_from_file(own_folder)
    (own_folder / "conf").rename(own_folder / "elsewhere")

    assert resolve_request(["phase=auto", "run.name=mine", f"run.root={own_folder}"], []).changed is False
    assert run.exists()


@pytest.mark.parametrize(
    ("phase", "key", "value", "message"),
    [
        ("auto", "optimizer", {"lr": 0.02}, r"optimizer\.lr: differs from the frozen plan, which phase=auto uses"),
        ("baseline", "task", {"target": 0.5}, r"task\.target: is part of the frozen plan"),
    ],
)
def test_sweep_job_refuses_what_a_single_run_refuses(
    own_folder: Path, phase: str, key: str, value: dict[str, float], message: str
) -> None:
    """A job of a sweep that goes on after an edit moves no goalpost, and its `auto` ignores no edit."""
    run = planned_from_file(own_folder)
    request = resolve_request(["phase=auto", "run.name=mine", f"run.root={own_folder}"], [own_folder / "conf"])
    config = {**request.config, "phase": phase, key: {**request.config[key], **value}}

    def never(*_: object) -> None:
        raise AssertionError("the job must be refused before anything runs")

    with pytest.raises(UserError, match=message):
        SweepJob(never, never, [str(own_folder / "conf")])(config, [])  # type: ignore[arg-type]
    assert run.state().plan and run.state().plan["revision"] == 1
