"""Deterministic kernels: the option `trainer.deterministic`, set while a block runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# The public function also imports torch's compiler, which takes a second in every worker; the flag is the same.
_use_deterministic = getattr(torch._C, "_set_deterministic_algorithms", torch.use_deterministic_algorithms)


@contextmanager
def deterministic(rule: bool | str) -> Iterator[None]:
    """Inside the block torch uses deterministic kernels: True refuses others, "warn" warns, False allows them."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it only when it starts
    _use_deterministic(bool(rule), warn_only=rule == "warn")
    memory.fill_uninitialized_memory = False  # a debugging aid that costs a write per allocation
    try:
        yield
    finally:
        _use_deterministic(enabled, warn_only=warn_only)
        memory.fill_uninitialized_memory = fill
