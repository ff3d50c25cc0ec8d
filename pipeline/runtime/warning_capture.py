"""Capture of warnings during training: each distinct warning becomes an event of the history, with its first step.

Captured warnings are not printed, so they do not break up the progress line. Digests of a history leave them out: many
libraries warn once per process, so the second of two equal trainings may raise no warning.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO, TypedDict

import torch

from pipeline.history import WARNING, History

MAX_WARNINGS = 100  # distinct warnings kept: a message that changes with every step must not fill the history
MAX_MESSAGE = 400  # characters of a message
Record = Callable[[str, str, str], None]  # takes category, message and `file:line`

_lock = threading.RLock()  # reentrant, since the garbage collector may raise a warning while the lock is held
_captures: list[tuple[int, Record]] = []  # the thread that captures, and its function
_installed = ExitStack()


class RecordedWarning(TypedDict):
    """A warning of a training, the step at which it was first raised, and how often it was raised."""

    step: int
    category: str
    message: str
    where: str
    count: int


@contextmanager
def capture_warnings(record: Record) -> Iterator[None]:
    """Inside the block every warning that no filter ignores is passed to `record` instead of being printed.

    Several threads may capture at the same time: each gets its own warnings, and the latest also gets those of threads
    that capture nothing. The former way of showing warnings is restored when the last capture ends, in any order.
    """
    capture = (threading.get_ident(), record)
    with _lock:
        if not _captures:
            _install()
        _captures.append(capture)
    try:
        yield
    finally:
        with _lock:
            _captures.remove(capture)
            if not _captures:
                _installed.close()


def _install() -> None:
    _installed.enter_context(warnings.catch_warnings())
    warnings.simplefilter("always", append=True)  # appended, so that filters of the user still come first
    warnings.showwarning = _record_warning
    _installed.callback(torch.set_warn_always, torch.is_warn_always_enabled())
    torch.set_warn_always(True)  # otherwise the second training of a process would miss warnings that the first had


def _record_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Pass a warning to the capture of this thread, else to the latest one; replaces `warnings.showwarning`."""
    this_thread = threading.get_ident()
    with _lock:
        records = [record for thread, record in _captures if thread == this_thread] or [r for _, r in _captures]
    if records:
        records[-1](category.__name__, str(message), f"{_short_path(filename)}:{lineno}")


def _short_path(filename: str) -> str:
    """Return the path relative to site-packages or to the working folder if it is inside one of them."""
    path = Path(filename)
    if "site-packages" in path.parts:
        return "/".join(path.parts[path.parts.index("site-packages") + 1 :])
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else filename


def record_warning(history: History, step: int, category: str, message: str, where: str) -> None:
    """Write the warning to the history with its first step, or count it if the history already has it."""
    message = message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 1] + "…"
    known = {(e["category"], e["message"], e["where"]): e for e in history.events if e["kind"] == WARNING}
    if len(known) >= MAX_WARNINGS and (category, message, where) not in known:
        category, message, where = "Warning", f"further warnings after {MAX_WARNINGS} different ones", ""
    if (same := known.get((category, message, where))) is not None:
        same["count"] += 1
    else:
        history.event(WARNING, step, category=category, message=message, where=where, count=1)


def recorded_warnings(history: History) -> list[RecordedWarning]:
    """Return the warnings of a training in the order in which they were first raised."""
    return [
        RecordedWarning(
            step=e["step"], category=e["category"], message=e["message"], where=e["where"], count=e["count"]
        )
        for e in history.events
        if e["kind"] == WARNING
    ]


def format_warnings(recorded: Sequence[RecordedWarning]) -> str:
    """Return `2 warnings, the first at step 12: UserWarning: ...`, or an empty string for no warnings."""
    if not recorded:
        return ""
    first = recorded[0]
    count = "1 warning" if len(recorded) == 1 else f"{len(recorded)} warnings"
    at = f"at step {first['step']}" if first["step"] else "before the first step"
    text = first["message"].splitlines()[0] if first["message"] else ""
    return f"{count}, {'the first ' if len(recorded) > 1 else ''}{at}: {first['category']}: {text}"
