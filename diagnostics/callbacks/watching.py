"""What the callbacks of Lightning and of transformers share: their Monitor, and how a symptom ends a run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from diagnostics.diagnosis import Diagnosis
from diagnostics.loops.alarm import OnSymptom, SymptomError
from diagnostics.monitor import Monitor


class Watching:
    """A training that is watched: its Monitor, the losses since the last update, and the batch that is in the model.

    `began_by` is the call that begins a training. `stop` ends the run; it is called if a symptom appears and
    `on_symptom` is "stop".
    """

    began_by: str

    def __init__(
        self,
        *,
        every: int = 100,
        on_symptom: OnSymptom = "record",
        notify: Callable[[Diagnosis], object] | None = None,
    ) -> None:
        super().__init__()  # of the callback that this class is mixed into
        self._every, self._on_symptom, self._notify = every, on_symptom, notify
        self._monitor: Monitor | None = None
        self._losses: list[Tensor] = []
        self._batch: tuple[object, object] = (None, None)
        self._validations = 0

    @property
    def monitor(self) -> Monitor:
        """The monitor of the last training. Raises RuntimeError before the first."""
        if self._monitor is None:
            raise RuntimeError(f"no training has begun: call {self.began_by} first")
        return self._monitor

    def diagnose(self, config: dict[str, Any] | None = None) -> Diagnosis:
        """Return a diagnosis of everything measured so far."""
        return self.monitor.diagnose(config)

    def _watch(self, model: nn.Module, optimizer: Optimizer, validations: int) -> None:
        """Begin to watch a training that has made this number of validations."""
        self._losses, self._validations = [], validations
        self._monitor = Monitor(model, optimizer, every=self._every, on_symptom=self._on_symptom, notify=self._notify)

    @staticmethod
    def _stopping(stop: Callable[[], None], call: Callable[[], object]) -> None:
        try:
            call()
        except SymptomError as error:
            stop()
            sys.stderr.write(f"{error}\n")
