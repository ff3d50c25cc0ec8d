"""Lines about work that takes long: printed after a few seconds of silence, never for what is done by then."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SILENCE_S = 3.0  # that nobody wonders about
LINE_S = 10.0  # between two lines about the parts of one piece of work
AGAIN_S = 30.0  # between two lines about work that is not in parts


@contextmanager
def announced(
    log: Callable[[str], None],
    text: str,
    seconds: float = SILENCE_S,
    *,
    still: Callable[[], str] | None = None,
    again: float = AGAIN_S,
) -> Iterator[None]:
    """Log `text` if the block is still running after so many seconds, then what `still` returns every `again` seconds.

    An empty line of `still` is not logged. The thread that waits computes nothing of the work, so that it changes no
    result.
    """
    ended = threading.Event()

    def speak() -> None:
        if ended.wait(seconds):
            return
        log(text)
        while still is not None and not ended.wait(again):
            if line := still():
                log(line)

    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()  # a line that is being printed is finished first


class Parts:
    """Counts the parts of one piece of work, `what` in the plural, and logs a line when none was logged for a while.

    So many parts as `at_a_time` are under way at the same time.
    """

    def __init__(
        self,
        log: Callable[[str], None],
        what: str,
        total: int,
        clock: Callable[[], float] = time.monotonic,
        at_a_time: int = 1,
    ) -> None:
        self.log, self.what, self.total, self.clock = log, what, total, clock
        self.done, self.started, self.at_a_time = 0, clock(), max(1, at_a_time)
        self.shown = self.started

    def still(self) -> str:
        """Return a line about how many parts have ended, with the seconds so far; empty soon after another line."""
        now = self.clock()
        if now - self.shown < AGAIN_S:
            return ""
        if self.total == 1:
            return f"  it has not ended, {now - self.started:.0f} s so far"
        return f"  {self.done} of {self.total} {self.what} have ended, {now - self.started:.0f} s so far"

    def finish_one(self, shown: bool = False) -> None:
        """Count one part; `shown` says that a line about it was printed already."""
        self.done += 1
        now = self.clock()
        if shown:
            self.shown = now
        elif now - self.shown >= LINE_S and self.done < self.total:
            ended, still = (math.ceil(count / self.at_a_time) for count in (self.done, self.total - self.done))
            left = (now - self.started) / ended * still
            self.log(f"  {self.done} of {self.total} {self.what} have ended, about {left:.0f} s left")
            self.shown = now
