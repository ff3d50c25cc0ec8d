"""Nested batches: a tensor, or a dict or tuple of such, whose tensors share their first axis, the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

Tree = Any  # Tensor | dict[str, Tree] | tuple[Tree, ...]; what is neither dict nor tuple is a leaf, an array too


def leaves(tree: Tree) -> Iterator[Any]:
    """Every tensor, in the order of the structure."""
    if isinstance(tree, dict | tuple):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from leaves(part)
    else:
        yield tree


def tensors(anything: Any) -> Iterator[Tensor]:
    """Every tensor in whatever a model takes or puts out: mappings, lists and tuples; other objects hold none."""
    if isinstance(anything, Tensor):
        yield anything
    elif isinstance(anything, Mapping | list | tuple):
        for part in anything.values() if isinstance(anything, Mapping) else anything:
            yield from tensors(part)


def named(tree: Tree, name: str = "") -> dict[str, Any]:
    """Every tensor by its dotted name, sorted, so that two dicts in another order are the same; a lone one is `name`.

    `{"ids": a, "more": (b, c)}` gives `ids`, `more.0` and `more.1`.
    """
    if not isinstance(tree, dict | tuple):
        return {name: tree}
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found = [named(part, f"{name}.{key}" if name else str(key)) for key, part in parts]
    return dict(sorted((key, leaf) for part in found for key, leaf in part.items()))


def each(change: Callable[[Any], Any], tree: Tree) -> Tree:
    """The same structure with every tensor changed."""
    if isinstance(tree, dict):
        return {name: each(change, part) for name, part in tree.items()}
    if isinstance(tree, tuple):
        return tuple(each(change, part) for part in tree)
    return change(tree)


def filled(tree: Tree, parts: Iterator[Any]) -> Tree:
    """The same structure with other tensors, taken one after the other: the way back from `leaves`."""
    return each(lambda _: next(parts), tree)


def rows_of(tree: Tree) -> int:
    """The number of rows."""
    return len(next(leaves(tree)))


def take(tree: Tree, rows: Tensor) -> Tree:
    """Some of the rows, in the order asked for."""
    return each(lambda tensor: tensor.index_select(0, rows.to(tensor.device)), tree)


def to(tree: Tree, device: torch.device) -> Tree:
    """The tree on a device; on a CUDA card without waiting for the copy."""
    if device.type == "cuda":
        return each(lambda t: t if t.is_cuda else t.pin_memory().to(device, non_blocking=True), tree)
    return each(lambda tensor: tensor.to(device), tree)


def split(tree: Tree, size: int) -> list[Tree]:
    """Consecutive parts of `size` rows, the last one maybe smaller; views."""
    if isinstance(tree, Tensor):
        return list(tree.split(size))
    parts = zip(*(leaf.split(size) for leaf in leaves(tree)), strict=True)
    return [filled(tree, iter(part)) for part in parts]
