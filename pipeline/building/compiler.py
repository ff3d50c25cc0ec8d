"""torch's compiler: used where it is asked for, and else not even loaded."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

HIDDEN = ("add_param_group", "state_dict", "load_state_dict")  # methods that torch keeps its compiler from tracing


def compiled(model: nn.Module) -> nn.Module:
    """The model as torch.compile makes it; it shares its weights with the model itself.

    Compiled once per batch size, so that which sizes came before cannot choose the code that runs.
    """
    net: Any = torch.compile(model, dynamic=False)
    return net


@contextmanager
def compiler_unloaded() -> Iterator[None]:
    """Inside the block optimizers are made, read and loaded without loading torch's compiler, a second per process.

    To hide these methods from the compiler torch loads it at their first call; one that is not there sees nothing.
    """
    methods = [getattr(getattr(Optimizer, name, None), "__wrapped__", None) for name in HIDDEN]
    mark = "__dynamo_disable"  # where torch keeps the form of a method that is called instead
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
