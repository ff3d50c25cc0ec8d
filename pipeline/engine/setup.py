"""Build everything that a training consists of from a job's config, and check that it fits before the first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from pipeline.batching.source import Batch, BatchSource, batch_source
from pipeline.building.builder import (
    Schedule,
    build_model,
    build_optimizer,
    build_schedule,
    build_training_task,
)
from pipeline.building.compiler import compiled
from pipeline.building.probe import ProbeResult, device_for, probe_rows
from pipeline.callbacks.own import OwnCallback, build_callbacks
from pipeline.config.sections import LoaderConfig, TrainingConfig
from pipeline.data.dataset import Data
from pipeline.data.splits import Split, class_counts
from pipeline.data.tree import to_device
from pipeline.engine.budget import StepBudget, limited_rows, overfit_budget, planned_budget
from pipeline.engine.guard import Guard
from pipeline.engine.observer import StopTraining
from pipeline.errors import UserError, fault
from pipeline.evaluation.evaluate import loss_and_metrics
from pipeline.evaluation.task import Task, expected_loss
from pipeline.evaluation.trivial_baseline import TrivialBaseline, score_trivial_baseline
from pipeline.run_store.job import Job
from pipeline.runtime.precision import LossScale, autocast
from pipeline.runtime.seeds import derive

OVERFIT = "sanity_check.overfit_one_batch"  # the purpose of the overfit check's job


@dataclass(frozen=True, eq=False)
class TrainingComponents:
    """Everything that a training consists of, before its first step.

    `compiled_model` is the model that the steps call; it is `model` itself unless `trainer.compile` is set.
    `train_eval_rows` are the train rows on which train metrics are measured, at most as many as there are validation
    rows. `val_eval_rows` are the validation rows that are measured after an epoch: all of them, unless
    `trainer.limit_val_batches` says otherwise.
    `baseline_score` is the score of a model that learned nothing. `uses_global_rng` means that the model draws
    from Python's or NumPy's global generators. `class_count` is None where targets are not classes.
    """

    config: TrainingConfig
    seed: int
    is_overfit_check: bool
    device: torch.device
    model: nn.Module
    compiled_model: nn.Module
    task: Task
    train: Split
    train_eval_rows: Split
    val: Split
    val_eval_rows: Split
    callbacks: tuple[OwnCallback, ...]
    baseline_score: TrivialBaseline
    batches: BatchSource
    uses_global_rng: bool
    autocast: Callable[[], AbstractContextManager[None]]
    loss_scale: LossScale | None
    optimizer: Optimizer
    schedule: Schedule | None
    guard: Guard
    budget: StepBudget
    class_count: int | None

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(p.numel() for p in self.model.parameters())

    def next_batches(self, epoch: int, step: int) -> list[Batch]:
        """Return the batches of the step after `step`, where `epoch` epochs are validated."""
        steps_done = step - epoch * self.budget.steps_per_epoch
        return next(iter(self.batches.accumulation_groups(epoch + 1, steps_done)))

    def val_metrics(self) -> dict[str, float]:
        """Measure the model, as it is now, on `val_eval_rows`; the names begin with `val/`."""
        rows = self.val_eval_rows
        measured = loss_and_metrics(self.model, rows.X, rows.y, self.task)
        return {"val/loss": measured.loss, **{f"val/{name}": value for name, value in measured.metrics.items()}}

    def facts(self) -> dict[str, float]:
        """Return what the history records before the first step and without a pass through the model.

        A trivial baseline that reaches the target is left out: the way from one to the other measures nothing then.
        """
        trivial, target, metric = self.baseline_score["value"], self.config.target, self.task.metric
        facts = {
            "loss_expected": expected_loss(self.task, self.train.y, self.class_count),
            "train_rows": len(self.train),
            "val_rows": len(self.val_eval_rows),
            "classes": self.class_count,
            "parameters": self.parameters,
            "steps_per_epoch": self.budget.steps_per_epoch,
            "max_steps": self.budget.max_steps,
            "batch_size": self.budget.batch_size,
            "target": target,
            "trivial": trivial if target is None or metric.better(target, trivial) else None,
            f"decides/{metric.name}": 1 if metric.greater_is_better else -1,
        }
        return {name: float(value) for name, value in facts.items() if value is not None}


def _single_batch(model: nn.Module, train: Split, size: int, seed: int) -> Split:
    """Return the one batch of the overfit check, and turn off dropout, which is meant to prevent overfitting."""
    for module in model.modules():
        # torch's private base class of all dropout layers
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return train.take(torch.from_numpy(epoch_order(seed, 1, len(train))[:size]))


def _planned_order(
    loader: LoaderConfig, seed: int, train: Split, budget: StepBudget
) -> Callable[[int], NDArray[np.int64]]:
    """Return `_row_order`, cut after the rows that the budget takes of an epoch."""
    order, epoch_rows = _row_order(loader, seed, train), budget.epoch_rows
    return order if epoch_rows is None else lambda epoch: order(epoch)[:epoch_rows]


def _val_eval_rows(val: Split, config: TrainingConfig, seed: int) -> Split:
    """Return the validation rows that are measured after each epoch, the same ones each time."""
    batch_size = min(int(config.loader.batch_size), len(val))
    count = limited_rows(config.trainer.limit_val_batches, batch_size, len(val))
    order = epoch_order(derive(seed, "val_side"), 0, len(val))
    return val if count == len(val) else val.take(torch.from_numpy(order[:count]))


def _row_order(loader: LoaderConfig, seed: int, train: Split) -> Callable[[int], NDArray[np.int64]]:
    """Return a function from an epoch to its row numbers in order. Raises UserError for a sampler without classes."""
    n = len(train)
    if loader.sampler == "balanced":
        if train.y.is_floating_point() or train.y.ndim != 1:
            got, expected = "targets that are values", "one class id per row"
            raise UserError(fault("loader.sampler", "balanced needs classes", got=got, expected=expected))
        labels = train.y.numpy()
        return lambda epoch: balanced_order(seed, epoch, labels)
    if loader.shuffle:
        return lambda epoch: epoch_order(seed, epoch, n)
    return lambda epoch: np.arange(n)


def _repeated_rows(rows: int, budget: StepBudget) -> Callable[[int], NDArray[np.int64]]:
    """Return the row numbers of an epoch of the overfit check: the same batch in every step."""
    return lambda epoch: np.tile(np.arange(rows), budget.steps_per_epoch)


def channels_last(model: nn.Module, device: torch.device, precision: int | str) -> bool:
    """Whether the channels_last format pays: convolutions of images on the CPU, or on a GPU in mixed precision."""
    return any(isinstance(m, nn.Conv2d) for m in model.modules()) and (device.type == "cpu" or precision != 32)


def _probe_channels_last(model: nn.Module, contiguous: ProbeResult, probe: Callable[[], ProbeResult]) -> ProbeResult:
    """Convert the model to channels_last if it still runs, and return the probe of the format that it has then.

    A `view` after a convolution does not run in channels_last, and raises an error in the probe.
    """
    layout: Any = model  # torch's type hints for `to` do not know a memory format alone
    layout.to(memory_format=torch.channels_last)
    try:
        return probe()
    except UserError:
        layout.to(memory_format=torch.contiguous_format)
        return contiguous


def _probe(
    model: nn.Module,
    train: Split,
    task: Task,
    class_count: int | None,
    precision: int | str,
    seed: int,
    device: torch.device,
) -> ProbeResult:
    """Pass two train rows through model and loss, in the memory format that suits the model."""
    rows = train.take(torch.arange(min(2, len(train))))
    X, y = to_device(rows.X, device), to_device(rows.y, device)

    def probe() -> ProbeResult:
        return probe_rows(model, task, X, y, class_count, precision, seed)

    result = probe()
    return _probe_channels_last(model, result, probe) if channels_last(model, device, precision) else result


def build_components(
    config: TrainingConfig, job: Job, data: Data, seed: int, trust: Sequence[str], preprocess_data: Data | None = None
) -> TrainingComponents:
    """Build a training up to its first step. Raises UserError if model, data, loss and optimizer do not fit.

    Preprocessing is fitted on the train rows of `preprocess_data`, or of `data` if it is None.
    """
    is_overfit_check = job.purpose == OVERFIT
    loader, trainer, source = config.loader, config.trainer, config.source
    device = device_for(trainer.accelerator)
    model = build_model(source, trust, seed, preprocess_data or data).to(device)
    task = build_training_task(source, model, trust, class_counts(data.train.y), data.column_targets)
    train = _single_batch(model, data.train, int(loader.batch_size), seed) if is_overfit_check else data.train
    class_count = data.ids(task.kind)
    probe_result = _probe(model, data.train, task, class_count, trainer.precision, derive(seed, "init"), device)
    planned = planned_budget(trainer, loader, len(train)).limited_to(job.max_steps)
    budget = overfit_budget(len(train), job.max_steps) if is_overfit_check else planned
    optimizer = build_optimizer(source, model, trust)
    loss_scale = LossScale() if trainer.precision == "16-mixed" else None
    # A fused optimizer on a GPU reads the flag of a non-finite step there, so that no step waits for the device.
    deferred = device.type != "cpu" and bool(optimizer.defaults.get("fused")) and loss_scale is None
    # Metrics on a fixed sample of train rows are comparable from epoch to epoch and cost no more than validation.
    train_eval_rows = epoch_order(derive(seed, "train_side"), 0, len(train))[: len(data.val)]
    return TrainingComponents(
        config=config,
        seed=seed,
        is_overfit_check=is_overfit_check,
        device=device,
        model=model,
        compiled_model=compiled(model) if trainer.compile else model,
        task=task,
        train=train,
        train_eval_rows=train.take(torch.from_numpy(train_eval_rows)),
        val=data.val,
        val_eval_rows=_val_eval_rows(data.val, config, seed),
        callbacks=() if is_overfit_check else build_callbacks(source, trust, (StopTraining,)),
        baseline_score=score_trivial_baseline(
            task, train, data.val, class_count, model, data.class_names or (), probe_result.outputs
        ),
        batches=batch_source(
            train,
            _repeated_rows(len(train), budget) if is_overfit_check else _planned_order(loader, seed, train, budget),
            seed=seed,
            batch=budget.batch_size,
            accumulate=budget.accumulate,
            device=device,
            workers=loader.num_workers,
            augment=() if is_overfit_check else build_augmentations(source, trust),
            targets=lambda y: task.loss_targets(y, probe_result.outputs),
        ),
        uses_global_rng=probe_result.uses_global_rng,
        autocast=autocast(trainer.precision, device),
        loss_scale=loss_scale,
        optimizer=optimizer,
        schedule=None if is_overfit_check else build_schedule(source, optimizer, trust, *budget.length),
        guard=Guard(optimizer, trainer.gradient_clip_val, deferred=deferred),
        budget=budget,
        class_count=class_count,
    )
