"""Monitor: records what happens in a training loop, without changing the run and without hiding a NaN.

In the user's own loop it registers hooks on the optimizer's step; in Fivegate's engine it is a step observer.
Measurements stay tensors until they are read back: at once on the CPU, and one sample later on an accelerator, so that
the loop never waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from diagnostics.activations import ActivationStatistics
from diagnostics.diagnose import diagnose, view_of
from diagnostics.diagnosis import Diagnosis
from diagnostics.loops.alarm import Alarm, NonFiniteError, OnSymptom, Verdict
from diagnostics.loops.faults import loop_findings
from diagnostics.loops.memory import LoopMemory, Loss
from diagnostics.loops.watch import LoopWatch
from diagnostics.measurements import (
    Batch,
    Measurement,
    ParameterStatistics,
    count_nonfinite,
    record_batch_facts,
    without_graph,
)
from pipeline.errors import UserError, fault
from pipeline.history import History
from pipeline.inspection.finding import Finding, Inspections

if TYPE_CHECKING:
    from diagnostics.loops.experiments import LoopResults

FIRST_STEPS = 3  # these are always sampled: most faults show in the first steps


class Monitor:
    """Records the training of one model with its optimizer.

    Norms and activations are measured at the first three steps and at every `every`-th. With `on_nonfinite="raise"` the
    method `step` raises NonFiniteError; by default a non-finite value is only recorded. With `on_symptom` the run is
    diagnosed now and then: "warn" warns of a new symptom, "stop" raises SymptomError from `step` or `validated`, and
    `notify` gets the diagnosis. First weights and batches are kept for experiments, at most 64 MB of each;
    `experiments=False` keeps none. As a context manager, or by `close`, the monitor removes its hooks.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        *,
        every: int = 100,
        on_nonfinite: Literal["record", "raise"] = "record",
        on_symptom: OnSymptom = "record",
        notify: Callable[[Diagnosis], object] | None = None,
        experiments: bool = True,
    ) -> None:
        if every < 1 or on_nonfinite not in ("record", "raise"):
            raise ValueError(f"every >= 1 and on_nonfinite 'record' or 'raise', got {every} and {on_nonfinite!r}")
        self.every, self._interval, self.on_nonfinite = every, every, on_nonfinite
        self._alarm = Alarm(on_symptom, notify)
        self.verdict = Verdict()
        self._history = History()
        self._handles, self._pending = list[RemovableHandle](), list[Measurement]()
        self._gradients: Measurement | None = None
        self._weights_before: list[Tensor] = []
        self._batch = Batch(-1)
        self._own_loop = model is not None and optimizer is not None
        self._updates, self._loss_step = 0, -1  # optimizer steps so far; the step of the latest loss
        self._loss_parts: list[float | Tensor] = []  # its micro-batches, under gradient accumulation
        self._epochs = 0
        self.inspections = Inspections()  # of a loop of the user's own, at its first step
        self._watch: LoopWatch | None = None
        self._memory: LoopMemory | None = None  # for experiments on a loop of the user's own
        if model is not None and optimizer is not None:
            self.start(model, optimizer, self._history, 0)
            self._activations.watch()
            self._memory = LoopMemory.of(model) if experiments else None
            self._watch = LoopWatch(model, optimizer, self._memory)
            self._watch.begin(0)
            self._handles.append(optimizer.register_step_pre_hook(self._before_step))
            self._handles.append(optimizer.register_step_post_hook(self._after_step))

    # --- in the user's own loop ---------------------------------------------------------------------------------------

    def step(
        self, loss: Tensor | float, inputs: object = None, targets: object = None, outputs: object = None
    ) -> Verdict:
        """Record the loss of this step and return the verdict.

        Call it after `backward` and before gradient clipping, so that gradients are measured unclipped. Calling it
        after `optimizer.step()` works too. Several calls within one step (gradient accumulation) are averaged. On an
        accelerator the verdict lags by at most `every` steps, but the step that it names is exact.
        """
        graph, loss, first = loss, without_graph(loss), self._loss_step < 0
        # Where the previous update has no loss yet, the loop calls this after `optimizer.step()`, and it is its loss.
        at = self._updates - (self._loss_step < self._updates - 1)
        sampled = self._is_sampled(at)
        if self._watch is not None:
            if sampled or self._watch.fills_memory:
                inputs, targets, outputs = self._watch.complete(inputs, targets, outputs, loss)
            if first:
                self._inspect(graph, inputs, targets, outputs)
                known = self._memory is not None and self._memory.has_cross_entropy
                self._history.facts["cross_entropy"] = float(known)
            inputs = self._watch.inputs_of_pass() if inputs is None else inputs
        self._batch = Batch(at, inputs, targets, outputs if sampled else None)  # whose memory is held until the next
        if self._watch is not None and (sampled or self._watch.keeps_batches):
            self._watch.loss_given(at, inputs, targets, sampled)
        self._log_loss(at, loss)
        if at == 0:
            record_batch_facts(self._history.facts, self._batch)
            self._history.facts.setdefault("loss_at_init", float(loss))
        if sampled and at == self._updates:
            self._queue_activations(at, outputs)
            self._gradients = self._statistics.gradients(at, outputs)
        if not self.verdict.ok and self.on_nonfinite == "raise":
            raise NonFiniteError(self.verdict.why)
        if sampled or not self.verdict.ok:
            self._look()
        return self.verdict

    def _inspect(self, loss: Tensor | float, inputs: object, targets: object, outputs: object) -> None:
        from pipeline.inspection.inspect import inspect_model

        graph, known = (value if isinstance(value, Tensor) else None for value in (loss, outputs))
        self.inspections = inspect_model(self._model, self._optimizer, inputs, targets, known, graph)

    def validated(
        self, epoch: int | None = None, metrics: Mapping[str, float] | None = None, /, **values: float
    ) -> None:
        """Log validation metrics: `validated(loss=0.3, accuracy=0.9)` logs `val/loss` and `val/accuracy`.

        Raises UserError if the first argument is not an epoch number.
        """
        if epoch is not None and not hasattr(epoch, "__int__"):
            what = "the first argument is the epoch"
            calls = "validated(loss=..., accuracy=...) or validated(epoch, {'train/loss': ...})"
            raise UserError(fault("Monitor.validated", what, got=type(epoch).__name__, expected=calls))
        if not self._own_loop:
            return  # the engine logs validation metrics itself
        at = int(values.pop("epoch", self._epochs if epoch is None else epoch))
        columns = {**(metrics or {}), **values}
        self._history.log_epoch(at, {n if "/" in n else f"val/{n}": float(v) for n, v in columns.items()})
        self._epochs = at + 1
        if self._watch is not None:
            self._watch.validated(at, self._updates)
        self._look()

    def _look(self) -> None:
        if self._watch is not None and not self._alarm.silent:
            validations = len(self._watch.epochs)
            self._alarm.look(self._updates, self.every, not self.verdict, validations, self.diagnose)

    @property
    def history(self) -> History:
        """Everything measured so far; on an accelerator this waits for the device."""
        self.read_back(everything=True)
        return self._history

    def diagnose(
        self, config: Mapping[str, Any] | None = None, *, experiments: bool = False, loss: Loss | None = None
    ) -> Diagnosis:
        """Return a diagnosis of everything measured so far, and of what was inspected at the first step.

        With `experiments` causes are tested on copies of the model, for about 20 seconds. `loss(outputs, targets)` is
        the loop's own; without it, the one of torch is taken that gives the first loss.
        """
        results, gaps = self.experiment(config, loss=loss) if experiments else ([], [])
        diagnosis = diagnose(self.history, dict(config) if config else None, self.findings(config), results)
        return replace(diagnosis, not_checked=(*diagnosis.not_checked, *gaps))

    def experiment(self, config: Mapping[str, Any] | None = None, *, loss: Loss | None = None) -> LoopResults:
        """Train copies of the model on the first batches; return the results, and what could not be tried and why."""
        from diagnostics.loops.experiments import experiment_on_loop

        view = view_of(self.history, config)
        return experiment_on_loop(self._model, self._optimizer, self._memory, view, loss)

    def findings(self, config: Mapping[str, Any] | None = None) -> tuple[Finding, ...]:
        """Return what is wrong with the model, its first batch and the loop, as far as it was seen."""
        inspected = self.inspections.findings
        return loop_findings(self._watch, self.history, config, self._memory, inspected) if self._watch else inspected

    def close(self) -> None:
        """Remove the monitor's hooks from the optimizer and release every tensor."""
        self.read_back(everything=True)
        for handle in self._handles:
            handle.remove()
        self._activations.measure(0, None)  # removes its hooks
        if self._watch is not None:
            self._watch.close()
        self._handles, self._weights_before, self._batch, self._gradients = [], [], Batch(-1), None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # --- as a step observer of the engine -----------------------------------------------------------------------------

    def start(self, model: nn.Module, optimizer: Optimizer, history: History, step: int) -> None:
        """Group the trainable parameters by module and record how many parameters there are."""
        self._model, self._optimizer, self._history = model, optimizer, history
        self.every = self._interval if self._own_loop or step >= FIRST_STEPS else 1
        self._statistics = ParameterStatistics(model, optimizer)
        self._activations = ActivationStatistics(model)
        history.facts.setdefault("parameters", self._statistics.parameter_count)
        history.facts.setdefault("share_untrained", self._statistics.share_untrained)

    def before_forward(self, step: int) -> None:
        """Measure the outputs of the modules in this step."""
        self._activations.watch()

    def before_update(self, step: int, inputs: object, targets: object, outputs: object, loss: Tensor) -> None:
        """Measure the complete gradients and copy the weights that the loss was computed with."""
        self._batch = Batch(step, inputs, targets, outputs)
        if self.every == 1:
            record_batch_facts(self._history.facts, self._batch)
        self.every = self._interval if step >= FIRST_STEPS else 1
        self._queue_gradients()
        self._queue_activations(step, outputs)
        self._gradients = self._statistics.gradients(step, outputs)
        self._pending.append(Measurement(step, ["train/loss"], torch.as_tensor(loss).detach().float().reshape(1)))
        self._weights_before = self._statistics.copy_weights()

    def after_update(self, step: int) -> None:
        """Measure the update from the new weights."""
        self._measure_update(step)
        self.read_back()

    def flush(self) -> None:
        """Move every measurement into the history."""
        self._queue_gradients()
        self.read_back(everything=True)

    def finish(self) -> None:
        """Move every measurement into the history and count the non-finite values where training broke."""
        self.flush()
        broken = [event["step"] for event in self._history.events if event["kind"] == "nonfinite"]
        if broken and self.verdict:  # the engine checks every step, so it also finds a fault between two samples
            count_nonfinite(self._history.facts, self._statistics.parameters, self._batch, broken[0])
        self.close()

    # --- measuring ----------------------------------------------------------------------------------------------------

    def _is_sampled(self, step: int) -> bool:
        return step < FIRST_STEPS or step % self.every == 0

    def _before_step(self, _: Optimizer, positional: tuple[object, ...], named: Mapping[str, object]) -> None:
        if self._is_sampled(self._updates):
            # With a closure the forward pass is still to come; then only `step`, called in it, can measure.
            closure = any(callable(argument) for argument in (*positional[1:], *named.values()))
            if self._watch is not None:
                self._watch.before_update(self._updates, closure)
            self._weights_before = self._statistics.copy_weights()
            if not closure:
                self._queue_activations(self._updates, None)  # of a loop that calls `step` only afterwards
                if self._gradients is None or self._gradients.step != self._updates:
                    self._gradients = self._statistics.gradients(self._updates, None)
        self._history.log_step(self._updates, {"lr": float(self._optimizer.param_groups[0]["lr"])})

    def _after_step(self, *_: object) -> None:
        if self._is_sampled(self._updates):
            self._measure_update(self._updates)
            if self._watch is not None:
                self._watch.after_update()
        self._updates += 1
        sampled = self._is_sampled(self._updates)
        if sampled:
            self._activations.watch()
        if self._watch is not None and (sampled or self._watch.fills_memory):
            self._watch.begin(self._updates, sampled)

    def _measure_update(self, step: int) -> None:
        if self._weights_before:  # empty for a model without trainable parameters
            self._queue_gradients()
            self._pending.append(self._statistics.update(step, self._weights_before))
            self._weights_before = []

    def _queue_gradients(self) -> None:
        """Queue the measured gradients for the history, also those of a step whose update the engine suppressed."""
        if self._gradients is not None:
            self._pending.append(self._gradients)
        self._gradients = None

    def _queue_activations(self, step: int, outputs: object) -> None:
        measured = self._activations.measure(step, outputs)
        if measured is not None:
            self._pending.append(measured)

    def _log_loss(self, at: int, loss: Tensor | float) -> None:
        """Log the mean of the losses within one optimizer step: a number at once, a tensor at the next read-back."""
        part = loss.float().reshape(1) if isinstance(loss, Tensor) else loss
        self._loss_parts = [*self._loss_parts, part] if at == self._loss_step else [part]
        self._loss_step = at
        mean = part if len(self._loss_parts) == 1 else sum(self._loss_parts) / len(self._loss_parts)
        if isinstance(mean, Tensor):
            self._pending.append(Measurement(at, ["train/loss"], mean))
            if at % self.every == 0:
                self.read_back()
        else:
            self.read_back()
            self._history.log_step(at, {"train/loss": mean})
            if not math.isfinite(mean):
                self._update_verdict(at, {"train/loss": mean})
            elif self.verdict.ok:
                self.verdict = Verdict(True, at)

    # --- reading back -------------------------------------------------------------------------------------------------

    def read_back(self, *, everything: bool = False) -> None:
        """Move pending measurements into the history, with one synchronization of the device.

        On an accelerator the newest step stays pending unless `everything` is set, since its kernels may still run.
        """
        if not self._pending:
            return
        newest = self._pending[-1].step
        running = [m for m in self._pending if m.values.device.type != "cpu" and m.step == newest and not everything]
        ready = [m for m in self._pending if not any(m is other for other in running)]
        self._pending = running
        if not ready:
            return
        # One concatenated tensor, since each `tolist` waits for the device.
        numbers = iter(torch.cat([m.values.to(ready[0].values.device) for m in ready]).tolist())
        for measurement in ready:
            values = {name: next(numbers) for name in measurement.names}
            if self._own_loop or measurement.names != ["train/loss"]:  # the engine logs its own loss
                self._history.log_step(measurement.step, values)
            self._update_verdict(measurement.step, values)

    def _update_verdict(self, step: int, values: Mapping[str, float]) -> None:
        """Set the verdict to the first value that is not finite, in the order loss, gradients, weights."""
        if not self.verdict:
            return
        self.verdict = Verdict.of_values(step, values)
        if not self.verdict:
            if self._own_loop:  # the engine records its own event
                self._history.event("nonfinite", step, what=self.verdict.what, where=self.verdict.where)
            count_nonfinite(self._history.facts, self._statistics.parameters, self._batch, step)
