"""Evaluation: outputs, predictions, loss and score of a model on one split, in eval mode and without gradients.

Always in the weights' own precision, whatever training's autocast: what is measured is what will be exported.
"""

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
from pipeline.data.tree import Tree, each, rows_of, split, to
from pipeline.error_attribution import attributed_to
from pipeline.errors import Refused, fault
from pipeline.evaluation.metrics import score, stated
from pipeline.evaluation.step import answered, of_step, scalars
from pipeline.evaluation.task import Task
from pipeline.results import Score, TrainSide

if TYPE_CHECKING:
    from pipeline.run_store.permits import TestKey

ROWS = 1024  # of one forward pass
FEW = 64  # the same for nets that make many numbers of a row, on the CPU: these then stay in its cache
MANY = (nn.modules.conv._ConvNd, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A model on a split: raw outputs [N, ...] on the CPU, predictions (ids or values), targets, mean loss, score.

    `predictions` are what the task predicts, also where the metric needs probabilities. The score of train rows is
    a `TrainSide`, which no target accepts. Outputs and predictions are None where a step gives no outputs; the bounds
    of a score that it gives itself are NaN.
    """

    outputs: Tensor | None
    predictions: NDArray[Any] | None
    targets: Any
    loss: float
    score: Score | TrainSide


@dataclass(frozen=True, eq=False, slots=True)
class Measured:
    """Loss and metrics of a model on some rows; `values` by the metric's name, the one that decides first."""

    loss: float
    values: dict[str, float]


@dataclass(frozen=True, eq=False, slots=True)
class Answer:
    """What a model said to some rows: outputs (None: it gave none), loss, and the scalars of a step."""

    outputs: Tensor | None
    loss: float
    scalars: Mapping[str, float]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside the block the model is in eval mode and records no gradients; every module gets its own mode back.

    No inference mode: tensors that a model keeps for later, such as a table of positions, must still serve training.
    """
    modules = list(model.modules())
    training = [module for module in modules if module.training]
    own = any(type(m).train is not nn.Module.train or type(m).eval is not nn.Module.eval for m in modules)
    if own:  # more than a flag changes with the mode
        model.eval()
    else:
        _set(training, False)
    try:
        with torch.no_grad():
            yield
    finally:
        if own:
            model.train(modules[0] in training)
            _set(modules, False)
        _set(training, True)


def _set(modules: Sequence[nn.Module], training: bool) -> None:
    for module in modules:
        module.training = training


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter lies."""
    first = next(model.parameters(), None)
    return first.device if first is not None else torch.device("cpu")


def forward(model: nn.Module, X: Tree) -> Tensor:
    """Outputs for all rows, on the model's device. Raises UserError when the model fails."""
    device = device_of(model)
    with evaluating(model), attributed_to("model"):
        parts = [model(to(part, device)) for part in split(X, rows_at_once(model, device))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _answer(model: nn.Module, X: Tree, y: Tree, task: Task) -> Answer:
    """What the model says to all rows; the loss is one call over them, so that none counts twice."""
    if task.step is not None:
        return _stepped(model, X, y, task, any(m.needs != "step" for m in task.metrics))
    outputs = forward(model, X)
    with torch.no_grad(), attributed_to("loss"):
        return Answer(outputs, float(task.loss(outputs, task.targets(to(y, outputs.device), outputs))), {})


def _stepped(model: nn.Module, X: Tree, y: Tree, task: Task, keep: bool) -> Answer:
    """The step over parts of the rows: scalars and loss are means weighted by rows, outputs kept where asked for."""
    assert task.step is not None
    device = device_of(model)
    sizes: list[int] = []
    given: list[dict[str, Tensor | float]] = []
    outputs: list[Tensor] = []
    with evaluating(model), attributed_to("task.step"):
        for inputs, targets in zip(split(X, ROWS), split(y, ROWS), strict=True):
            part = answered(task.step(model, (to(inputs, device), to(targets, device))))
            sizes.append(rows_of(inputs))
            given.append(scalars(part))
            if keep and part.get("outputs") is not None:
                outputs.append(part["outputs"])
        whole = torch.cat(outputs) if outputs and sum(map(len, outputs)) == sum(sizes) else None
    names = [name for name in given[0] if all(name in part for part in given)]
    means = {name: _mean([float(part[name]) for part in given], sizes) for name in names}
    return Answer(whole, means["loss"], means)


def _mean(values: Sequence[float], sizes: Sequence[int]) -> float:
    """The mean of the parts' means, weighted by their rows."""
    if len(values) == 1:
        return values[0]
    return sum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)


def measured(model: nn.Module, X: Tree, y: Tree, task: Task) -> Measured:
    """Loss and every metric on these rows."""
    answer = _answer(model, X, y, task)
    return Measured(answer.loss, _values(answer, y, task))


def outputs_of(model: nn.Module, rows: Split, task: Task) -> Tensor | None:
    """Raw outputs [N, ...] for all rows of a split; None where a step gives none."""
    return _answer(model, rows.X, rows.y, task).outputs


def _values(answer: Answer, y: Tree, task: Task) -> dict[str, float]:
    """Each metric from the outputs; from the step's scalars where it is one of them, or where there are no outputs."""
    found: dict[str, float] = {}
    if answer.outputs is not None:
        with attributed_to("task.predict"):
            found = task.values(answer.outputs, y)
    if len(found) == len(task.metrics):
        return found
    return {m.name: found[m.name] if m.name in found else of_step(m, answer.scalars) for m in task.metrics}


def rows_at_once(model: nn.Module, device: torch.device) -> int:
    """How many rows go through the model together: a rule, so that equal evaluations give equal bits."""
    many = device.type == "cpu" and any(isinstance(module, MANY) for module in model.modules())
    return min(FEW, ROWS) if many else ROWS


def loss_of(model: nn.Module, X: Tree, y: Tree, task: Task) -> float:
    """The loss alone, the mean over parts of the rows weighted by their number; no outputs are kept.

    A loss that weights its rows, and is averaged over those weights, may differ in the last digits from `measured`.
    """
    if task.step is not None:
        return _stepped(model, X, y, task, keep=False).loss
    device, losses, sizes = device_of(model), [], []
    with evaluating(model):
        size = rows_at_once(model, device)
        for inputs, targets in zip(split(X, size), split(y, size), strict=True):
            with attributed_to("model"):
                outputs = model(to(inputs, device))
            with attributed_to("loss"):
                losses.append(task.loss(outputs, task.targets(to(targets, device), outputs)))
            sizes.append(len(targets))
    return _mean([float(loss) for loss in losses], sizes)


def score_split(model: nn.Module, split: Split, task: Task, seed: int = 0) -> Evaluation:
    """The model on a split, its score with an interval from resamples seeded by `seed`."""
    answer = _answer(model, split.X, split.y, task)
    targets = each(lambda tensor: tensor.cpu().numpy(), split.y)
    outputs, metric = answer.outputs, task.metric
    if outputs is None or metric.needs == "step":
        value = of_step(metric, answer.scalars)
        found = stated(metric, split.name, value, rows_of(split.X))
    else:
        with attributed_to("task.predict"):
            found = score(metric, split.name, targets, task.judged(outputs, split.y), seed)
    if outputs is None:
        return Evaluation(None, None, targets, answer.loss, found)
    with attributed_to("task.predict"):
        predictions = task.predict(outputs).detach().cpu().numpy()
    return Evaluation(outputs.cpu(), predictions, targets, answer.loss, found)


def score_test(model: nn.Module, sealed: SealedTest, key: TestKey, task: Task, seed: int = 0) -> Evaluation:
    """The model on the sealed test rows. Raises Refused without a key that an open gate issued for these weights."""
    from pipeline.checkpoints.weights import weights_digest
    from pipeline.run_store import permits

    candidate = permits.require(key, permits.TestKey).candidate
    weights = weights_digest(model.state_dict())
    if weights != candidate:
        what = "is not the candidate that the test rows were opened for"
        do = f"python -m pipeline verify {key.run.name}"
        raise Refused(fault("model", what, got=f"weights {weights[:12]}", expected=candidate[:12], do=do))
    return score_split(model, sealed.read(key), task, seed)
