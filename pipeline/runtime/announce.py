"""One line about work that takes long: printed after a few seconds of silence, never for what is done by then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SILENCE_S = 3.0  # that nobody wonders about
LINE_S = 10.0  # between two lines about the parts of one piece of work


@contextmanager
def announced(log: Callable[[str], None], text: str, seconds: float = SILENCE_S) -> Iterator[None]:
    """Log `text` if the block is still running after so many seconds.

    The thread that waits for it computes nothing, so that it changes no result.
    """
    timer = threading.Timer(seconds, log, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # a line that is being printed is finished first


class Parts:
    """Counts the parts of one piece of work, `what` in the plural, and logs a line when none was logged for a while."""

    def __init__(
        self, log: Callable[[str], None], what: str, total: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.log, self.what, self.total, self.clock = log, what, total, clock
        self.done, self.started = 0, clock()
        self.shown = self.started

    def finish_one(self, shown: bool = False) -> None:
        """Count one part; `shown` says that a line about it was printed already."""
        self.done += 1
        now = self.clock()
        if shown:
            self.shown = now
        elif now - self.shown >= LINE_S and self.done < self.total:
            left = (now - self.started) / self.done * (self.total - self.done)
            self.log(f"  {self.done} of {self.total} {self.what} have ended, about {left:.0f} s left")
            self.shown = now
