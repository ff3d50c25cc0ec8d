"""Trees: a tensor, or a dict or tuple of trees, such as nested features; the first axis of every tensor is the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

# Tensor | dict[str, Tree] | tuple[Tree, ...], or the same of NumPy arrays: whatever is not a dict or tuple is a leaf.
Tree = Any


def leaves(tree: Tree) -> Iterator[Any]:
    """Every leaf, in the order of the structure."""
    if isinstance(tree, dict | tuple):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from leaves(part)
    else:
        yield tree


def tensors(value: object) -> Iterator[Tensor]:
    """Every tensor in the inputs or outputs of any model: in mappings, lists and tuples, but not in other objects."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from tensors(part)


def named_leaves(tree: Tree, name: str = "") -> dict[str, Any]:
    """Every leaf by its dotted name, sorted, so that the order of a dict does not matter; a single leaf is `name`.

    `{"ids": a, "more": (b, c)}` gives `ids`, `more.0` and `more.1`.
    """
    if not isinstance(tree, dict | tuple):
        return {name: tree}
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree)
    branches = [named_leaves(part, f"{name}.{key}" if name else str(key)) for key, part in parts]
    return dict(sorted((key, leaf) for branch in branches for key, leaf in branch.items()))


def map_leaves(change: Callable[[Any], Any], tree: Tree) -> Tree:
    """The same structure with `change` applied to every leaf."""
    if isinstance(tree, dict):
        return {name: map_leaves(change, part) for name, part in tree.items()}
    if isinstance(tree, tuple):
        return tuple(map_leaves(change, part) for part in tree)
    return change(tree)


def with_leaves(tree: Tree, new_leaves: Iterator[Any]) -> Tree:
    """The same structure with other leaves, in the order of `leaves`, which it inverts."""
    return map_leaves(lambda _: next(new_leaves), tree)


def count_rows(tree: Tree) -> int:
    """The number of rows."""
    return len(next(leaves(tree)))


def take_rows(tree: Tree, rows: Tensor) -> Tree:
    """These rows, in this order."""
    return map_leaves(lambda tensor: tensor.index_select(0, rows.to(tensor.device)), tree)


def to_device(tree: Tree, device: torch.device) -> Tree:
    """The tree on a device; copies to a CUDA device are asynchronous."""
    if device.type == "cuda":
        return map_leaves(lambda t: t if t.is_cuda else t.pin_memory().to(device, non_blocking=True), tree)
    return map_leaves(lambda tensor: tensor.to(device), tree)


def chunks(tree: Tree, size: int) -> list[Tree]:
    """Views of consecutive rows, `size` each; the last one may be smaller."""
    if isinstance(tree, Tensor):
        return list(tree.split(size))
    parts = zip(*(leaf.split(size) for leaf in leaves(tree)), strict=True)
    return [with_leaves(tree, iter(part)) for part in parts]
