"""Augmentation: the changes of the inputs that `loader.augment` lists, with numbers from `pipeline/data/draws.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.draws import Draws
from pipeline.data.tree import Tree, rows_of
from pipeline.error_attribution import attributed_to
from pipeline.errors import UserError, fault
from pipeline.runtime.seeds import derive, reseed

Augmentation = Callable[[Tree, Draws], Tree]


def build_augmentations(config: Mapping[str, Any], trust: Sequence[str] = ()) -> tuple[Augmentation, ...]:
    """What `loader.augment` of a config lists, in its order. Raises UserError with every one that cannot be built."""
    from pipeline.config.build import build

    faults, built = list[str](), list[Any]()
    for i, node in enumerate(config["loader"].get("augment") or ()):
        try:
            built.append(build(dict(node), trust=trust, where=f"loader.augment[{i}]"))
        except UserError as error:
            faults += error.faults
            continue
        if not callable(built[-1]):
            expected = "a callable (inputs, draws) -> inputs"
            faults.append(fault(f"loader.augment[{i}]", "is no augmentation", got=node["_target_"], expected=expected))
    if faults:
        raise UserError(*faults)
    return tuple(built)


def augmented(
    inputs: Tree,
    augment: Sequence[Augmentation],
    seed: int,
    epoch: int,
    rows: NDArray[np.int64],
    device: torch.device,
) -> Tree:
    """The inputs of these rows after all augmentations. Raises UserError naming the one that fails."""
    if not augment:
        return inputs
    draws = Draws(seed, epoch, rows, device)
    reseed(derive(seed, "augment", epoch, int(rows[0])), device, foreign=True)  # for those that draw from elsewhere
    for i, change in enumerate(augment):
        with attributed_to(f"loader.augment[{i}]"), torch.no_grad():
            inputs = change(inputs, draws)
            kept = rows_of(inputs)
        if kept != len(rows):
            got = f"{kept} rows of {len(rows)}"
            raise UserError(fault(f"loader.augment[{i}]", "changes the number of rows", got=got))
    return inputs
