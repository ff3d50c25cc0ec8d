"""The changes that may make a training faster, or its model faster or smaller, and keep its quality."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.adoption.general import EPOCHS, RATES, Change
from pipeline.repair.config_edits import get
from pipeline.run_store.job import Delta

FACTORS = (2, 4)  # by which epochs and widths are divided, and the rows of a batch multiplied
FEWEST_BATCHES = 4  # of an epoch: with fewer, the rate matters more than the size of a batch

Config = Mapping[str, Any]


def goal_changes(config: Config, goal: str, rows: int, on_cuda: bool) -> list[Change]:
    """Return the changes in the order in which they are worth a trial; each key exists in the config.

    `rows` are the train rows. Lower precision and compilation are tried on a GPU alone: on a CPU small models gain
    nothing by them.
    """
    smaller = [*narrower_model(config), *shallower_model(config)]
    if goal != "train_speed":
        return [*smaller, *_both(smaller)]
    epochs, batches = list(fewer_epochs(config)), list(larger_batches(config, rows))
    faster = [*epochs[:1], *batches[:1], *(_on_a_gpu(config) if on_cuda else ()), *epochs[1:], *batches[1:]]
    return [*faster, *(_both([epochs[0], batches[0]]) if epochs and batches else ()), *smaller[:1]]


def fewer_epochs(config: Config) -> Iterator[Change]:
    """A half and a quarter of the epochs, with a schedule that is as much shorter."""
    epochs, period = get(config, EPOCHS), get(config, "scheduler.T_max")
    for factor in FACTORS:
        if not isinstance(epochs, int) or epochs < 2 * factor:
            return
        changes: dict[str, object] = {EPOCHS: epochs // factor}
        if isinstance(period, int):
            changes["scheduler.T_max"] = max(1, period // factor)
        yield f"1/{factor} of the epochs", Delta(changes)


def larger_batches(config: Config, rows: int) -> Iterator[Change]:
    """Batches of 2 and 4 times as many rows, at the rate that matches them.

    The rate grows with the size for SGD (Goyal et al., arXiv:1706.02677), and with its root for optimizers that divide
    by the size of the gradients (Malladi et al., arXiv:2205.10287).
    """
    size = get(config, "loader.batch_size")
    if not isinstance(size, int):
        return
    is_sgd = str(get(config, "optimizer._target_")).rpartition(".")[2] == "SGD"
    for factor in FACTORS:
        if rows < FEWEST_BATCHES * factor * size:
            return
        growth = factor if is_sgd else math.sqrt(factor)
        rates = {key: get(config, key) for key in RATES}
        matched = {key: float(f"{rate * growth:.3g}") for key, rate in rates.items() if isinstance(rate, float)}
        yield (
            f"{factor} times as many rows in a batch, at the rate that matches",
            Delta({"loader.batch_size": factor * size, **matched}),
        )


def _on_a_gpu(config: Config) -> Iterator[Change]:
    if get(config, "trainer.precision") == 32:
        yield "bfloat16 where it is safe", Delta({"trainer.precision": "bf16-mixed"})
    if get(config, "trainer.compile") is False:
        yield "a compiled model", Delta({"trainer.compile": True})


def narrower_model(config: Config) -> Iterator[Change]:
    """Hidden layers of a half and a quarter of the width; a width stays a multiple of the heads."""
    key = "model.width" if isinstance(get(config, "model.width"), int) else "model.hidden"
    widths, heads = get(config, key), get(config, "model.heads")
    numbers = list(widths) if isinstance(widths, list | tuple) else [widths]
    if not numbers or not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
        return
    for factor in FACTORS:
        new = [n // factor for n in numbers]
        if min(new) < 1 or (isinstance(heads, int) and any(n % heads for n in new)):
            return
        yield f"1/{factor} of the width", Delta({key: new if isinstance(widths, list | tuple) else new[0]})


def shallower_model(config: Config) -> Iterator[Change]:
    """One layer less."""
    depth, hidden = get(config, "model.depth"), get(config, "model.hidden")
    if isinstance(depth, int) and not isinstance(depth, bool):
        if depth > 1:
            yield "one layer less", Delta({"model.depth": depth - 1})
    elif isinstance(hidden, list | tuple) and len(hidden) > 1:
        yield "one layer less", Delta({"model.hidden": list(hidden[:-1])})


def _both(changes: list[Change]) -> Iterator[Change]:
    """The first change together with the last one, where they set different keys."""
    if len(changes) < 2:
        return
    (first, one), (last, other) = changes[0], changes[-1]
    if not one.overlaps(other):
        yield f"{first}, and {last}", Delta({**one.overrides, **other.overrides})
