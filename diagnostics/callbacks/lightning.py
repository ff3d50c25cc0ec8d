"""A callback for Lightning: `Trainer(callbacks=[LightningMonitor()])`. Importing this module imports Lightning."""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from diagnostics.callbacks.metric_names import as_columns
from diagnostics.callbacks.watching import Watching

if TYPE_CHECKING:
    Callback = object
else:
    # A program that has imported `pytorch_lightning` needs the callback of that package.
    old = "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules
    Callback = import_module("pytorch_lightning" if old else "lightning.pytorch").Callback


class LightningMonitor(Watching, Callback):
    """Watches a training by Lightning: `monitor.diagnose()` after `fit` explains it.

    Of several optimizers the first is watched. With `on_symptom="stop"` the training ends after the batch or the
    validation in which a symptom appears.
    """

    began_by = "trainer.fit"

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Begin to watch."""
        self._watch(pl_module, trainer.optimizers[0], int(trainer.current_epoch))

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
            self._stopping(partial(_stop, trainer), lambda: self.monitor.step(loss, *self._batch))

    def on_validation_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Log the metrics of a validation."""
        if self._monitor is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        columns = as_columns(trainer.callback_metrics)
        self._stopping(partial(_stop, trainer), lambda: self.monitor.validated(self._validations, columns))
        self._validations += 1

    def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Remove the hooks."""
        self.monitor.close()

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        """Remove the hooks where the training ends early."""
        if self._monitor is not None:
            self._monitor.close()


def _stop(trainer: Any) -> None:
    trainer.should_stop = True
