"""Warnings of Python and torch during a training: noted with their step, once, and never shown or counted twice."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.data.load import load
from pipeline.engine.fit import fit
from pipeline.engine.observer import StepObserver
from pipeline.history import History
from pipeline.run_store.job import Job
from pipeline.run_store.permits import TrainPermit
from pipeline.runtime.interrupt import Interrupted
from pipeline.runtime.warning_capture import LONGEST, MOST, capture_warnings, record_warning, recorded_warnings, told


class Talker(StepObserver):
    """Warns at some steps, as a library would, and stops the training where asked to."""

    every = 1

    def __init__(self, stop_at: int = 0) -> None:
        self.stop_at = stop_at

    def before_update(self, step: int, *_: Any) -> None:
        if step % 4 == 0:
            warnings.warn("the same again", RuntimeWarning, stacklevel=1)
        if step == 6:
            _ = torch.ones(2, 2, 2).T  # of which torch warns in C++, and of itself once per process
        if step == self.stop_at:
            import signal

            signal.raise_signal(signal.SIGINT)


@pytest.fixture
def ten(digits_permit: TrainPermit) -> Iterator[Any]:
    """Ten steps of the shrunk digits under an observer, in a folder or without one."""
    data, plan = load(digits_permit.plan.config), digits_permit.plan
    job = Job(plan.digest, "trial", max_steps=10)

    def train(*observers: Any, folder: Path | None = None) -> Any:
        return fit(digits_permit, job, observers, data=data, folder=folder)

    yield train


def test_each_warning_is_noted_once_with_its_first_step(ten: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Python's and torch's are events with category, message, place, first step and count; nothing is printed.

    What torch says once per process is heard by a training that is not the first to make it say so.
    """
    with warnings.catch_warnings(record=True):
        _ = torch.ones(2, 2, 2).T
    before = warnings.showwarning, list(warnings.filters), torch.is_warn_always_enabled()
    found = recorded_warnings(ten(Talker()).history)
    mine, *others = found
    assert {**mine, "where": ""} == {
        "step": 4, "category": "RuntimeWarning", "message": "the same again", "where": "", "count": 2,
    }  # fmt: skip
    assert "test_heard.py:" in mine["where"]
    assert [one["step"] for one in others] == [6] and "x.T" in others[0]["message"]
    assert capsys.readouterr().err == ""
    assert before == (warnings.showwarning, list(warnings.filters), torch.is_warn_always_enabled())
    assert told(found).startswith("2 warnings, the first at step 4: RuntimeWarning: the same again")
    assert told([]) == "" and told([mine]) == "1 warning, at step 4: RuntimeWarning: the same again"


def test_warnings_are_no_part_of_a_digest(ten: Any) -> None:
    """A training that was warned has the digest of one that was not, and that one heard nothing."""
    quiet, loud = ten(), ten(Talker())
    assert recorded_warnings(quiet.history) == []
    assert loud.history.digest() == quiet.history.digest()


def test_what_is_taken_up_is_not_noted_twice(ten: Any, tmp_path: Path) -> None:
    """Stopped at step five and taken up, a training has the warnings of an undisturbed one, counts included."""
    whole = recorded_warnings(ten(Talker()).history)
    with pytest.raises(Interrupted, match="at step 5"):
        ten(Talker(stop_at=5), folder=tmp_path)
    assert recorded_warnings(ten(Talker(), folder=tmp_path).history) == whole
    with pytest.raises(
        Interrupted, match="; trial keeps no checkpoint and starts again"
    ):  # what has no folder says whose
        ten(Talker(stop_at=5))


def test_a_filter_that_ignores_is_obeyed() -> None:
    """What somebody silenced stays silent, and what is an error stays one."""
    history = History()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("error", BytesWarning)
        with capture_warnings(lambda *warning: record_warning(history, 1, *warning)):
            warnings.warn("silenced", FutureWarning, stacklevel=1)
            with pytest.raises(BytesWarning):
                warnings.warn("an error", BytesWarning, stacklevel=1)
    assert history.events == []


def test_threads_hear_themselves_and_leave_in_any_order() -> None:
    """The first that came goes first; each has what it warned of, and Python's own way is back at the end."""
    before, heard = warnings.showwarning, {"a": list[str](), "b": list[str]()}
    a_left, b_came = threading.Event(), threading.Event()

    def second() -> None:
        with capture_warnings(lambda category, message, where: heard["b"].append(message)):
            b_came.set()
            a_left.wait(5)
            warnings.warn("of b", stacklevel=1)

    other = threading.Thread(target=second)
    with capture_warnings(lambda category, message, where: heard["a"].append(message)):
        other.start()
        b_came.wait(5)
        warnings.warn("of a", stacklevel=1)
    a_left.set()
    other.join()
    assert heard == {"a": ["of a"], "b": ["of b"]}
    assert warnings.showwarning is before


def test_a_talkative_library_does_not_fill_the_history() -> None:
    """Messages that differ at every step are noted up to a bound and then counted together; long ones are cut."""
    history = History()
    for step in range(MOST + 20):
        record_warning(history, step, "UserWarning", f"loss is {step}", "a.py:1")
    record_warning(history, MOST + 20, "UserWarning", "x" * 2 * LONGEST, "a.py:2")
    assert len(history.events) == MOST + 1 and history.events[-1]["count"] == 21
    record_warning(other := History(), 1, "UserWarning", "x" * 2 * LONGEST, "")
    assert len(other.events[0]["message"]) == LONGEST
