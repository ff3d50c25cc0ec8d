"""TensorBoard beside MLflow: how it is chosen, and what its event files hold."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.config import compose as composing
from pipeline.config.compose import compose
from pipeline.errors import UserError
from pipeline.history import History
from pipeline.run_store.run import Run
from pipeline.tracking.connection import TrackerUnavailable
from pipeline.tracking.sync_process import trackers_of
from pipeline.tracking.tensorboard import write_run
from tests.integrations import add_packages

CHOICES = [
    ("none", []),
    ("mlflow", ["mlflow"]),
    ("tensorboard", ["tensorboard"]),
    ("[mlflow,tensorboard]", ["mlflow", "tensorboard"]),
    ("[tensorboard,mlflow]", ["mlflow", "tensorboard"]),
]


@pytest.mark.parametrize(("chosen", "trackers"), CHOICES)
def test_tracking_chooses_one_or_both(chosen: str, trackers: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A list has both, in any order; TensorBoard stands alone, too."""
    monkeypatch.setattr(composing, "find_spec", lambda name: True)  # as where it is installed
    assert trackers_of(compose([f"tracking={chosen}"])["tracking"]) == trackers


def test_tensorboard_that_is_not_installed_is_named_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The config is refused, with the command that installs it."""
    monkeypatch.setattr(composing, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"tracking\.tensorboard: tensorboard is not installed.*pip install tensorboard"
    ):
        compose(["tracking=[mlflow,tensorboard]"])


def test_write_run_says_what_is_missing(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it disappeared after the plan, the run goes on and the tracker is unavailable."""
    monkeypatch.setattr("pipeline.tracking.tensorboard.find_spec", lambda name: None)
    with pytest.raises(TrackerUnavailable, match="pip install tensorboard"):
        write_run(trained.path)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.integration
def test_write_run_has_the_curves_once(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every series of the training is there with its values; a second call writes nothing, a deleted folder all."""
    add_packages(monkeypatch, "tensorboard")
    folder = trained.path.parent / "tensorboard" / "digits"

    first, second = write_run(trained.path), write_run(trained.path)
    curves = scalars(folder / "baseline")
    history = History.load(trained.path / "baseline" / "history.npz")

    assert first > 0 and second == 0
    assert {"train/loss", "val/accuracy", "lr"} <= set(curves)
    assert [value for _, value in curves["val/accuracy"]] == pytest.approx(history.series("val/accuracy")[1].tolist())
    assert "candidate/accuracy" in scalars(folder)
    shutil.rmtree(folder)
    assert write_run(trained.path) == first
