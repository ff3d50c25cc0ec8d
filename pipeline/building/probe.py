"""The probe: two rows through model and loss before the first step, so that mismatches are reported at once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.batching.augment import apply_augmentations, build_augmentations
from pipeline.building.broadcasting import Broadcast, BroadcastDetector
from pipeline.building.builder import build_model, build_optimizer, build_schedule, build_training_task
from pipeline.building.memory import Autocast
from pipeline.building.metric_probe import require_fitting_metrics
from pipeline.building.resource_estimate import StepCost, measure_step
from pipeline.config.override_keys import command
from pipeline.config.sections import require_built
from pipeline.data.analysis.labels import stray_labels
from pipeline.data.dataset import Data
from pipeline.data.splits import class_counts
from pipeline.data.tree import Tree, count_rows, leaves, to_device
from pipeline.error_attribution import NO_KERNEL, attributed_step, attributed_to
from pipeline.errors import UserError, fault, user_error
from pipeline.evaluation.step import check_step
from pipeline.evaluation.task import Task, loss_name
from pipeline.preprocess.modules import PreprocessedModel
from pipeline.runtime import options
from pipeline.runtime.precision import autocast
from pipeline.runtime.seeds import derive, rng_states, seeded


class TooFewOutputs(UserError):
    """The model has fewer outputs than there are classes."""


@dataclass(frozen=True)
class ProbeResult:
    """What two rows showed: their outputs (None if a custom step gives none), and which generators were used.

    `stochastic`: the pass draws from torch's generators; `uses_global_rng`: from Python's or NumPy's.
    """

    outputs: Tensor | None
    stochastic: bool
    uses_global_rng: bool


PER_VALUE = ("regression", "multilabel", "autoencoder")  # task kinds with one output per number of the targets


@contextmanager
def _restored_afterwards(model: nn.Module, seed: int) -> Iterator[None]:
    """Restore the model's buffers and gradients and all generators after the block.

    Inside the block the generators start from `seed`: a lazy module initializes its weights there.
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
                        _require_same_shape(name, buffers[name], buffer)
                        buffer.copy_(buffers[name])
            for name, parameter in model.named_parameters():
                parameter.grad = gradients.get(name)


def _require_same_shape(name: str, before: Tensor, after: Tensor) -> None:
    """Raises UserError for a buffer that changes its shape: its checkpoint could not be loaded."""
    if before.shape != after.shape:
        got, expected = f"{list(before.shape)}, then {list(after.shape)}", "one shape for the whole training"
        raise UserError(fault("model", f"buffer {name} changes its shape in a step", got=got, expected=expected))


def probe_rows(
    model: nn.Module, task: Task, X: Tree, y: Tree, classes: int | None, precision: int | str = 32, seed: int = 0
) -> ProbeResult:
    """Check that the model in train mode takes the rows X, and that outputs, task and loss fit each other.

    Weights, buffers, gradients and generators are restored. Raises UserError naming `model` or `loss`, with shapes, or
    `trainer.precision` if the same pass works in float32.
    """
    device = next(leaves(X)).device
    try:
        return _probe_pass(model, task, X, y, classes, autocast(precision, device), seed)
    except UserError as error:
        if str(precision) == "32":
            raise
        _probe_pass(model, task, X, y, classes, nullcontext, seed)  # raises if the precision is not the reason
        what = f"this model does not run in {precision} on the {device.type} ({error})"
        raise UserError(fault("trainer.precision", what, do="trainer.precision=32")) from error


def _probe_pass(
    model: nn.Module,
    task: Task,
    X: Tree,
    y: Tree,
    classes: int | None,
    autocast: Autocast,
    seed: int,
) -> ProbeResult:
    """Run one forward pass as training does, and check outputs and loss."""
    device, rows = next(leaves(X)).device, count_rows(X)
    with _restored_afterwards(model, seed), autocast(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the same warnings come, and are recorded, when the model trains
        before = rng_states(device)
        model.train()
        if task.step is not None:
            targets = task.user_targets(y)
            with attributed_step(model, task), BroadcastDetector(targets, model=model) as detector:
                outputs, loss = check_step(task.step, task.metrics, model, X, targets)
            _require_trainable(model)
            _require_no_broadcast("task.step", detector.broadcast)
        else:
            with attributed_to("model"):
                outputs = model(X)
            _require_fitting_outputs(outputs, task, rows, y, classes)
            _require_trainable(model)
            targets = task.loss_targets(y, outputs)
            with attributed_to("loss"), BroadcastDetector(targets, outputs) as detector:
                loss = task.loss(outputs, targets)
            _require_no_broadcast("loss", detector.broadcast)
        torch_after, global_after = rng_states(device)
        # A change of the generator's state means that the pass drew from it.
        stochastic = not all(map(torch.equal, before[0], torch_after))
        _require_scalar_loss(loss, task)
        if outputs is not None:
            # float32, as in evaluation: autocast gives types that NumPy does not have.
            outputs = outputs.detach().float() if outputs.is_floating_point() else outputs.detach()
            if isinstance(y, Tensor):
                with attributed_to("task.predict"), torch.no_grad():
                    task.check_predictions(outputs, y)
    return ProbeResult(outputs, stochastic, before[1] != global_after)


def nondeterministic_operations(
    model: nn.Module, task: Task, X: Tree, targets: Tree, autocast: Autocast
) -> tuple[str, ...]:
    """Return the names of the operations of a step for which this device has no deterministic kernel.

    Weights, buffers, gradients and generators are restored. Raises UserError if the step fails.
    """
    with _restored_afterwards(model, 0), options.deterministic("warn"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.train()
        with attributed_step(model, task):
            with autocast():
                loss = task.forward(model, X, targets)[1]
            loss.backward()
    matches = (NO_KERNEL.search(str(warning.message)) for warning in caught)
    return tuple(sorted({match[1] for match in matches if match}))


def _format_shape(sizes: Sequence[int]) -> str:
    return "[" + ", ".join(["B", *map(str, sizes[1:])]) + "]"


def _require_fitting_outputs(outputs: object, task: Task, rows: int, y: Tensor, classes: int | None) -> None:
    """Raises UserError for outputs whose type or shape does not fit the task."""
    if not isinstance(outputs, Tensor):
        raise UserError(
            fault("model", "does not return a tensor", got=type(outputs).__name__, expected="one tensor [B, ...]")
        )
    if outputs.ndim == 0 or len(outputs) != rows:
        got = f"shape {tuple(outputs.shape)} for {rows} rows"
        raise UserError(fault("model", "outputs have no batch dimension", got=got, expected=f"({rows}, ...)"))
    got = f"shape {_format_shape(outputs.shape)}"
    if task.kind == "classification" and classes and (outputs.ndim != 2 or outputs.shape[1] < classes):
        do = _resize(classes)
        expected = f"[B, {classes}], one output per class"
        raise TooFewOutputs(fault("model", "outputs do not fit the classes", got=got, expected=expected, do=do))
    if task.kind == "language_model" and (outputs.shape[:-1] != y.shape or outputs.shape[-1] < (classes or 0)):
        expected = f"[B, {y.shape[1]}, {classes}], one output per token id at every position"
        raise UserError(fault("model", "outputs do not fit the tokens", got=got, expected=expected))
    if task.kind == "binary" and (outputs.ndim > 2 or (outputs.ndim == 2 and outputs.shape[1] > 2)):
        raise UserError(fault("model", "outputs do not fit a binary task", got=got, expected="[B], [B, 1] or [B, 2]"))
    if task.kind in PER_VALUE and outputs[0].numel() != y[0].numel() and task.takes_targets_shape:
        expected, do = _format_shape(y.shape), _resize(y[0].numel())
        raise UserError(fault("model", "outputs do not fit the targets", got=got, expected=expected, do=do))


def _resize(outputs: int) -> str:
    """What makes a model have so many outputs."""
    return f"fix the model's last layer, or: {command(f'surgery=[{{resize_output: {{out_features: {outputs}}}}}]')}"


def _require_trainable(model: nn.Module) -> None:
    """Raises UserError for a model without trainable parameters."""
    if not any(p.requires_grad for p in model.parameters()):
        count = sum(1 for _ in model.parameters())
        got = f"{count} parameters, none of which requires a gradient" if count else "no parameters"
        do = command('surgery=[{unfreeze: {match: "*"}}]') if count else "give the model a layer with parameters"
        raise UserError(fault("model", "has no trainable parameters", got=got, do=do))


def _require_no_broadcast(where: str, found: Broadcast | None) -> None:
    """Raises UserError if outputs and targets were broadcast, so that every output was compared with every target."""
    if found is not None:
        outputs, targets = map(_format_shape, (found.outputs, found.targets))
        what = f"outputs and targets differ in shape{found.place}: every output is compared with every target"
        got = f"outputs {outputs} and targets {targets}"
        do = "reshape the targets of the data, or the model's outputs, to the shape of the other"
        raise UserError(fault(where, what, got=got, expected="one shape for both", do=do))


def _require_scalar_loss(loss: object, task: Task) -> None:
    """Raises UserError for a loss that cannot be minimized."""
    if not isinstance(loss, Tensor) or loss.ndim:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        do = "set the reduction of the loss to mean"
        raise UserError(
            fault(
                "loss",
                f"{loss_name(task.loss)} does not return a scalar",
                got=got,
                expected="a tensor of shape ()",
                do=do,
            )
        )
    if not loss.requires_grad:
        raise UserError(
            fault(
                "loss",
                "does not depend on a trainable parameter",
                got="a loss without gradient",
                expected="outputs that are not detached, rounded or reduced by argmax",
            )
        )


def device_for(accelerator: str) -> torch.device:
    """Return the device to train on: for `auto` the first CUDA device if there is one, else the CPU.

    Apple's `mps` is used only if it is requested, since small models are slower on it. Raises UserError if the
    requested device is missing.
    """
    cuda = torch.cuda.is_available()
    if accelerator == "cuda" and not cuda:
        raise UserError(
            fault("trainer.accelerator", "no CUDA device is available", got=accelerator, expected="auto or cpu")
        )
    if accelerator == "mps":
        if not torch.backends.mps.is_available():
            raise UserError(
                fault("trainer.accelerator", "no Apple GPU is available", got="mps", expected="auto or cpu")
            )
        return torch.device("mps")
    return torch.device("cuda", 0) if cuda and accelerator != "cpu" else torch.device("cpu")


@dataclass(frozen=True)
class ConfigProbe:
    """What the probe of a config showed: the number of parameters, nondeterministic operations, the cost of a step."""

    parameters: int
    nondeterministic: tuple[str, ...]
    cost: StepCost | None = field(default=None, compare=False)


def probe(config: Mapping[str, Any], data: Data, trust: Sequence[str] = ()) -> ConfigProbe:
    """Check that model, loss, metrics, options and data of a config fit each other; no weight is updated.

    Raises UserError naming what does not fit, with the message that a training would give.
    """
    require_built(config)
    seed, loader, trainer = int(config["seed"]), config["loader"], config["trainer"]
    device = device_for(trainer.get("accelerator", "auto"))
    precision = trainer.get("precision", 32)
    with seeded(derive(seed, "fit")):
        model = build_model(config, trust, seed, data).to(device)
        task = build_training_task(config, model, trust, class_counts(data.train.y), data.column_targets)
        sample = data.train.take(torch.arange(min(2, len(data.train))))
        X, y = to_device(sample.X, device), to_device(sample.y, device)
        try:
            outputs = probe_rows(model, task, X, y, data.ids(task.kind), precision, derive(seed, "init")).outputs
        except UserError as error:
            # A wrong `in_features` is the likely reason of a shape error: its message comes first.
            stray = stray_labels(data) if isinstance(error, TooFewOutputs) else None
            faults = [stray] if stray else error.faults
            misfits = _in_features_faults(model, config["model"].get("in_features"), X)
            raise user_error([*misfits, *faults], [] if misfits or stray else [error]) from error
        optimizer = build_optimizer(config, model, trust)
        build_schedule(config, optimizer, trust)
        apply_augmentations(X, build_augmentations(config, trust), seed, 1, np.arange(count_rows(X)), device)
        with _restored_afterwards(model, 0):
            require_fitting_metrics(model, task, data.val)
        cast = autocast(precision, device)
        operations = nondeterministic_operations(model, task, X, task.loss_targets(y, outputs), cast)
        # A whole batch may fail although two rows did not.
        with _restored_afterwards(model, 0), attributed_step(model, task):
            cost = measure_step(
                model,
                task,
                data.train,
                outputs,
                optimizer,
                batch_size=int(loader["batch_size"]),
                thread_setting=trainer.get("threads", "auto"),
                autocast=cast,
            )
    return ConfigProbe(sum(p.numel() for p in model.parameters()), operations, cost)


def _in_features_faults(model: nn.Module, in_features: object, X: Tree) -> list[str]:
    """A fault if `model.in_features` is not the number of columns that reach the user's own model."""
    if not isinstance(in_features, int) or not isinstance(X, Tensor):
        return []
    prepared = model.prepare(X) if isinstance(model, PreprocessedModel) and model.prepare is not None else X
    columns = prepared[0].numel()
    if columns == in_features:
        return []
    what, do = "is not the number of columns of the inputs", f"python -m pipeline ... model.in_features={columns}"
    return [fault("model.in_features", what, got=in_features, expected=f"{columns} columns", do=do)]
