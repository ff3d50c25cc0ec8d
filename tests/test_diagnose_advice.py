"""Every refusal of `diagnose` ends with something to do, and whoever does it gets an answer."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from diagnostics import readers
from tests.conftest import Cli
from tests.test_foreign_files import LOGS, NPZ

GOOD = {".csv": "step,loss\n1,2\n2,1\n", ".jsonl": '{"step":1,"loss":2}\n{"step":2,"loss":1}\n'}
LONG = "step,loss\n" + "".join(f"{i},1\n" for i in range(60))


def follow(cli: Cli, error: str) -> int:
    """Do what the last line of a refusal says; back comes the exit code."""
    _, mark, advice = error.strip().splitlines()[-1].partition("  Do: ")
    assert mark, error
    _, correct, repeat = advice.partition("correct the file, then repeat: ")
    if correct:
        path = Path(shlex.split(repeat)[-1])
        path.write_text(GOOD[path.suffix])
        advice = repeat
    shell, _, command = advice.rpartition(" && ") if " && " in advice else ("", "", advice)
    if not command.startswith("python -m pipeline "):
        shell, command = command, ""
    if shell:
        subprocess.run(["bash", "-c", shell], check=True)
    return cli(*shlex.split(command)[3:])[0] if command else 0


def refused(cli: Cli, *arguments: str | Path) -> str:
    code, out, err = cli("diagnose", *arguments)
    assert (code, out) == (2, "") and "Traceback" not in err
    return err


@pytest.mark.parametrize("name", [*NPZ, *LOGS])
def test_advice_for_malformed_files_is_accepted(own_folder: Path, cli: Cli, name: str) -> None:
    """A log is corrected, converted or shortened; of a history that is damaged another log is diagnosed."""
    suffix, content, _ = LOGS[name] if name in LOGS else (".npz", NPZ[name][0](), "")
    path = Path("a folder's") / f"log{suffix}"
    path.parent.mkdir()
    path.write_bytes(content)
    (path.parent / "other.csv").write_text(GOOD[".csv"])

    assert follow(cli, refused(cli, path)) == 0


def few_cells(patch: pytest.MonkeyPatch) -> None:
    Path("log.csv").write_text(LONG)
    patch.setattr(readers, "MAX_CELLS", 100)


def few_bytes(patch: pytest.MonkeyPatch) -> None:
    Path("log.csv").write_text(LONG)
    patch.setattr(readers, "MAX_BYTES", 101)


def two_histories(patch: pytest.MonkeyPatch) -> None:
    for folder in ("log.csv/a", "log.csv/b"):
        Path(folder).mkdir(parents=True)
        Path(folder, "history.npz").write_bytes(readers.History().to_bytes())


PLACES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "too many cells": few_cells,
    "too many bytes": few_bytes,
    "several histories": two_histories,
    "an empty folder": lambda patch: Path("log.csv").mkdir(),
    "a missing file": lambda patch: None,
    "a similar name": lambda patch: Path("log.tsv").write_text("step\tloss\n1\t2\n") and None,
}


@pytest.mark.parametrize("name", PLACES)
def test_advice_for_other_refusals_is_accepted(
    own_folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What is too large is shortened; for a file that is not there the most similar log, or the help, is named."""
    PLACES[name](monkeypatch)

    assert follow(cli, refused(cli, "log.csv")) == 0


@pytest.mark.parametrize(("name", "content"), [("log", GOOD[".csv"]), ("log.json", GOOD[".jsonl"]), ("log.md", "\0")])
def test_advice_for_unknown_formats_is_accepted(own_folder: Path, cli: Cli, name: str, content: str) -> None:
    """A text is copied to the name of its format; for anything else the help is named."""
    Path(name).write_text(content)

    assert follow(cli, refused(cli, name)) == 0


@pytest.mark.parametrize("options", [["--symptom", "x"], ["--at", "epoch=7"], ["--bogus"], ["--out", "log.csv/x"]])
def test_advice_for_options_is_accepted(own_folder: Path, cli: Cli, options: list[str]) -> None:
    """An option that does not exist yet, or a folder that cannot be written, leads to a command without it."""
    Path("log.csv").write_text(GOOD[".csv"])

    assert follow(cli, refused(cli, "log.csv", *options).replace("--out DIR", "--out out")) == 0
