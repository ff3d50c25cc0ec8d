"""README.md: it is short, what it shows is what the commands print, and what it names exists."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch

import fivegate
from pipeline.run_store.gate import satisfied, utc_today
from pipeline.run_store.run import Run, opened
from tests.test_packaging import make

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
SCREEN = "\n".join(README.splitlines()[:42])
COMMAND = "python -m pipeline "


def block_after(text: str, language: str = "text") -> str:
    """The first code block of a language behind a text."""
    found = re.search(rf"```{language}\n(.*?)```", README[README.index(text) :], re.DOTALL)
    assert found is not None
    return found[1]


def pipeline(line: str, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run a command as README writes it, from `python` on."""
    words = shlex.split(line[line.index(COMMAND) + len(COMMAND) :])
    # README shows tables as a wide terminal does; a worker of pytest-xdist says that it has 80 columns.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_") and k != "COLUMNS"}
    environment = inherited | {"PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-m", "pipeline", *words, *more]
    return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True)


def test_readme_is_short() -> None:
    """At most 120 lines; the first screen has the two commands, `make auto` first, and a closed gate."""
    assert len(README.splitlines()) <= 120
    assert re.findall(r"^    (make \w+)", SCREEN, re.M) == ["make auto", "make test"]
    assert "It refuses to" in SCREEN and "✗ failed" in SCREEN


def test_readme_names_files_that_exist() -> None:
    """Each link, and each file and folder of its tree, is in the checkout."""
    links = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", README)]
    tree = README.split("## Where things are")[1].split("\n\n[")[0]
    folder, named = "", []
    for line in tree.splitlines():
        folder = found[1] if (found := re.match(r"    (\w+/)", line)) else folder
        named += [folder, *(folder + name for name in re.findall(r"\b\w+\.md\b", line))]
    assert len(named) > 20
    assert [name for name in {*links, *named} if not (ROOT / name).exists()] == []


def test_readme_own_loop_is_three_lines() -> None:
    """The three lines of the Monitor work in a loop, and end in Markdown."""
    first, second, third = block_after("Your own loop, in three lines", "python").splitlines()
    names = {"fivegate": fivegate, "model": (model := torch.nn.Linear(2, 1))}
    names["optimizer"] = optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    exec(first, names)
    for _ in range(3):
        optimizer.zero_grad()
        names["loss"] = loss = model(torch.ones(4, 2)).square().mean()
        loss.backward()
        exec(second, names)
        optimizer.step()
    exec(third.replace("print(", "shown = ("), names)
    assert str(names["shown"]).startswith("#")


@pytest.mark.process
def test_readme_closed_gate_is_what_the_command_prints(tmp_path: Path) -> None:
    """The gate is closed with the words that README shows, and its fix opens it."""
    command, *shown = block_after("closed gate").splitlines()
    shutil.copytree(ROOT / "examples" / "table", tmp_path / "examples" / "table")

    closed = pipeline(command, tmp_path, "tracking=none")
    fix = re.search(r"opens the gate: `([^`]+)`", README)
    assert fix is not None
    opened_gate = pipeline(fix[1], tmp_path)

    assert closed.returncode == 3, closed.stderr
    printed = " ".join((closed.stdout + closed.stderr).split())
    assert [line for line in shown if " ".join(line.split()) not in printed] == []
    assert opened_gate.returncode == 0, opened_gate.stdout + opened_gate.stderr
    assert Run(tmp_path / "runs" / "csv").state().gate("planning") == "open"


@pytest.mark.process
def test_readme_make_auto_ends_at_the_approval(finished: Run) -> None:
    """At a gate that only waits for a person, `make auto` succeeds, says so, and names the page of the run."""
    folder = finished.path.parents[1]
    shutil.copy2(ROOT / "Makefile", folder)
    for name in ("requirements.lock", "pyproject.toml", ".venv"):
        (folder / name).symlink_to(ROOT / name)
    items, expires = finished.state().gates["finalization"].items, (utc_today() + timedelta(days=30)).isoformat()
    with opened(finished) as ledger:
        for item in items:
            if item.outcome != "pending" and not satisfied(item, (), (), None, utc_today()):
                about = {"phase": "finalization", "item": item.id, "who": "Example Owner", "expires": expires}
                ledger.append("waiver", {**about, "why": "accepted for this test"})
    assert pipeline(f"{COMMAND}report digits", folder).returncode == 0  # the fixture leaves it out

    ended = make(["auto"], folder)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "pipeline exit code 4: only an approval is missing" in ended.stderr
    assert ended.stdout.rstrip().endswith("the page of this run: runs/digits/report.html")
    assert (folder / "runs" / "digits" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.process
def test_readme_ten_lines_train_a_model(tmp_path: Path) -> None:
    """The project that `new` writes passes the preflight, and goes as far as the last gate."""
    lines = [line for line in block_after("in ten lines", "python").splitlines() if line]  # ruff adds empty ones
    new, *rest = [line for line in lines if COMMAND in line]
    assert len(lines) == 10 and pipeline(new, tmp_path).returncode == 0

    preflight, auto = (pipeline(line, tmp_path / "mine") for line in rest)

    assert preflight.returncode == 0, preflight.stdout + preflight.stderr
    assert auto.returncode in (3, 4), auto.stdout + auto.stderr
    assert Run(tmp_path / "mine" / "runs" / "mine").state().gate("finalization") in ("closed", "pending")
