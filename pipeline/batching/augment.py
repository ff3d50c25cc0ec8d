"""Augmentation: random changes of the inputs, listed in `loader.augment`, with random numbers from `Draws`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.draws import Draws
from pipeline.data.tree import Tree, count_rows
from pipeline.error_attribution import attributed_to
from pipeline.errors import UserError, fault, user_error
from pipeline.runtime.seeds import derive, reseed

Augmentation = Callable[[Tree, Draws], Tree]


def build_augmentations(config: Mapping[str, Any], trust: Sequence[str] = ()) -> tuple[Augmentation, ...]:
    """Build the augmentations of `loader.augment`, in order. Raises UserError naming every one that cannot be built."""
    from pipeline.config.build import build

    faults, augmentations, failed = list[str](), list[Augmentation](), list[UserError]()
    for i, node in enumerate(config["loader"].get("augment") or ()):
        try:
            augmentation = build(dict(node), trust=trust, where=f"loader.augment[{i}]")
        except UserError as error:
            faults += error.faults
            failed.append(error)
            continue
        if callable(augmentation):
            augmentations.append(augmentation)
        else:
            expected = "a callable (inputs, draws) -> inputs"
            faults.append(
                fault(f"loader.augment[{i}]", "is not an augmentation", got=node["_target_"], expected=expected)
            )
    if faults:
        raise user_error(faults, failed)
    return tuple(augmentations)


def apply_augmentations(
    inputs: Tree,
    augmentations: Sequence[Augmentation],
    seed: int,
    epoch: int,
    rows: NDArray[np.int64],
    device: torch.device,
) -> Tree:
    """Return the inputs of these rows after all augmentations. Raises UserError naming the one that fails."""
    if not augmentations:
        return inputs
    draws = Draws(seed, epoch, rows, device)
    # Our own augmentations draw from `draws` alone. A user's may draw from torch, NumPy or Python: those generators get
    # a seed here, so that the result does not depend on what was drawn before.
    reseed(derive(seed, "augment", epoch, int(rows[0])), device, global_rng=True)
    for i, augmentation in enumerate(augmentations):
        with attributed_to(f"loader.augment[{i}]"), torch.no_grad():
            inputs = augmentation(inputs, draws)
            count = count_rows(inputs)
        if count != len(rows):
            got = f"{count} rows of {len(rows)}"
            raise UserError(fault(f"loader.augment[{i}]", "changes the number of rows", got=got))
    return inputs
