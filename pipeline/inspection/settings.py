"""Settings: what the optimizer, its schedule, clipping, decay, dropout and the batches will do with this model.

The first update is computed from the gradient of one batch and the rule of the optimizer; no weight changes.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from pipeline.inspection.finding import Finding, Measured, contradiction
from pipeline.inspection.subject import Call, Subject

if TYPE_CHECKING:
    from pipeline.engine.setup import TrainingComponents

USUAL_EPS = 1e-8
LONGEST_SCHEDULE = 20_000  # steps that are gone through
TINY = 1e-30
READ_ROWS, READ_SECONDS = 16, 0.2  # of a data set that is read row by row
EVERY_UNIT = 1e6  # units that a model without dropout keeps


def inspect_settings(subject: Subject, setup: TrainingComponents) -> Iterator[Finding | Measured]:
    """Yield how far the weights can move in the whole training, and what holds them back."""
    area = _rate_area(setup)
    if area is not None:
        yield Measured("rate_area", area)
    if subject.optimizer is not None:
        yield from inspect_update(subject, subject.optimizer, setup.guard.clip, setup.budget.max_steps)
    yield from inspect_regularizers(subject)
    yield from _batches(subject, setup)
    yield from inspect_last_batch(subject, len(setup.train), setup.budget.batch_size)


def _rate_area(setup: TrainingComponents) -> float | None:
    """Return the mean of the learning rate over all steps, as a share of its highest value; None if it is not known."""
    schedule, optimizer, budget = setup.schedule, setup.optimizer, setup.budget
    if schedule is None:
        return 1.0
    if budget.max_steps > LONGEST_SCHEDULE or isinstance(
        schedule.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau
    ):
        return None
    state, groups = copy.deepcopy(schedule.scheduler.state_dict()), [dict(group) for group in optimizer.param_groups]
    rates: list[float] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for step in range(1, budget.max_steps + 1):
                rates.append(float(optimizer.param_groups[0]["lr"]))
                if schedule.every_step:
                    schedule.after_step()
                elif step % budget.steps_per_epoch == 0:
                    schedule.after_epoch(0.0, 0.0)
        finally:
            schedule.scheduler.load_state_dict(state)
            for group, before in zip(optimizer.param_groups, groups, strict=True):
                group.update({key: value for key, value in before.items() if key != "params"})
    highest = max(rates)
    return sum(rates) / len(rates) / highest if highest > 0 else 0.0


def inspect_update(
    subject: Subject, optimizer: Optimizer, clip: float | None, steps: int | None
) -> Iterator[Finding | Measured]:
    """Yield the size of the first update beside the weights, and the part of it that each setting takes away.

    `steps` is the length of the training. Its reach is that of the learning rate alone: without clipping, decay, a
    schedule or an unusual epsilon, which are quantities of their own.
    """
    gradients = {id(p): subject.gradients[n] for n, p in subject.model.named_parameters() if n in subject.gradients}
    pairs = [(g, p) for g in optimizer.param_groups for p in g["params"] if id(p) in gradients]
    if not pairs or not all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values()):
        return
    if all(float(group["lr"]) == 0 for group in optimizer.param_groups) and subject.task is None:
        yield contradiction("learning_rate_too_low", "rate_zero", "The learning rate is 0.", 0.0, "learning rate")
        return
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
    scale = min(1.0, clip / norm) if clip is not None and norm > 0 else 1.0
    own = [_update(optimizer, group, p, gradients[id(p)], scale) for group, p in pairs]
    if any(update is None for update in own):
        return
    weights = [p.detach() for _, p in pairs]
    total, size = _norm(own), _norm(weights)
    momentum = max(_momentum(optimizer, group) for group in optimizer.param_groups)
    yield Measured("momentum", momentum)
    if size > 0:
        ratio = total / size / (1 - momentum if momentum < 1 else TINY)
        yield Measured("first_update_ratio", ratio)
    if size > 0 and steps is not None:
        free = {"weight_decay": 0.0, "eps": USUAL_EPS}
        alone = _norm([_update(optimizer, {**g, **free}, p, gradients[id(p)], 1.0) for g, p in pairs])
        yield Measured("reach_of_updates", alone / size / max(1 - momentum, TINY) * steps)
    if scale < 1.0:
        unclipped = _norm([_update(optimizer, group, p, gradients[id(p)], 1.0) for group, p in pairs])
        yield Measured("clipped_share_of_update", total / max(unclipped, TINY))
        yield Measured("clip_over_gradient", scale)
    else:
        yield Measured("clipped_share_of_update", 1.0)
    small_eps = [_update(optimizer, {**g, "eps": USUAL_EPS}, p, gradients[id(p)], scale) for g, p in pairs]
    yield Measured("epsilon_share_of_update", total / max(_norm(small_eps), TINY))
    without = [_update(optimizer, {**g, "weight_decay": 0.0}, p, gradients[id(p)], scale) for g, p in pairs]
    decay = _norm([a - b for a, b in zip(own, without, strict=True) if a is not None and b is not None])
    yield Measured("decay_over_update", decay / max(_norm(without), TINY))


def _norm(values: list[Any]) -> float:
    return math.sqrt(sum(float(v.double().square().sum()) for v in values if v is not None))


def _momentum(optimizer: Optimizer, group: dict[str, Any]) -> float:
    """Return the share of an update that comes back in the next one; Adam's average has no net effect on its size."""
    value = group.get("momentum", 0.0) if isinstance(optimizer, SGD | RMSprop) else 0.0
    return float(value or 0.0)


def _update(
    optimizer: Optimizer, group: dict[str, Any], parameter: Tensor, gradient: Tensor, scale: float
) -> Tensor | None:
    """Return the first update of a parameter without momentum of earlier steps; None for an unknown optimizer."""
    weight, rate = parameter.detach().double(), float(group["lr"])
    gradient = (gradient.coalesce().to_dense() if gradient.is_sparse else gradient).double() * scale
    decay, eps = float(group.get("weight_decay", 0.0) or 0.0), float(group.get("eps", USUAL_EPS))
    decoupled = isinstance(optimizer, AdamW) or bool(group.get("decoupled_weight_decay", False))
    if not decoupled:
        gradient = gradient + decay * weight
    if isinstance(optimizer, SGD):
        return rate * gradient
    if isinstance(optimizer, Adam | AdamW | Adagrad):
        update = rate * gradient / (gradient.abs() + eps)
    elif isinstance(optimizer, RMSprop):
        update = rate * gradient / (math.sqrt(1 - float(group["alpha"])) * gradient.abs() + eps)
    else:
        return None
    return update + rate * decay * weight if decoupled else update


def inspect_regularizers(subject: Subject) -> Iterator[Finding | Measured]:
    """Yield how many units dropout keeps of each row, and what batch normalization makes of a batch."""
    kept = [_kept(call) for call in subject.calls if isinstance(call.module, nn.modules.dropout._DropoutNd)]
    if not kept:
        yield from (Measured("kept_units", EVERY_UNIT), Measured("dropped_share", 0.0))
    else:
        yield Measured("kept_units", *min(kept))
        yield Measured("dropped_share", *max((_share(c), c.name) for c in subject.calls if _is_dropout(c)))
    for name, module in subject.model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            momentum = module.momentum
            if momentum == 0:
                sentence = (
                    f"{name} has momentum 0, so that its running statistics never change and evaluation uses 0 and 1."
                )
                yield contradiction("normalization_misused", "norm_momentum", sentence, 0.0, "momentum", name)
            elif momentum is not None:
                yield Measured("norm_momentum_high", float(momentum), name)
                yield Measured("norm_momentum_low", float(momentum), name)
            yield Measured("norm_epsilon", float(module.eps), name)


def _is_dropout(call: Call) -> bool:
    return isinstance(call.module, nn.modules.dropout._DropoutNd)


def _share(call: Call) -> float:
    dropped: Any = call.module
    return float(dropped.p)


def _kept(call: Call) -> tuple[float, str]:
    """Return how many units or channels of a row a dropout keeps on average."""
    shape = call.inputs.shape
    spatial = isinstance(call.module, nn.Dropout1d | nn.Dropout2d | nn.Dropout3d)
    units = shape[1] if spatial and len(shape) > 2 else math.prod(shape[1:])
    return (1 - _share(call)) * units, call.name


def _batches(subject: Subject, setup: TrainingComponents) -> Iterator[Measured]:
    """The number of updates, and how a batch compares with the rows."""
    budget, rows = setup.budget, len(setup.train)
    batch = budget.batch_size * budget.accumulate
    yield Measured("updates", float(budget.max_steps))
    yield Measured("epochs", budget.max_steps / budget.steps_per_epoch)
    yield Measured("batch_share", min(1.0, batch / rows))
    yield Measured("batch_rows", float(batch))
    yield Measured("train_rows", float(rows))
    yield Measured("val_rows", float(len(setup.val)))
    yield Measured("reading_over_limit", _reading(setup))
    has_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in subject.model.modules())
    if has_norm:
        yield Measured("norm_batch_rows", float(budget.batch_size))
        last = rows % budget.batch_size or budget.batch_size
        yield Measured("norm_last_batch_rows", float(last))


def inspect_last_batch(subject: Subject, rows: int, batch_size: int) -> Iterator[Finding]:
    """Yield whether batch norm gets a single row at the end of an epoch: it has no variance, which torch refuses."""
    last = rows % batch_size or batch_size
    alone = [c for c in subject.calls if isinstance(c.module, nn.modules.batchnorm._BatchNorm) and c.inputs.ndim == 2]
    if last == 1 and alone:
        where = alone[0].name
        sentence = (
            f"The last batch of an epoch has 1 of {rows} rows, and {where} needs at least 2 to train: the step raises "
            "an error. Take another loader.batch_size."
        )
        yield contradiction("normalization_misused", "last_batch", sentence, 1.0, "rows", where)


def _reading(setup: TrainingComponents) -> float:
    """Return the time that reading all rows of the training takes in one process, as a share of its time limit."""
    dataset, limit = setup.train.dataset, setup.config.trainer.max_minutes
    if dataset is None or not limit:
        return 0.0
    began, read = time.perf_counter(), 0
    while read < min(READ_ROWS, len(setup.train)) and time.perf_counter() - began < READ_SECONDS:
        dataset[read]
        read += 1
    per_row = (time.perf_counter() - began) / max(1, read)
    rows = setup.budget.max_steps * setup.budget.batch_size * setup.budget.accumulate
    workers = max(1, int(setup.config.loader.num_workers))
    return per_row * rows / workers / (60 * limit)
