"""A callback for the Trainer of Hugging Face: `trainer.add_callback(TransformersMonitor())`.

Importing this module imports transformers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
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
    TrainerCallback = object
else:
    TrainerCallback = import_module("transformers").TrainerCallback


class TransformersMonitor(TrainerCallback):
    """Watches a training by the Trainer of Hugging Face: `monitor.diagnose()` after `train` explains it.

    The loss is the one that the model returns. Gradients are measured where the Trainer tells of them, after clipping.
    With `on_symptom="stop"` the training ends at the update or the evaluation in which a symptom appears.
    """

    def __init__(
        self,
        *,
        every: int = 100,
        on_symptom: OnSymptom = "record",
        notify: Callable[[Diagnosis], object] | None = None,
    ) -> None:
        self._every, self._on_symptom, self._notify = every, on_symptom, notify
        self._monitor: Monitor | None = None
        self._losses: list[Tensor] = []
        self._summed = False  # whether the losses of an update are parts of one mean
        self._batch: tuple[object, object] = (None, None)
        self._evaluations = 0

    @property
    def monitor(self) -> Monitor:
        """The monitor of the last training. Raises RuntimeError before the first."""
        if self._monitor is None:
            raise RuntimeError("no training has begun: call trainer.train first")
        return self._monitor

    def diagnose(self, config: dict[str, Any] | None = None) -> Diagnosis:
        """Return a diagnosis of everything measured so far."""
        return self.monitor.diagnose(config)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: nn.Module, optimizer: Optimizer, **_: object
    ) -> None:
        """Begin to watch; the optimizer may be wrapped by accelerate."""
        self._losses, self._evaluations = [], int(state.epoch or 0)
        inner = getattr(optimizer, "optimizer", optimizer)
        self._monitor = Monitor(model, inner, every=self._every, on_symptom=self._on_symptom, notify=self._notify)
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
            self._stopping(control, lambda: self.monitor.step(loss, *self._batch))

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Mapping[str, object], **_: object) -> None:
        """Log the metrics of an evaluation."""
        if self._monitor is not None:
            columns = as_columns(metrics)
            self._stopping(control, lambda: self.monitor.validated(self._evaluations, columns))
            self._evaluations += 1

    def on_train_end(self, args: Any, state: Any, control: Any, **_: object) -> None:
        """Remove the hooks."""
        self._handle.remove()
        self.monitor.close()

    @staticmethod
    def _stopping(control: Any, call: Callable[[], object]) -> None:
        try:
            call()
        except SymptomError as error:
            control.should_training_stop = True
            sys.stderr.write(f"{error}\n")
