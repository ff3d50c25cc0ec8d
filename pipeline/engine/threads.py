"""Threads: how many a training runs on, decided by rule and kept, since results differ with their number."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

SMALL = 1_000_000  # parameters; below, a second thread gains nothing and a busy neighbour costs a hundredfold


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(rule: int | str, parameters: int, available: int | None = None) -> int:
    """The thread count for a model: a number stands; `auto` is one for a small model, else every core, at most 16."""
    if rule != "auto":
        return int(rule)
    return 1 if parameters < SMALL else min(available or cores(), 16)


@contextmanager
def running_on(count: int) -> Iterator[None]:
    """Inside the block torch computes on `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
