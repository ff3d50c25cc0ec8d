"""Spikes of the loss: found by robust deviations, and answered as `trainer.on_spike` says."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import Optimizer

from pipeline.checkpoints.weights import weights_digest
from pipeline.engine.fit import fit
from pipeline.engine.observer import StepObserver
from pipeline.engine.spikes import LEAST, SpikeDetector
from pipeline.history import History
from pipeline.run_store import permits
from pipeline.run_store.job import Delta, Job
from pipeline.runtime.interrupt import Interrupted
from tests.trainings import blobs, config, permitted, train

__all__ = ["permitted"]


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


@pytest.mark.parametrize(
    ("answer", "stopped"), [("none", "done"), ("skip", "done"), ("rollback", "done"), ("stop", "spike")]
)
def test_fit_answers_a_spike(digits_permit: permits.TrainPermit, monkeypatch: Any, answer: str, stopped: str) -> None:
    """The update of a spike is withheld, and with `stop` the training ends there; the spike is on record."""
    monkeypatch.setattr(SpikeDetector, "is_spike", lambda detector, loss: next(calls) == 20)
    calls = iter(range(1, 10_000))
    plain = fit(digits_permit, Job(digits_permit.plan.digest, "trial"))
    result = fit(digits_permit, Job(digits_permit.plan.digest, "trial", Delta({"trainer.on_spike": answer})))
    events = [event["step"] for event in result.history.events if event["kind"] == "spike"]

    assert result.stop_reason == stopped
    assert events == ([] if answer == "none" else [20])
    assert (result.weights_digest == plain.weights_digest) is (answer == "none")
    assert result.steps == (20 if answer == "stop" else plain.steps)


ROLLBACK = config(trainer__on_spike="rollback", trainer__max_epochs=30, loader__batch_size=13)  # 240 steps
SPIKES = (100, 170)


class States(StepObserver):
    """An observer that records digests of weights and optimizer before every update, and may stop the training."""

    def __init__(self, stop_at: int = 0) -> None:
        self.every, self.stop_at, self.digests = 1, stop_at, dict[int, tuple[str, str]]()

    def start(self, model: nn.Module, optimizer: Optimizer, history: History, step: int) -> None:
        self.model, self.optimizer = model, optimizer

    def before_update(self, step: int, *_: Any) -> None:
        state = {f"{i}.{name}": value for i, p in enumerate(self.optimizer.state.values()) for name, value in p.items()}
        self.digests[step] = weights_digest(self.model.state_dict()), weights_digest(state)
        if step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def spikes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps are spikes, whatever their loss."""

    def record(detector: SpikeDetector, step: int, loss: float, history: History) -> bool:
        if step in SPIKES:
            history.event("spike", step, loss=loss, update="withheld")
        return step in SPIKES

    monkeypatch.setattr(SpikeDetector, "record", record)


def test_rollback_returns_to_state_before_spike(spikes: None) -> None:
    """Weights and optimizer are those of 64 to 127 updates before, and the batches since then are left out."""
    states = States()
    result = train(ROLLBACK, blobs(), states)
    events = [event for event in result.history.events if event["kind"] == "rollback"]

    assert [(e["step"], e["to_step"], e["batches_skipped"]) for e in events] == [(100, 0, 100), (170, 0, 170)]
    assert states.digests[1][0] == states.digests[101][0] == states.digests[171][0] != states.digests[102][0]
    assert states.digests[101] == states.digests[171] != states.digests[170]
    assert (result.stop_reason, result.steps) == ("done", 240)
    assert result.history.series("lr")[0].tolist() == list(range(1, 241))


@pytest.mark.parametrize("stop_at", [99, 100, 128, 169])
def test_rollback_resumes_with_the_same_bits(spikes: None, tmp_path: Path, stop_at: int) -> None:
    """A training that was stopped around a spike ends as one that was not: the states to return to are kept as well."""
    whole = train(ROLLBACK, blobs())
    with pytest.raises(Interrupted):
        train(ROLLBACK, blobs(), States(stop_at), folder=tmp_path)
    resumed = train(ROLLBACK, blobs(), folder=tmp_path)

    assert resumed.resumed_at == stop_at
    assert (resumed.weights_digest, resumed.history.digest()) == (whole.weights_digest, whole.history.digest())


def test_rollback_ends_where_every_batch_is_a_spike(monkeypatch: pytest.MonkeyPatch) -> None:
    """After three returns to the same state the fault is not in a few batches, and training stops."""
    monkeypatch.setattr(SpikeDetector, "is_spike", lambda detector, loss: next(calls) > 40)
    calls = iter(range(1, 10_000))
    result = train(ROLLBACK, blobs())

    assert (result.stop_reason, result.steps) == ("spike", 44)
