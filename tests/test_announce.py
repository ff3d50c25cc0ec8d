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


def test_announced_goes_on_speaking_while_the_work_lasts() -> None:
    """After the first line come those of `still`, until the block ends; an empty one is not printed."""
    lines: list[str] = []
    texts = iter(["", "step 3", "step 5"])
    spoken = threading.Event()

    def still() -> str:
        text = next(texts, "")
        if text == "step 5":
            spoken.set()
        return text

    with announced(lines.append, "training", 0.001, still=still, again=0.001):
        assert spoken.wait(5)
    assert lines == ["training", "step 3", "step 5"]


def test_parts_say_where_they_are_after_a_long_silence() -> None:
    """One part that takes minutes gets a line with the seconds so far, and none soon after another line."""
    now = iter([0, 29, 30, 95, 100, 130])
    parts = Parts(print, "trainings", 2, lambda: next(now))
    silent, spoken = parts.still(), parts.still()
    parts.finish_one(shown=True)

    assert (silent, spoken) == ("", "  0 of 2 trainings have ended, 30 s so far")
    assert (parts.still(), parts.still()) == ("", "  1 of 2 trainings have ended, 130 s so far")


def test_parts_print_a_line_now_and_then() -> None:
    """Parts of 4 s: a line after the third, unless one was printed meanwhile; none for the last one."""
    lines: list[str] = []
    now = iter(range(0, 100, 4))
    parts = Parts(lines.append, "trainings", 7, lambda: next(now))
    for shown in (False, False, False, True, False, False, False):
        parts.finish_one(shown)

    assert lines == ["  3 of 7 trainings have ended, about 16 s left"]


def test_parts_that_run_at_the_same_time_end_together() -> None:
    """Two at a time of 20 s: after the first of four one more turn is left besides, after the third the last turn."""
    lines: list[str] = []
    now = iter([0, 20, 20, 40])
    parts = Parts(lines.append, "trainings", 4, lambda: next(now), at_a_time=2)
    for _ in range(3):
        parts.finish_one()

    assert lines == [
        "  1 of 4 trainings have ended, about 40 s left",
        "  3 of 4 trainings have ended, about 20 s left",
    ]
