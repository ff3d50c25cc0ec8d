"""Deterministic kernels: the option `trainer.deterministic`, set while a block runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# The public switch also imports the compiler, to tell it: a second in every worker. The inner one is the same flag.
_use_deterministic = getattr(torch._C, "_set_deterministic_algorithms", torch.use_deterministic_algorithms)


@contextmanager
def deterministic(rule: bool | str) -> Iterator[None]:
    """Inside the block torch uses deterministic kernels; `true` refuses others, `warn` names, `false` allows them."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it once, when it starts
    _use_deterministic(bool(rule), warn_only=rule == "warn")
    memory.fill_uninitialized_memory = False  # a debugging aid that costs a write per allocation
    try:
        yield
    finally:
        _use_deterministic(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = filled
