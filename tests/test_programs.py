"""The programs of examples/programs: ordinary PyTorch files that the pipeline trains as they are."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import programs

NAMES = programs.program_names()


def test_programs_have_an_experiment_each() -> None:
    """Thirty programs, each with a loop of its own, an experiment of its name, and a row in the table."""
    table = (programs.FOLDER / "README.md").read_text()
    assert len(NAMES) == 30
    assert sorted(path.stem for path in (programs.FOLDER / "conf" / "experiment").glob("*.yaml")) == NAMES
    for name in NAMES:
        text = (programs.FOLDER / f"{name}.py").read_text()
        assert 'if __name__ == "__main__":' in text and not re.search(r"import (pipeline|fivegate)|from pipeline", text)
        assert f"| [{name}]({name}.py) | {programs.title_of(name)} |" in table


QUICK = (
    "trainer.max_epochs=8", "phases.baseline.sanity_check_steps=0", "phases.baseline.overfit_steps=20",
    "phases.baseline.baseline_model_seconds=0",
)  # fmt: skip


@pytest.mark.parametrize("name", ["binary_column", "matrix_factorization", "physics_informed"])
def test_programs_train_in_the_pipeline(name: str, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target column, integer ids, and a step with autograd.grad: each comes to a score above its trivial baseline."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    outcome = programs.outcome_of(name, own_folder / "runs", overrides=QUICK)
    assert outcome.better, outcome


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("name", NAMES)
def test_programs_run_on_their_own(name: str) -> None:
    """Each is a script that prints a validation score."""
    script = programs.FOLDER / f"{name}.py"
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"^validation [\w@ ]+ -?[\d.e-]+", ended.stdout, re.MULTILINE), ended.stdout


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("name", NAMES)
def test_programs_are_better_than_their_trivial_baseline(
    name: str, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each one's score, or its 95 % interval where there is one, lies above the score without training."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    outcome = programs.outcome_of(name, own_folder / "runs")
    assert outcome.better, outcome
