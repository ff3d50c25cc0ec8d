"""Interrupts: what a signal asks of a training, which ends its running step first; outside one it ends the process.

No torch here: the command line listens before anything heavy is imported.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# Seconds: what comes sooner is the same request. A terminal and a cluster signal the whole group, and a parent passes
# the request on to its workers, so that one Ctrl-C may arrive twice.
ONE_REQUEST = 0.5

Handlers = Mapping[signal.Signals, Callable[[int, Any], None]]


class Interrupted(KeyboardInterrupt):
    """A training stopped because it was asked to; the message says where it stands."""


@dataclass
class StopRequest:
    """What signals asked of the block: to `stop` (the signal's name), or to write a `checkpoint`, which clears it."""

    stop: str | None = None
    checkpoint: bool = False


@contextmanager
def heard(handlers: Handlers) -> Iterator[None]:
    """Inside the block these handlers answer, afterwards the former ones; only the main thread can hear signals.

    A SIGINT that the parent has set to be ignored stays ignored: a shell does so for what it runs in the background.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        if not (number == signal.SIGINT and former[number] == signal.SIG_IGN):
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in former.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)


@contextmanager
def catch_signals() -> Iterator[StopRequest]:
    """Inside the block SIGINT and SIGTERM only ask, and SIGUSR1 asks for a checkpoint: whoever trains looks at them.

    Who asks to stop once more, half a second later, is not kept waiting: KeyboardInterrupt. In another thread than
    the main one nothing is ever asked.
    """
    asked, first = StopRequest(), 0.0

    def stop(number: int, _: Any) -> None:
        nonlocal first
        if asked.stop is None:
            asked.stop, first = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - first > ONE_REQUEST:
            raise KeyboardInterrupt(asked.stop)

    def checkpoint(*_: Any) -> None:
        asked.checkpoint = True

    with heard({signal.SIGINT: stop, signal.SIGTERM: stop, signal.SIGUSR1: checkpoint}):
        yield asked


@contextmanager
def outside_training() -> Iterator[None]:
    """Inside the block SIGTERM stops as Ctrl-C does, and SIGUSR1, which asks for a checkpoint, asks nobody."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt("SIGTERM")

    with heard({signal.SIGTERM: stop, signal.SIGUSR1: lambda *_: None}):
        yield
