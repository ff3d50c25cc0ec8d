"""Options of `trainer` and `loader`: what this version does with them, and a plain no to the rest."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from pipeline.errors import UserError, fault

# What each option may be in this version; a value outside is refused, never ignored.
BUILT: dict[str, tuple[Any, ...]] = {
    "trainer.precision": (32, "32", "bf16-mixed", "16-mixed"),
    "trainer.accelerator": ("auto", "cpu", "cuda", "mps"),
    "trainer.devices": (1,),
    "trainer.strategy": ("none", None),
    "trainer.deterministic": (True, False, "warn"),
    "trainer.on_spike": ("stop",),
    "loader.sampler": ("none", "balanced", None),
}


def require_built(config: Mapping[str, Any]) -> None:
    """Raises UserError naming every option that this version does not carry out."""
    faults = []
    for key, built in BUILT.items():
        section, name = key.split(".")
        value = config[section].get(name, built[0])
        if not any(value == b and isinstance(value, bool) == isinstance(b, bool) for b in built):
            expected = "one of " + ", ".join(dict.fromkeys(str(b).lower() for b in built if b is not None))
            faults.append(fault(key, "is not built in this version", got=value, expected=expected))
    if faults:
        raise UserError(*faults)


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
