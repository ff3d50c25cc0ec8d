"""Spikes of the loss: how one is found, and what `trainer.on_spike` does about it.

The rule for spikes is that of OLMo-core's step skipping: six deviations above the last 128 losses, which here are
robust (median and median absolute deviation), so that earlier spikes do not widen the bound. Going back to a state
before the spike and leaving out the batches since then is the answer of PaLM (Chowdhery et al. 2022, section 5.1).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

import numpy as np

from pipeline.engine import resume
from pipeline.engine.progress import Progress
from pipeline.engine.setup import TrainingComponents
from pipeline.history import History

WINDOW = 128  # losses that the bound is computed from
LEAST = 32  # of them before which no loss is a spike
DEVIATIONS = 6.0
TO_SIGMA = 1.4826  # times the median absolute deviation is the standard deviation of a normal distribution
KEEP_EVERY = 64  # steps between two states that a rollback can return to
MAX_RETURNS = 3  # to the same state: then the fault is not in a few batches, and training stops


class SpikeAnswer:
    """Finds the spikes of a training and answers each as `on_spike` says: `stop`, `skip` or `rollback`.

    The update of a spike is always withheld. A rollback also returns model and optimizer to the state of 64 to 127
    updates earlier, or of the first step. Steps, data order and learning rate continue: the batches since that state
    are left out, and the training still has the planned number of steps.
    """

    def __init__(self, on_spike: str, components: TrainingComponents, progress: Progress) -> None:
        self.on_spike, self.components, self.progress = on_spike, components, progress
        self.detector = SpikeDetector.of_history(progress.history)
        if on_spike == "rollback" and not progress.kept:
            progress.kept = (resume.keep_state(components, progress.step),)

    def withholds(self, step: int, loss: float) -> bool:
        """Record and answer a loss that is a spike; return whether it is one, so that its update must not be made."""
        if not self.detector.record(step, loss, self.progress.history):
            return False
        if self.on_spike == "stop":
            self.progress.stop_reason = "spike"
        elif self.on_spike == "rollback":
            self._return_to_earlier_state(step)
        return True

    def after_update(self, step: int) -> None:
        """Keep the state after every 64th step, and the one before it: the latest may already hold the cause."""
        if self.on_spike == "rollback" and step % KEEP_EVERY == 0:
            self.progress.kept = (*self.progress.kept[-1:], resume.keep_state(self.components, step))

    def _return_to_earlier_state(self, step: int) -> None:
        history, target = self.progress.history, self.progress.kept[0]
        returns = sum(event["kind"] == "rollback" and event["to_step"] == target.step for event in history.events)
        if returns >= MAX_RETURNS:
            self.progress.stop_reason = "spike"
            return
        resume.return_to(self.components, target)
        self.progress.kept = (target,)
        history.event("rollback", step, to_step=target.step, batches_skipped=step - target.step)


class SpikeDetector:
    """Tells whether a loss is a spike among the losses before it, which it remembers; spikes are not remembered."""

    def __init__(self, losses: Iterable[float] = ()) -> None:
        self._window = deque((loss for loss in losses if math.isfinite(loss)), maxlen=WINDOW)

    @classmethod
    def of_history(cls, history: History) -> SpikeDetector:
        """Return the detector of a resumed training, as it was when the last loss of the history was measured."""
        spikes = {event["step"] for event in history.events if event["kind"] == "spike"}
        steps, losses = history.series("train/loss")
        normal_losses = [float(loss) for step, loss in zip(steps[-2 * WINDOW :], losses[-2 * WINDOW :], strict=True)
                if int(step) not in spikes]  # fmt: skip
        return cls(normal_losses)

    def record(self, step: int, loss: float, history: History) -> bool:
        """Record a loss that is a spike, whose update is withheld; return whether it is one."""
        if not self.is_spike(loss):
            return False
        history.event("spike", step, loss=loss, update="withheld")
        return True

    def is_spike(self, loss: float) -> bool:
        """Return whether a finite loss is a spike; one that is not belongs to the window from now on.

        Losses are compared as float32, which is what a history keeps of them.
        """
        loss = float(np.float32(loss))
        if len(self._window) >= LEAST:
            window = np.fromiter(self._window, np.float64)
            centre = float(np.median(window))
            spread = TO_SIGMA * float(np.median(np.abs(window - centre)))
            if loss > centre + DEVIATIONS * spread and spread > 0:
                return True
        self._window.append(loss)
        return False
