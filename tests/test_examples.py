"""The examples that are no programs of their own table: each runs, within a minute, and comes to what its page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")} | {"PYTHONPATH": str(ROOT)}


def run(*arguments: str | Path) -> str:
    """What a command prints; it must succeed."""
    ended = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_readme_of_the_examples_names_files_that_exist() -> None:
    """Each file and folder of its table is there."""
    text = (EXAMPLES / "README.md").read_text()
    named = re.findall(r"examples/[\w/]+\.\w+", text) + [
        f"examples/{name}" for name in re.findall(r"`(\w+\.ipynb)`", text)
    ]
    assert len(named) >= 6 and [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.process
@pytest.mark.parametrize(
    ("script", "symptom", "cause"),
    [
        ("plain_loop", "loss", "learning_rate_too_high"),
        ("exploding_regression", "gradient norm becomes many times", "inputs_not_normalized"),
        ("collapsing_gpt", "Almost no gradient reaches some layers", "regularization_too_strong"),
    ],
)
def test_own_loop_is_diagnosed(script: str, symptom: str, cause: str) -> None:
    """The loop ends with a diagnosis that has the symptom, and the cause that its first lines name, first."""
    page = run(EXAMPLES / "own_loop" / f"{script}.py")
    assert symptom in page and f"1. **{cause}**" in page, page


@pytest.mark.process
def test_log_of_a_trainer_is_diagnosed() -> None:
    """The log of a Hugging Face Trainer is recognized, and its cause named without the program that wrote it."""
    page = " ".join(run("-m", "pipeline", "diagnose", EXAMPLES / "logs" / "trainer_state.json").split())  # is wrapped
    assert "Hugging Face trainer_state.json" in page and "learning_rate_too_high" in page


@pytest.mark.process
@pytest.mark.integration
def test_lightning_loop_is_diagnosed() -> None:
    """The callback watches a loop of Lightning, and names the same cause as in the plain loop."""
    pytest.importorskip("lightning.pytorch", reason="make test-integrations installs it")
    assert "1. **learning_rate_too_high**" in run(EXAMPLES / "own_loop" / "lightning_loop.py")


@pytest.mark.process
@pytest.mark.integration
def test_notebook_runs(tmp_path: Path) -> None:
    """Each cell of the notebook runs, and the last one shows a diagnosis."""
    nbformat = pytest.importorskip("nbformat", reason="make test-integrations installs it")
    nbclient = pytest.importorskip("nbclient", reason="make test-integrations installs it")
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    os.environ["PYTHONPATH"], before = path, os.environ.get("PYTHONPATH", "")
    try:
        nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    finally:
        os.environ["PYTHONPATH"] = before
    shown = str(notebook.cells[-1].outputs)
    assert "learning_rate_too_high" in shown
