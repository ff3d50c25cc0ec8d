"""Threads: how many a training runs on, decided by rule and kept, since results differ with their number."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SMALL = 1_000_000  # parameters; below, a second thread gains nothing and a busy neighbour costs a hundredfold
SHARE = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of all cores, and in which time


def cores() -> int:
    """The cores this process may use: those it may run on, and no more than its container's share of them.

    In a container that may use 2 of 64 cores, 64 threads would wait for each other.
    """
    free = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = SHARE.read_text().split()
        return max(1, min(free, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):  # no container, or one with the share "max"
        return free


def threads(rule: int | str, parameters: int, available: int | None = None) -> int:
    """The thread count for a model: a number stands; `auto` is one for a small model, else every core, at most 16."""
    if rule != "auto":
        return int(rule)
    return 1 if parameters < SMALL else min(available or cores(), 16)


@contextmanager
def running_on(count: int) -> Iterator[None]:
    """Inside the block torch computes on `count` threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
