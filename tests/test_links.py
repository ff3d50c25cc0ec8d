"""A run is a folder of its own: neither it nor anything in it is a link that leads elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.errors import Refused, UserError
from pipeline.run_store.run import Run, opened
from tests.conftest import Cli
from tests.ledger_fixtures import baseline_done

COMMANDS = [
    ["status", "linked"], ["report", "linked"], ["verify", "linked"], ["checklist", "linked"], ["explain", "linked"],
    ["approve", "linked", "--who", "Ada"], ["rollback", "linked", "--who", "Ada"], ["diff", "linked", "linked"],
    ["waive", "linked", "branch", "--who", "Ada", "--why", "it is good enough", "--expires", "2026-12-31"],
    ["phase=auto", "run.name=linked"], ["phase=planning", "run.name=linked"],
]  # fmt: skip


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_linked_run_folder_is_refused(command: list[str], cli: Cli, own_folder: Path) -> None:
    """Every command that takes a run refuses a folder that is a link, in one message, and changes nothing."""
    elsewhere = baseline_done(own_folder / "elsewhere", "linked")
    (own_folder / "runs").mkdir()
    (own_folder / "runs" / "linked").symlink_to(elsewhere.path)
    before = tree(own_folder)

    code, _, err = cli(*command)

    assert code == 2 and f"{own_folder / 'runs' / 'linked'}: is a symbolic link" in err, err
    assert len(set(err.splitlines())) == 1 and f"got 'a link to {elsewhere.path}'" in err
    assert tree(own_folder) == before


@pytest.mark.parametrize("inside", ["plan", "baseline", "bundle", "baseline/evidence.json", "ledger.jsonl", "lock"])
@pytest.mark.parametrize("command", COMMANDS[:1] + COMMANDS[2:3] + COMMANDS[-2:], ids=" ".join)
def test_link_out_of_the_run_is_refused(inside: str, command: list[str], cli: Cli, own_folder: Path) -> None:
    """A folder or file of a run that is a link out of it is named, and nothing is read or written through it."""
    run = baseline_done(own_folder / "runs", "linked")
    place, target = run.inside(*inside.split("/")), own_folder / "target"
    if place.exists():
        shutil.move(place, target)
    place.symlink_to(target)
    before = tree(own_folder / "runs"), target.exists()

    code, _, err = cli(*command)

    assert code == 3 and f"{place}: is a symbolic link that leads out of the run" in err, err
    assert (tree(own_folder / "runs"), target.exists()) == before


def test_status_shows_the_other_runs(cli: Cli, own_folder: Path) -> None:
    """In the list of all runs a link is named, and the others are shown."""
    baseline_done(own_folder / "runs", "good")
    elsewhere = baseline_done(own_folder / "elsewhere", "linked")
    (own_folder / "runs" / "linked").symlink_to(elsewhere.path)

    code, out, err = cli("status")

    assert code == 3 and "good" in out and "linked: is a symbolic link" in err


def test_linked_root_is_followed(cli: Cli, own_folder: Path) -> None:
    """The folder of runs may be a link, as to a larger disk; a link that stays inside its run does no harm."""
    run = baseline_done(own_folder / "disk", "here")
    (own_folder / "runs").symlink_to(own_folder / "disk")
    run.inside("newest.json").symlink_to(run.inside("baseline", "evidence.json"))

    assert cli("status", "here")[0] == 0 and Run.find("here").path == Run.at("runs", "here").path == run.path


def test_opened_refuses_links(own_folder: Path) -> None:
    """The Python API refuses a link, too, before anything is written."""
    run = baseline_done(own_folder / "runs", "real")
    (own_folder / "runs" / "linked").symlink_to(run.path)
    with pytest.raises(UserError, match="is a symbolic link"), opened(Run(own_folder / "runs" / "linked")):
        pass
    run.inside("bundle").symlink_to(own_folder)
    with pytest.raises(Refused, match="leads out of the run"), opened(run):
        pass
