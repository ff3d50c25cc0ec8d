"""Setting up: everything a training consists of, built from a job's config and proved to fit before the first step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer

from pipeline.batching.augment import build_augmentations
from pipeline.batching.order import balanced_order, epoch_order
from pipeline.batching.source import BatchSource, batch_source
from pipeline.building.builder import (
    Schedule,
    build_model,
    build_optimizer,
    build_schedule,
    build_training_task,
)
from pipeline.building.compiler import compiled
from pipeline.building.probe import ProbeResult, device_for, probe_rows
from pipeline.data.dataset import Data
from pipeline.data.splits import Split, class_counts
from pipeline.data.tree import to
from pipeline.engine.guard import Guard
from pipeline.errors import UserError, fault
from pipeline.evaluation.task import Task, expected_loss
from pipeline.evaluation.trivial_baseline import score_trivial_baseline
from pipeline.run_store.job import Job
from pipeline.runtime.precision import LossScale, autocast
from pipeline.runtime.seeds import derive

OVERFIT = "sanity_check.overfit_one_batch"
OVERFIT_STEPS = 300  # where the job sets no budget
OVERFIT_EPOCH = 25  # steps between two looks at the batch


@dataclass(frozen=True, eq=False)
class Budget:
    """Steps per epoch and in all; `cut_short` when the job allows fewer than the plan's epochs."""

    batch: int
    accumulate: int
    per_epoch: int
    last_step: int
    cut_short: bool


@dataclass(frozen=True, eq=False)
class TrainingComponents:
    """A training before its first step.

    `net` is the model as the steps call it, compiled where that is asked for. `side` are the train rows, at most as
    many as validation has, on which the train side is measured. `bar` is the score of a model that learned nothing.
    `foreign`: the model draws from Python or NumPy.
    """

    config: Mapping[str, Any]
    seed: int
    proof: bool
    device: torch.device
    model: nn.Module
    net: nn.Module
    task: Task
    train: Split
    side: Split
    val: Split
    bar: Mapping[str, Any]
    feed: BatchSource
    foreign: bool
    autocast: Callable[[], AbstractContextManager[Any]]
    scale: LossScale | None
    optimizer: Optimizer
    schedule: Schedule | None
    guard: Guard
    budget: Budget
    classes: int | None

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def facts(self) -> dict[str, float]:
        """What is known before the first step and needs no pass through the model."""
        known = {
            "loss_expected": expected_loss(self.task, self.train.y, self.classes),
            "train_rows": len(self.train),
            "val_rows": len(self.val),
            "classes": self.classes,
            "parameters": self.parameters,
            "steps_per_epoch": self.budget.per_epoch,
            "max_steps": self.budget.last_step,
            "batch_size": self.budget.batch,
            "target": self.config["task"].get("target"),
            "trivial": self.bar["value"],
            f"decides/{self.task.metric.name}": 1 if self.task.metric.greater_is_better else -1,
        }
        return {name: float(value) for name, value in known.items() if value is not None}


def _budget(config: Mapping[str, Any], job: Job, rows: int, proof: bool) -> Budget:
    """The budget in steps; the last batch of an epoch may be smaller, none is dropped."""
    trainer = config["trainer"]
    batch = min(int(config["loader"]["batch_size"]), rows)
    accumulate = 1 if proof else int(trainer.get("accumulate_grad_batches") or 1)
    per_epoch = OVERFIT_EPOCH if proof else math.ceil(rows / (batch * accumulate))
    planned = int(trainer["max_epochs"]) * per_epoch
    planned = OVERFIT_STEPS if proof else min(planned, int(trainer.get("max_steps") or planned))
    asked = planned if job.max_steps is None else job.max_steps
    last_step = asked if proof else min(asked, planned)
    return Budget(batch, accumulate, per_epoch, last_step, cut_short=last_step < planned and not proof)


def _one_batch(model: nn.Module, train: Split, size: int, seed: int) -> Split:
    """The proof that a model can learn at all: one batch, without the dropout that is meant to hinder it."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return train.take(torch.from_numpy(epoch_order(seed, 1, len(train))[:size]))


def _order(loader: Mapping[str, Any], seed: int, train: Split, tiled: int) -> Callable[[int], NDArray[np.int64]]:
    """The row numbers of an epoch, in order; the rows as they stand, `tiled` times, for the one batch of a proof."""
    n = len(train)
    if tiled:
        return lambda epoch: np.tile(np.arange(n), tiled)
    if loader.get("sampler") == "balanced":
        if train.y.is_floating_point() or train.y.ndim != 1:
            got, expected = "targets that are values", "one class id per row"
            raise UserError(fault("loader.sampler", "balanced needs classes", got=got, expected=expected))
        labels = train.y.numpy()
        return lambda epoch: balanced_order(seed, epoch, labels)
    if loader.get("shuffle", True):
        return lambda epoch: epoch_order(seed, epoch, n)
    return lambda epoch: np.arange(n)


def channels_last(model: nn.Module, device: torch.device, precision: int | str) -> bool:
    """Whether the memory format suits: convolutions of images on the CPU, or on a card in mixed precision."""
    return any(isinstance(m, nn.Conv2d) for m in model.modules()) and (device.type == "cpu" or precision != 32)


def _laid_out(model: nn.Module, seen: ProbeResult, probe: Callable[[], ProbeResult]) -> ProbeResult:
    """The model is in channels_last where it takes that: a `view` behind a convolution does not, and says so."""
    layout: Any = model  # whose `to` is not typed for a format alone
    layout.to(memory_format=torch.channels_last)
    try:
        return probe()
    except UserError:
        layout.to(memory_format=torch.contiguous_format)
        return seen


def build_components(
    config: Mapping[str, Any], job: Job, data: Data, seed: int, trust: Sequence[str], fitted_on: Data | None = None
) -> TrainingComponents:
    """A training ready for its first step. Raises UserError where model, data, loss and optimizer do not fit.

    Preprocessing is fitted on the train rows of `fitted_on`, which are those of `data` unless given.
    """
    proof = job.purpose == OVERFIT
    loader, trainer = config["loader"], config["trainer"]
    device = device_for(trainer.get("accelerator", "auto"))
    model = build_model(config, trust, seed, fitted_on or data).to(device)
    task = build_training_task(config, model, trust, class_counts(data.train.y))
    train = _one_batch(model, data.train, int(loader["batch_size"]), seed) if proof else data.train
    few, classes = data.train.take(torch.arange(min(2, len(data.train)))), data.ids(task.kind)
    precision = trainer.get("precision", 32)
    rows = to(few.X, device), to(few.y, device)
    first = derive(seed, "init")
    seen = probe_rows(model, task, *rows, classes, precision, first)
    if channels_last(model, device, precision):
        seen = _laid_out(model, seen, lambda: probe_rows(model, task, *rows, classes, precision, first))
    budget = _budget(config, job, len(train), proof)
    optimizer = build_optimizer(config, model, trust)
    epochs = math.ceil(budget.last_step / budget.per_epoch)
    scale = LossScale() if precision == "16-mixed" else None
    deferred = device.type != "cpu" and bool(optimizer.defaults.get("fused")) and scale is None
    side = epoch_order(derive(seed, "train_side"), 0, len(train))[: len(data.val)]
    return TrainingComponents(
        config=config,
        seed=seed,
        proof=proof,
        device=device,
        model=model,
        net=compiled(model) if trainer.get("compile") else model,
        task=task,
        train=train,
        side=train.take(torch.from_numpy(side)),
        val=data.val,
        bar=score_trivial_baseline(task, train, data.val, classes, model),
        feed=batch_source(
            train,
            _order(loader, seed, train, budget.per_epoch if proof else 0),
            seed=seed,
            batch=budget.batch,
            accumulate=budget.accumulate,
            device=device,
            workers=int(loader.get("num_workers") or 0),
            augment=() if proof else build_augmentations(config, trust),
            targets=lambda y: task.loss_targets(y, seen.outputs),
        ),
        foreign=seen.foreign,
        autocast=autocast(precision, device),
        scale=scale,
        optimizer=optimizer,
        schedule=None if proof else build_schedule(config, optimizer, trust, budget.last_step, epochs),
        guard=Guard(optimizer, trainer.get("gradient_clip_val"), deferred=deferred),
        budget=budget,
        classes=classes,
    )
