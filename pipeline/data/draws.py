"""Draws: random numbers for augmentation, a pure function of (seed, epoch, row, draw).

The numbers come from a counter-based hash, not from a generator: those of a row do not depend on the other rows of the
batch, on the device, on the process, or on whether the epoch was resumed. All arithmetic is exact or correctly rounded
(integers, and single float32 additions and multiplications), so results do not depend on a mathematical library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.runtime.seeds import derive

BLOCK = {"cpu": 1 << 16, "cuda": 1 << 24}  # numbers hashed at once: fits the cache, fills the GPU


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


# Odd multipliers are invertible modulo 2^64, so that different rows, and different draws, have different counters.
_ROW, _DRAW = _signed(0x9E3779B97F4A7C15), _signed(0xD1342543DE82EF95)
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)  # the multipliers of splitmix64
_FIELDS = 0x3FF | 0x3FF << 20 | 0x3FF << 40  # the low ten bits of each of three fields of 20 bits
# Teichroew's polynomial: from the sum of twelve uniform numbers to a normal one (Knuth, TAOCP 2, 3.4.1).
_TEICHROEW = (0.029899776, 0.008355968, 0.076542912, 0.252408784, 3.949846138)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """A logical shift to the right; that of torch is arithmetic, it repeats the sign bit."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The finalizer of splitmix64, in place: every bit of the result depends on every bit of x."""
    x.bitwise_xor_(_shifted(x, 30)).mul_(_FIRST)
    x.bitwise_xor_(_shifted(x, 27)).mul_(_SECOND)
    return x.bitwise_xor_(_shifted(x, 31))


class Draws:
    """Random numbers for the rows of a batch; each call returns the next numbers of every row."""

    def __init__(self, seed: int, epoch: int, rows: NDArray[np.int64], device: torch.device) -> None:
        base = _signed(derive(seed, "augment", epoch))
        numbers = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64)).to(device)
        self._keys = _mix(numbers * _ROW + base)
        self._next = 1

    def __len__(self) -> int:
        return len(self._keys)

    def uniform(self, *shape: int) -> Tensor:
        """float32 [B, *shape] in [0, 1), multiples of 2⁻²⁴."""
        return self._numbers(shape, 1, lambda words: _shifted(words[0], 40).to(torch.float32).mul_(2.0**-24))

    def normal(self, *shape: int) -> Tensor:
        """float32 [B, *shape], close to the standard normal distribution up to 5 standard deviations."""
        return self._numbers(shape, 2, _normal)

    def _numbers(self, shape: Sequence[int], words: int, convert: Callable[[list[Tensor]], Tensor]) -> Tensor:
        """float32 [B, *shape]: each number is converted from `words` hashes, in blocks of rows."""
        device, count = self._keys.device, math.prod(shape)
        counters = torch.arange(self._next, self._next + words * count, device=device).mul_(_DRAW).view(words, 1, count)
        self._next += words * count
        out = torch.empty((len(self), count), dtype=torch.float32, device=device)
        step = max(1, BLOCK.get(device.type, 1 << 20) // max(1, count))
        for keys, part in zip(self._keys.split(step), out.split(step), strict=True):
            part.copy_(convert([_mix(keys[:, None] + counter) for counter in counters]))
        return out.view(len(self), *shape)


def _normal(words: list[Tensor]) -> Tensor:
    """A normal number from two words: the exact sum of twelve uniform ten-bit numbers, corrected by a polynomial."""
    first, second = ((word & _FIELDS) + ((word >> 10) & _FIELDS) for word in words)
    sums = first + second  # three sums of four numbers, in three fields of 20 bits
    total = (sums + (sums >> 20) + (sums >> 40)) & 0xFFFFF
    r = (total * 2 - 12 * 0x3FF).to(torch.float32).mul_(2.0**-13)  # (sum - 6) / 4, symmetric around 0
    square, polynomial = r * r, torch.full_like(r, _TEICHROEW[0])
    for coefficient in _TEICHROEW[1:]:
        polynomial.mul_(square).add_(coefficient)
    return polynomial.mul_(r)
