"""A training is repeated in a fresh process, and agrees bit by bit or is named by its first difference."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checklists.checks.training import reproduced
from pipeline.history import History
from pipeline.results import Evidence, Result
from pipeline.run_store.job import Job
from pipeline.run_store.run import Run
from pipeline.trials.replay_training import Replay, first_difference, replay_training
from tests.conftest import SMALL, Cli

CLOCK = """
import time
import torch
from torch import nn

class Clock(nn.Module):
    def __init__(self, **_):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        noise = torch.full_like(x, (time.time_ns() % 1000) / 1e5) if self.training else 0
        return self.layer(x + noise)
"""


def history(losses: list[float]) -> History:
    recorded = History()
    for step, loss in enumerate(losses, 1):
        recorded.log_step(step, {"train/loss": loss, "time/step": step * 0.1})
    return recorded


@given(st.lists(st.floats(width=32), min_size=1, max_size=8), st.integers(1, 8))
def test_first_difference_of_a_prefix_is_none(losses: list[float], steps: int) -> None:
    """A training that was stopped agrees with the one that went on, NaN included."""
    steps = min(steps, len(losses))
    assert first_difference(history(losses), history(losses[:steps]), steps) is None


@given(st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=8), st.data())
def test_first_difference_names_the_step(losses: list[float], data: st.DataObject) -> None:
    """The first changed value is named, whatever is changed after it; times may differ."""
    step = data.draw(st.integers(1, len(losses)))
    changed = [*losses[: step - 1], *(loss + 4 for loss in losses[step - 1 :])]
    difference = first_difference(history(losses), history(changed), len(losses))
    assert difference is not None and (difference["step"], difference["name"]) == (step, "train/loss")


def test_first_difference_names_a_value_that_one_lacks() -> None:
    """A column that only one training has is a difference."""
    more = history([1.0, 2.0])
    more.log_epoch(1, {"val/loss": 0.5})
    difference = first_difference(more, history([1.0, 2.0]), 2)
    assert difference is None  # no epoch of the repeated training has ended
    shorter = history([1.0])
    assert (first_difference(history([1.0, 2.0]), shorter, 2) or {}).get("step") == 2


def judged(replay: Replay | dict[str, Any]) -> Result:
    return reproduced(Evidence({"reproducible": replay}), min_steps=20)


def replayed(run: Run, seconds: float = 120.0, recorded: Path | None = None) -> Replay:
    frozen = run.state().frozen
    assert frozen is not None
    recorded = recorded or (run.path / frozen["checkpoint"]).parent.parent
    job = Job.from_json(frozen["job"])
    return replay_training(job, frozen["weights"], recorded, run.path / "replay", seconds=seconds, threads=1)


@pytest.mark.process
def test_reproduced_passes_for_a_training_that_repeats(finished: Run) -> None:
    """The released training gives the same weights once more; nothing of the repetition is left."""
    replay = replayed(finished)
    result = judged(replay)
    assert (result.outcome, result.why) == ("passed", "all 51 steps, with the same weights")
    assert not (finished.path / "replay").exists()


@pytest.mark.process
def test_reproduced_fails_for_another_history_and_other_weights(finished: Run, tmp_path: Path) -> None:
    """A recorded value that training does not give again is named, and so are other weights."""
    frozen = finished.state().frozen
    assert frozen is not None
    recorded = (finished.path / frozen["checkpoint"]).parent.parent
    replay = replayed(finished)
    assert judged({**replay, "weights": "0" * 64}).outcome == "failed"
    other = shutil.copytree(recorded, tmp_path / "other")
    forged = History.load(other / "history.npz")
    forged.step["train/loss"].values[6] += 1.0
    (other / "history.npz").write_bytes(forged.to_bytes())
    result = judged(replayed(finished, recorded=other))
    assert result.outcome == "failed" and "train/loss at 7 was" in result.why and result.cause == "nondeterminism"


@pytest.mark.process
def test_reproduced_compares_the_stretch_that_the_time_allows(finished: Run) -> None:
    """A training that is stopped before its first checkpoint says nothing."""
    replay = replayed(finished, seconds=0.5)
    assert replay["repeated_weights"] is None and replay["difference"] is None
    assert judged(replay).outcome == ("inconclusive" if replay["steps"] < 20 else "passed")


def test_reproduced_is_inconclusive_without_a_repetition(finished: Run) -> None:
    """The reason is the setting that switched it off."""
    result = judged(replayed(finished, seconds=0))
    assert result.outcome == "inconclusive" and "phases.finalization.replay_seconds is 0" in result.why


@pytest.mark.process
def test_reproduced_fails_for_a_model_that_depends_on_the_clock(
    cli: Cli, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that reads the clock trains to other values each time, and the last gate says which came first."""
    (own_folder / "ticking.py").write_text(CLOCK)
    monkeypatch.syspath_prepend(own_folder)
    own = ["trust=[ticking]", "model._target_=ticking.Clock", "task.target=0.1", "export.formats=[torchscript]"]
    words = [word for word in SMALL if not word.startswith("phases.finalization.replay_seconds")]
    assert cli("phase=auto", *words, *own)[0] == 3
    (item,) = [
        i for i in Run(own_folder / "runs" / "digits").state().gates["finalization"].items if i.id == "reproducible"
    ]
    assert (item.outcome, item.cause) == ("failed", "nondeterminism")
    assert "when repeated" in item.why
