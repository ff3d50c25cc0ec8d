"""Nested batches: a tensor, or a dict or tuple of such, whose tensors share their first axis, the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Tree = Any  # Tensor | dict[str, Tree] | tuple[Tree, ...]


def leaves(tree: Tree) -> Iterator[Tensor]:
    """Every tensor, in the order of the structure."""
    if isinstance(tree, Tensor):
        yield tree
    else:
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from leaves(part)


def each(change: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """The same structure with every tensor changed."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {name: each(change, part) for name, part in tree.items()}
    return tuple(each(change, part) for part in tree)


def rows_of(tree: Tree) -> int:
    """The number of rows."""
    return len(next(leaves(tree)))


def take(tree: Tree, rows: Tensor) -> Tree:
    """Some of the rows, in the order asked for."""
    return each(lambda tensor: tensor.index_select(0, rows.to(tensor.device)), tree)


def to(tree: Tree, device: torch.device) -> Tree:
    """The tree on a device."""
    return each(lambda tensor: tensor.to(device), tree)


def split(tree: Tree, size: int) -> list[Tree]:
    """Consecutive parts of `size` rows, the last one maybe smaller; views."""
    if isinstance(tree, Tensor):
        return list(tree.split(size))
    return [each(lambda tensor, at=at: tensor[at : at + size], tree) for at in range(0, rows_of(tree), size)]  # type: ignore[misc]
