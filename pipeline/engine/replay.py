"""Replay: repeat any step of a training bit for bit, with hooks on the model that find the first non-finite tensor.

A training is a pure function of its plan, so a step can be reached from any checkpoint before it, or from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from pipeline.batching.source import Batch
from pipeline.checkpoints.weights import weights_digest
from pipeline.data.dataset import Data
from pipeline.data.tree import Tree, tensors
from pipeline.engine.fit import prepared
from pipeline.engine.loop import Training
from pipeline.engine.observer import StepObserver
from pipeline.engine.resume import find_snapshot
from pipeline.engine.timer import TrainingTimer
from pipeline.errors import UserError, fault
from pipeline.history import History
from pipeline.preprocess.modules import preprocess_batch, unwrap
from pipeline.run_store import permits
from pipeline.run_store.job import Job
from pipeline.run_store.run import Run

MAX_ROWS = 20  # train rows that are named at most


@dataclass(frozen=True)
class Origin:
    """The first non-finite tensor of a step: what it is, its module, and the train rows in which it is not finite.

    `what` is inputs, targets, parameter, output, loss or gradient.
    """

    what: str
    module: str
    rows: tuple[int, ...] = ()

    def __str__(self) -> str:
        of = f" of {self.module}" if self.module else ""
        rows = f", train rows {', '.join(map(str, self.rows))}" if self.rows else ""
        return f"{self.what}{of}{rows}"


@dataclass(frozen=True)
class ReplayedStep:
    """A repeated step: its loss and rows, digests of the weights before and after, and what was not finite first.

    `resumed_at` is the step of the checkpoint that the replay started from, 0 if it started from the beginning.
    """

    step: int
    epoch: int
    resumed_at: int
    loss: float
    rows: tuple[int, ...]
    weights_before: str
    weights_after: str
    origin: Origin | None


@dataclass
class _Trace:
    """Inspects every tensor of one step in the order of computation and keeps the first that is not finite."""

    rows: Sequence[int] = ()  # of the batch that is in the model now
    origin: Origin | None = None
    _handles: list[RemovableHandle] = field(default_factory=list)

    def inspect(self, what: str, module: str, tree: Tree | None) -> None:
        """Inspect the tensors of a tree, unless a non-finite one was found before."""
        if self.origin is not None:
            return
        for tensor in tensors(tree):
            nonfinite = ~torch.isfinite(tensor.detach()) if tensor.is_floating_point() else None
            if nonfinite is not None and bool(nonfinite.any()):
                self.origin = Origin(what, module, self._nonfinite_rows(nonfinite))
                return

    def _nonfinite_rows(self, nonfinite: Tensor) -> tuple[int, ...]:
        """Return the train rows that are not finite; empty if the first dimension is not that of the batch."""
        if nonfinite.ndim == 0 or len(nonfinite) != len(self.rows):
            return ()
        per_row = nonfinite.flatten(1).any(1) if nonfinite.ndim > 1 else nonfinite
        # `rows` are numbers in the train split; the tensor only knows positions in the batch.
        rows = [self.rows[i] for i in per_row.nonzero().flatten().tolist()]
        return tuple(rows[:MAX_ROWS])

    def add_hooks(self, model: nn.Module, batches: Sequence[Batch]) -> None:
        """Inspect the output of every module and the gradient of every output."""
        # Accumulated batches pass through the model one after the other, each with rows of its own.
        batch_rows = iter([batch.rows.tolist() for batch in batches])

        def next_batch(*_: object) -> None:
            self.rows = next(batch_rows, ())

        self._handles.append(model.register_forward_pre_hook(next_batch))
        for name, module in model.named_modules():
            self._handles.append(module.register_forward_hook(self._forward_hook(name or "model")))

    def _forward_hook(self, name: str) -> Callable[[nn.Module, Tree, Tree], None]:
        def hook(module: nn.Module, inputs: Tree, output: Tree) -> None:
            self.inspect("output", name, output)
            for tensor in tensors(output):
                if tensor.requires_grad:
                    tensor.register_hook(lambda gradient: self.inspect("gradient", name, gradient))

        return hook

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


class _TraceObserver(StepObserver):
    """Reads the loss of the step and lets the trace inspect loss, gradients and new parameters."""

    every = 1

    def __init__(self, trace: _Trace) -> None:
        self.trace, self.loss = trace, float("nan")

    def start(self, model: nn.Module, optimizer: Optimizer, history: History, step: int) -> None:
        self.model = model

    def before_update(self, step: int, inputs: Tree, targets: Tree, outputs: Tree, loss: Tensor) -> None:
        self.loss = loss.item()
        self.trace.inspect("loss", "", loss)
        for name, parameter in self.model.named_parameters():
            self.trace.inspect("gradient", name, parameter.grad)

    def after_update(self, step: int) -> None:
        for name, parameter in self.model.named_parameters():
            self.trace.inspect("parameter", name, parameter)


@contextmanager
def _traced(training: Training, batches: Sequence[Batch]) -> Iterator[_Trace]:
    """Trace the step inside the block, from its batches to its new weights."""
    trace, model = _Trace(), unwrap(training.model)
    for batch in batches:
        inputs, targets, _ = preprocess_batch(training.model, batch.inputs, batch.targets, None)
        trace.rows = batch.rows.tolist()
        trace.inspect("inputs", "", inputs)
        trace.inspect("targets", "", targets)
    for name, parameter in model.named_parameters():
        trace.inspect("parameter", name, parameter)
    trace.add_hooks(model, batches)
    try:
        yield trace
    finally:
        trace.close()


def replay(
    run: Run,
    step: int,
    job: Job | None = None,
    observers: Sequence[StepObserver] = (),
    *,
    data: Data | None = None,
    folder: Path | None = None,
) -> ReplayedStep:
    """Repeat step `step` of a run's training from the nearest checkpoint before it; nothing is written.

    The training is the baseline's unless another job and its folder are given. `observers` observe this one step.
    Raises Refused if the planning gate is not open, and UserError for a step that the training does not reach.
    """
    permit = permits.train(run)
    job = job or Job(permit.plan.digest, "baseline")
    with prepared(permit, job, data) as components, ExitStack() as stack:
        training, last_step = Training(permit, components, job), components.budget.max_steps
        if not 1 <= step <= last_step:
            expected = f"1 to {last_step}, the steps of this training"
            raise UserError(fault("step", "is not a step of this training", got=step, expected=expected))
        snapshot = find_snapshot(components, job, folder or run.inside("baseline"), before=step)
        training.timer = TrainingTimer()  # no checkpoints, and no time limit: the step was made within it before
        stack.enter_context(training.session(snapshot=snapshot))
        training.run(step - 1)
        progress = training.progress
        if progress.ended:
            expected = f"at most {progress.step}, where it ended ({progress.stop_reason})"
            raise UserError(fault("step", "is after the end of this training", got=step, expected=expected))
        batches = training.components.next_batches(training.progress.epoch, training.progress.step)
        before = weights_digest(training.model.state_dict())
        with _traced(training, batches) as trace:
            trace_observer = _TraceObserver(trace)
            training.train_next_step(batches, (trace_observer, *observers))
        return ReplayedStep(
            step=step,
            epoch=progress.epoch + 1,
            resumed_at=snapshot.step if snapshot else 0,
            loss=trace_observer.loss,
            rows=tuple(row for batch in batches for row in batch.rows.tolist()),
            weights_before=before,
            weights_after=weights_digest(training.model.state_dict()),
            origin=trace.origin,
        )
