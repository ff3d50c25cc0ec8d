"""The training loop: the only place of this project where an optimizer makes a step.

Weights, metrics and history are a pure function of plan, job and data: the order of rows of (seed, epoch), a step's
random numbers of (seed, step), the first weights of (seed, "init"), whatever the process did before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pipeline.checkpoints.weights import save, tensors_of, weights_digest
from pipeline.data.dataset import Data
from pipeline.data.load import load
from pipeline.engine import options
from pipeline.engine.observer import StepObserver
from pipeline.engine.probe import blame, blamed
from pipeline.engine.seeds import derive, reseed, seeded
from pipeline.engine.setup import Setup, set_up
from pipeline.engine.threads import running_on, threads
from pipeline.errors import Refused, UserError, fault
from pipeline.evaluation.evaluate import judge, measure
from pipeline.feed.order import windows
from pipeline.history import History
from pipeline.job import Job, run_seed
from pipeline.record import permits
from pipeline.records import Score


@dataclass(frozen=True, eq=False)
class Fit:
    """What a training left: the model with its best weights, its history, its score and why it stopped.

    `stopped`: done | budget | clock | nonfinite. `score` is that of the best epoch on validation rows, None when no
    epoch had a score that is a number, and for a proof. `checkpoint` holds the same weights as `model`.
    """

    model: nn.Module
    history: History
    score: Score | None
    steps: int
    stopped: str
    weights_digest: str
    checkpoint: Path | None
    seconds: float


def fit(
    permit: permits.TrainPermit,
    job: Job,
    observers: Sequence[StepObserver] = (),
    *,
    data: Data | None = None,
    folder: Path | None = None,
) -> Fit:
    """Train the job's model under the permit's plan; checkpoints go to `folder` where one is given.

    Raises Refused without a permit or for a job of another plan, UserError where model, data, loss and options
    do not fit each other.
    """
    permit = permits.require(permit, permits.TrainPermit)
    plan = permit.plan
    if job.plan_digest != plan.digest:
        do = f"python -m pipeline status {permit.run.name}"
        raise Refused(fault("job", "is of another plan", got=job.plan_digest[:12], expected=plan.digest[:12], do=do))
    config = job.config(plan.config)
    options.require_built(config)
    if job.delta.train_rows:
        got = dict(job.delta.train_rows)
        raise UserError(fault("job.delta.train_rows", "is not built in this version", got=got, expected="no change"))
    trust = tuple(grant["package"] for grant in permit.run.state().trust)
    seed = run_seed(int(config["seed"]), job.seed_index)
    with ExitStack() as stack:
        stack.enter_context(seeded(derive(seed, "fit")))
        stack.enter_context(options.deterministic(config["trainer"].get("deterministic", True)))
        data = data or load(config, trust)
        _refuse_other_rows(permit, data)
        setup = set_up(config, job, data, seed, trust)
        rule = plan.facts.get("threads") or config["trainer"].get("threads", "auto")
        stack.enter_context(running_on(threads(rule, setup.parameters)))
        return Training(permit, setup, job).run(observers, folder)


def _refuse_other_rows(permit: permits.TrainPermit, data: Data) -> None:
    """Raise Refused when the rows are not, split by split, those that the plan froze."""
    frozen = {name: known["digest"] for name, known in permit.plan.facts["splits"].items()}
    found = {"train": data.train.digest, "val": data.val.digest, "test": data.test.digest}
    faults = [
        fault(f"data.{name}", "are not the rows that the plan froze", got=found[name][:12], expected=digest[:12],
              do=f"python -m pipeline phase=planning run.name={permit.run.name}")
        for name, digest in frozen.items()
        if found[name] != digest
    ]  # fmt: skip
    if faults:
        raise Refused(*faults)


@dataclass(frozen=True, eq=False)
class Standing:
    """Weights (copies on the CPU) and where they stood; `value` is NaN for weights that have no score."""

    epoch: int
    step: int
    value: float
    weights: dict[str, Tensor]


class Training:
    """One training in progress: where it stands, and what it has measured. Raises Refused without a permit."""

    def __init__(self, permit: permits.TrainPermit, setup: Setup, job: Job) -> None:
        permits.require(permit, permits.TrainPermit)
        self.setup, self.job = setup, job
        self.model, self.task, self.optimizer, self.guard = setup.model, setup.task, setup.optimizer, setup.guard
        self.trainer = setup.config["trainer"]
        self.history, self.step, self.stopped = History(), 0, "done"
        self.best: Standing | None = None
        self.lowest, self.lowest_at = math.inf, 0  # of the validation loss, and its epoch
        self.seconds_per_step = math.nan

    def run(self, observers: Sequence[StepObserver], folder: Path | None) -> Fit:
        """Train to the end of the budget, or to what ends it before."""
        start = time.perf_counter()
        self.deadline = start + 60 * float(self.trainer.get("max_minutes") or math.inf)
        side, budget = self.setup.side, self.setup.budget
        self.history.facts.update(self.setup.facts())
        self.history.facts["loss_at_init"] = measure(self.model, side.X, side.y, self.task)[0]
        for observer in observers:
            observer.start(self.model, self.optimizer, self.history)
        epoch, ended = 0, False
        try:
            while not ended and self.step < budget.last_step:
                epoch += 1
                ended = self._epoch(epoch, observers)
                ended = self._measure(epoch, observers) or ended
        finally:
            for observer in observers:
                observer.finish()
        if self.stopped == "done" and budget.cut_short and self.step == budget.last_step:
            self.stopped = "budget"
        return self._finish(epoch, folder, start)

    def _epoch(self, epoch: int, observers: Sequence[StepObserver]) -> bool:
        """The steps of one epoch; True when training ends with it."""
        setup, guard, budget = self.setup, self.guard, self.setup.budget
        base, first = derive(setup.seed, "step"), self.step
        began, withheld = time.perf_counter(), False
        lr = float(self.optimizer.param_groups[0]["lr"])
        rows = (setup.train.X, setup.targets, setup.order(epoch))
        self.model.train()
        for window in windows(*rows, budget.batch, budget.accumulate, setup.device):
            if self.step == budget.last_step:
                break
            if time.perf_counter() > self.deadline:
                self.stopped = "clock"
                self.history.event("clock", self.step, max_minutes=self.trainer["max_minutes"])
                break
            self.step += 1
            if setup.stochastic or self.step == first + 1:
                reseed((base + self.step) & (2**63 - 1), setup.device)
            try:
                withheld = not self._update(window, observers)
            except Exception as error:
                raise blame(error, self.model) from error
            if withheld or (guard.due(self.step) and guard.raised()):
                break
        losses, bad = guard.drain(withheld or guard.raised())
        if bad:
            self.step, self.stopped = bad.step, "nonfinite"
            self.history.event("nonfinite", bad.step, what=bad.what, loss=bad.loss)
        for step, loss in enumerate(losses, first + 1):
            self.history.log_step(step, {"train/loss": loss, "lr": lr})
        self.seconds_per_step = (time.perf_counter() - began) / max(1, len(losses))
        return self.stopped != "done"

    def _update(self, window: list[tuple[Tensor, Tensor]], observers: Sequence[StepObserver]) -> bool:
        """One update from batches weighted by their share of the window's rows; False when it was withheld."""
        self.guard.clear()
        if len(window) == 1:
            inputs, targets = window[0]
            outputs = self.model(inputs)
            total = self.task.loss(outputs, targets)
            total.backward()
        else:
            rows, total = sum(len(x) for x, _ in window), torch.zeros((), device=self.setup.device)
            for inputs, targets in window:
                outputs = self.model(inputs)
                share = self.task.loss(outputs, targets) * (len(inputs) / rows)
                share.backward()
                total = total + share.detach()
        due = [o for o in observers if self.step % o.every == 0] if observers else ()
        for observer in due:
            observer.before_update(self.step, inputs, targets, outputs, total)
        if not self.guard.allows(total):
            return False
        self.optimizer.step()
        for observer in due:
            observer.after_update(self.step)
        return True

    def _measure(self, epoch: int, observers: Sequence[StepObserver]) -> bool:
        """The epoch's row is in the history, its weights are kept if best; True when patience is at its end."""
        side, val, name = self.setup.side, self.setup.val, self.task.metric.name
        row = {f"train/{name}": measure(self.model, side.X, side.y, self.task)[1], "time/step": self.seconds_per_step}
        if self.setup.proof:
            self.history.log_epoch(epoch, row)
            return False
        loss, value = measure(self.model, val.X, val.y, self.task)
        judged = {"val/loss": loss, f"val/{name}": value}
        self.history.log_epoch(epoch, {**judged, **row})
        for observer in observers:
            observer.validated(epoch, judged)
        if self.task.metric.better(value, self.best.value if self.best else math.nan):
            self.best = Standing(epoch, self.step, value, tensors_of(self.model.state_dict()))
        self._schedule(loss, value)
        if loss < self.lowest:
            self.lowest, self.lowest_at = loss, epoch
        patience = self.trainer.get("patience")
        if patience is None or epoch - self.lowest_at < int(patience) or self.step == self.setup.budget.last_step:
            return False
        self.history.event("early_stop", self.step, epoch=epoch, patience=int(patience))
        return True

    def _schedule(self, loss: float, value: float) -> None:
        """The learning rate of the next epoch; a plateau in `min` mode is one of the loss, else of the metric."""
        scheduler = self.setup.scheduler
        with blamed("scheduler"):
            if isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step(loss if scheduler.mode == "min" else value)
            elif scheduler is not None:
                scheduler.step()

    def _finish(self, epoch: int, folder: Path | None, start: float) -> Fit:
        """The model holds its best weights; they stand on disk, after the last ones, where a folder was given."""
        last = Standing(epoch, self.step, math.nan, tensors_of(self.model.state_dict()))
        best, checkpoint = self.best or last, None
        if folder is not None:
            if best.step != last.step:
                self._save(folder, last, "last")
            checkpoint = self._save(folder, best, "best")
        self.model.load_state_dict(best.weights, strict=False)  # what is no tensor was not kept
        measured = judge(self.model, self.setup.val, self.task, self.setup.seed).score if self.best else None
        return Fit(
            model=self.model.eval(),
            history=self.history,
            score=measured if isinstance(measured, Score) else None,
            steps=self.step,
            stopped=self.stopped,
            weights_digest=weights_digest(best.weights),
            checkpoint=checkpoint,
            seconds=time.perf_counter() - start,
        )

    def _save(self, folder: Path, at: Standing, role: str) -> Path:
        state = {
            "role": role,
            "plan_digest": self.job.plan_digest,
            "purpose": self.job.purpose,
            "seed": self.setup.seed,
            "epoch": at.epoch,
            "step": at.step,
            "metric": self.task.metric.name,
            "value": at.value,
        }
        return save(folder, at.weights, state)
