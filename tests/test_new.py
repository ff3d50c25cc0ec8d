"""`new NAME`: a project that passes planning and its own tests as it is written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.commands.new import RESERVED, create_project, format_whole, name_faults
from pipeline.config.compose import compose
from pipeline.errors import DiskError, UserError
from pipeline.run_store import files
from pipeline.run_store.plan import changed_config
from pipeline.run_store.run import Run
from tests.conftest import Cli

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.process
def test_new_project_passes_planning_and_its_tests(tmp_path: Path) -> None:
    """In an empty folder the printed commands work: the gate of planning opens, and the tests of the project pass."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")} | {"PYTHONPATH": str(ROOT)}

    def call(folder: Path, *arguments: str) -> str:
        ended = subprocess.run(
            [sys.executable, "-m", *arguments], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    printed = call(tmp_path, "pipeline", "new", "shapes")
    project = tmp_path / "shapes"
    tested = call(project, "pytest", "-q", "-p", "no:cacheprovider")
    command = printed.rstrip().rsplit("\n", 1)[1].strip()
    call(project, *command.replace("'", "").split()[2:], "tracking=none")

    assert {line for line in printed.splitlines() if line.startswith("shapes/")} == {
        path.relative_to(tmp_path).as_posix()
        for path in project.rglob("*")
        if path.is_file() and not {"runs", "__pycache__"} & {*path.parts}
    }
    assert "2 passed" in tested
    state = Run(project / "runs" / "shapes").state()
    assert state.gate("planning") == "open" and not state.stale("planning")


@pytest.mark.parametrize("name", ["My-Project", "3d", "", "a b", "é", "x" * 51, "../up", "a/b", "a.b"])
def test_new_refuses_what_is_no_package_name(name: str, cli: Cli, own_folder: Path) -> None:
    """One message with a name that can be used, and nothing is written."""
    code, out, err = cli("new", name)

    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert "is not a package name" in err and "a letter first  Do: python -m pipeline new " in err
    assert name_faults(err.rsplit(" ", 1)[1].strip(), own_folder) == []
    assert [*own_folder.iterdir()] == []


@pytest.mark.parametrize("name", ["class", "json", "torch", "numpy", "pipeline", "digits", *RESERVED])
def test_new_refuses_a_name_that_is_taken(name: str, cli: Cli, own_folder: Path) -> None:
    """A name of Python, of an installed package or of Fivegate would hide it, and says so in one message."""
    code, _, err = cli("new", name)

    assert code == 2 and len(err.splitlines()) == 1
    assert f"got '{name}'" in err and f"Do: python -m pipeline new my_{name}" in err
    assert [*own_folder.iterdir()] == []


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_new_refuses_an_existing_folder(kind: str, cli: Cli, own_folder: Path) -> None:
    """What has the name stays as it is."""
    place = own_folder / "mine"
    {"folder": place.mkdir, "file": place.touch, "dangling link": lambda: place.symlink_to("nowhere")}[kind]()

    code, _, err = cli("new", "mine")

    assert code == 2 and "new: a file or folder of this name exists already" in err and "new mine_2" in err
    assert [*own_folder.iterdir()] == [place] and (kind != "folder" or [*place.iterdir()] == [])


def test_create_project_leaves_a_folder_that_appeared_meanwhile(own_folder: Path) -> None:
    """A folder that another program made after the check is refused too, and no temporary folder is left."""
    (own_folder / "mine").mkdir()
    with pytest.raises(UserError, match="exists already"):
        create_project("mine", own_folder / "mine")
    assert [path.name for path in own_folder.rglob("*")] == ["mine"]


def test_create_project_on_a_full_disk_leaves_nothing(own_folder: Path) -> None:
    """The project is written completely or not at all."""

    def full(operation: str, path: Path) -> bool:
        return operation == "write" and path.name.startswith(".data.py")  # half of it is written, then the disk is full

    with files.fault_points(full), pytest.raises(DiskError, match="cannot write"):
        create_project("mine", own_folder / "mine")
    assert [*own_folder.iterdir()] == []


def test_new_writes_a_fixed_config_as_an_experiment(mended: Run, own_folder: Path, cli: Cli) -> None:
    """The experiment composes to the adopted config; it is written once, and nothing is overwritten."""
    code, out, err = cli("new", "digits-mended", "--fixed", mended.path)
    path = own_folder / "conf" / "experiment" / "digits-mended.yaml"

    assert code == 0 and "conf/experiment/digits-mended.yaml" in out and "experiment=digits-mended" in out, err
    config = compose(["experiment=digits-mended"], [own_folder / "conf"])
    fixed = yaml.safe_load(mended.inside("optimization", 1, "fixed.yaml").read_text())
    assert config["optimizer"]["lr"] == fixed["optimizer"]["lr"] == 0.01 and config["trainer"] == fixed["trainer"]
    before = path.read_bytes()
    code, _, err = cli("new", "digits-mended", "--fixed", mended.path)
    assert code == 2 and "exists already" in err and path.read_bytes() == before
    assert cli("new", "digits", "--fixed", mended.path)[0] == 2  # an experiment of Fivegate


@pytest.mark.parametrize("removed", ["optimizer.weight_decay", "scheduler"])
def test_format_whole_says_a_config_that_lacks_a_key(removed: str, own_folder: Path) -> None:
    """An experiment that says everything composes to the same config, also where a change has taken a key away."""
    config = compose(["experiment=digits", "scheduler=cosine", "optimizer.weight_decay=0.1"])
    section, _, key = removed.partition(".")
    if key:
        del config[section][key]
    else:
        config[section] = None
    files.write_text(own_folder / "conf" / "experiment" / "mine.yaml", "# @package _global_\n" + format_whole(config))

    composed = compose(["experiment=mine"], [own_folder / "conf"])

    assert changed_config(config, composed) == {}


def test_new_needs_an_adopted_change(trained: Run, cli: Cli) -> None:
    """A run without an adopted change has no fixed config."""
    code, _, err = cli("new", "mine", "--fixed", trained.path)
    assert code == 3 and "no optimization has adopted a change" in err
