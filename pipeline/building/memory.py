"""Memory: the largest batch that fits, and the message when a training step does not fit."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from pipeline.batching.batch import Batch
from pipeline.data.tree import Tree, count_rows, leaves, map_leaves
from pipeline.error_attribution import attributed, in_optimizer, out_of_memory, place_of
from pipeline.errors import UserError, fault
from pipeline.evaluation.task import Task
from pipeline.runtime.seeds import seeded

Autocast = Callable[[], AbstractContextManager[Any]]  # the context of a forward pass in the planned precision


def largest_fitting_size(try_size: Callable[[int], None], size: int) -> int | None:
    """Return the first size that fits when halving from `size` and rounding up; None when not even 1 fits.

    `try_size(rows)` raises an error that `out_of_memory` recognizes if the rows do not fit; other errors propagate.
    `size` itself is not tried.
    """
    while size > 1:
        size = (size + 1) // 2
        try:
            try_size(size)
        except Exception as error:
            if not out_of_memory(error):
                raise
            release(error)
        else:
            return size
    return None


def release(error: BaseException) -> None:
    """Free the memory of a failed attempt: the frames of its traceback keep every activation alive."""
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__context__
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def rows_that_fit(model: nn.Module, task: Task, inputs: Tree, targets: Tree, autocast: Autocast) -> int | None:
    """Return how many rows of this batch a forward and a backward pass can take; None when not even one.

    Afterwards the gradients are None and the generators are restored; buffers (running statistics) have changed.
    """

    def try_rows(rows: int) -> None:
        clear_gradients()
        part = [map_leaves(lambda tensor: tensor[:rows], tree) for tree in (inputs, targets)]
        with autocast():
            loss = task.forward(model, *part)[1]
        loss.backward()

    def clear_gradients() -> None:
        for parameter in model.parameters():
            parameter.grad = None

    clear_gradients()  # those of the failed step still use memory
    with seeded(0):
        try:
            return largest_fitting_size(try_rows, count_rows(inputs))
        finally:
            clear_gradients()


def step_error(
    error: BaseException,
    model: nn.Module,
    task: Task,
    batch: Batch,
    *,
    accumulate: int = 1,
    autocast: Autocast = nullcontext,
) -> BaseException:
    """Return the error of a training step on this batch as the user should see it.

    If memory was exhausted, smaller batches are tried and the message names the largest that fits; the model's buffers
    are not valid afterwards. An error in the optimizer is only attributed: its state does not depend on the batch.
    """
    if not out_of_memory(error) or in_optimizer(error):
        return attributed(error, model, task)
    place = place_of(error)
    release(error)
    rows, device = len(batch), next(leaves(batch.inputs)).device.type
    fits = rows_that_fit(model, task, batch.inputs, batch.targets, autocast)
    what = f"the step does not fit the memory of the {device}{place and f' at {place}'}"
    if fits is None:
        do = "free some, take a smaller model, or trainer.precision=bf16-mixed"
        return UserError(fault("model", f"{what}, not even with one row", do=do))
    parts = -(-rows // fits) * accumulate  # at least as many rows in one update as before
    expected, do = f"at most {fits}, which fits", f"loader.batch_size={fits} trainer.accumulate_grad_batches={parts}"
    return UserError(fault("loader.batch_size", what, got=rows, expected=expected, do=do))
