"""Seeds: every random choice of a run is a pure function of its master seed and of what the choice is for."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def derive(master: int, *parts: str | int) -> int:
    """The seed for one purpose: 63 bits of SHA-256 over the master seed and the purpose's path.

    `derive(7, "init")` and `derive(7, "step")` share nothing, whatever was drawn before.
    """
    path = "/".join(map(str, (int(master), *parts)))
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside the block Python, NumPy and torch draw from `seed`; after it they go on as if nothing had been drawn."""
    python, numpy = random.getstate(), np.random.get_state()
    cards = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    apple = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    with torch.random.fork_rng(devices=cards):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            if apple is not None:
                torch.mps.set_rng_state(apple)


def reseed(seed: int, device: torch.device, foreign: bool = False) -> None:
    """Torch's generators for the CPU and `device` start from `seed`, in 1 µs where `torch.manual_seed` takes 80.

    With `foreign` those of Python and NumPy do too, which costs 10 µs more: for models that the probe saw draw there.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
    if foreign:
        random.seed(seed)
        np.random.seed(seed % 2**32)


def drawn(device: torch.device) -> tuple[list[torch.Tensor], tuple[Any, ...]]:
    """Where the generators stand: torch's for the CPU and `device`; Python's and NumPy's. Equal while nobody draws."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    elif device.type == "mps":
        states.append(torch.mps.get_rng_state())
    numpy: Any = np.random.get_state()
    return states, (random.getstate(), numpy[1].tobytes(), *numpy[2:])
