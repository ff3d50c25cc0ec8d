"""The training loop.

Weights, metrics and history are a pure function of plan, job and data: the order of rows depends on (seed, epoch), the
random numbers of a step on (seed, step), the first weights on (seed, "init"). Nothing depends on what the process did
before. A training that was killed therefore resumes from its last checkpoint with the same bits, and any of its steps
can be repeated.

From `fit` to the optimizer's kernel there are five frames: `fit`, `Training.run`, `_train_epoch`, `_train_step` and
`Stepper.__call__`.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.batching.source import Batch
from pipeline.building.memory import step_error
from pipeline.checkpoints.generation import Snapshot
from pipeline.checkpoints.writer import Writer
from pipeline.engine import resume
from pipeline.engine.observer import StepObserver, tell_validated
from pipeline.engine.progress import Progress
from pipeline.engine.setup import TrainingComponents
from pipeline.engine.spikes import SpikeAnswer
from pipeline.engine.stepper import Stepper
from pipeline.engine.timer import TrainingTimer
from pipeline.errors import FivegateError, fault
from pipeline.evaluation.evaluate import loss_and_metrics, mean_loss
from pipeline.preprocess.modules import preprocess_batch, unwrap
from pipeline.run_store import permits
from pipeline.run_store.job import Job
from pipeline.runtime.backward import backward
from pipeline.runtime.interrupt import Interrupted, StopRequest
from pipeline.runtime.seeds import derive, reseed

SEED_MASK = 2**63 - 1  # torch takes seeds of 63 bits


class Training:
    """One training. Use `run` inside a `session`; `fit` makes its result. Raises Refused without a permit."""

    def __init__(self, permit: permits.FitPermit, components: TrainingComponents, job: Job) -> None:
        permit = permits.require(permit, permits.FitPermit)
        self.stepper = Stepper(permit, components.optimizer)
        self.components, self.job, self.trainer = components, job, components.config.trainer
        self.model, self.task = components.model, components.task
        self.optimizer, self.guard = components.optimizer, components.guard
        self.progress = Progress()
        self.timer = TrainingTimer.from_config(self.trainer)
        self.stop_request = StopRequest()
        self.spikes: SpikeAnswer | None = None  # only where something happens at a spike
        self.observers: Sequence[StepObserver] = ()
        self.next_observed_step = sys.maxsize
        self.step_lrs: list[float] = []  # learning rates of steps that are not in the history yet, if they vary by step
        self.seconds_per_step = self.share_waited = math.nan  # of the latest epoch; waited for batches
        self.folder: Path | None = None
        self.writer: Writer | None = None
        self.resumed_from: Snapshot | None = None

    @contextmanager
    def session(
        self, observers: Sequence[StepObserver] = (), *, snapshot: Snapshot | None = None, folder: Path | None = None
    ) -> Iterator[None]:
        """Inside the block the training can run, from the snapshot or from its first step.

        The observers are attached, worker processes read data, and checkpoints are written to `folder` if it is given.
        """
        with ExitStack() as stack:
            if folder is not None:
                self.folder, self.writer = folder, stack.enter_context(closing(Writer(folder)))
            self.components.batches.start()
            stack.callback(self.components.batches.close)
            if snapshot is None:
                rows, facts = self.components.train_eval_rows, self.progress.history.facts
                facts.update(self.components.facts(), loss_at_init=mean_loss(self.model, rows.X, rows.y, self.task))
            else:
                self.resumed_from, self.progress = snapshot, resume.restore(self.components, snapshot)
            if self.trainer.on_spike != "none":
                self.spikes = SpikeAnswer(self.trainer.on_spike, self.components, self.progress)
            self.timer.start(self.progress.step, self.progress.earlier_seconds)
            observers = (*observers, *self.components.callbacks)
            for observer in observers:
                self._start_observer(observer)
                stack.callback(observer.finish)
            self.observers = observers
            self._schedule_observers()
            if self.writer:
                # State that no checkpoint can hold is an error before the first step, not after an hour.
                resume.pack_state(self.components)
            yield
            if self.writer:
                self.writer.wait()

    def run(self, until: int | None = None) -> None:
        """Train until `until` steps are made, or until training ends. Raises Interrupted if a signal asked to stop."""
        progress, budget = self.progress, self.components.budget
        until = budget.max_steps if until is None else until
        self._poll_requests()
        while not progress.ended:
            epoch = progress.epoch + 1
            last_step = min(epoch * budget.steps_per_epoch, budget.max_steps)
            while progress.stop_reason is None and progress.step < min(until, last_step):
                check = budget.next_check(progress.step, last_step)
                self._train_epoch(epoch, min(until, check))
                if progress.stop_reason is None and progress.step == check < last_step:
                    self._validate_inside(epoch)
                    self._poll_requests()
            if progress.stop_reason is None and progress.step != last_step:
                return
            out_of_patience = self._validate(epoch)
            if progress.stop_reason is None and progress.step == budget.max_steps:
                progress.stop_reason = "budget" if budget.cut_short else "done"
            elif progress.stop_reason is None and out_of_patience:
                progress.stop_reason = "done"
            progress.ended = progress.stop_reason is not None
            progress.ended = self._poll_requests() or progress.ended
            if progress.step >= until:
                return

    def _train_epoch(self, epoch: int, until: int) -> None:
        """Make the steps that remain of an epoch; their losses are in the history afterwards."""
        components, progress, guard = self.components, self.progress, self.guard
        timer, request = self.timer, self.stop_request
        step_seed, first_step = derive(components.seed, "step"), progress.step
        schedule = components.schedule if components.schedule and components.schedule.every_step else None
        started, waited, withheld = time.perf_counter(), 0.0, False
        self.model.train()
        steps_done = progress.step - (epoch - 1) * components.budget.steps_per_epoch
        groups = iter(components.batches.accumulation_groups(epoch, steps_done))
        while True:
            wait_began = time.perf_counter()
            batches = next(groups, None)
            waited += time.perf_counter() - wait_began
            if batches is None:  # else the same epoch would begin again and again
                raise FivegateError(fault("data", f"epoch {epoch} has no batch after step {progress.step}"))
            try:
                withheld = not self._train_step(step_seed, batches)
            except BaseException as error:
                raise self._step_error(error, batches[0]) from error
            if withheld or progress.stop_reason == "spike" or (guard.read_due(progress.step) and guard.has_withheld()):
                break
            if schedule:
                self.step_lrs.append(float(self.optimizer.param_groups[0]["lr"]))
                schedule.after_step()
            if progress.step >= until:
                break
            if timer.poll_due(progress.step) or request.stop or request.checkpoint:
                self._log_losses(guard.has_withheld())
                if progress.stop_reason is not None or self._poll_requests():
                    break
        if progress.stop_reason in (None, "spike"):
            self._log_losses(withheld or guard.has_withheld())
        seconds = time.perf_counter() - started
        self.seconds_per_step = seconds / max(1, progress.step - first_step)
        self.share_waited = waited / seconds

    def _train_step(self, step_seed: int, batches: list[Batch]) -> bool:
        """Make the next step from its batches; return False if its update was withheld as non-finite."""
        components, guard, scale = self.components, self.guard, self.components.loss_scale
        self.progress.step = step = self.progress.step + 1
        # Dropout and noise depend on the step alone, so that a resumed training draws the same numbers.
        reseed((step_seed + step) & SEED_MASK, components.device, components.uses_global_rng)
        guard.zero_grad()
        observers = [o for o in self.observers if step % o.every == 0] if step >= self.next_observed_step else ()
        if not self.trainer.compile:  # hooks on modules would make torch compile the model again
            for observer in observers:
                observer.before_forward(step)
        outputs, loss = self._forward_backward(batches)
        if scale:
            scale.unscale_(guard.gradients())
        if observers:
            last = batches[-1]
            inputs, targets, outputs = preprocess_batch(self.model, last.inputs, last.targets, outputs)
            for observer in observers:
                observer.before_update(step, inputs, targets, outputs, loss)
        # Observers came first: they see unclipped gradients, also those of a step that is withheld.
        if not guard.check_and_clip(loss):
            return scale is not None and self._lower_loss_scale(loss)
        if self.spikes and self.spikes.withholds(step, loss.item()):
            return True
        self.stepper()
        if self.spikes:
            self.spikes.after_update(step)
        if scale:
            scale.update(True)
        if observers:
            for observer in observers:
                observer.after_update(step)
            self._schedule_observers()
        return True

    def _forward_backward(self, batches: list[Batch]) -> tuple[Any, Tensor]:
        """Add the gradients of a step; return the outputs of the last batch and the loss of all.

        Each batch counts by its share of the targets, so that accumulated batches have the gradient of one large batch.
        """
        components, task, scale = self.components, self.task, self.components.loss_scale
        if len(batches) == 1:
            with components.autocast():
                outputs, total = task.forward(components.compiled_model, batches[0].inputs, batches[0].targets)
            backward(scale.scaled(total) if scale else total)
            return outputs, total
        total = torch.zeros((), device=components.device)
        for batch, share in zip(batches, task.loss_weights([batch.targets for batch in batches]), strict=True):
            with components.autocast():
                outputs, loss = task.forward(components.compiled_model, batch.inputs, batch.targets)
                loss = loss * share
            backward(scale.scaled(loss) if scale else loss)
            total = total + loss.detach()
        return outputs, total

    def train_next_step(self, batches: list[Batch], observers: Sequence[StepObserver]) -> None:
        """Make one step from the result of `components.next_batches`, with these observers attached."""
        self.observers, self.next_observed_step = observers, self.progress.step + 1
        for observer in observers:
            self._start_observer(observer)
        self.model.train()
        try:
            self._train_step(derive(self.components.seed, "step"), batches)
        except BaseException as error:
            raise self._step_error(error, batches[0]) from error

    def _step_error(self, error: BaseException, batch: Batch) -> BaseException:
        """Return the error of a failed step as the user should see it.

        Called outside of the step's own frame: its local variables hold activations, and memory is only free for the
        attempt with smaller batches when that frame has ended.
        """
        accumulate, autocast = self.components.budget.accumulate, self.components.autocast
        return step_error(error, self.model, self.task, batch, accumulate=accumulate, autocast=autocast)

    def _lower_loss_scale(self, loss: Tensor) -> bool:
        """Skip the update and lower the loss scale if only the scale was too large; otherwise return False."""
        scale = self.components.loss_scale
        assert scale is not None
        if not (math.isfinite(loss.item()) and scale.can_decrease):
            return False
        scale.update(False)
        self.progress.history.event("scale", self.progress.step, value=scale.value)
        return True

    def _log_losses(self, withheld: bool) -> None:
        """Write the losses since the last call to the history; stop training if an update was withheld."""
        losses, nonfinite = self.guard.read_losses(withheld)
        if not losses:
            return
        progress, history = self.progress, self.progress.history
        lr = float(self.optimizer.param_groups[0]["lr"])
        lrs = [*self.step_lrs, *[lr] * (len(losses) - len(self.step_lrs))]
        self.step_lrs.clear()
        history.log_steps(self.guard.losses_read - len(losses) + 1, {"train/loss": losses, "lr": lrs[: len(losses)]})
        if nonfinite:
            progress.step, progress.stop_reason = nonfinite.step, "nonfinite"
            # Steps after it were counted before the flag was read from the device, but they changed no weight.
            history.cut(nonfinite.step)
            history.event("nonfinite", nonfinite.step, what=nonfinite.what, loss=nonfinite.loss)

    def _start_observer(self, observer: StepObserver) -> None:
        observer.start(unwrap(self.model), self.optimizer, self.progress.history, self.progress.step)

    def _schedule_observers(self) -> None:
        """Find the next step that an observer samples, so that the steps before it need not ask each of them."""
        step = self.progress.step
        self.next_observed_step = min((step - step % o.every + o.every for o in self.observers), default=sys.maxsize)

    def _poll_requests(self) -> bool:
        """Act on requests and timers between two steps; return True if training stops here.

        Raises Interrupted if a signal asked to stop, and the error of a checkpoint that could not be written.
        """
        progress, request, timer = self.progress, self.stop_request, self.timer
        if request.stop:
            raise Interrupted(self._save_interrupted())
        if self.writer and not progress.ended:
            self.writer.raise_error()
            timed = timer.timed_checkpoint_due and not self.writer.busy
            if request.checkpoint or timer.step_checkpoint_due(progress.step) or timed:
                self._save_checkpoint(self.writer)
        request.checkpoint = False
        timer.checkpoint_done(progress.step)
        if timer.time_over and progress.stop_reason is None and not progress.ended:
            progress.stop_reason = "clock"
            progress.history.event("clock", progress.step, max_minutes=self.trainer.max_minutes)
        return progress.stop_reason is not None

    def _save_checkpoint(self, writer: Writer) -> None:
        """Copy the training as it stands and write it to disk in the background."""
        for observer in self.observers:
            observer.flush()
        writer.write(resume.take_snapshot(self.components, self.job, self.progress))

    def _save_interrupted(self) -> str:
        """Write a checkpoint, wait for it, and return at which step training stopped."""
        outcome = f"{self.job.purpose} keeps no checkpoint and starts again"  # a sanity check or a fold
        if self.writer:
            self._save_checkpoint(self.writer)
            self.writer.wait()
            outcome = "a checkpoint is written"
        step, budget = self.progress.step, self.components.budget
        return f"at step {step} of {budget.max_steps}, epoch {math.ceil(step / budget.steps_per_epoch)}; {outcome}"

    def _validate_inside(self, epoch: int) -> None:
        """Measure validation between two steps of an epoch, and keep the weights if they are the best."""
        components, progress = self.components, self.progress
        reseed(derive(components.seed, "measure", epoch, progress.step), components.device, True)
        metrics = components.val_metrics()
        progress.history.event("validated", progress.step, epoch=epoch, **metrics)
        progress.keep_if_best(epoch, metrics, self.task.metric, self.model)

    def _validate(self, epoch: int) -> bool:
        """Measure the epoch and keep its weights if they are the best; return True if patience is used up."""
        components, progress, task = self.components, self.progress, self.task
        # A model may draw random numbers in eval mode, too.
        reseed(derive(components.seed, "measure", epoch), components.device, True)
        rows = components.train_eval_rows
        train_metrics = loss_and_metrics(self.model, rows.X, rows.y, task).metrics
        # The training loss is the one that the steps measured.
        row = {f"train/{name}": value for name, value in train_metrics.items() if name != "loss"}
        row |= {"time/step": self.seconds_per_step, "time/data_wait": self.share_waited}
        progress.epoch = epoch
        if components.is_overfit_check:
            progress.history.log_epoch(epoch, row)
            return False
        val_metrics = components.val_metrics()
        progress.history.log_epoch(epoch, {**val_metrics, **row})
        if stop := tell_validated(self.observers, epoch, val_metrics):
            progress.stop_reason = progress.stop_reason or "observer"
            progress.history.event("stopped", progress.step, why=str(stop))
        self._schedule_observers()
        loss = val_metrics["val/loss"]
        value = progress.keep_if_best(epoch, val_metrics, task.metric, self.model)
        if components.schedule:
            components.schedule.after_epoch(loss, value)
        patience, epochs_without_improvement = self.trainer.patience, progress.epochs_without_improvement(epoch, loss)
        if patience is None or epochs_without_improvement < patience or progress.step == components.budget.max_steps:
            return False
        progress.history.event("early_stop", progress.step, epoch=epoch, patience=patience)
        return True
