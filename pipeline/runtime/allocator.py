"""The memory allocator of the C library: during training on the CPU, freed memory stays with the process.

By default glibc returns large blocks to the system when they are freed and gets them back page by page: thousands of
page faults in every step, and a quarter of the time of a small convolutional network. Every training step needs blocks
of the same sizes again.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # parameters of mallopt, from malloc.h
KEPT_BYTES = 1 << 30  # free memory at the top of the heap that the process keeps
MMAP_BYTES = 32 << 20  # size from which a block is still mapped on its own, and returned when it is freed


@cache
def keep_freed_memory() -> bool:
    """Keep freed memory in the process from now on; return False, without any effect, where glibc is not used.

    Results do not change, because torch aligns every block in the same way.
    """
    try:
        mallopt: Any = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl, macOS
        return False
    return all([mallopt(TRIM_THRESHOLD, KEPT_BYTES), mallopt(MMAP_THRESHOLD, MMAP_BYTES)])
