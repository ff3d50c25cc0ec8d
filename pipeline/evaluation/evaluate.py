"""Evaluation: outputs, predictions, loss and score of a model on one split, in eval mode and without gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.data.sealed import SealedTest
from pipeline.data.splits import Split
from pipeline.engine.probe import blamed
from pipeline.errors import Refused, fault
from pipeline.evaluation.metrics import score
from pipeline.evaluation.task import Task, build_task
from pipeline.records import Score, TrainSide

if TYPE_CHECKING:
    from pipeline.record.permits import TestKey

ROWS = 1024  # rows of one forward pass


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A model on a split: raw outputs [N, ...] on the CPU, predictions (ids or values), targets, mean loss, score.

    `predictions` are what the task predicts, also where the metric needs probabilities. The score of train rows is
    a `TrainSide`, which no target accepts.
    """

    outputs: Tensor
    predictions: NDArray[Any]
    targets: NDArray[Any]
    loss: float
    score: Score | TrainSide


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside the block the model is in eval mode and records no gradients; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter lies."""
    first = next(model.parameters(), None)
    return first.device if first is not None else torch.device("cpu")


def forward(model: nn.Module, X: Tensor) -> Tensor:
    """Outputs for all rows, on the model's device. Raises UserError when the model fails."""
    device = device_of(model)
    with evaluating(model), blamed("model"):
        parts = [model(part.to(device)) for part in X.split(ROWS)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _answer(model: nn.Module, X: Tensor, y: Tensor, task: Task) -> tuple[Tensor, float, NDArray[Any]]:
    """(outputs, loss, what the metric judges); the loss is one call over all rows, so that none counts twice."""
    outputs = forward(model, X)
    y = y.to(outputs.device)
    with torch.no_grad(), blamed("loss"):
        loss = float(task.loss(outputs, task.targets(y, outputs)))
    with torch.no_grad(), blamed("task.predict"):
        return outputs, loss, task.judged(outputs, y)


def measure(model: nn.Module, X: Tensor, y: Tensor, task: Task) -> tuple[float, float]:
    """(loss, metric) on these rows."""
    _, loss, judged = _answer(model, X, y, task)
    return loss, task.metric(y.cpu().numpy(), judged)


def judge(model: nn.Module, split: Split, task: Task, seed: int = 0) -> Evaluation:
    """The model on a split, its score with an interval from resamples seeded by `seed`."""
    outputs, loss, judged = _answer(model, split.X, split.y, task)
    with torch.no_grad(), blamed("task.predict"):
        predictions = task.predict(outputs).cpu().numpy()
    targets = split.y.numpy()
    measured = score(task.metric, split.name, targets, judged, seed)
    return Evaluation(outputs.cpu(), predictions, targets, loss, measured)


def evaluate(
    model: nn.Module,
    split: Split,
    config: Mapping[str, Any],
    *,
    trust: Sequence[str] = (),
    counts: Mapping[str, int] | None = None,
) -> Evaluation:
    """The model on a split, under the task and loss of a config.

    `counts` are the train rows per class; `class_weights: balanced` needs them, without them the loss is unweighted.
    """
    from pipeline.engine.builder import build_loss

    loss = build_loss(config, trust, counts)
    if isinstance(loss, nn.Module):
        loss.to(device_of(model))
    return judge(model, split, build_task(config, loss, model, trust), seed=int(config.get("seed") or 0))


def evaluate_test(
    model: nn.Module,
    sealed: SealedTest,
    key: TestKey,
    config: Mapping[str, Any],
    *,
    trust: Sequence[str] = (),
    counts: Mapping[str, int] | None = None,
) -> Evaluation:
    """The model on the sealed test rows. Raises Refused without a key that an open gate issued for these weights."""
    from pipeline.checkpoints.weights import weights_digest
    from pipeline.record import permits

    candidate = permits.require(key, permits.TestKey).candidate
    weights = weights_digest(model.state_dict())
    if weights != candidate:
        what = "is not the candidate that the test rows were opened for"
        do = f"python -m pipeline verify {key.run.name}"
        raise Refused(fault("model", what, got=f"weights {weights[:12]}", expected=candidate[:12], do=do))
    return evaluate(model, sealed.read(key), config, trust=trust, counts=counts)
