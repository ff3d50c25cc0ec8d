"""Printed commands name the run by the folder that it is in, whatever the ledger calls it."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from pipeline.orchestration.run_request import override_value
from pipeline.run_naming import run_argument, run_overrides
from pipeline.run_store.next_step import next_step
from pipeline.run_store.run import Run
from tests.conftest import Cli
from tests.ledger_fixtures import mended

FOLDERS = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)


@given(
    root=FOLDERS.filter(lambda name: name not in (".", "..")), name=FOLDERS.filter(lambda name: name not in (".", ".."))
)
def test_run_argument_and_overrides_are_read_back(root: str, name: str) -> None:
    """Whatever folders are called, a shell and Hydra read the run's folder out of the printed words."""
    run_dir = Path.cwd() / root / name

    (argument,) = shlex.split(run_argument(run_dir))
    found = Path("runs") / argument if "/" not in argument else Path(argument)
    assert found.absolute() == run_dir

    parsed = OverridesParser.create().parse_overrides(shlex.split(run_overrides(run_dir)))
    values = {override.key_or_group: str(override.value()) for override in parsed}
    assert values["run.name"] == name and values.get("run.root", "runs") == root
    words = shlex.split(run_overrides(run_dir))
    assert override_value(words, "run.name") == name and override_value(words, "run.root") in (root, None)


def test_run_argument_outside_of_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the default root the name is enough; next to it the folder is given; elsewhere the whole path."""
    assert run_argument(tmp_path / "runs" / "demo") == "demo"
    assert run_overrides(tmp_path / "runs" / "demo") == "run.name=demo"
    assert run_argument(tmp_path / "demo") == "./demo"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run_argument(tmp_path / "demo") == f"{tmp_path}/demo"
    assert run_overrides(tmp_path / "demo") == f"run.name=demo run.root={tmp_path}"


def named_runs(text: str) -> set[str]:
    """The runs that the commands in a text are for."""
    commands = "status|report|verify|approve|waive|rollback|explain|checklist"
    records = re.findall(rf"python -m pipeline (?:{commands}) ([\w./-]+)", text)
    return {*records, *re.findall(r"run\.name=([\w./-]+)", text)}


@pytest.mark.parametrize("state", ["planned", "trained", "finished", "mended"])
def test_commands_of_copied_run_name_the_copy(state: str, request: pytest.FixtureRequest, cli: Cli) -> None:
    """After a run was copied, no screen or message sends its reader to the run that it was copied from."""
    original: Run = request.getfixturevalue(state)
    copy = Run(original.path.with_name("a-copy"))
    shutil.copytree(original.path, copy.path)
    screens: list[Callable[[], tuple[int, str, str]]] = [
        lambda: cli("status", "a-copy"),
        lambda: cli("status", "a-copy", "--json"),
        lambda: cli("status", "a-copy", "--gate", "finalization"),
        lambda: cli("explain", "a-copy"),
        lambda: cli("checklist", "a-copy"),
        lambda: cli("approve", "a-copy", "--who", "Nobody Known"),
        lambda: cli(
            "waive", "a-copy", "seeds_fixed", "--who", "A", "--why", "a long reason", "--expires", "2026-12-31"
        ),
        lambda: cli("waive", "a-copy", "branch", "--who", "A", "--why", "a long reason", "--expires", "2026-12-31"),
        lambda: cli("rollback", "a-copy", "--who", "A"),
        lambda: cli("phase=optimization", "run.name=a-copy"),
    ]
    named = set()
    for screen in screens:
        _, out, err = screen()
        named |= named_runs(out + err)

    assert named == {"a-copy"}


def test_next_step_of_moved_run_names_its_folder(tmp_path: Path) -> None:
    """In another root and under another name, every command of the next step leads to the run."""
    run = mended(tmp_path / "runs", "before")
    moved = run.path.rename(tmp_path / "after")
    step = next_step(Run(moved).state(), moved)

    assert named_runs(step.command) <= {"./after", "after"} and named_runs(step.command)


def test_run_of_folder_that_cannot_name_a_run_says_how_to_rename_it(planned: Run, cli: Cli) -> None:
    """A copy called `digits (copy)` is read, and a phase of it is refused with the commands that work."""
    copy = Path("runs/digits (copy)")
    shutil.copytree(planned.path, copy)
    _, out, _ = cli("status", copy)
    assert run_overrides(copy) in out

    code, _, err = cli("phase=baseline", "run.name='digits (copy)'")
    assert code == 2
    move, _, use = err.partition("Do: ")[2].partition(", and use ")
    assert (move, use.strip()) == ("mv -- 'runs/digits (copy)' runs/digits-copy", "run.name=digits-copy")
