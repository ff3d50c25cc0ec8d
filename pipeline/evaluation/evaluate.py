"""Evaluation: outputs, predictions, loss and score of a model on one split, in eval mode and without gradients.

Models are evaluated in the precision of their weights, without training's autocast, since they are exported that way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.data.sealed import SealedTest
from pipeline.data.splits import Split
from pipeline.data.tree import Tree, chunks, count_rows, map_leaves, to_device
from pipeline.error_attribution import attributed_step, attributed_to
from pipeline.errors import Refused, fault
from pipeline.evaluation.intervals.score import make_score, score_predictions
from pipeline.evaluation.step import metric_from_step, step_scalars, validate_step_output
from pipeline.evaluation.task import Task
from pipeline.results import Score, TrainSide

if TYPE_CHECKING:
    from pipeline.run_store.permits import TestKey

BATCH_SIZE = 1024  # rows of one forward pass
SMALL_BATCH_SIZE = 64  # on the CPU for modules with large activations, which then fit into its cache
LARGE_ACTIVATIONS = (nn.modules.conv._ConvNd, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)
# What autograd says of a call that differentiates by itself while gradients are disabled.
NEEDS_GRADIENTS = "does not require grad"

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A model on a split: raw outputs [N, ...] on the CPU, predictions (ids or values), targets, mean loss, score.

    `predictions` are what the task predicts, also where the metric needs probabilities. `score` is a `TrainSide` for
    train rows, which no target accepts. Outputs and predictions are None where a custom step returns no outputs; the
    interval of a metric that the step computes itself is NaN.
    """

    outputs: Tensor | None
    predictions: NDArray[Any] | None
    targets: Any
    loss: float
    score: Score | TrainSide


@dataclass(frozen=True, eq=False, slots=True)
class LossAndMetrics:
    """Loss and metrics of a model on some rows; `metrics` by name, the deciding one first."""

    loss: float
    metrics: dict[str, float]


@dataclass(frozen=True, eq=False, slots=True)
class _Pass:
    """One pass over some rows: outputs (None if a step returns none), mean loss, and the scalars of a step."""

    outputs: Tensor | None
    loss: float
    scalars: Mapping[str, float]


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode without gradients; at the end every module gets its own mode back.

    Not `torch.inference_mode`: tensors that a model caches, such as position tables, must still work in training.
    """
    modules = list(model.modules())
    training = [module for module in modules if module.training]
    overridden = any(type(m).train is not nn.Module.train or type(m).eval is not nn.Module.eval for m in modules)
    if overridden:  # the module does more than set a flag
        model.eval()
    else:
        _set_mode(training, False)
    try:
        with torch.no_grad():
            yield
    finally:
        if overridden:
            model.train(modules[0] in training)
            _set_mode(modules, False)
        _set_mode(training, True)


def call_in_eval_mode(function: Callable[Arguments, Result], *args: Arguments.args, **kw: Arguments.kwargs) -> Result:
    """Call user code inside `eval_mode`; if it differentiates by itself, call it again with gradients enabled.

    Examples are the residual of a differential equation in a loss, and forces as the gradient of an energy.
    """
    try:
        return function(*args, **kw)
    except RuntimeError as error:
        if NEEDS_GRADIENTS not in str(error):
            raise
    with torch.enable_grad():
        result = function(*args, **kw)
    return cast(Result, _detached(result))


def _detached(result: object) -> object:
    """Return what a model or step returned with its tensors detached, so that no graph is kept."""
    if isinstance(result, Tensor):
        return result.detach()
    if isinstance(result, Mapping):
        return {name: _detached(value) for name, value in result.items()}
    return tuple(map(_detached, result)) if type(result) is tuple else result


def _set_mode(modules: Sequence[nn.Module], training: bool) -> None:
    for module in modules:
        module.training = training


def model_device(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter; the CPU without parameters."""
    first = next(model.parameters(), None)
    return first.device if first is not None else torch.device("cpu")


def forward(model: nn.Module, X: Tree) -> Tensor:
    """Return outputs for all rows, on the model's device. Raises UserError if the model fails."""
    device = model_device(model)
    with eval_mode(model), attributed_to("model"):
        batches = chunks(X, eval_batch_size(model, device))
        parts = [call_in_eval_mode(model, to_device(part, device)) for part in batches]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _run(model: nn.Module, X: Tree, y: Tree, task: Task) -> _Pass:
    """Run the model on all rows; the loss is one call over all outputs, so that every row has the same weight."""
    if task.step is not None:
        return _run_step(model, X, y, task, any(m.needs != "step" for m in task.metrics))
    outputs = forward(model, X)
    with torch.no_grad(), attributed_to("loss"):
        return _Pass(outputs, float(task.loss(outputs, task.loss_targets(to_device(y, outputs.device), outputs))), {})


def _run_step(model: nn.Module, X: Tree, y: Tree, task: Task, keep_outputs: bool) -> _Pass:
    """Run the step over parts of the rows; its scalars and loss are means weighted by rows."""
    assert task.step is not None
    device = model_device(model)
    sizes: list[int] = []
    scalars: list[dict[str, Tensor | float]] = []
    outputs: list[Tensor] = []
    with eval_mode(model), attributed_step(model, task):
        for inputs, targets in zip(chunks(X, BATCH_SIZE), chunks(y, BATCH_SIZE), strict=True):
            batch = to_device(inputs, device), to_device(task.user_targets(targets), device)
            result = validate_step_output(call_in_eval_mode(task.step, model, batch))
            sizes.append(count_rows(inputs))
            scalars.append(step_scalars(result))
            if keep_outputs and result.get("outputs") is not None:
                outputs.append(result["outputs"])
        whole = torch.cat(outputs) if outputs and sum(map(len, outputs)) == sum(sizes) else None
    names = [name for name in scalars[0] if all(name in part for part in scalars)]
    means = {name: _weighted_mean([float(part[name]) for part in scalars], sizes) for name in names}
    return _Pass(whole, means["loss"], means)


def _weighted_mean(values: Sequence[float], sizes: Sequence[int]) -> float:
    """Return the mean of the parts' means, weighted by their rows."""
    if len(values) == 1:
        return values[0]
    return sum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)


def loss_and_metrics(model: nn.Module, X: Tree, y: Tree, task: Task) -> LossAndMetrics:
    """Return the loss and every metric of the task on these rows."""
    result = _run(model, X, y, task)
    return LossAndMetrics(result.loss, _metric_values(result, y, task))


def outputs_of(model: nn.Module, rows: Split, task: Task) -> Tensor | None:
    """Return raw outputs [N, ...] for all rows of a split; None where a step returns none."""
    return _run(model, rows.X, rows.y, task).outputs


def _metric_values(result: _Pass, y: Tree, task: Task) -> dict[str, float]:
    """Return each metric from the outputs, or from the step's scalars where it is one or there are no outputs."""
    values: dict[str, float] = {}
    if result.outputs is not None:
        values = task.metric_values(result.outputs, y)
    if len(values) == len(task.metrics):
        return values
    return {m.name: values[m.name] if m.name in values else metric_from_step(m, result.scalars) for m in task.metrics}


def eval_batch_size(model: nn.Module, device: torch.device) -> int:
    """Return the rows of one forward pass. It depends on the model alone, so that equal evaluations give equal bits."""
    large = device.type == "cpu" and any(isinstance(module, LARGE_ACTIVATIONS) for module in model.modules())
    return min(SMALL_BATCH_SIZE, BATCH_SIZE) if large else BATCH_SIZE


def mean_loss(model: nn.Module, X: Tree, y: Tree, task: Task) -> float:
    """Return the loss alone, as the mean over parts of the rows weighted by their size; outputs are not kept.

    For a loss that averages over class weights, the last digits may differ from `loss_and_metrics`.
    """
    if task.step is not None:
        return _run_step(model, X, y, task, keep_outputs=False).loss
    device, losses, sizes = model_device(model), [], []
    with eval_mode(model):
        size = eval_batch_size(model, device)
        for inputs, targets in zip(chunks(X, size), chunks(y, size), strict=True):
            with attributed_to("model"):
                outputs = call_in_eval_mode(model, to_device(inputs, device))
            with attributed_to("loss"):
                losses.append(task.loss(outputs, task.loss_targets(to_device(targets, device), outputs)))
            sizes.append(len(targets))
    return _weighted_mean([float(loss) for loss in losses], sizes)


def score_split(model: nn.Module, split: Split, task: Task, seed: int = 0) -> Evaluation:
    """Evaluate the model on a split; the bootstrap of the score's interval is seeded by `seed`.

    Where the owner of the data declared groups, the interval is that of independent groups of rows.
    """
    result = _run(model, split.X, split.y, task)
    targets = map_leaves(lambda tensor: tensor.cpu().numpy(), split.y)
    outputs, metric = result.outputs, task.metric
    if outputs is None or metric.needs == "step":
        score = make_score(metric, split.name, metric_from_step(metric, result.scalars), count_rows(split.X))
    else:
        groups = split.row_metadata.groups
        score = score_predictions(metric, split.name, targets, task.metric_inputs(outputs, split.y), seed, groups)
    if outputs is None:
        return Evaluation(None, None, targets, result.loss, score)
    predictions = task.predictions(outputs, split.y)
    return Evaluation(outputs.cpu(), predictions, targets, result.loss, score)


def score_test(model: nn.Module, sealed: SealedTest, key: TestKey, task: Task, seed: int = 0) -> Evaluation:
    """Evaluate the model on the sealed test rows. Raises Refused without a key that was issued for these weights."""
    return evaluate_test(model, sealed, key, task, seed)[1]


def evaluate_test(
    model: nn.Module, sealed: SealedTest, key: TestKey, task: Task, seed: int = 0
) -> tuple[Split, Evaluation]:
    """Return the test rows with the model's evaluation, for all that is measured on them. Raises as `score_test`."""
    from pipeline.checkpoints.weights import weights_digest
    from pipeline.run_store import permits

    candidate = permits.require(key, permits.TestKey).candidate
    weights = weights_digest(model.state_dict())
    if weights != candidate:
        what = "is not the candidate that the test rows were opened for"
        do = f"python -m pipeline verify {key.run.argument}"
        raise Refused(fault("model", what, got=f"weights {weights[:12]}", expected=candidate[:12], do=do))
    rows = sealed.read(key)
    return rows, score_split(model, rows, task, seed)
