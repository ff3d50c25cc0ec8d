"""The footprint of a training, before there is one: seconds, memory and disk, from steps whose gradients nobody uses.

A batch of the real size goes forward and backward through a model as it is built, which no optimizer touches. What
follows from that for a whole training is arithmetic. Seconds differ from machine to machine and from run to run, and so
nothing of this is part of a plan: it is evidence, judged with room to spare.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import SGD, Optimizer

from pipeline.building import memory
from pipeline.data.splits import Split
from pipeline.data.tree import Tree, leaves, to
from pipeline.error_attribution import out_of_memory
from pipeline.evaluation.evaluate import evaluating
from pipeline.evaluation.task import Task
from pipeline.runtime.threads import running_on, threads

TRIES = 4  # timed passes at most, of which the fastest counts
ENOUGH = 0.2  # seconds after which no further pass is timed
HISTORY = 400  # bytes of a step on record, every column of it and twice
CONTAINER = Path("/sys/fs/cgroup")  # its limit of memory, where this process has one


@dataclass(frozen=True)
class Footprint:
    """Of one batch of `rows`: seconds forward and backward and forward alone; None where it does not fit.

    Bytes: `weights` with buffers, `gradients`, the optimizer's `state`, `activations` kept for the way back, the
    `batch` itself, the `process` without them, and what it could have in all, `available`, where the system tells.
    `fits` are the rows of a batch that fits, where this one does not.
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
        """Bytes at the height of a step, while a checkpoint of weights and state is written beside it."""
        copy = self.weights + self.state
        return self.process + self.gradients + self.state + self.activations + self.batch + copy


def footprint(
    model: nn.Module,
    task: Task,
    train: Split,
    outputs: Tensor | None,
    optimizer: Optimizer,
    config: Mapping[str, Any],
    cast: Callable[[], AbstractContextManager[Any]],
) -> Footprint:
    """What a step of this model takes on the device it lies on; the caller restores buffers and generators.

    A batch that would not fit by what two rows need is not tried. Raises what the model raises.
    """
    device = next(model.parameters()).device
    rows = min(int(config["loader"]["batch_size"]), len(train))

    def passing(count: int) -> tuple[Tree, Tree]:
        few = train.take(torch.arange(count))
        return to(few.X, device), task.targets(to(few.y, device), outputs)

    few = min(2, rows)
    known = {
        "weights": _bytes([*model.parameters(), *model.buffers()]),
        "gradients": _bytes([p for p in model.parameters() if p.requires_grad]),
        "state": _state(optimizer),
        "batch": _bytes([t[:1] for t in (*leaves(train.X), *leaves(train.y))]) * rows,
    }
    of_few = _kept(model, task, passing(few), cast)
    process, available = _memory(device)
    guess = Footprint(rows, None, None, **known, activations=of_few * rows // few, process=process, available=available)
    if available is not None and guess.needed > available:
        return _smaller(guess, of_few // few)
    count = threads(config["trainer"].get("threads", "auto"), sum(p.numel() for p in model.parameters()))
    with running_on(count):
        try:
            batch = passing(rows)
            kept = of_few if few == rows else _kept(model, task, batch, cast)
            step, forward = _timed(model, task, batch, cast, device)
        except Exception as error:
            if not out_of_memory(error):
                raise
            memory.release(error)
            return _smaller(guess, of_few // few)
    return Footprint(rows, step, forward, **known, activations=kept, process=process, available=available)


def _bytes(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _state(optimizer: Optimizer) -> int:
    """What the optimizer will keep: the momenta of SGD and of Adam's kin, and as much as Adam for any other."""
    copies = 2 + bool(optimizer.defaults.get("amsgrad"))
    if isinstance(optimizer, SGD):
        copies = int(bool(optimizer.defaults.get("momentum")))
    return copies * _bytes([p for group in optimizer.param_groups for p in group["params"]])


def _pass(model: nn.Module, task: Task, batch: tuple[Tree, Tree], cast: Any) -> None:
    """Forward and backward; the gradients are gone afterwards."""
    with cast():
        loss = task.forward(model, *batch)[1]
    loss.backward()
    for parameter in model.parameters():
        parameter.grad = None


def _kept(model: nn.Module, task: Task, batch: tuple[Tree, Tree], cast: Any) -> int:
    """Bytes that a forward pass keeps for the backward one, weights and batch apart."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers(), *leaves(batch))}
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        _pass(model, task, batch, cast)
    return sum(seen.values())


def _timed(
    model: nn.Module, task: Task, batch: tuple[Tree, Tree], cast: Any, device: torch.device
) -> tuple[float, float]:
    """The fastest of a few passes, forward and backward, and forward alone; in seconds."""

    def forward() -> None:
        with evaluating(model):
            task.forward(model, *batch)

    model.train()
    return _fastest(lambda: _pass(model, task, batch, cast), device), _fastest(forward, device)


def _fastest(run: Callable[[], None], device: torch.device) -> float:
    best, spent = float("inf"), 0.0
    for _ in range(TRIES):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()
        took = time.perf_counter() - began
        best, spent = min(best, took), spent + took
        if spent > ENOUGH:
            break
    return best


def _memory(device: torch.device) -> tuple[int, int | None]:
    """Bytes that this process has on the device, and that it could have in all; None where nobody tells."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        return torch.cuda.memory_allocated(device), free
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    left = _free()
    return used, None if left is None else used + left


def _free() -> int | None:
    """Bytes of main memory that can still be had, on this machine and in this container."""
    found = []
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):  # no Linux
        return None
    try:
        limit, used = (int((CONTAINER / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (CONTAINER / "memory.stat").read_text().splitlines())
        found.append(limit - used + int(stat["inactive_file"]))
    except (OSError, KeyError, ValueError):  # no container, or one without a limit
        pass
    return max(0, min(found))


def _smaller(guess: Footprint, per_row: int) -> Footprint:
    """The same with the rows of a batch that would fit, by what one row needs; none where not even one does."""
    each = per_row + guess.batch // guess.rows
    fixed = guess.needed - guess.activations - guess.batch
    room = (guess.available or guess.needed // 2) - fixed
    fits = min(guess.rows - 1, int(room // max(each, 1)))
    return replace(guess, fits=max(fits, 0))


def predicted(of: Footprint, config: Mapping[str, Any], steps: int, epochs: int, judged: int) -> dict[str, Any]:
    """A whole training by this footprint: `{minutes, memory, disk, ...}`; bytes, and minutes None where unknown.

    `judged` rows are evaluated after every epoch. On disk there are two checkpoints and the one being written, the best
    weights, the history, and the exported forms twice, beside their source and in the bundle.
    """
    minutes = None
    if of.step_s is not None and of.forward_s is not None:
        training = steps * int(config["trainer"]["accumulate_grad_batches"]) * of.step_s
        minutes = (training + epochs * judged * of.forward_s / of.rows) / 60
    forms = len(config["export"]["formats"]) + 1
    return {
        "steps": steps,
        "batch": of.rows,
        "minutes": minutes,
        "max_minutes": config["trainer"]["max_minutes"],
        "memory": of.needed,
        "available": of.available,
        "fits": of.fits,
        "disk": 3 * (of.weights + of.state) + of.weights + HISTORY * steps + 2 * forms * of.weights,
        "parts": {n: getattr(of, n) for n in ("weights", "gradients", "state", "activations", "batch", "process")},
        "step_s": of.step_s,
    }
