"""Taking up a training: what it is between two updates, as a snapshot, and a fresh one made into it again.

Order of rows, augmentation and random numbers need no record: they are functions of the seed and of where training
stands (`pipeline/batching/order.py`, `pipeline/runtime/seeds.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.building.compiler import compiler_unloaded
from pipeline.checkpoints import codec, generation
from pipeline.checkpoints.generation import Snapshot
from pipeline.checkpoints.weights import tensors_of
from pipeline.history import History
from pipeline.results import plain

if TYPE_CHECKING:
    from pipeline.engine.loop import Training

LAST, BEST = "last", "best"


@dataclass(frozen=True, eq=False)
class WeightsSnapshot:
    """Weights (copies on the CPU) and where they stood; `value` is NaN for weights that have no score."""

    epoch: int
    step: int
    value: float
    weights: dict[str, Tensor]


def identity(training: Training) -> dict[str, Any]:
    """What must be equal for a training to be taken up bit by bit: its job, and the machine that does the sums."""
    return {
        **plain(training.job.to_json()),
        "seed": training.setup.seed,
        "torch": torch.__version__,
        "device": training.setup.device.type,
        "threads": torch.get_num_threads(),
    }


def _others(training: Training) -> dict[str, Any]:
    """All that moves beside the weights: optimizer, schedule, scale, and what model and loss keep out of sight."""
    setup = training.setup
    model, loss = setup.model, setup.task.loss
    saved = model.state_dict()
    return {
        "optimizer": setup.optimizer.state_dict(),
        "schedule": setup.schedule.scheduler.state_dict() if setup.schedule else None,
        "scale": setup.scale.state() if setup.scale else None,
        "model": {name: value for name, value in saved.items() if not isinstance(value, Tensor)},
        "buffers": {name: buffer for name, buffer in model.named_buffers() if name not in saved},
        "loss": loss.state_dict() if isinstance(loss, nn.Module) else {},
        "step": setup.task.step.state_dict() if isinstance(setup.task.step, nn.Module) else {},
    }


def packed(training: Training) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What moves beside the weights, as JSON and the tensors themselves. Raises UserError for what no file can hold."""
    tensors: dict[str, Tensor] = {}
    with compiler_unloaded():
        moving = _others(training)
    return {name: codec.pack(part, name, tensors) for name, part in moving.items()}, tensors


def snapshot(training: Training) -> Snapshot:
    """The training as it stands, copied. Raises UserError naming what its optimizer keeps and no file can hold."""
    others, tensors = packed(training)
    weights, best = tensors_of(training.setup.model.state_dict()), training.best
    parts: dict[str, Mapping[str, Tensor]] = {"weights": weights, "training": tensors_of(tensors)}
    if best and best.step != training.step:
        parts["best"] = best.weights
    state = {
        "role": LAST,
        "identity": identity(training),
        "step": training.step,
        "measured": training.measured,
        "ended": training.ended,
        "stopped": training.stopped,
        "seconds": training.seconds,
        "best": codec.pack([best.epoch, best.step, best.value], "best", {}) if best else None,
        "lowest": codec.pack([training.lowest, training.lowest_at], "lowest", {}),
        "others": others,
    }
    return Snapshot(state, parts, training.history.copy())


def result(training: Training, at: WeightsSnapshot) -> Snapshot:
    """What the training gave: the weights, and where they stood."""
    state = {
        "role": BEST,
        "identity": identity(training),
        "plan_digest": training.job.plan_digest,
        "purpose": training.job.purpose,
        "seed": training.setup.seed,
        "epoch": at.epoch,
        "step": at.step,
        "metric": training.setup.task.metric.name,
        "value": codec.pack(at.value, "value", {}),
    }
    return Snapshot(state, {"weights": at.weights})


def keep(training: Training, folder: Path, best: WeightsSnapshot, *, known: bool) -> Path:
    """Where the best weights stand on disk, with the end of the training beside them; `known` when both may already."""
    given = result(training, best)
    if known:
        for path in generation.intact(folder, given.state["identity"], BEST):
            return path
    else:
        generation.write(folder, snapshot(training))
    return generation.write(folder, given)


def find(training: Training, folder: Path, before: int | None = None) -> Snapshot | None:
    """The newest snapshot of this very training that is whole, at a step below `before` where that is given."""
    for path in generation.intact(folder, identity(training), LAST):
        found = generation.read(path)
        if before is None or found.step < before:
            return found
    return None


def restore(training: Training, found: Snapshot) -> None:
    """The training, freshly set up, stands where the snapshot was taken."""
    setup, state = training.setup, found.state
    tensors = found.parts["training"]
    others = {name: codec.unpack(part, tensors) for name, part in state["others"].items()}
    setup.model.load_state_dict({**found.parts["weights"], **others["model"]})
    with torch.no_grad():
        for name, buffer in setup.model.named_buffers():
            if name in others["buffers"]:
                buffer.copy_(others["buffers"][name])
    if isinstance(setup.task.loss, nn.Module):
        setup.task.loss.load_state_dict(others["loss"])
    if isinstance(setup.task.step, nn.Module):
        setup.task.step.load_state_dict(others["step"])
    _restore_optimizer(setup.optimizer, others["optimizer"])
    if setup.schedule:
        setup.schedule.scheduler.load_state_dict(others["schedule"])
    if setup.scale:
        setup.scale.restore(others["scale"])
    training.step, training.measured = int(state["step"]), int(state["measured"])
    training.ended, training.stopped = bool(state["ended"]), str(state["stopped"])
    training.earlier = float(state["seconds"])
    training.lowest, training.lowest_at = codec.unpack(state["lowest"], {})
    training.history = found.history or History()
    if state["best"]:
        epoch, step, value = codec.unpack(state["best"], {})
        training.best = WeightsSnapshot(epoch, step, value, dict(found.parts.get("best", found.parts["weights"])))
    setup.guard.start(training.step)


def _restore_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """The optimizer's state is the one saved, in the memory layout of its parameters: fused kernels go by that."""
    with compiler_unloaded():
        optimizer.load_state_dict(state)
    stepped: Any = optimizer
    stepped._opt_called = True  # a scheduler that is moved next would warn that no step was made before
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                kept[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
