"""Warnings of Python and torch while a training runs: each distinct one is an event of its history, with its step.

They are noted, not printed, so that none stands in the middle of a progress line. Looking on costs a training nothing
but what its own warnings cost. Digests of a history leave them out: many a library warns once per process, so that of
two equal trainings the second may be silent.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from pipeline.history import WARNING, History

MOST = 100  # distinct ones: a message that changes with every step must not fill the history
LONGEST = 400  # characters of a message
Note = Callable[[str, str, str], None]  # of category, message and `file:line`

_lock = threading.RLock()  # what is collected while it is held may warn as well
_listeners: list[tuple[int, Note]] = []  # with the thread that listens
_installed = ExitStack()


@contextmanager
def capture_warnings(note: Note) -> Iterator[None]:
    """Inside the block every warning that a filter does not ignore is noted instead of shown.

    Several threads may listen: each hears itself, and the last that came hears the threads of nobody. What Python
    showed before is shown again when the last one leaves, in whatever order they do.
    """
    mine = (threading.get_ident(), note)
    with _lock:
        if not _listeners:
            _install()
        _listeners.append(mine)
    try:
        yield
    finally:
        with _lock:
            _listeners.remove(mine)
            if not _listeners:
                _installed.close()


def _install() -> None:
    _installed.enter_context(warnings.catch_warnings())
    warnings.simplefilter("always", append=True)  # counts what would be shown once a line; who ignores still ignores
    shown: Any = _pass_on
    warnings.showwarning = shown
    _installed.callback(torch.set_warn_always, torch.is_warn_always_enabled())
    torch.set_warn_always(True)  # else the second training of a process would not hear what the first one heard


def _pass_on(message: Any, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
    me = threading.get_ident()
    with _lock:
        own = [note for thread, note in _listeners if thread == me] or [note for _, note in _listeners]
    if own:
        own[-1](category.__name__, str(message), f"{_place(filename)}:{lineno}")


def _place(filename: str) -> str:
    """The file as one knows it: from the working folder, or from where packages are installed."""
    path = Path(filename)
    if "site-packages" in path.parts:
        return "/".join(path.parts[path.parts.index("site-packages") + 1 :])
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else filename


def record_warning(history: History, step: int, category: str, message: str, where: str) -> None:
    """The warning is an event of the history, once, with its first step and how often it came."""
    message = message if len(message) <= LONGEST else message[: LONGEST - 1] + "…"
    known = {(e["category"], e["message"], e["where"]): e for e in history.events if e["kind"] == WARNING}
    if len(known) >= MOST and (category, message, where) not in known:
        category, message, where = "Warning", f"others, beside {MOST} different ones", ""
    if (same := known.get((category, message, where))) is not None:
        same["count"] += 1
    else:
        history.event(WARNING, step, category=category, message=message, where=where, count=1)


def recorded_warnings(history: History) -> list[dict[str, Any]]:
    """The warnings of a training, in the order they first came: `{step, category, message, where, count}`."""
    return [{k: v for k, v in event.items() if k != "kind"} for event in history.events if event["kind"] == WARNING]


def told(found: list[dict[str, Any]]) -> str:
    """`2 warnings, the first at step 12: UserWarning: ...`; nothing for none."""
    if not found:
        return ""
    first = found[0]
    many = "1 warning" if len(found) == 1 else f"{len(found)} warnings"
    at = f"at step {first['step']}" if first["step"] else "before the first step"
    text = first["message"].splitlines()[0] if first["message"] else ""
    return f"{many}, {'the first ' if len(found) > 1 else ''}{at}: {first['category']}: {text}"
