"""The probe: two rows through model and loss before the first step, and whom to name when somebody's code fails."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.data.dataset import Data
from pipeline.data.splits import class_counts
from pipeline.engine import options
from pipeline.engine.builder import build_loss, build_model, build_optimizer, build_scheduler
from pipeline.engine.seeds import derive, seeded
from pipeline.errors import FivegateError, UserError, fault
from pipeline.evaluation.task import Task, build_task, loss_name

_TORCH = str(Path(torch.__file__).parent)
_OURS = str(Path(__file__).parent)


def _frames(error: BaseException) -> list[tuple[FrameType, int]]:
    return list(traceback.walk_tb(error.__traceback__))


def _place(error: BaseException) -> str:
    """Where it failed: the deepest line that is neither torch's nor the engine's, else the innermost module."""
    frames = _frames(error)
    for frame, line in reversed(frames):
        path = frame.f_code.co_filename
        if not path.startswith((_TORCH, _OURS, "<")):
            return f" at {path}:{line}"
    for frame, _ in reversed(frames):
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and not list(module.children()):
            return f" in {module!r}"
    return ""


def _told(name: str, error: BaseException, what: str = "fails") -> UserError:
    if isinstance(error, torch.OutOfMemoryError):
        return UserError(
            fault("loader.batch_size", "the step does not fit the device's memory", do="halve loader.batch_size")
        )
    text = " ".join(str(error).split()) or "no message"
    return UserError(fault(name, f"{what}{_place(error)} ({type(error).__name__}: {text})"))


@contextmanager
def blamed(name: str) -> Iterator[None]:
    """An exception inside the block becomes one UserError that names the part, the user's line and the text."""
    try:
        yield
    except FivegateError:
        raise
    except Exception as error:
        raise _told(name, error) from error


def blame(error: Exception, model: nn.Module) -> Exception:
    """The error of a training step as the user meets it; our own and an observer's stay what they are."""
    if isinstance(error, FivegateError):
        return error
    for frame, _ in _frames(error)[1:]:
        owner, path = frame.f_locals.get("self"), frame.f_code.co_filename
        if owner is model:
            return _told("model", error)
        if isinstance(owner, Optimizer):
            return _told("optimizer", error)
        if isinstance(owner, nn.Module) or path.startswith(f"{_TORCH}/nn/functional"):
            return _told("loss", error)
        if path.startswith((f"{_TORCH}/_tensor", f"{_TORCH}/autograd")):
            return _told("model or loss", error, "fails in the backward pass")
        if path.startswith(_OURS):
            continue
        return error if hasattr(owner, "before_update") else _told("loss", error)
    return error


@dataclass(frozen=True)
class Probe:
    """What two rows showed: outputs like those of training, and whether the forward pass draws random numbers."""

    outputs: Tensor
    stochastic: bool


def _generators(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def probe_rows(model: nn.Module, task: Task, X: Tensor, y: Tensor, classes: int | None) -> Probe:
    """The model in train mode takes the rows X, its outputs fit the task and the loss gives a scalar with a gradient.

    Weights, buffers and gradients are as before. Raises UserError naming `model` or `loss`, with shapes.
    """
    buffers = {
        name: b.clone() for name, b in model.named_buffers() if not isinstance(b, nn.parameter.UninitializedBuffer)
    }
    before = _generators(X.device)
    model.train()
    with blamed("model"):
        outputs = model(X)
    drawn = any(not torch.equal(a, b) for a, b in zip(before, _generators(X.device), strict=True))
    _outputs_fit(outputs, task, len(X), y, classes)
    _weights_train(model)
    with blamed("loss"), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        loss = task.loss(outputs, task.targets(y, outputs))
    _nothing_spread(said, outputs, y)
    _loss_fits(loss, task)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name in buffers:
                buffer.copy_(buffers[name])
    return Probe(outputs.detach(), drawn)


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
    if task.kind == "binary" and (outputs.ndim > 2 or (outputs.ndim == 2 and outputs.shape[1] > 2)):
        raise UserError(fault("model", "outputs do not fit a binary task", got=got, expected="[B], [B, 1] or [B, 2]"))
    if task.kind == "regression" and outputs[0].numel() != y[0].numel() and task.takes_targets_shape:
        do = f"surgery=[{{resize_output: {{out_features: {y[0].numel()}}}}}], or mend the model's last layer"
        raise UserError(fault("model", "outputs do not fit the targets", got=got, expected=_shape(y.shape), do=do))


def _weights_train(model: nn.Module) -> None:
    """Raises UserError for a model in which nothing can be trained."""
    if not any(p.requires_grad for p in model.parameters()):
        got = f"{sum(1 for _ in model.parameters())} parameters, none of which requires a gradient"
        raise UserError(fault("model", "has nothing to train", got=got, do="surgery=[{unfreeze: {match: '*'}}]"))


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
    """The device to train on: `auto` is the first CUDA card where there is one.

    Raises UserError where the one asked for is missing.
    """
    available = torch.cuda.is_available()
    if accelerator == "cuda" and not available:
        raise UserError(fault("trainer.accelerator", "finds no CUDA card", got=accelerator, expected="auto or cpu"))
    return torch.device("cuda", 0) if available and accelerator != "cpu" else torch.device("cpu")


def probe(config: Mapping[str, Any], data: Data, trust: Sequence[str] = ()) -> int:
    """Model, loss, metric, options and data of a config fit each other; the number of the model's parameters.

    Makes no step. Raises UserError naming what does not fit, in the words of a training that would meet it.
    """
    options.require_built(config)
    seed = int(config["seed"])
    device = device_for(config["trainer"].get("accelerator", "auto"))
    with seeded(derive(seed, "fit")):
        model = build_model(config, trust, seed).to(device)
        loss = build_loss(config, trust, class_counts(data.train.y))
        task = build_task(config, loss.to(device) if isinstance(loss, nn.Module) else loss, model, trust)
        probe_rows(model, task, data.train.X[:2].to(device), data.train.y[:2].to(device), data.classes)
        build_scheduler(config, build_optimizer(config, model, trust), trust)
    return sum(p.numel() for p in model.parameters())
