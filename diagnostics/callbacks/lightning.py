"""A callback for Lightning: `Trainer(callbacks=[LightningMonitor()])`. Importing this module imports Lightning."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from diagnostics.callbacks.metric_names import as_columns
from diagnostics.diagnosis import Diagnosis
from diagnostics.loops.alarm import OnSymptom, SymptomError
from diagnostics.monitor import Monitor

if TYPE_CHECKING:
    Callback = object
else:
    # A program that has imported `pytorch_lightning` needs the callback of that package.
    old = "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules
    Callback = import_module("pytorch_lightning" if old else "lightning.pytorch").Callback


class LightningMonitor(Callback):
    """Watches a training by Lightning: `monitor.diagnose()` after `fit` explains it.

    Of several optimizers the first is watched. With `on_symptom="stop"` the training ends after the batch or the
    validation in which a symptom appears.
    """

    def __init__(
        self,
        *,
        every: int = 100,
        on_symptom: OnSymptom = "record",
        notify: Callable[[Diagnosis], object] | None = None,
    ) -> None:
        super().__init__()
        self._every, self._on_symptom, self._notify = every, on_symptom, notify
        self._monitor: Monitor | None = None
        self._losses: list[Tensor] = []
        self._batch: tuple[object, object] = (None, None)
        self._validations = 0

    @property
    def monitor(self) -> Monitor:
        """The monitor of the last training. Raises RuntimeError before the first."""
        if self._monitor is None:
            raise RuntimeError("no training has begun: call trainer.fit first")
        return self._monitor

    def diagnose(self, config: dict[str, Any] | None = None) -> Diagnosis:
        """Return a diagnosis of everything measured so far."""
        return self.monitor.diagnose(config)

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Begin to watch."""
        self._losses, self._validations = [], int(trainer.current_epoch)
        self._monitor = Monitor(
            pl_module, trainer.optimizers[0], every=self._every, on_symptom=self._on_symptom, notify=self._notify
        )

    def on_train_batch_start(self, trainer: Any, pl_module: nn.Module, batch: object, batch_idx: int) -> None:
        """Keep the batch until its update."""
        pair = isinstance(batch, list | tuple) and len(batch) == 2
        self._batch = (batch[0], batch[1]) if pair else (batch, None)  # type: ignore[index]

    def on_before_backward(self, trainer: Any, pl_module: nn.Module, loss: Tensor) -> None:
        """Keep the loss, which Lightning has divided by the number of accumulated batches."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: Any, pl_module: nn.Module, optimizer: Optimizer) -> None:
        """Measure: gradients are complete and unscaled, and not yet clipped."""
        if self._losses and optimizer is trainer.optimizers[0]:
            loss, self._losses = torch.stack([part.reshape(()) for part in self._losses]).sum(), []
            self._stopping(trainer, lambda: self.monitor.step(loss, *self._batch))

    def on_validation_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Log the metrics of a validation."""
        if self._monitor is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        columns = as_columns(trainer.callback_metrics)
        self._stopping(trainer, lambda: self.monitor.validated(self._validations, columns))
        self._validations += 1

    def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Remove the hooks."""
        self.monitor.close()

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        """Remove the hooks where the training ends early."""
        if self._monitor is not None:
            self._monitor.close()

    @staticmethod
    def _stopping(trainer: Any, call: Callable[[], object]) -> None:
        try:
            call()
        except SymptomError as error:
            trainer.should_stop = True
            sys.stderr.write(f"{error}\n")
