"""Delta debugging: the smallest part of a change that still has its effect (Zeller and Hildebrandt 2002, `ddmin`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Part = TypeVar("Part")


def minimize(parts: Sequence[Part], has_effect: Callable[[tuple[Part, ...]], bool | None]) -> tuple[Part, ...]:
    """Return a part of `parts` that has the effect, of which no single element can be left out.

    All of them together must have it. `has_effect` returns None where it cannot be tried any more; the smallest part
    found so far is returned then. No selection is tried twice. Where halves are not enough, what is left without a part
    is tried before that part alone, since parts that are needed together are seldom in one.
    """
    current, pieces = tuple(parts), 2
    tried: dict[tuple[Part, ...], bool | None] = {current: True}
    while len(current) > 1:
        size = -(-len(current) // pieces)
        subsets = [current[i : i + size] for i in range(0, len(current), size)]
        complements = [tuple(p for p in current if p not in subset) for subset in subsets] if len(subsets) > 2 else []
        smaller = None
        for candidate in (*complements, *subsets) if complements else subsets:
            if candidate not in tried:
                tried[candidate] = has_effect(candidate)
            if tried[candidate] is None:
                return current
            if tried[candidate]:
                smaller = candidate
                break
        if smaller is not None:
            pieces = 2 if smaller in subsets else max(2, len(subsets) - 1)
            current = smaller
        elif len(subsets) == len(current):
            return current
        else:
            pieces = min(2 * pieces, len(current))
    return current
