"""Signals: in training they request a stop after the running step; outside of training they end the process.

This module does not import torch, because the command line sets its handlers before anything heavy is imported.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

# Seconds within which a second signal belongs to the same request. A terminal and a cluster signal the whole process
# group, and a parent passes the request on to its workers, so one Ctrl-C can arrive twice.
REPEAT_SECONDS = 0.5

Handler = Callable[[int, FrameType | None], None]
Handlers = Mapping[signal.Signals, Handler]


class StopSignal(KeyboardInterrupt):
    """A signal asked the process to stop. Code of the user's own that raises KeyboardInterrupt raises another class."""


class Interrupted(StopSignal):
    """A training stopped because a signal requested it; the message says at which step."""


@dataclass
class StopRequest:
    """What signals requested: to `stop` (the name of the signal), or to write a `checkpoint`, which clears the flag."""

    stop: str | None = None
    checkpoint: bool = False


@contextmanager
def signal_handlers(handlers: Handlers) -> Iterator[None]:
    """Install the handlers inside the block and restore the former ones after it; only works in the main thread.

    SIGINT stays ignored if the parent process ignores it, as a shell does for background jobs: a Ctrl-C in the terminal
    is not meant for them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        if not (number == signal.SIGINT and former[number] == signal.SIG_IGN):
            signal.signal(number, _in_this_process(handler))
    try:
        yield
    finally:
        for number, before in former.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)


def _in_this_process(handler: Handler) -> Handler:
    """The handler, for this process only: in a child that the user's code forks, a signal does what it does by default.

    `multiprocessing.Pool` ends its processes by SIGTERM, and would wait forever for one that took it for a request.
    """
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            handler(number, frame)
        elif number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    return handle


@contextmanager
def catch_signals() -> Iterator[StopRequest]:
    """Inside the block SIGINT and SIGTERM request a stop and SIGUSR1 a checkpoint; the training loop polls the request.

    A second request to stop, at least half a second later, raises StopSignal at once. In other threads than the
    main one no signal is received.
    """
    request, first = StopRequest(), 0.0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if request.stop is None:
            request.stop, first = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - first > REPEAT_SECONDS:
            raise StopSignal(request.stop)

    def checkpoint(number: int, frame: FrameType | None) -> None:
        request.checkpoint = True

    with signal_handlers({signal.SIGINT: stop, signal.SIGTERM: stop, signal.SIGUSR1: checkpoint}):
        yield request


@contextmanager
def outside_training() -> Iterator[None]:
    """Inside the block SIGTERM and Ctrl-C raise StopSignal, and SIGUSR1 does nothing."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise StopSignal(signal.Signals(number).name)

    def ignore(number: int, frame: FrameType | None) -> None:
        return

    with signal_handlers({signal.SIGINT: stop, signal.SIGTERM: stop, signal.SIGUSR1: ignore}):
        yield


def is_stop_request(error: BaseException) -> bool:
    """Whether an exception says that somebody outside of the program wants it to stop.

    A KeyboardInterrupt that is no StopSignal is a request only where Python itself handles Ctrl-C, as in a notebook;
    under the handlers above it was raised by code of the user's own.
    """
    if isinstance(error, StopSignal) or not isinstance(error, KeyboardInterrupt):
        return isinstance(error, StopSignal)
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler
