"""The number of threads of a training, decided by a rule and recorded, since results depend on it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SMALL = 1_000_000  # parameters; a smaller model gains nothing from a second thread, which waits long on busy cores
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # a container's share: microseconds of CPU time per so many microseconds


def cores() -> int:
    """Return the number of cores this process may use: its affinity, limited by its container's share.

    In a container that may use 2 of 64 cores, 64 threads would wait for each other.
    """
    free = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_QUOTA.read_text().split()
        return max(1, min(free, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):  # not in a container, or the share is "max"
        return free


def threads(rule: int | str, parameters: int, available: int | None = None) -> int:
    """Return the thread count for a model: `rule` if it is a number; for auto 1 for a small model, else at most 16."""
    if rule != "auto":
        return int(rule)
    return 1 if parameters < SMALL else min(available or cores(), 16)


@contextmanager
def running_on(count: int) -> Iterator[None]:
    """Use `count` threads in torch inside the block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
