"""The training loop.

Weights, metrics and history are a pure function of plan, job and data: the order of rows of (seed, epoch), a step's
random numbers of (seed, step), the first weights of (seed, "init"), whatever the process did before. So a training that
was killed is taken up from its last checkpoint and gives the same bits, and any of its steps can be made again.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.batching.source import Batch
from pipeline.building.memory import step_error
from pipeline.checkpoints.generation import Snapshot
from pipeline.checkpoints.weights import tensors_of, weights_digest
from pipeline.checkpoints.writer import Writer
from pipeline.engine import resume
from pipeline.engine.backward import backward
from pipeline.engine.cadence import Cadence
from pipeline.engine.observer import StepObserver
from pipeline.engine.setup import TrainingComponents
from pipeline.engine.stepper import Stepper
from pipeline.evaluation.evaluate import loss_and_metrics, mean_loss, score_split
from pipeline.evaluation.task import Task
from pipeline.history import History
from pipeline.preprocess.modules import preprocess_batch, unwrap
from pipeline.results import Score
from pipeline.run_store import permits
from pipeline.run_store.job import Job
from pipeline.runtime.interrupt import Interrupted, StopRequest, catch_signals
from pipeline.runtime.seeds import derive, reseed

MASK = 2**63 - 1


@dataclass(frozen=True, eq=False)
class Fit:
    """What a training left: the model with its best weights, its history, its score and why it stopped.

    `stopped`: done | budget | clock | nonfinite. `score` is that of the best epoch on validation rows, None when no
    epoch had a score that is a number, and for a proof. `checkpoint` holds the same weights as `model`. `seconds` are
    those of earlier processes too, where it was taken up at step `resumed_at`. `bar` is the score of a model without
    learning, and how it came to it.
    """

    model: nn.Module
    task: Task
    history: History
    score: Score | None
    steps: int
    stopped: str
    weights_digest: str
    checkpoint: Path | None
    seconds: float
    resumed_at: int = 0
    bar: Mapping[str, Any] = field(default_factory=dict)


class Training:
    """One training in progress: where it stands, and what it has measured. Raises Refused without a permit.

    `step` updates are made and `measured` epochs measured; `ended` when nothing more is to be done.
    """

    def __init__(self, permit: permits.TrainPermit, setup: TrainingComponents, job: Job) -> None:
        permit = permits.require(permit, permits.TrainPermit)
        self.stepper = Stepper(permit, setup.optimizer)
        self.setup, self.job = setup, job
        self.model, self.task, self.optimizer, self.guard = setup.model, setup.task, setup.optimizer, setup.guard
        self.trainer = setup.config["trainer"]
        self.history, self.step, self.measured = History(), 0, 0
        self.ended, self.stopped = False, "done"
        self.best: resume.WeightsSnapshot | None = None
        self.lowest, self.lowest_at = math.inf, 0  # of the validation loss, and its epoch
        self.rates: list[float] = []  # of the steps that are not in the history yet, where it changes with every step
        self.earlier, self.began, self.seconds_per_step = 0.0, time.perf_counter(), math.nan
        self.observers: Sequence[StepObserver] = ()
        self.next_seen = sys.maxsize  # the next step that an observer asks for
        self.cadence = Cadence.of(self.trainer)
        self.asked = StopRequest()
        self.writer: Writer | None = None

    @property
    def seconds(self) -> float:
        """Spent on this training, by earlier processes too."""
        return self.earlier + time.perf_counter() - self.began

    def run(self, observers: Sequence[StepObserver], folder: Path | None) -> Fit:
        """Train to the end of the budget, or to what ends it before; take up what `folder` holds of this training."""
        found = resume.find(self, folder) if folder is not None else None
        with ExitStack() as stack:
            self.asked = stack.enter_context(catch_signals())
            if folder is not None:
                self.writer = stack.enter_context(closing(Writer(folder)))
            self.start(found, observers, stack)
            if folder is not None:
                resume.packed(self)  # what no checkpoint can hold is said before the first step, not after an hour
            self._look()
            self.advance(self.setup.budget.last_step)
            if self.writer:
                self.writer.settle()
        return self._finish(folder, found)

    def start(self, found: Snapshot | None, observers: Sequence[StepObserver], stack: ExitStack) -> None:
        """Stand where the snapshot was taken, or at the first step; the observers look on until the stack closes."""
        self.setup.feed.start()
        stack.callback(self.setup.feed.close)
        if found is None:
            self._before_the_first_step()
        else:
            resume.restore(self, found)
        self.cadence.begin(self.step, self.earlier, self.trainer.get("max_minutes"))
        self.observers = observers
        for observer in observers:
            observer.start(unwrap(self.model), self.optimizer, self.history, self.step)
            stack.callback(observer.finish)
        self._ask_observers()

    def _before_the_first_step(self) -> None:
        side = self.setup.side
        self.history.facts.update(self.setup.facts())
        self.history.facts["loss_at_init"] = mean_loss(self.model, side.X, side.y, self.task)

    def advance(self, until: int) -> None:
        """Train until so many updates are made, or to what ends training before. Raises Interrupted when asked to."""
        per_epoch, last = self.setup.budget.per_epoch, self.setup.budget.last_step
        while not self.ended:
            epoch = self.measured + 1
            if self.stopped == "done" and self.step < min(until, epoch * per_epoch):
                self._steps(epoch, until)
            if self.stopped == "done" and self.step != min(epoch * per_epoch, last):
                return
            ended = self._measure(epoch)
            self.ended = ended or self.stopped != "done" or self.step == last
            if self.stopped == "done" and self.setup.budget.cut_short and self.step == last:
                self.stopped = "budget"
            self.ended = self._look() or self.ended
            if self.step >= until:
                return

    def _steps(self, epoch: int, until: int) -> None:
        """The steps of one epoch from where training stands; the losses are in the history afterwards."""
        setup, guard, cadence, asked = self.setup, self.guard, self.cadence, self.asked
        base, first = derive(setup.seed, "step"), self.step
        moving = setup.schedule if setup.schedule and setup.schedule.every_step else None
        began, withheld = time.perf_counter(), False
        self.model.train()
        for window in setup.feed.accumulation_groups(epoch, self.step - (epoch - 1) * setup.budget.per_epoch):
            withheld = not self._make(base, window)
            if withheld or (guard.due(self.step) and guard.raised()):
                break
            if moving:
                self.rates.append(float(self.optimizer.param_groups[0]["lr"]))
                moving.after_step()
            if self.step >= until:
                break
            if cadence.due(self.step) or asked.stop or asked.checkpoint:
                self._log(guard.raised())
                if self.stopped != "done" or self._look():
                    break
        if self.stopped == "done":
            self._log(withheld or guard.raised())
        self.seconds_per_step = (time.perf_counter() - began) / max(1, self.step - first)

    def _make(self, base: int, window: list[Batch]) -> bool:
        """The next step, its random numbers drawn from its own seed; False when its update was withheld."""
        self.step += 1
        reseed((base + self.step) & MASK, self.setup.device, self.setup.foreign)
        try:
            return self._update(window)
        except Exception as error:
            accumulate, autocast = self.setup.budget.accumulate, self.setup.autocast
            raise step_error(
                error, self.model, self.task, window[0], accumulate=accumulate, autocast=autocast
            ) from error

    def next_window(self) -> list[Batch]:
        """The batches of the next step."""
        done = self.step - self.measured * self.setup.budget.per_epoch
        return next(iter(self.setup.feed.accumulation_groups(self.measured + 1, done)))

    def once(self, window: list[Batch], observers: Sequence[StepObserver]) -> None:
        """The next step alone, under the eyes of these observers."""
        self.observers, self.next_seen = observers, self.step + 1
        for observer in observers:
            observer.start(unwrap(self.model), self.optimizer, self.history, self.step)
        self.model.train()
        self._make(derive(self.setup.seed, "step"), window)

    def _log(self, withheld: bool) -> None:
        """The losses since the last call are in the history; a withheld update ends training."""
        losses, bad = self.guard.drain(withheld)
        if not losses:
            return
        rate = float(self.optimizer.param_groups[0]["lr"])
        rates = [*self.rates, *[rate] * (len(losses) - len(self.rates))]
        self.rates.clear()
        self.history.log_steps(self.guard.seen - len(losses) + 1, {"train/loss": losses, "lr": rates[: len(losses)]})
        if bad:
            self.step, self.stopped = bad.step, "nonfinite"
            self.history.cut(bad.step)  # what was measured before the flag was read is of steps that moved nothing
            self.history.event("nonfinite", bad.step, what=bad.what, loss=bad.loss)

    def _update(self, window: list[Batch]) -> bool:
        """One update from batches weighted by their share of the window's targets; False when it was withheld."""
        guard, task, net, scale = self.guard, self.task, self.setup.net, self.setup.scale
        guard.clear()
        if len(window) == 1:
            inputs, targets = window[0].inputs, window[0].targets
            with self.setup.autocast():
                outputs, total = task.forward(net, inputs, targets)
            backward(scale.scaled(total) if scale else total)
        else:
            shares = task.loss_weights([batch.targets for batch in window])
            total = torch.zeros((), device=self.setup.device)
            for batch, part in zip(window, shares, strict=True):
                inputs, targets = batch.inputs, batch.targets
                with self.setup.autocast():
                    outputs, loss = task.forward(net, inputs, targets)
                    share = loss * part
                backward(scale.scaled(share) if scale else share)
                total = total + share.detach()
        if scale:
            scale.unscale_(guard.gradients())
        due = [o for o in self.observers if self.step % o.every == 0] if self.step >= self.next_seen else ()
        if due:
            inputs, targets, outputs = preprocess_batch(self.model, inputs, targets, outputs)
        for observer in due:
            observer.before_update(self.step, inputs, targets, outputs, total)
        if not guard.allows(total):
            return scale is not None and self._scaled_down(total)
        self.stepper()
        if scale:
            scale.update(True)
        for observer in due:
            observer.after_update(self.step)
        if due:
            self._ask_observers()
        return True

    def _scaled_down(self, loss: Tensor) -> bool:
        """Whether only the scale was too large, the loss being finite: the update is left out, and nothing else."""
        scale = self.setup.scale
        assert scale is not None
        if not (math.isfinite(loss.item()) and scale.to_blame):
            return False
        scale.update(False)
        self.history.event("scale", self.step, value=scale.value)
        return True

    def _ask_observers(self) -> None:
        """When the next observer wants to see a step."""
        self.next_seen = min((self.step - self.step % o.every + o.every for o in self.observers), default=sys.maxsize)

    def _look(self) -> bool:
        """What has come up between two updates is done: a stop that was asked for, the clock, a checkpoint.

        True when training ends here. Raises Interrupted when somebody asked for a stop, and what a checkpoint met.
        """
        asked, cadence = self.asked, self.cadence
        if asked.stop:
            raise Interrupted(self._interrupted())
        if self.writer and not self.ended:
            self.writer.check()
            if asked.checkpoint or cadence.step_due(self.step) or (cadence.time_due and not self.writer.busy):
                self._offer()
        asked.checkpoint = False
        cadence.saved(self.step)
        if cadence.over and self.stopped == "done" and not self.ended:
            self.stopped = "clock"
            self.history.event("clock", self.step, max_minutes=self.trainer["max_minutes"])
        return self.stopped != "done"

    def _offer(self) -> None:
        """A checkpoint of this instant will be written."""
        assert self.writer is not None
        for observer in self.observers:
            observer.settle()
        self.writer.offer(resume.snapshot(self))

    def _interrupted(self) -> str:
        """Where training stands, once that is on disk."""
        kept = f"{self.job.purpose} keeps no checkpoint and begins anew"  # a proof, a fold: what came before is kept
        if self.writer:
            self._offer()
            self.writer.settle()
            kept = "a checkpoint is written"
        budget = self.setup.budget
        return f"at step {self.step} of {budget.last_step}, epoch {-(-self.step // budget.per_epoch)}; {kept}"

    def _measure(self, epoch: int) -> bool:
        """The epoch's row is in the history, its weights are kept if best; True when patience is at its end."""
        side, val, device = self.setup.side, self.setup.val, self.setup.device
        reseed(derive(self.setup.seed, "measure", epoch), device, foreign=True)  # a model may draw here, too
        seen = loss_and_metrics(self.model, side.X, side.y, self.task).metrics
        row = {f"train/{name}": value for name, value in seen.items() if name != "loss"}  # that is of the steps
        row["time/step"] = self.seconds_per_step
        self.measured = epoch
        if self.setup.proof:
            self.history.log_epoch(epoch, row)
            return False
        found = loss_and_metrics(self.model, val.X, val.y, self.task)
        loss, value = found.loss, found.metrics[self.task.metric.name]
        judged = {"val/loss": loss, **{f"val/{name}": value for name, value in found.metrics.items()}}
        self.history.log_epoch(epoch, {**judged, **row})
        for observer in self.observers:
            observer.validated(epoch, judged)
        self._ask_observers()
        if self.task.metric.better(value, self.best.value if self.best else math.nan):
            self.best = resume.WeightsSnapshot(epoch, self.step, value, tensors_of(self.model.state_dict()))
        if self.setup.schedule:
            self.setup.schedule.after_epoch(loss, value)
        if loss < self.lowest:
            self.lowest, self.lowest_at = loss, epoch
        patience = self.trainer.get("patience")
        if patience is None or epoch - self.lowest_at < int(patience) or self.step == self.setup.budget.last_step:
            return False
        self.history.event("early_stop", self.step, epoch=epoch, patience=int(patience))
        return True

    def _finish(self, folder: Path | None, found: Snapshot | None) -> Fit:
        """The model holds its best weights; they stand on disk, beside the last ones, where a folder was given."""
        last = resume.WeightsSnapshot(self.measured, self.step, math.nan, tensors_of(self.model.state_dict()))
        best, checkpoint = self.best or last, None
        if self.best:
            self.history.facts["best_epoch"] = float(self.best.epoch)
        if folder is not None:
            checkpoint = resume.keep(self, folder, best, known=found is not None and found.step == self.step)
        self.model.load_state_dict(best.weights, strict=False)  # what is no tensor was not kept
        reseed(derive(self.setup.seed, "judge"), self.setup.device, foreign=True)
        score = score_split(self.model, self.setup.val, self.task, self.setup.seed).score if self.best else None
        return Fit(
            model=self.model.eval(),
            task=self.task,
            history=self.history,
            score=score if isinstance(score, Score) else None,
            steps=self.step,
            stopped=self.stopped,
            weights_digest=weights_digest(best.weights),
            checkpoint=checkpoint,
            seconds=self.seconds,
            resumed_at=found.step if found else 0,
            bar=self.setup.bar,
        )
