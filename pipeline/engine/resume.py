"""Snapshots of a training between two optimizer steps, and training that resumes from one of them.

The order of rows, augmentation and random numbers are not stored: they are functions of the seed, the epoch and the
step (`pipeline/batching/order.py`, `pipeline/runtime/seeds.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.building.compiler import compiler_unloaded
from pipeline.checkpoints import codec, generation
from pipeline.checkpoints.generation import CheckpointState, Snapshot
from pipeline.checkpoints.weights import tensors_of
from pipeline.engine.progress import KeptState, Progress, WeightsSnapshot
from pipeline.engine.setup import TrainingComponents
from pipeline.history import History
from pipeline.results import plain
from pipeline.run_store.job import Job

LAST, BEST = "last", "best"  # roles of a checkpoint: to resume from, and the result of the training


def identity(components: TrainingComponents, job: Job) -> dict[str, object]:
    """Return what must be equal for a bit-identical continuation: the job, torch, the device and the threads."""
    return {
        **plain(job.to_json()),
        "seed": components.seed,
        "torch": torch.__version__,
        "device": components.device.type,
        "threads": torch.get_num_threads(),
    }


def _state_besides_weights(components: TrainingComponents) -> dict[str, object]:
    """Return all state that training changes, apart from the model's tensors: optimizer, scheduler, loss, buffers."""
    model, task = components.model, components.task
    saved = model.state_dict()
    return {
        "optimizer": components.optimizer.state_dict(),
        "schedule": components.schedule.scheduler.state_dict() if components.schedule else None,
        "scale": components.loss_scale.state() if components.loss_scale else None,
        "model": {name: value for name, value in saved.items() if not isinstance(value, Tensor)},
        "buffers": {name: buffer for name, buffer in model.named_buffers() if name not in saved},
        "loss": task.loss.state_dict() if isinstance(task.loss, nn.Module) else {},
        "step": task.step.state_dict() if isinstance(task.step, nn.Module) else {},
    }


def pack_state(components: TrainingComponents) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Return the state besides the weights as JSON and the tensors it refers to, which are not copied.

    Raises UserError for state that cannot be stored in a file.
    """
    tensors: dict[str, Tensor] = {}
    with compiler_unloaded():
        state = _state_besides_weights(components)
    return {name: codec.pack(part, name, tensors) for name, part in state.items()}, tensors


def take_snapshot(components: TrainingComponents, job: Job, progress: Progress) -> Snapshot:
    """Return a copy of the training as it stands. Raises UserError for state that cannot be stored in a file."""
    packed, tensors = pack_state(components)
    weights, best = tensors_of(components.model.state_dict()), progress.best
    parts: dict[str, Mapping[str, Tensor]] = {"weights": weights, "training": tensors_of(tensors)}
    # The best weights are only stored if they are not the weights of this step.
    if best and best.step != progress.step:
        parts["best"] = best.weights
    parts |= progress.kept_parts()
    state: CheckpointState = {"role": LAST, "identity": identity(components, job), "others": packed}
    state.update(progress.to_state())
    return Snapshot(state, parts, progress.history.copy())


def _result_snapshot(components: TrainingComponents, job: Job, best: WeightsSnapshot) -> Snapshot:
    """Return the result of the training: the best weights, and when they were reached."""
    state: CheckpointState = {
        "role": BEST,
        "identity": identity(components, job),
        "plan_digest": job.plan_digest,
        "purpose": job.purpose,
        "seed": components.seed,
        "epoch": best.epoch,
        "step": best.step,
        "metric": components.task.metric.name,
        "value": codec.pack(best.value, "value", {}),
    }
    return Snapshot(state, {"weights": best.weights})


def save_best(
    components: TrainingComponents,
    job: Job,
    progress: Progress,
    folder: Path,
    best: WeightsSnapshot,
    *,
    last_saved: bool,
) -> Path:
    """Write the last and the best checkpoint and return the folder of the best.

    With `last_saved` the last one is already on disk; the best one is then only written if it is missing.
    """
    result = _result_snapshot(components, job, best)
    if last_saved:
        for path in generation.intact(folder, result.state["identity"], BEST):
            return path
    else:
        generation.write(folder, take_snapshot(components, job, progress))
    return generation.write(folder, result)


def find_snapshot(
    components: TrainingComponents, job: Job, folder: Path, *, before: int | None = None
) -> Snapshot | None:
    """Return the newest intact snapshot of this training in the folder, at a step below `before` if it is given."""
    for path in generation.intact(folder, identity(components, job), LAST):
        snapshot = generation.read(path)
        if before is None or snapshot.step < before:
            return snapshot
    return None


def restore(components: TrainingComponents, snapshot: Snapshot) -> Progress:
    """Load the snapshot into newly built components and return the progress it was taken at."""
    tensors = snapshot.parts["training"]
    state = {name: codec.unpack(part, tensors) for name, part in snapshot.state["others"].items()}
    _load_model(components, snapshot.parts["weights"], state)
    _restore_optimizer(components.optimizer, state["optimizer"])
    if components.schedule:
        components.schedule.scheduler.load_state_dict(state["schedule"])
    if components.loss_scale:
        components.loss_scale.restore(state["scale"])
    progress = Progress.from_snapshot(snapshot)
    components.guard.resume_at(progress.step)
    return progress


def reopened(components: TrainingComponents, job: Job, ended: Snapshot) -> Snapshot | None:
    """Return the end of a training with fewer epochs as a snapshot from which the job goes on; None if it cannot.

    Both must be one training up to there: the same seed, rows and changes, no schedule, which would depend on the
    length, and an end after a whole epoch that neither patience nor the clock decided.
    """
    known, own = dict(ended.state["identity"]), identity(components, job)
    lengths = ("trainer.max_epochs", "trainer.max_steps")
    for body in (known, own):
        delta: Any = body["delta"]
        overrides = {key: value for key, value in delta["overrides"].items() if key not in lengths}
        body["delta"] = {**delta, "overrides": overrides}
        body["purpose"] = ""
    history = (ended.history or History()).copy()
    stopped = {event["kind"] for event in history.events} & {"early_stop", "clock", "nonfinite", "stopped"}
    whole_epochs = ended.step % components.budget.steps_per_epoch == 0
    if known != own or components.schedule or stopped or not whole_epochs or ended.step >= components.budget.max_steps:
        return None
    history.facts.update(components.facts())
    state: CheckpointState = {**ended.state, "ended": False, "stop_reason": None}
    return Snapshot(state, ended.parts, history)


def keep_state(components: TrainingComponents, step: int) -> KeptState:
    """Return a copy of model, loss and optimizer, which later training does not change."""
    others, tensors = pack_state(components)
    return KeptState(step, others, tensors_of(components.model.state_dict()), tensors_of(tensors))


def return_to(components: TrainingComponents, kept: KeptState) -> None:
    """Give model, loss and optimizer back the state that was kept; learning rate and loss scale stay as they are."""
    copies = {name: tensor.clone() for name, tensor in kept.tensors.items()}  # the optimizer writes into what it loads
    state = {name: codec.unpack(part, copies) for name, part in kept.others.items()}
    _load_model(components, kept.weights, state)
    options = components.optimizer.state_dict()["param_groups"]
    _restore_optimizer(components.optimizer, {**state["optimizer"], "param_groups": options})


def _load_model(components: TrainingComponents, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Load weights and buffers into the model, and the state of a loss and a step that are modules."""
    model, task = components.model, components.task
    model.load_state_dict({**weights, **state["model"]})
    with torch.no_grad():
        # Buffers that `state_dict` leaves out, such as non-persistent ones.
        for name, buffer in model.named_buffers():
            if name in state["buffers"]:
                buffer.copy_(state["buffers"][name])
    if isinstance(task.loss, nn.Module):
        task.loss.load_state_dict(state["loss"])
    if isinstance(task.step, nn.Module):
        task.step.load_state_dict(state["step"])


def _restore_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load the optimizer's state, in the memory layout of its parameters, which fused kernels rely on."""
    with compiler_unloaded():
        optimizer.load_state_dict(state)
    marked: Any = optimizer
    marked._opt_called = True  # otherwise the scheduler would warn that no optimizer step came before it
    for parameter, tensors in optimizer.state.items():
        for name, value in tensors.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                tensors[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
