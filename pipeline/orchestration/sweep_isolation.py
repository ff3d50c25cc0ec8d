"""What a job of a sweep does to its process is undone before the next one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def isolated() -> Iterator[None]:
    """What the block does to the process is undone: generators, torch's switches, folder, environment."""
    import random

    import numpy as np
    import torch
    from torch.utils import _device

    folder, environment = os.getcwd(), dict(os.environ)
    state: list[tuple[Callable[[Any], object], Any]] = [
        (random.setstate, random.getstate()),
        (np.random.set_state, np.random.get_state()),
        (torch.set_rng_state, torch.get_rng_state()),
        (torch.set_default_dtype, torch.get_default_dtype()),
        (torch.set_default_device, _device.CURRENT_DEVICE),  # None where none was set: a default slows every call
        (torch.set_num_threads, torch.get_num_threads()),
        (torch.set_grad_enabled, torch.is_grad_enabled()),
        (torch.set_deterministic_debug_mode, torch.get_deterministic_debug_mode()),
        (torch.set_float32_matmul_precision, torch.get_float32_matmul_precision()),
        (torch.autograd.set_detect_anomaly, torch.is_anomaly_enabled()),
    ]
    try:
        yield
    finally:
        for put_back, value in state:
            put_back(value)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
