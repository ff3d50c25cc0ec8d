"""The allocator of a training on the CPU: what one step frees is what the next one takes.

glibc gives large blocks back to the system when they are freed, and gets them again a page at a time: thousands of
faults in every step, and a quarter of the time of a small convolutional net. A training wants the same blocks again.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt, in malloc.h
KEPT = 1 << 30  # bytes of free memory at the top of the heap that the process keeps
MAPPED = 32 << 20  # bytes of a block that is still mapped on its own, and given back when it is freed


@cache
def keep_freed_memory() -> bool:
    """The process keeps what it frees, for the rest of its life; False, with nothing done, where glibc is not at work.

    Changes where blocks lie in no way that arithmetic could see: torch aligns every one of them.
    """
    try:
        mallopt: Any = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl, macOS
        return False
    return all([mallopt(TRIM_THRESHOLD, KEPT), mallopt(MMAP_THRESHOLD, MAPPED)])
