"""The live guard: diagnoses a training while it runs, and warns or stops at a symptom (`trainer.guard`)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from diagnostics.diagnose import evaluate_playbooks, firing, view_of
from pipeline.engine.observer import StepObserver, StopTraining
from pipeline.history import History

FIRST_LOOK = 3  # validations, before which a curve is no symptom
GROWTH = 1.25  # from one look to the next, so that looking costs the less the longer a run is
GUARD = "guard"  # the kind of event that records a symptom that the guard has seen


class LiveGuard(StepObserver):
    """Looks at the history after some validations, and says each symptom that lasts once.

    What it does depends on the history alone, so that a resumed training is stopped where an uninterrupted one is.
    `flush` writes what other observers have measured to the history.
    """

    every = sys.maxsize  # observes no step

    def __init__(
        self,
        mode: Literal["warn", "stop"],
        config: Mapping[str, Any],
        log: Callable[[str], None],
        flush: Callable[[], None],
    ) -> None:
        self._mode, self._config, self._log, self._flush = mode, dict(config), log, flush
        self._history = History()

    def start(self, model: nn.Module, optimizer: Optimizer, history: History, step: int) -> None:
        self._history = history

    def validated(self, epoch: int, metrics: Mapping[str, float], /) -> None:
        """Diagnose the run if it is time. Raises StopTraining at a new symptom where the guard is to stop."""
        if not is_look(epoch):
            return
        self._flush()
        lasting = look(self._history, epoch, self._config)
        for title in lasting.values():
            self._log(f"guard, epoch {epoch}: {title}")
        if lasting and self._mode == "stop":
            raise StopTraining(f"trainer.guard: {', '.join(lasting)} in epoch {epoch}")


def look(history: History, epoch: int, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the titles of symptoms that last for the second look, each once, by their ids; all are recorded as events.

    One look may fall into a passing disturbance. Only playbooks with `while_training` count: an underfitting run, say,
    may only need more epochs.
    """
    view = view_of(history, dict(config))
    fired = [match.playbook for match in firing(evaluate_playbooks(view)) if match.playbook.while_training]
    events = [event for event in history.events if event["kind"] == GUARD]
    last = max((event["epoch"] for event in events if event["epoch"] < epoch), default=0)
    seen = {event["symptom"] for event in events if event["epoch"] == last}
    announced = {event["symptom"] for event in events if event["said"]}
    steps = history.step["train/loss"].index if "train/loss" in history.step else []
    lasting = {}
    for playbook in fired:
        is_lasting = playbook.id in seen - announced and last == previous_look(epoch)
        history.event(GUARD, max(steps, default=0), epoch=epoch, symptom=playbook.id, said=is_lasting)
        if is_lasting:
            lasting[playbook.id] = playbook.symptom
    return lasting


def previous_look(epoch: int) -> int:
    """Return the epoch of the look before this one; 0 for the first."""
    return max((earlier for earlier in looks(epoch - 1)), default=0)


def is_look(epoch: int) -> bool:
    """Whether the guard looks at the run after this epoch."""
    return any(look == epoch for look in looks(epoch))


def looks(last: int) -> Iterator[int]:
    """Yield the epochs after which the guard looks, up to the last one."""
    epoch = FIRST_LOOK
    while epoch <= last:
        yield epoch
        epoch = max(epoch + 1, int(epoch * GROWTH))
