"""Setting up: everything a training consists of, built from a job's config and proved to fit before the first step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pipeline.data.dataset import Data
from pipeline.data.splits import Split, class_counts
from pipeline.engine.builder import build_loss, build_model, build_optimizer, build_scheduler
from pipeline.engine.guard import Guard
from pipeline.engine.probe import device_for, probe_rows
from pipeline.engine.seeds import derive
from pipeline.evaluation.task import Task, build_task, expected_loss
from pipeline.evaluation.trivial import trivial_score
from pipeline.feed.order import balanced_order, epoch_order
from pipeline.job import Job

OVERFIT = "proof.overfit_one_batch"
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
class Setup:
    """A training before its first step. `targets` are the train rows' as the loss needs them.

    `side` are the train rows, at most as many as validation has, on which the train side is measured.
    """

    config: Mapping[str, Any]
    seed: int
    proof: bool
    device: torch.device
    model: nn.Module
    task: Task
    train: Split
    side: Split
    val: Split
    targets: Tensor
    stochastic: bool
    optimizer: Optimizer
    scheduler: LRScheduler | None
    guard: Guard
    budget: Budget
    classes: int | None

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Row numbers of the epoch, in order; those of a proof are its one batch again and again."""
        n, loader = len(self.train), self.config["loader"]
        if self.proof:
            return np.tile(np.arange(n), self.budget.per_epoch)
        if loader.get("sampler") == "balanced" and not self.train.y.is_floating_point():
            return balanced_order(self.seed, epoch, self.train.y.numpy())
        return epoch_order(self.seed, epoch, n) if loader.get("shuffle", True) else np.arange(n)

    def facts(self) -> dict[str, float]:
        """What is known before the first step and needs no pass through the model."""
        known = {
            "loss_expected": expected_loss(self.task, self.train.y, self.classes),
            "train_rows": len(self.train),
            "val_rows": len(self.val),
            "classes": self.classes,
            "parameters": self.parameters,
            "steps_per_epoch": self.budget.per_epoch,
            "batch_size": self.budget.batch,
            "target": self.config["task"].get("target"),
            "trivial": trivial_score(self.task, self.train, self.val, self.classes)["value"],
        }
        return {name: float(value) for name, value in known.items() if value is not None}


def _budget(config: Mapping[str, Any], job: Job, rows: int, proof: bool) -> Budget:
    """The budget in steps; the last batch of an epoch may be smaller, none is dropped."""
    trainer = config["trainer"]
    batch = min(int(config["loader"]["batch_size"]), rows)
    accumulate = 1 if proof else int(trainer.get("accumulate_grad_batches") or 1)
    per_epoch = OVERFIT_EPOCH if proof else math.ceil(rows / (batch * accumulate))
    planned = OVERFIT_STEPS if proof else int(trainer["max_epochs"]) * per_epoch
    asked = planned if job.max_steps is None else job.max_steps
    last_step = asked if proof else min(asked, planned)
    return Budget(batch, accumulate, per_epoch, last_step, cut_short=last_step < planned and not proof)


def _one_batch(model: nn.Module, train: Split, size: int, seed: int) -> Split:
    """The proof that a model can learn at all: one batch, without the dropout that is meant to hinder it."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return train.take(torch.from_numpy(epoch_order(seed, 1, len(train))[:size]))


def set_up(config: Mapping[str, Any], job: Job, data: Data, seed: int, trust: Sequence[str]) -> Setup:
    """A training ready for its first step. Raises UserError where model, data, loss and optimizer do not fit."""
    proof = job.purpose == OVERFIT
    device = device_for(config["trainer"].get("accelerator", "auto"))
    model = build_model(config, trust, seed).to(device)
    loss = build_loss(config, trust, class_counts(data.train.y))
    task = build_task(config, loss.to(device) if isinstance(loss, nn.Module) else loss, model, trust)
    size = int(config["loader"]["batch_size"])
    train = _one_batch(model, data.train, size, seed) if proof else data.train
    seen = probe_rows(model, task, train.X[:2].to(device), train.y[:2].to(device), data.classes)
    optimizer = build_optimizer(config, model, trust)
    deferred = device.type != "cpu" and bool(optimizer.defaults.get("fused"))
    rows = epoch_order(derive(seed, "train_side"), 0, len(train))[: len(data.val)]
    return Setup(
        config=config,
        seed=seed,
        proof=proof,
        device=device,
        model=model,
        task=task,
        train=train,
        side=train.take(torch.from_numpy(rows)),
        val=data.val,
        targets=task.targets(train.y, seen.outputs),
        stochastic=seen.stochastic,
        optimizer=optimizer,
        scheduler=None if proof else build_scheduler(config, optimizer, trust),
        guard=Guard(optimizer, config["trainer"].get("gradient_clip_val"), deferred=deferred),
        budget=_budget(config, job, len(train), proof),
        classes=data.classes,
    )
