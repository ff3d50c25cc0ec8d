"""Estimate the seconds, memory and disk space of a training before it starts, from passes whose gradients are dropped.

A batch of the real size goes forward and backward through the built model, without an optimizer step. The estimate for
the whole training is arithmetic. Seconds differ between machines and between runs: they are evidence with a wide
margin, and never part of a plan.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypedDict

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import SGD, Optimizer

from pipeline.building import memory
from pipeline.building.memory import Autocast
from pipeline.data.splits import Split
from pipeline.data.tree import Tree, leaves, to_device
from pipeline.error_attribution import out_of_memory
from pipeline.evaluation.evaluate import call_in_eval_mode, eval_mode
from pipeline.evaluation.task import Task
from pipeline.runtime.threads import running_on, threads

MAX_PASSES = 4  # timed passes, of which the fastest counts: the first one also pays for allocation and autotuning
ENOUGH_SECONDS = 0.2  # no further pass is timed after this many seconds
HISTORY_BYTES = 400  # bytes per step in the history file: about 50 float32 columns, written twice
CGROUP = Path("/sys/fs/cgroup")  # holds the memory limit of this process's container, if there is one


@dataclass(frozen=True)
class StepCost:
    """Time and memory of one batch of `rows`.

    `step_s` are the seconds of a forward and backward pass, `forward_s` of a forward pass; None if the batch does not
    fit. Bytes: `weights` with buffers, `gradients`, the optimizer's `state`, `activations` kept for the backward pass,
    the `batch` itself, the `process` without all these, and the total `available` to it, None if unknown. `fits` is the
    number of rows that would fit, set only if this batch does not.
    """

    rows: int
    step_s: float | None
    forward_s: float | None
    weights: int
    gradients: int
    state: int
    activations: int
    batch: int
    process: int
    available: int | None
    fits: int | None = None

    @property
    def needed(self) -> int:
        """Peak bytes of a step while a checkpoint, a copy of weights and optimizer state, is being written."""
        copy = self.weights + self.state
        return self.process + self.gradients + self.state + self.activations + self.batch + copy


def measure_step(
    model: nn.Module,
    task: Task,
    train: Split,
    outputs: Tensor | None,
    optimizer: Optimizer,
    *,
    batch_size: int,
    thread_setting: int | Literal["auto"],
    autocast: Autocast,
) -> StepCost:
    """Measure a training step of this model on its device; the caller restores buffers and generators.

    The batch is not tried if two rows show that it would not fit. Raises what the model raises.
    """
    device = next(model.parameters()).device
    rows = min(batch_size, len(train))

    def first_rows(count: int) -> tuple[Tree, Tree]:
        part = train.take(torch.arange(count))
        return to_device(part.X, device), task.loss_targets(to_device(part.y, device), outputs)

    sample = min(2, rows)  # batch normalization needs two rows in train mode
    sizes = {
        "weights": _bytes([*model.parameters(), *model.buffers()]),
        "gradients": _bytes([p for p in model.parameters() if p.requires_grad]),
        "state": _state_bytes(optimizer),
        "batch": _bytes([t[:1] for t in (*leaves(train.X), *leaves(train.y))]) * rows,
    }
    sample_activations = _activation_bytes(model, task, first_rows(sample), autocast)
    process, available = _memory(device)
    activations = sample_activations * rows // sample
    estimate = StepCost(rows, None, None, **sizes, activations=activations, process=process, available=available)
    if available is not None and estimate.needed > available:
        return _with_fitting_rows(estimate, sample_activations // sample)
    count = threads(thread_setting, sum(p.numel() for p in model.parameters()))
    with running_on(count):
        try:
            batch = first_rows(rows)
            activations = sample_activations if sample == rows else _activation_bytes(model, task, batch, autocast)
            step, forward = _time_passes(model, task, batch, autocast, device)
        except Exception as error:
            if not out_of_memory(error):
                raise
            memory.release(error)
            return _with_fitting_rows(estimate, sample_activations // sample)
    return StepCost(rows, step, forward, **sizes, activations=activations, process=process, available=available)


def _bytes(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _state_bytes(optimizer: Optimizer) -> int:
    """Bytes of optimizer state: the momentum buffers of SGD and Adam; any other optimizer counts like Adam."""
    copies = 2 + bool(optimizer.defaults.get("amsgrad"))
    if isinstance(optimizer, SGD):
        copies = int(bool(optimizer.defaults.get("momentum")))
    return copies * _bytes([p for group in optimizer.param_groups for p in group["params"]])


def _run_pass(model: nn.Module, task: Task, batch: tuple[Tree, Tree], autocast: Autocast) -> None:
    """Run a forward and a backward pass and drop the gradients."""
    with autocast():
        loss = task.forward(model, *batch)[1]
    loss.backward()
    for parameter in model.parameters():
        parameter.grad = None


def _activation_bytes(model: nn.Module, task: Task, batch: tuple[Tree, Tree], autocast: Autocast) -> int:
    """Bytes that a forward pass saves for the backward pass, without weights, buffers and the batch."""
    counted = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers(), *leaves(batch))}
    saved: dict[int, int] = {}  # by storage, since several saved tensors may be views of one

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in counted:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with saved_tensors_hooks(record, lambda tensor: tensor):
        _run_pass(model, task, batch, autocast)
    return sum(saved.values())


def _time_passes(
    model: nn.Module, task: Task, batch: tuple[Tree, Tree], autocast: Autocast, device: torch.device
) -> tuple[float, float]:
    """Seconds of the fastest forward and backward pass, and of the fastest forward pass."""

    def forward() -> None:
        with eval_mode(model):
            call_in_eval_mode(task.forward, model, *batch)

    model.train()
    return _fastest(lambda: _run_pass(model, task, batch, autocast), device), _fastest(forward, device)


def _fastest(run_pass: Callable[[], None], device: torch.device) -> float:
    """Seconds of the fastest call; the device is synchronized after each."""
    best, total = float("inf"), 0.0
    for _ in range(MAX_PASSES):
        start = time.perf_counter()
        run_pass()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()
        seconds = time.perf_counter() - start
        best, total = min(best, seconds), total + seconds
        if total > ENOUGH_SECONDS:
            break
    return best


def _memory(device: torch.device) -> tuple[int, int | None]:
    """Bytes that this process uses on the device, and the total that it could use; None if unknown."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        return torch.cuda.memory_allocated(device), free
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    unused = _free_bytes()
    return used, None if unused is None else used + unused


def _free_bytes() -> int | None:
    """Free bytes of main memory, of the machine or of this container, whichever is less; None if unknown."""
    limits = []
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        limits.append(int(lines["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):  # not Linux
        return None
    try:
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        limits.append(limit - used + int(stat["inactive_file"]))
    except (OSError, KeyError, ValueError):
        pass  # not in a container, or in one without a limit ("max")
    return max(0, min(limits))


def _with_fitting_rows(estimate: StepCost, activations_per_row: int) -> StepCost:
    """The estimate with `fits` set: the rows of the largest batch that would fit; 0 if not even one row does."""
    per_row = activations_per_row + estimate.batch // estimate.rows
    fixed = estimate.needed - estimate.activations - estimate.batch
    # The batch did not fit although the system did not say how much there is: half of what it needs is a safe guess.
    free = (estimate.available or estimate.needed // 2) - fixed
    fits = min(estimate.rows - 1, int(free // max(per_row, 1)))
    return replace(estimate, fits=max(fits, 0))


class TrainingCost(TypedDict):
    """The estimate for a whole training, as the planning phase records it; bytes, and None where unknown."""

    steps: int
    batch: int
    minutes: float | None
    max_minutes: float | None
    memory: int
    available: int | None
    fits: int | None
    disk: int
    parts: dict[str, int]
    step_s: float | None


def estimate_training(
    step: StepCost,
    *,
    steps: int,
    epochs: int,
    evaluated_rows: int,
    accumulate: int,
    max_minutes: float | None,
    export_formats: int,
) -> TrainingCost:
    """Estimate a training of `steps` updates, with `evaluated_rows` rows evaluated after each of the `epochs`."""
    minutes = None
    if step.step_s is not None and step.forward_s is not None:
        training = steps * accumulate * step.step_s
        minutes = (training + epochs * evaluated_rows * step.forward_s / step.rows) / 60
    # On disk: two checkpoints and the one being written, the best weights, the history, and every exported form and the
    # weights themselves twice, in the run and in the bundle.
    checkpoints = 3 * (step.weights + step.state) + step.weights
    disk = checkpoints + HISTORY_BYTES * steps + 2 * (export_formats + 1) * step.weights
    parts = ("weights", "gradients", "state", "activations", "batch", "process")
    return {
        "steps": steps,
        "batch": step.rows,
        "minutes": minutes,
        "max_minutes": max_minutes,
        "memory": step.needed,
        "available": step.available,
        "fits": step.fits,
        "disk": disk,
        "parts": {name: getattr(step, name) for name in parts},
        "step_s": step.step_s,
    }
