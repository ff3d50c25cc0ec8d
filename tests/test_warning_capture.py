"""Warnings of Python and torch during training are recorded with their first step and not printed."""

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
from pipeline.runtime.warning_capture import (
    MAX_MESSAGE,
    MAX_WARNINGS,
    capture_warnings,
    format_warnings,
    record_warning,
    recorded_warnings,
)

pytestmark = pytest.mark.usefixtures("default_sigint")


class WarningObserver(StepObserver):
    """Raises warnings at some steps, as a library would, and interrupts training at step `stop_at`."""

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
    """Return a function that trains ten steps with observers, in a folder or without one."""
    data, plan = load(digits_permit.plan.config), digits_permit.plan
    job = Job(plan.digest, "trial", max_steps=10)

    def train(*observers: Any, folder: Path | None = None) -> Any:
        return fit(digits_permit, job, observers, data=data, folder=folder)

    yield train


def test_warnings_are_recorded_once_with_first_step(ten: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Warnings of Python and torch are events with category, message, place, first step and count; none is printed.

    A warning that torch raises once per process is also recorded by the second training.
    """
    with warnings.catch_warnings(record=True):
        _ = torch.ones(2, 2, 2).T
    before = warnings.showwarning, list(warnings.filters), torch.is_warn_always_enabled()
    recorded = recorded_warnings(ten(WarningObserver()).history)
    first, *others = recorded
    assert {**first, "where": ""} == {
        "step": 4, "category": "RuntimeWarning", "message": "the same again", "where": "", "count": 2,
    }  # fmt: skip
    assert "test_warning_capture.py:" in first["where"]
    assert [warning["step"] for warning in others] == [6] and "x.T" in others[0]["message"]
    assert capsys.readouterr().err == ""
    assert before == (warnings.showwarning, list(warnings.filters), torch.is_warn_always_enabled())
    assert format_warnings(recorded).startswith("2 warnings, the first at step 4: RuntimeWarning: the same again")
    assert (
        format_warnings([]) == "" and format_warnings([first]) == "1 warning, at step 4: RuntimeWarning: the same again"
    )


def test_history_digest_leaves_out_warnings(ten: Any) -> None:
    """A training with warnings has the same digest as one without."""
    quiet, loud = ten(), ten(WarningObserver())
    assert recorded_warnings(quiet.history) == []
    assert loud.history.digest() == quiet.history.digest()


def test_resumed_training_records_warnings_once(ten: Any, tmp_path: Path) -> None:
    """A training that was stopped and resumed has the warnings of an undisturbed one, including their counts."""
    whole = recorded_warnings(ten(WarningObserver()).history)
    with pytest.raises(Interrupted, match="at step 5"):
        ten(WarningObserver(stop_at=5), folder=tmp_path)
    assert recorded_warnings(ten(WarningObserver(), folder=tmp_path).history) == whole
    with pytest.raises(
        Interrupted, match="; trial keeps no checkpoint and starts again"
    ):  # without a folder there is no checkpoint
        ten(WarningObserver(stop_at=5))


def test_capture_warnings_obeys_filters() -> None:
    """Ignored warnings stay ignored, and warnings that are errors stay errors."""
    history = History()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("error", BytesWarning)
        with capture_warnings(lambda *warning: record_warning(history, 1, *warning)):
            warnings.warn("silenced", FutureWarning, stacklevel=1)
            with pytest.raises(BytesWarning):
                warnings.warn("an error", BytesWarning, stacklevel=1)
    assert history.events == []


def test_capture_warnings_separates_threads() -> None:
    """Each thread records its own warnings, and Python's own function is restored at the end."""
    before, recorded = warnings.showwarning, {"a": list[str](), "b": list[str]()}
    a_left, b_came = threading.Event(), threading.Event()

    def second() -> None:
        with capture_warnings(lambda category, message, where: recorded["b"].append(message)):
            b_came.set()
            a_left.wait(5)
            warnings.warn("of b", stacklevel=1)

    other = threading.Thread(target=second)
    with capture_warnings(lambda category, message, where: recorded["a"].append(message)):
        other.start()
        b_came.wait(5)
        warnings.warn("of a", stacklevel=1)
    a_left.set()
    other.join()
    assert recorded == {"a": ["of a"], "b": ["of b"]}
    assert warnings.showwarning is before


def test_record_warning_limits_number_and_length() -> None:
    """Further messages are counted together, and long messages are cut."""
    history = History()
    for step in range(MAX_WARNINGS + 20):
        record_warning(history, step, "UserWarning", f"loss is {step}", "a.py:1")
    record_warning(history, MAX_WARNINGS + 20, "UserWarning", "x" * 2 * MAX_MESSAGE, "a.py:2")
    assert len(history.events) == MAX_WARNINGS + 1 and history.events[-1]["count"] == 21
    record_warning(other := History(), 1, "UserWarning", "x" * 2 * MAX_MESSAGE, "")
    assert len(other.events[0]["message"]) == MAX_MESSAGE
