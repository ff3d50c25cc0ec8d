"""Memory: how many rows a training step may have to fit, and the message where it does not."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from pipeline.data.tree import each, leaves, rows_of
from pipeline.error_attribution import attributed, in_optimizer, out_of_memory
from pipeline.errors import UserError, fault
from pipeline.runtime.seeds import seeded


def fitting(try_one: Callable[[int], None], size: int) -> int | None:
    """The most rows that fit, halving from half of `size` and rounding up; None when not even one does.

    `try_one(rows)` raises what `out_of_memory` knows where they do not; anything else it raises gets out.
    """
    while size > 1:
        size = (size + 1) // 2
        try:
            try_one(size)
        except Exception as error:
            if not out_of_memory(error):
                raise
            release(error)
        else:
            return size
    return None


def release(error: BaseException) -> None:
    """What a failed attempt held is free again: the frames of its traceback keep every activation alive."""
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__context__
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def rows_that_fit(
    model: nn.Module, task: Any, inputs: Any, targets: Any, autocast: Callable[[], AbstractContextManager[Any]]
) -> int | None:
    """How many rows of this batch a forward and a backward pass can take; None when not even one.

    Gradients are gone afterwards, generators where they were; buffers (running statistics) have moved.
    """

    def try_one(rows: int) -> None:
        clear()
        part, aims = (each(lambda tensor: tensor[:rows], tree) for tree in (inputs, targets))
        with autocast():
            loss = task.forward(model, part, aims)[1]
        loss.backward()

    def clear() -> None:
        for parameter in model.parameters():
            parameter.grad = None

    clear()
    with seeded(0):
        try:
            return fitting(try_one, rows_of(inputs))
        finally:
            clear()


def step_error(
    error: Exception,
    model: nn.Module,
    task: Any,
    batch: Any,
    *,
    accumulate: int = 1,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Exception:
    """The error of a training step on `batch` (its `inputs` and `targets`) as the user should see it.

    Where memory was exhausted, smaller batches are tried and the message names the largest that fits; the model is then
    good for nothing but its weights. Memory that the optimizer's state needs does not depend on the batch.
    """
    if not out_of_memory(error) or in_optimizer(error):
        return attributed(error, model, task)
    release(error)
    rows, device = len(batch), next(leaves(batch.inputs)).device.type
    fits = rows_that_fit(model, task, batch.inputs, batch.targets, autocast)
    what = f"the step does not fit the memory of the {device}"
    if fits is None:
        do = "free some, take a smaller model, or trainer.precision=bf16-mixed"
        return UserError(fault("model", f"{what}, not even with one row", do=do))
    parts = -(-rows // fits) * accumulate
    expected, do = f"at most {fits}, which fits", f"loader.batch_size={fits} trainer.accumulate_grad_batches={parts}"
    return UserError(fault("loader.batch_size", what, got=rows, expected=expected, do=do))
