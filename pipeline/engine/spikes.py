"""Spikes: a loss that lies far above the recent ones. `trainer.on_spike` says what happens at one.

The rule is that of OLMo-core's step skipping: six deviations above the last 128 losses, which here are robust (median
and median absolute deviation), so that earlier spikes do not widen the bound.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

import numpy as np

from pipeline.history import History

WINDOW = 128  # losses that the bound is computed from
LEAST = 32  # of them before which no loss is a spike
DEVIATIONS = 6.0
TO_SIGMA = 1.4826  # times the median absolute deviation is the standard deviation of a normal distribution


class SpikeDetector:
    """Tells whether a loss is a spike among the losses before it, which it remembers; spikes are not remembered."""

    def __init__(self, losses: Iterable[float] = ()) -> None:
        self._window = deque((loss for loss in losses if math.isfinite(loss)), maxlen=WINDOW)

    @classmethod
    def of_history(cls, history: History) -> SpikeDetector:
        """Return the detector of a resumed training, as it was when the last loss of the history was measured."""
        spikes = {event["step"] for event in history.events if event["kind"] == "spike"}
        steps, losses = history.series("train/loss")
        kept = [float(loss) for step, loss in zip(steps[-2 * WINDOW :], losses[-2 * WINDOW :], strict=True)
                if int(step) not in spikes]  # fmt: skip
        return cls(kept)

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
