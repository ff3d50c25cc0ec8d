"""Real runs, shrunk: planned and trained once per session, copied for each test that changes them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.__main__ import house
from pipeline.record import permits
from pipeline.record.run import Run
from pipeline.session import draft, drive

SMALL = ("experiment=digits", "trainer.max_epochs=3", "tracking=none", "phases.baseline.overfit_steps=40")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """No test depends on what ran before it."""
    import random

    random.seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test stands in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def go(root: Path, *overrides: str, **options: Any) -> tuple[Run, str, Any]:
    """Drive a run in this process, as `python -m pipeline` would."""
    return drive(house(lambda text: None), draft([*overrides, f"run.root={root}"], options.get("config_dirs", ())))


@pytest.fixture(scope="session")
def _planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run, gate, _ = go(tmp_path_factory.mktemp("planned"), "phase=planning", *SMALL)
    assert gate == "open"
    return run.path


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run, gate, _ = go(tmp_path_factory.mktemp("trained"), "phase=baseline", *SMALL, "task.target=0.99")
    assert gate == "open"
    return run.path


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Run]:
    """A copy of a run under `<tmp_path>/runs`, free to be changed."""

    def copy(source: Path) -> Run:
        target = tmp_path / "runs" / source.name
        shutil.copytree(source, target)
        return Run(target)

    return copy


@pytest.fixture
def planned(copied: Callable[[Path], Run], _planned: Path) -> Run:
    """A run of the shrunk digits whose planning gate is open."""
    return copied(_planned)


@pytest.fixture
def trained(copied: Callable[[Path], Run], _trained: Path) -> Run:
    """A run of the shrunk digits with a baseline below its target."""
    return copied(_trained)


@pytest.fixture
def digits_permit(planned: Run) -> Iterator[permits.TrainPermit]:
    """A real permit to train the shrunk digits."""
    yield permits.train(planned)
