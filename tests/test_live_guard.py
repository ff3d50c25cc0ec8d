"""The live guard: when it looks, what it says, and that it can stop a training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from diagnostics.loops.live_guard import LiveGuard, looks
from pipeline.engine.fit import fit
from pipeline.engine.observer import StepObserver, StopTraining
from pipeline.history import History
from pipeline.run_store import permits
from pipeline.run_store.job import Job

CONFIG: dict[str, Any] = {"task": {"kind": "classification", "metric": "accuracy", "target": 0.9}}


def diverging(epochs: int) -> History:
    """A training whose loss falls for two epochs, and then rises from epoch to epoch."""
    history = History()
    history.facts |= {"loss_at_init": 2.3, "loss_expected": 2.3}
    for epoch in range(1, epochs + 1):
        loss = 2.0 / epoch if epoch < 3 else 3.0**epoch
        history.log_epoch(epoch, {"val/loss": loss, "val/accuracy": 0.1})
        history.log_steps(10 * epoch - 9, {"train/loss": [loss] * 10})
    return history


def guard_of(history: History, mode: Any, said: list[str]) -> LiveGuard:
    """A guard that has been attached to a training with this history."""
    guard = LiveGuard(mode, CONFIG, said.append, lambda: None)
    guard.start(None, None, history, 0)  # type: ignore[arg-type]  # it looks at neither
    return guard


def test_looks_grow_apart() -> None:
    """The guard begins after three epochs, and looks the less often the longer a run is."""
    assert list(looks(20)) == [3, 4, 5, 6, 7, 8, 10, 12, 15, 18]


def test_guard_warns_once() -> None:
    """A symptom is said when it lasts for a second look, and not again, also by a guard of a resumed training."""
    history, said = diverging(6), []
    for epoch in (5, 6, 7):
        guard_of(history, "warn", said).validated(epoch, {})
    assert said and all(line.startswith("guard, epoch 6: ") for line in said)


def test_guard_stops() -> None:
    """A guard that may stop raises, with the symptom and its epoch."""
    guard = guard_of(diverging(5), "stop", [])
    guard.validated(4, {})
    with pytest.raises(StopTraining, match=r"trainer.guard: .* in epoch 5"):
        guard.validated(5, {})


def test_guard_is_silent_on_a_healthy_run() -> None:
    """A loss that falls is no symptom."""
    history, said = History(), []
    for epoch in range(1, 9):
        history.log_epoch(epoch, {"val/loss": math.exp(-epoch), "val/accuracy": 1 - 0.5**epoch})
    for epoch in (7, 8):
        guard_of(history, "stop", said).validated(epoch, {})
    assert not said


class StopsAfter(StepObserver):
    """Ends a training after two epochs."""

    every = 1_000_000

    def validated(self, epoch: int, metrics: Mapping[str, float], /) -> None:
        if epoch == 2:
            raise StopTraining("two epochs are enough")


def test_fit_ends_where_an_observer_stops_it(digits_permit: permits.TrainPermit) -> None:
    """The epoch is finished and scored, and the reason is in the history."""
    result = fit(digits_permit, Job(digits_permit.plan.digest, "trial"), [StopsAfter()])
    [event] = [event for event in result.history.events if event["kind"] == "stopped"]
    index, _ = result.history.series("val/loss")
    assert result.stop_reason == "observer" and event["why"] == "two epochs are enough"
    assert index.tolist() == [1, 2] and result.score is not None
