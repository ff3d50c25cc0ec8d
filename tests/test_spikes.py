"""Spikes of the loss: found by robust deviations, and answered as `trainer.on_spike` says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine.fit import fit
from pipeline.engine.guard import LEAST, SpikeDetector
from pipeline.history import History
from pipeline.run_store import permits
from pipeline.run_store.job import Delta, Job


def noise(count: int = 200) -> list[float]:
    return np.random.default_rng(0).normal(1.0, 0.1, count).astype(np.float32).tolist()


def test_is_spike_finds_a_jump_and_nothing_else() -> None:
    """Of losses with noise none is a spike; one far above them is, also twice in a row."""
    detector = SpikeDetector()

    assert not any(map(detector.is_spike, noise()))
    assert detector.is_spike(3.0) and detector.is_spike(3.0)
    assert not detector.is_spike(1.1) and not detector.is_spike(0.1)


def test_is_spike_waits_for_enough_losses() -> None:
    """Before there are enough losses, or while they are all the same, nothing is a spike."""
    detector = SpikeDetector(noise(LEAST - 1))
    constant = SpikeDetector([1.0] * LEAST)

    assert not detector.is_spike(99.0)
    assert not constant.is_spike(99.0)


@given(st.lists(st.floats(0, 1e6, width=32), min_size=40, max_size=200), st.integers(1, 100))
def test_of_history_is_the_detector_that_was_interrupted(losses: list[float], cut: int) -> None:
    """A resumed training finds the same spikes as one that was not interrupted."""
    whole, history = SpikeDetector(), History()
    spikes = [whole.is_spike(loss) for loss in losses]
    detector = SpikeDetector()
    for step, loss in enumerate(losses[:cut], 1):
        history.log_step(step, {"train/loss": loss})
        if detector.is_spike(loss):
            history.event("spike", step)
    resumed = SpikeDetector.of_history(history)

    # The window is rebuilt from twice its length; a longer row of spikes would have left it.
    assert [*spikes[:cut], *map(resumed.is_spike, losses[cut:])] == spikes or sum(spikes[:cut]) > 128


@pytest.mark.parametrize(("answer", "stopped"), [("none", "done"), ("skip", "done"), ("stop", "spike")])
def test_fit_answers_a_spike(digits_permit: permits.TrainPermit, monkeypatch: Any, answer: str, stopped: str) -> None:
    """With `skip` the update of the step is withheld, with `stop` the training ends there; both are on record."""
    monkeypatch.setattr(SpikeDetector, "is_spike", lambda detector, loss: next(calls) == 20)
    calls = iter(range(1, 10_000))
    plain = fit(digits_permit, Job(digits_permit.plan.digest, "trial"))
    result = fit(digits_permit, Job(digits_permit.plan.digest, "trial", Delta({"trainer.on_spike": answer})))
    events = [event["step"] for event in result.history.events if event["kind"] == "spike"]

    assert result.stop_reason == stopped
    assert events == ([] if answer == "none" else [20])
    assert (result.weights_digest == plain.weights_digest) is (answer == "none")
    assert result.steps == (20 if answer == "stop" else plain.steps)
