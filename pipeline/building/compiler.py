"""torch.compile: used if `trainer.compile` is set, and otherwise not even loaded."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

HIDDEN = ("add_param_group", "state_dict", "load_state_dict")  # methods that torch excludes from tracing


def compiled(model: nn.Module) -> nn.Module:
    """Return the compiled model, which shares its weights with the model itself.

    It is compiled once per batch size: with dynamic shapes, earlier batch sizes would choose the code that runs.
    """
    net: Any = torch.compile(model, dynamic=False)
    return net


@contextmanager
def compiler_unloaded() -> Iterator[None]:
    """Inside the block optimizers can be built, saved and loaded without loading torch's compiler.

    torch loads its compiler, which takes a second, at the first call of these methods to exclude them from tracing.
    That is not needed while no compiler is loaded.
    """
    methods = [getattr(getattr(Optimizer, name, None), "__wrapped__", None) for name in HIDDEN]
    mark = "__dynamo_disable"  # attribute in which torch keeps the method that it calls instead
    marked = (
        [m for m in methods if m is not None and not hasattr(m, mark)] if "torch._dynamo" not in sys.modules else []
    )
    for method in marked:
        setattr(method, mark, method)
    try:
        yield
    finally:
        for method in marked:
            delattr(method, mark)
