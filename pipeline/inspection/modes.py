"""Modes: does batch norm work on the batch in training, and on its running statistics in validation?

The model is put in both modes as the training does it, so that a model whose `train` or `eval` leaves a module out, or
whose `forward` sets a mode of its own, is seen as it will be. The mode counts in which a module is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from pipeline.evaluation.evaluate import call_in_eval_mode, eval_mode
from pipeline.inspection.finding import Finding, contradiction
from pipeline.inspection.subject import Call, Subject, recording, untouched

if TYPE_CHECKING:
    from pipeline.engine.setup import TrainingComponents

BatchNorm = nn.modules.batchnorm._BatchNorm


def inspect_modes(subject: Subject, setup: TrainingComponents) -> Iterator[Finding]:
    """Yield the batch norms that work in the wrong mode in training or in validation.

    Statistics that somebody estimated before, as of a pretrained model, may be kept in training: that is silent.
    """
    if not any(isinstance(module, BatchNorm) for module in setup.model.modules()):
        return
    yield from _in_training(_norms(subject.calls))
    calls: list[Call] = []
    with untouched(setup.model), eval_mode(setup.model), recording(setup.model, calls), setup.autocast():
        call_in_eval_mode(setup.task.forward, setup.model, subject.inputs, subject.targets)
    yield from _in_validation(_norms(calls))


def _norms(calls: Sequence[Call]) -> dict[str, list[Call]]:
    """Return the calls of each batch norm by its name; one with a `forward` of its own may heed no mode."""
    norms: dict[str, list[Call]] = {}
    for call in calls:
        if type(call.module).forward in (BatchNorm.forward, nn.SyncBatchNorm.forward):
            norms.setdefault(call.name.removeprefix("model."), []).append(call)
    return norms


def _in_training(norms: dict[str, list[Call]]) -> Iterator[Finding]:
    """A batch norm in eval mode whose running statistics are those that it was made with."""
    idle = [name for name, calls in norms.items() if not any(c.training for c in calls) and _is_new(calls[0].module)]
    if idle:
        sentence = (
            f"{_listed(idle)} in eval mode while the model trains, with initial running statistics (mean 0, "
            "variance 1): nothing is normalized, and no step changes them."
        )
        yield contradiction(
            "normalization_misused", "norm_idle", sentence, float(len(idle)), "batch norms", idle[0]
        )  # fmt: skip


def _is_new(module: nn.Module) -> bool:
    """Return whether the running statistics of a batch norm are those that it was made with."""
    mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    if mean is None or var is None:
        return False
    tracked = getattr(module, "num_batches_tracked", None)
    return not (mean.any() or (var != 1).any() or (tracked is not None and tracked.item()))


def _in_validation(norms: dict[str, list[Call]]) -> Iterator[Finding]:
    """A batch norm that normalizes validation rows by the statistics of their batch."""
    training = [name for name, calls in norms.items() if any(call.training for call in calls)]
    if training:
        sentence = (
            f"{_listed(training)} in training mode while the model validates: a row's outputs depend on the other rows "
            "of its batch, and validation rows change the running statistics. Look at `train` and `eval` of the model."
        )
        yield contradiction(
            "eval_mode_missing", "norm_in_training_mode", sentence, float(len(training)), "batch norms", training[0]
        )
    bare = [name for name, calls in norms.items() if name not in training and not _has_statistics(calls[0].module)]
    if bare:
        sentence = (
            f"{bare[0]} has no running statistics (track_running_stats=False): validation normalizes a row by the "
            "other rows of its batch, on which its outputs depend."
        )
        yield contradiction(
            "normalization_misused", "norm_without_statistics", sentence, float(len(bare)), "batch norms", bare[0]
        )


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(getattr(module, "running_mean", None), torch.Tensor)


def _listed(names: Sequence[str]) -> str:
    """Return the first names and the verb that follows them."""
    more = f" and {len(names) - 1} more batch norms" if len(names) > 1 else ""
    return f"{names[0]}{more} {'are' if more else 'is'}"
