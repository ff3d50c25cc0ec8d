"""Memory: whether an error says that there was too little, and how many rows a step may have to fit."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from pipeline.conditions.seeds import seeded
from pipeline.data.tree import each, leaves, rows_of

# What the allocators of the CPU and of Apple's cards say; CUDA has a class of its own.
_CRIES = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory", "out of memory")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory is at its end, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(cry in str(error) for cry in _CRIES)


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


def device_name(inputs: Any) -> str:
    """Where a batch lies, in a word: cpu, cuda, mps."""
    return next(leaves(inputs)).device.type


no_autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
