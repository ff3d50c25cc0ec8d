"""Replay: any step of a training made again, bit for bit, with hooks on the model; it names what broke first.

A training is a pure function of its plan, so a step can be reached from any checkpoint before it, or from the start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.batching.source import Batch
from pipeline.checkpoints.weights import weights_digest
from pipeline.data.dataset import Data
from pipeline.data.tree import tensors
from pipeline.engine import resume
from pipeline.engine.cadence import Cadence
from pipeline.engine.fit import prepared
from pipeline.engine.loop import Training
from pipeline.engine.observer import StepObserver
from pipeline.errors import UserError, fault
from pipeline.preprocess.modules import preprocess_batch, unwrap
from pipeline.run_store import permits
from pipeline.run_store.job import Job
from pipeline.run_store.run import Run

ROWS_NAMED = 20


@dataclass(frozen=True)
class Origin:
    """The first tensor of a step that is not finite: what it is, of which module, and in which train rows it shows."""

    what: str  # inputs | targets | parameter | output | loss | gradient
    module: str
    rows: tuple[int, ...] = ()

    def __str__(self) -> str:
        of = f" of {self.module}" if self.module else ""
        rows = f", train rows {', '.join(map(str, self.rows))}" if self.rows else ""
        return f"{self.what}{of}{rows}"


@dataclass(frozen=True)
class Replayed:
    """One step made again: where it was taken up, its loss, the weights before and after, what broke first."""

    step: int
    epoch: int
    taken_up_at: int
    loss: float
    rows: tuple[int, ...]
    weights_before: str
    weights_after: str
    origin: Origin | None


@dataclass
class _Trace:
    """Looks at every tensor of one step in the order it comes up, and remembers the first that is not finite."""

    rows: Sequence[int] = ()  # of the batch that is in the model now
    found: Origin | None = None
    _handles: list[Any] = field(default_factory=list)

    def see(self, what: str, module: str, tree: Any) -> None:
        if self.found is not None:
            return
        for tensor in tensors(tree):
            bad = ~torch.isfinite(tensor.detach()) if tensor.is_floating_point() else None
            if bad is not None and bool(bad.any()):
                self.found = Origin(what, module, self._guilty(bad))
                return

    def _guilty(self, bad: Tensor) -> tuple[int, ...]:
        """The train rows in which it shows, where the tensor has a row for each of the batch and not all are bad."""
        if bad.ndim == 0 or len(bad) != len(self.rows):
            return ()
        where = bad.flatten(1).any(1) if bad.ndim > 1 else bad
        guilty = [self.rows[i] for i in where.nonzero().flatten().tolist()]
        return tuple(guilty[:ROWS_NAMED])

    def hook(self, model: nn.Module, window: Sequence[Batch]) -> None:
        """See what every module puts out, and the gradient that comes back to it."""
        parts = iter([batch.rows.tolist() for batch in window])
        self._handles.append(model.register_forward_pre_hook(lambda *_: self._enter(next(parts, ()))))
        for name, module in model.named_modules():
            self._handles.append(module.register_forward_hook(self._forward(name)))

    def _enter(self, rows: Sequence[int]) -> None:
        self.rows = rows

    def _forward(self, name: str) -> Any:
        def after(module: nn.Module, inputs: Any, output: Any) -> None:
            self.see("output", name or "model", output)
            for tensor in tensors(output):
                if tensor.requires_grad:
                    tensor.register_hook(lambda gradient: self.see("gradient", name or "model", gradient))

        return after

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


class _Witness(StepObserver):
    """Sees the step itself: its loss, and the gradients of the parameters."""

    every = 1

    def __init__(self, trace: _Trace) -> None:
        self.trace, self.loss = trace, float("nan")

    def start(self, model: nn.Module, optimizer: Any, history: Any, step: int) -> None:
        self.model = model

    def before_update(self, step: int, inputs: Any, targets: Any, outputs: Any, loss: Tensor) -> None:
        self.loss = loss.item()
        self.trace.see("loss", "", loss)
        for name, parameter in self.model.named_parameters():
            self.trace.see("gradient", name, parameter.grad)

    def after_update(self, step: int) -> None:
        for name, parameter in self.model.named_parameters():
            self.trace.see("parameter", name, parameter)


@contextmanager
def _traced(training: Training, window: Sequence[Batch]) -> Iterator[_Trace]:
    """The step made inside the block is looked at from its batch to its new weights."""
    trace, own = _Trace(), unwrap(training.model)
    for batch in window:
        inputs, targets, _ = preprocess_batch(training.model, batch.inputs, batch.targets, None)
        for what, tree in (("inputs", inputs), ("targets", targets)):
            trace.rows = batch.rows.tolist()
            trace.see(what, "", tree)
    for name, parameter in own.named_parameters():
        trace.see("parameter", name, parameter)
    trace.hook(own, window)
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
) -> Replayed:
    """Step `step` of a run's training, made again from the nearest checkpoint before it; nothing is written.

    The baseline's training, unless another job and its folder are given. `observers` see this one step. Raises Refused
    where the planning gate is not open, UserError for a step that the training does not reach.
    """
    permit = permits.train(run)
    job = job or Job(permit.plan.digest, "baseline")
    with prepared(permit, job, data) as setup, ExitStack() as stack:
        training = Training(permit, setup, job)
        if not 1 <= step <= setup.budget.last_step:
            expected = f"1 to {setup.budget.last_step}, the steps of this training"
            raise UserError(fault("step", "is not a step of this training", got=step, expected=expected))
        found = resume.find(training, folder or run.inside("baseline"), before=step)
        training.cadence, training.trainer = Cadence.of({}), {**training.trainer, "max_minutes": None}  # no clock here
        training.start(found, (), stack)
        training.advance(step - 1)
        if training.ended:
            got, expected = step, f"at most {training.step}, where it ended ({training.stopped})"
            raise UserError(fault("step", "lies behind the end of this training", got=got, expected=expected))
        window = training.next_window()
        before = weights_digest(training.model.state_dict())
        with _traced(training, window) as trace:
            witness = _Witness(trace)
            training.once(window, (witness, *observers))
        return Replayed(
            step=step,
            epoch=training.measured + 1,
            taken_up_at=found.step if found else 0,
            loss=witness.loss,
            rows=tuple(row for batch in window for row in batch.rows.tolist()),
            weights_before=before,
            weights_after=weights_digest(training.model.state_dict()),
            origin=trace.found,
        )
