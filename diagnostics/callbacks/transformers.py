"""A callback for the Trainer of Hugging Face: `trainer.add_callback(TransformersMonitor())`.

Importing this module imports transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from diagnostics.callbacks.metric_names import as_columns
from diagnostics.callbacks.watching import Watching

if TYPE_CHECKING:
    TrainerCallback = object
else:
    TrainerCallback = import_module("transformers").TrainerCallback


class TransformersMonitor(Watching, TrainerCallback):
    """Watches a training by the Trainer of Hugging Face: `monitor.diagnose()` after `train` explains it.

    The loss is the one that the model returns. Gradients are measured where the Trainer tells of them, after clipping.
    With `on_symptom="stop"` the training ends at the update or the evaluation in which a symptom appears.
    """

    began_by = "trainer.train"
    _summed = False  # whether the losses of an update are parts of one mean

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: nn.Module, optimizer: Optimizer, **_: object
    ) -> None:
        """Begin to watch; the optimizer may be wrapped by accelerate."""
        self._watch(model, getattr(optimizer, "optimizer", optimizer), int(state.epoch or 0))
        self._handle = model.register_forward_hook(self._keep_loss, with_kwargs=True)

    def _keep_loss(
        self, _: nn.Module, positional: tuple[object, ...], named: Mapping[str, object], result: Any
    ) -> None:
        if not torch.is_grad_enabled():
            return
        loss = result.get("loss") if isinstance(result, Mapping) else getattr(result, "loss", None)
        if isinstance(loss, Tensor):
            self._losses.append(loss.detach().reshape(()))
            self._summed = named.get("num_items_in_batch") is not None
            inputs = {name: value for name, value in named.items() if name != "labels" and isinstance(value, Tensor)}
            self._batch = (inputs or positional, named.get("labels"))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: object) -> None:
        """Measure: gradients are complete and unscaled."""
        if self._losses:
            parts, self._losses = torch.stack(self._losses), []
            loss = parts.sum() if self._summed else parts.mean()
            self._stopping(partial(_stop, control), lambda: self.monitor.step(loss, *self._batch))

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Mapping[str, object], **_: object) -> None:
        """Log the metrics of an evaluation."""
        if self._monitor is not None:
            columns = as_columns(metrics)
            self._stopping(partial(_stop, control), lambda: self.monitor.validated(self._validations, columns))
            self._validations += 1

    def on_train_end(self, args: Any, state: Any, control: Any, **_: object) -> None:
        """Remove the hooks."""
        self._handle.remove()
        self.monitor.close()


def _stop(control: Any) -> None:
    control.should_training_stop = True
