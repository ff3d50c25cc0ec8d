"""General changes, for a run without a cause to cure: the range test's rate, a longer schedule, a larger model.

Steps in width are doublings, and the rate is the measured one, so that no round is spent on a small step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.repair.config_edits import get
from pipeline.run_store.job import Delta

OTHER_RATE = 2.0  # the range test's rate is tried where the planned one differs by more than this factor
LONGER = 2  # times the planned epochs
DOUBLINGS = (2, 4, 8, 16)
WIDEST = 512  # units or channels of a model that is made wider
COSINE = {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "_partial_": True, "eta_min": 0.0}
RATES, EPOCHS = ("optimizer.lr", "scheduler.max_lr"), "trainer.max_epochs"

Change = tuple[str, Delta]  # what it is in words, and the change

Config = Mapping[str, Any]


def general_changes(config: Config, suggested_rate: float | None) -> list[Change]:
    """Return the changes in the order in which they are worth a trial; each key exists in the config."""
    rate, longer = list(measured_rate(config, suggested_rate)), list(longer_schedule(config))
    wider, deeper = list(wider_model(config)), list(deeper_model(config))
    return [*rate, *wider[:2], *deeper, *longer, *wider[2:]]


def measured_rate(config: Config, suggested: float | None) -> Iterator[Change]:
    """The learning rate at which the loss falls fastest, as the baseline's range test measured it."""
    rate = get(config, RATES[0])
    if suggested is None or not _is_number(rate) or rate <= 0:
        return
    factor = suggested / rate
    if 1 / OTHER_RATE <= factor <= OTHER_RATE:
        return
    changed = {key: float(f"{get(config, key) * factor:.3g}") for key in RATES if _is_number(get(config, key))}
    yield "the learning rate of the range test", Delta(changed)


def longer_schedule(config: Config) -> Iterator[Change]:
    """Twice the epochs with a rate that falls to zero over them."""
    epochs = get(config, EPOCHS)
    if not isinstance(epochs, int) or _is_number(get(config, "trainer.max_steps")):
        return
    changes: dict[str, object] = {EPOCHS: LONGER * epochs}
    if get(config, "scheduler") is None:
        changes["scheduler"] = {**COSINE, "T_max": LONGER * epochs}
    elif isinstance(get(config, "scheduler.T_max"), int):
        changes["scheduler.T_max"] = LONGER * get(config, "scheduler.T_max")
    yield "more epochs, with a falling rate", Delta(changes)


def wider_model(config: Config) -> Iterator[Change]:
    """The hidden layers 2, 4, 8 and 16 times as wide, up to the widest that is tried: 4 and 16 times first."""
    key = "model.width" if _is_number(get(config, "model.width")) else "model.hidden"
    widths = get(config, key)
    numbers = list(widths) if isinstance(widths, list | tuple) else [widths]
    if not numbers or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in numbers):
        return
    factors = [factor for factor in DOUBLINGS if factor == DOUBLINGS[0] or factor * max(numbers) <= WIDEST]
    # 4 and 16 times come first: they show whether width helps, and 2 and 8 times only refine that.
    for factor in sorted(factors, key=lambda factor: (factor != 4, factor != 16, factor)):
        new = [factor * n for n in numbers]
        yield f"{factor} times as wide", Delta({key: new if isinstance(widths, list | tuple) else new[0]})


def deeper_model(config: Config) -> Iterator[Change]:
    """One layer more."""
    depth, hidden = get(config, "model.depth"), get(config, "model.hidden")
    if isinstance(depth, int) and not isinstance(depth, bool):
        yield "one layer deeper", Delta({"model.depth": depth + 1})
    elif isinstance(hidden, list | tuple) and hidden:
        yield "one layer deeper", Delta({"model.hidden": [*hidden, hidden[-1]]})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
