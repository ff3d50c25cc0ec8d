"""Long silences say what is going on, and short ones stay silent."""

from __future__ import annotations

import threading

from pipeline.runtime.announce import Parts, announced


def test_announced_speaks_only_of_what_takes_long() -> None:
    """The line comes while the block still runs; a block that is done before leaves no line and no thread."""
    lines: list[str] = []
    spoken = threading.Event()

    def log(text: str) -> None:
        lines.append(text)
        spoken.set()

    with announced(log, "reading", 60.0):
        pass
    assert lines == []
    with announced(log, "reading", 0.01):
        assert spoken.wait(5)
    assert lines == ["reading"]
    assert threading.active_count() == 1 or all(not isinstance(t, threading.Timer) for t in threading.enumerate())


def test_parts_print_a_line_now_and_then() -> None:
    """Parts of 4 s: a line after the third, unless one was printed meanwhile; none for the last one."""
    lines: list[str] = []
    now = iter(range(0, 100, 4))
    parts = Parts(lines.append, "trainings", 7, lambda: next(now))
    for shown in (False, False, False, True, False, False, False):
        parts.finish_one(shown)

    assert lines == ["  3 of 7 trainings have ended, about 16 s left"]
