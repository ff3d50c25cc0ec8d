"""The probe: two rows through model and loss before the first step, so that what does not fit is said at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.batching.augment import apply_augmentations, build_augmentations
from pipeline.building.builder import build_loss, build_model, build_optimizer, build_schedule
from pipeline.building.resource_estimate import Footprint, footprint
from pipeline.data.dataset import Data
from pipeline.data.splits import class_counts
from pipeline.data.tree import Tree, leaves, rows_of, to
from pipeline.error_attribution import NO_KERNEL, attributed, attributed_to
from pipeline.errors import FivegateError, UserError, fault
from pipeline.evaluation.step import tried
from pipeline.evaluation.task import Task, build_task, loss_name
from pipeline.preprocess.modules import Prepared
from pipeline.runtime import options
from pipeline.runtime.precision import autocast
from pipeline.runtime.seeds import derive, drawn, seeded


@dataclass(frozen=True)
class ProbeResult:
    """What two rows showed: outputs like those of training (None where a step gives none), and who draws at random.

    `stochastic`: the pass draws from torch's generators; `foreign`: from Python's or NumPy's.
    """

    outputs: Tensor | None
    stochastic: bool
    foreign: bool


PER_VALUE = ("regression", "multilabel", "autoencoder")  # kinds with an output for every number of the targets


@contextmanager
def _as_before(model: nn.Module, seed: int) -> Iterator[None]:
    """After the block the model's buffers and gradients and all generators are what they were.

    Inside it they start from `seed`: a lazy module draws its weights there.
    """
    lazy = nn.parameter.UninitializedBuffer
    buffers = {name: b.clone() for name, b in model.named_buffers() if not isinstance(b, lazy)}
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = None
    with seeded(seed):
        try:
            yield
        finally:
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    if name in buffers:
                        _same_shape(name, buffers[name], buffer)
                        buffer.copy_(buffers[name])
            for name, parameter in model.named_parameters():
                parameter.grad = gradients.get(name)


def _same_shape(name: str, before: Tensor, after: Tensor) -> None:
    """Raises UserError for a buffer that grows: no checkpoint of it could be taken up."""
    if before.shape != after.shape:
        got, expected = f"{list(before.shape)}, then {list(after.shape)}", "one shape for the whole training"
        raise UserError(fault("model", f"buffer {name} changes its shape in a step", got=got, expected=expected))


def probe_rows(
    model: nn.Module, task: Task, X: Tree, y: Tree, classes: int | None, precision: int | str = 32, seed: int = 0
) -> ProbeResult:
    """The model in train mode takes the rows X, its outputs fit the task and the loss gives a scalar with a gradient.

    Weights, buffers, gradients and generators are as before. Raises UserError naming `model` or `loss`, with shapes, or
    `trainer.precision` where float32 would do.
    """
    device = next(leaves(X)).device
    try:
        return _passes(model, task, X, y, classes, autocast(precision, device), seed)
    except UserError as error:
        if str(precision) == "32":
            raise
        _passes(model, task, X, y, classes, nullcontext, seed)  # raises what has nothing to do with the precision
        what = f"this model does not run in {precision} on the {device.type} ({error})"
        raise UserError(fault("trainer.precision", what, do="trainer.precision=32")) from error


def _passes(
    model: nn.Module,
    task: Task,
    X: Tree,
    y: Tree,
    classes: int | None,
    cast: Callable[[], AbstractContextManager[Any]],
    seed: int,
) -> ProbeResult:
    """One pass forward, as training makes it."""
    device, rows = next(leaves(X)).device, rows_of(X)
    with _as_before(model, seed), cast(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        before = drawn(device)
        model.train()
        if task.step is not None:
            with attributed_to("task.step"):
                outputs, loss = tried(task.step, task.metrics, model, X, y)
            _weights_train(model)
        else:
            with attributed_to("model"):
                outputs = model(X)
            _outputs_fit(outputs, task, rows, y, classes)
            _weights_train(model)
            said.clear()
            with attributed_to("loss"):
                loss = task.loss(outputs, task.targets(y, outputs))
            _nothing_spread(said, outputs, y)
        torch_after, foreign_after = drawn(device)
        stochastic = not all(map(torch.equal, before[0], torch_after))
        _loss_fits(loss, task)
    return ProbeResult(None if outputs is None else outputs.detach(), stochastic, before[1] != foreign_after)


def varying(
    model: nn.Module, task: Task, X: Tree, targets: Tree, cast: Callable[[], AbstractContextManager[Any]]
) -> tuple[str, ...]:
    """The operations of a step, forward and backward, for which this device has no deterministic kernel, by name.

    Weights, buffers, gradients and generators are as before. Raises UserError where the step cannot be made.
    """
    with _as_before(model, 0), options.deterministic("warn"), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model.train()
        try:
            with cast():
                loss = task.forward(model, X, targets)[1]
            loss.backward()
        except FivegateError:
            raise
        except Exception as error:
            raise attributed(error, model, task) from error
    found = (NO_KERNEL.search(str(warning.message)) for warning in said)
    return tuple(sorted({match[1] for match in found if match}))


def _shape(sizes: Any) -> str:
    return "[" + ", ".join(["B", *map(str, sizes[1:])]) + "]"


def _outputs_fit(outputs: Any, task: Task, rows: int, y: Tensor, classes: int | None) -> None:
    """Raises UserError for outputs that the task cannot read."""
    if not isinstance(outputs, Tensor):
        raise UserError(fault("model", "returns no tensor", got=type(outputs).__name__, expected="one tensor [B, ...]"))
    if outputs.ndim == 0 or len(outputs) != rows:
        got = f"shape {tuple(outputs.shape)} for {rows} rows"
        raise UserError(fault("model", "outputs have no batch dimension", got=got, expected=f"({rows}, ...)"))
    got = f"shape {_shape(outputs.shape)}"
    if task.kind == "classification" and classes and (outputs.ndim != 2 or outputs.shape[1] < classes):
        do = f"surgery=[{{resize_output: {{out_features: {classes}}}}}], or mend the model's last layer"
        expected = f"[B, {classes}], one output per class"
        raise UserError(fault("model", "outputs do not fit the classes", got=got, expected=expected, do=do))
    if task.kind == "language_model" and (outputs.shape[:-1] != y.shape or outputs.shape[-1] < (classes or 0)):
        expected = f"[B, {y.shape[1]}, {classes}], one output per token id at every place"
        raise UserError(fault("model", "outputs do not fit the tokens", got=got, expected=expected))
    if task.kind == "binary" and (outputs.ndim > 2 or (outputs.ndim == 2 and outputs.shape[1] > 2)):
        raise UserError(fault("model", "outputs do not fit a binary task", got=got, expected="[B], [B, 1] or [B, 2]"))
    if task.kind in PER_VALUE and outputs[0].numel() != y[0].numel() and task.takes_targets_shape:
        do = f"surgery=[{{resize_output: {{out_features: {y[0].numel()}}}}}], or mend the model's last layer"
        raise UserError(fault("model", "outputs do not fit the targets", got=got, expected=_shape(y.shape), do=do))


def _weights_train(model: nn.Module) -> None:
    """Raises UserError for a model in which nothing can be trained."""
    if not any(p.requires_grad for p in model.parameters()):
        count = sum(1 for _ in model.parameters())
        got = f"{count} parameters, none of which requires a gradient" if count else "no parameters"
        do = (
            "python -m pipeline ... \"surgery=[{unfreeze: {match: '*'}}]\""
            if count
            else "give the model a layer that learns"
        )
        raise UserError(fault("model", "has nothing to train", got=got, do=do))


def _nothing_spread(said: list[warnings.WarningMessage], outputs: Tensor, y: Tensor) -> None:
    """Raises UserError where the loss compared every output with every target, of which torch only warns."""
    if any("Using a target size" in str(warning.message) for warning in said):
        got, expected = f"outputs {_shape(outputs.shape)} and targets {_shape(y.shape)}", "one shape for both"
        do = "reshape the targets, or mend the model's last layer"
        raise UserError(fault("loss", "outputs and targets differ in shape", got=got, expected=expected, do=do))


def _loss_fits(loss: Any, task: Task) -> None:
    """Raises UserError for a loss that cannot be minimized."""
    if not isinstance(loss, Tensor) or loss.ndim:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        do = "let the loss average over the batch (reduction: mean)"
        raise UserError(
            fault("loss", f"{loss_name(task.loss)} gives no scalar", got=got, expected="a tensor of shape ()", do=do)
        )
    if not loss.requires_grad:
        raise UserError(
            fault(
                "loss",
                "depends on no parameter that trains",
                got="a loss without gradient",
                expected="outputs that are not detached, rounded or taken by argmax on the way",
            )
        )


def device_for(accelerator: str) -> torch.device:
    """The device to train on: `auto` is the first CUDA card where there is one, else the CPU.

    Apple's `mps` is taken only where it is asked for: small models run slower there. Raises UserError where the one
    asked for is missing.
    """
    cuda = torch.cuda.is_available()
    if accelerator == "cuda" and not cuda:
        raise UserError(fault("trainer.accelerator", "finds no CUDA card", got=accelerator, expected="auto or cpu"))
    if accelerator == "mps":
        if not torch.backends.mps.is_available():
            raise UserError(fault("trainer.accelerator", "finds no Apple GPU", got="mps", expected="auto or cpu"))
        return torch.device("mps")
    return torch.device("cuda", 0) if cuda and accelerator != "cpu" else torch.device("cpu")


def _metrics_fit(task: Task, data: Data) -> None:
    """Raises UserError for a metric that cannot judge these targets, whatever a model says of them."""
    for metric in task.metrics:
        if metric.needs in ("classes", "values") and isinstance(data.val.y, Tensor) and task.step is None:
            targets = data.val.y.numpy()
            metric(targets, targets)


@dataclass(frozen=True)
class Proof:
    """What the probe of a whole config showed: the number of parameters, the operations that may vary, the cost."""

    parameters: int
    varying: tuple[str, ...]
    cost: Footprint | None = field(default=None, compare=False)


def probe(config: Mapping[str, Any], data: Data, trust: Sequence[str] = ()) -> Proof:
    """Model, loss, metric, options and data of a config fit each other, and which of their operations may vary.

    Makes no update. Raises UserError naming what does not fit, in the words of a training that would meet it.
    """
    options.require_built(config)
    seed, trainer = int(config["seed"]), config["trainer"]
    device = device_for(trainer.get("accelerator", "auto"))
    precision = trainer.get("precision", 32)
    with seeded(derive(seed, "fit")):
        model = build_model(config, trust, seed, data).to(device)
        loss = build_loss(config, trust, class_counts(data.train.y))
        task = build_task(config, loss.to(device) if isinstance(loss, nn.Module) else loss, model, trust)
        few = data.train.take(torch.arange(min(2, len(data.train))))
        X, y = to(few.X, device), to(few.y, device)
        try:
            seen = probe_rows(model, task, X, y, data.ids(task.kind), precision, derive(seed, "init"))
        except UserError as error:
            raise UserError(*_miscounted(model, config, X), *error.faults) from error
        optimizer = build_optimizer(config, model, trust)
        build_schedule(config, optimizer, trust)
        apply_augmentations(X, build_augmentations(config, trust), seed, 1, np.arange(rows_of(X)), device)
        _metrics_fit(task, data)
        cast = autocast(precision, device)
        operations = varying(model, task, X, task.targets(y, seen.outputs), cast)
        with _as_before(model, 0):
            try:
                cost = footprint(model, task, data.train, seen.outputs, optimizer, config, cast)
            except Exception as error:  # a batch may fail where two rows did not
                raise attributed(error, model, task) from error
    return Proof(sum(p.numel() for p in model.parameters()), operations, cost)


def _miscounted(model: nn.Module, config: Mapping[str, Any], X: Tree) -> list[str]:
    """That `model.in_features` is another number than the columns of a row as they come to the user's own model."""
    said = config["model"].get("in_features")
    if not isinstance(said, int) or not isinstance(X, Tensor):
        return []
    met = model.prepare(X) if isinstance(model, Prepared) and model.prepare is not None else X
    columns = met[0].numel()
    if columns == said:
        return []
    do = f"python -m pipeline ... model.in_features={columns}"
    return [
        fault("model.in_features", "is not what comes to the model", got=said, expected=f"{columns} columns", do=do)
    ]
