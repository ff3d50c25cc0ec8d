"""What a logger gets from a training: the losses of its steps, and the scores of its epochs."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from pipeline.history import History

PER_EPOCH = 5  # steps of an epoch that a logger by step writes, since real loggers write every n-th


@dataclass(frozen=True)
class Step:
    """One logged step: its number, its epoch, the losses since the step before (mean), rate and gradient norm."""

    number: int
    epoch: int
    loss: float
    rate: float
    norm: float | None


@dataclass(frozen=True)
class Epoch:
    """The scores at the end of an epoch; `score` is the metric of the training's `metric`."""

    number: int
    steps: int  # taken so far
    train_loss: float
    val_loss: float
    score: float


@dataclass(frozen=True)
class Training:
    """A training as its loggers saw it. `draw` gives the noise of words and times, always the same for one name."""

    name: str
    metric: str
    steps: Sequence[Step]
    epochs: Sequence[Epoch]
    steps_per_epoch: int
    draw: random.Random

    @classmethod
    def of(cls, name: str, history: History) -> Self:
        """Return what loggers see of the history of a Monitor.

        The metric is the first one of validation beside the loss. Where there is no validation loss, it is NaN.
        """
        scores = [column for column in history.epoch if column.startswith("val/") and column != "val/loss"]
        metric = scores[0] if scores else "val/loss"
        logged = history.series("train/loss") if "train/loss" in history.step else ((), ())
        at, losses = (list(column) for column in logged)
        by_epoch = {column: dict(zip(*map(list, _table(history, column)), strict=True)) for column in history.epoch}
        numbers = sorted({number for column in by_epoch.values() for number in column})
        length = max(1, round(len(at) / max(1, len(numbers))))
        every = max(1, length // PER_EPOCH)
        rates = dict(zip(*history.series("lr"), strict=True))
        norms = dict(zip(*history.series("grad_norm"), strict=True))
        first = numbers[0] if numbers else 0
        steps = [
            Step(
                int(last), first + int(last) // length, float(sum(losses[i - every : i]) / every),
                float(rates.get(last, 0.0)), None if norms.get(last) is None else float(norms[last]),
            )
            for i in range(every, len(at) + 1, every)
            for last in [at[i - 1]]
        ]  # fmt: skip
        train = by_epoch.get("train/loss", {})
        epochs = [
            Epoch(
                int(number), (place + 1) * length, _of(train, number), _of(by_epoch.get("val/loss", {}), number),
                _of(by_epoch.get(metric, {}), number),
            )
            for place, number in enumerate(numbers)
        ]  # fmt: skip
        return cls(name, metric.partition("/")[2], steps, epochs, length, random.Random(name))

    def steps_of(self, epoch: Epoch) -> Iterator[Step]:
        """Yield the logged steps of an epoch."""
        yield from (step for step in self.steps if epoch.steps - self.steps_per_epoch <= step.number < epoch.steps)


def _table(history: History, column: str) -> tuple[Any, Any]:
    return history.epoch[column].index, history.epoch[column].values


def _of(column: Mapping[int, float], number: int) -> float:
    return float(column.get(number, float("nan")))
