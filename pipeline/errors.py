"""The exceptions of the pipeline. Each has one message per fault and the exit code of the process.

FivegateError        1  fault in the program or the machine
├── UserError        2  the input is wrong
│   ├── UserCodeError   the user's own code failed
│   │   └── UserCodeExit  1  it raised what would end the process, as SystemExit does
│   └── DiskError       the disk or the file system refused
├── Refused          3  a gate is closed or a check failed
└── PendingReview    4  a phase waits for a person to accept its plan

A run that stops at a pending gate (exit code 4 as well) ends normally, without an exception.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pipeline.escaping import visible, visible_lines

_UNSET: Any = object()


class FivegateError(Exception):
    """The base class, with one message per fault; the process returns `exit_code`.

    A message may quote names and texts of other people, so that its control characters are escaped.
    """

    exit_code = 1

    def __init__(self, *faults: str) -> None:
        faults = tuple(map(visible_lines, faults))
        super().__init__("\n".join(faults))
        self.faults = faults


class UserError(FivegateError, ValueError):
    """The input is wrong; nothing was changed."""

    exit_code = 2


class UserCodeError(UserError):
    """The user's own code failed at `place`, `file:line`; the same command fails again until the file is changed."""

    def __init__(self, *faults: str, place: str = "") -> None:
        super().__init__(*faults)
        self.place = place


class UserCodeExit(UserCodeError):
    """The user's own code raised what would end the process, a generator or the stack: SystemExit, RecursionError."""

    exit_code = 1


def user_error(faults: Iterable[str], failed: Iterable[UserError]) -> UserError:
    """One error of all faults; `failed` are the errors that some of them come from.

    It has the class and the place of the first of them that the user's own code raised.
    """
    code_errors = [error for error in failed if isinstance(error, UserCodeError)]
    return type(code_errors[0])(*faults, place=code_errors[0].place) if code_errors else UserError(*faults)


class DiskError(UserError):
    """The disk or the file system refused; the same command continues when there is room or a permission."""


class Refused(FivegateError):
    """The records forbid it: a closed gate, a changed record, a used-up budget."""

    exit_code = 3


class PendingReview(FivegateError):
    """A phase has written its plan, and a person has to accept it before the phase goes on."""

    exit_code = 4


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most similar to `word`, or None when none is similar.

    A dotted key is also compared by its last part: `lr` is similar to `optimizer.lr`.
    """
    # Upper case does not make a word less similar: `AdamW` is `adamw`.
    spelled = {str(k).lower(): str(k) for k in reversed([*known])}
    word = word.lower()
    close = get_close_matches(word, spelled, n=1, cutoff=0.6)
    if not close:
        tail = word.rsplit(".", 1)[-1]
        tails = {k.rsplit(".", 1)[-1]: k for k in spelled}
        close = [tails[t] for t in get_close_matches(tail, tails, n=1, cutoff=0.75)]
    return spelled[close[0]] if close else None


def fault(
    where: str,
    what: str,
    *,
    got: Any = _UNSET,
    expected: str | None = None,
    among: Iterable[str] = (),
    close: str | None = None,
    do: str | None = None,
) -> str:
    """Format a message: `<where>: <what>, got <got>; expected <expected>; did you mean '<close>'?  Do: <do>`.

    `among` are the valid values: up to twelve are listed where `expected` is not given, and the most similar to `got`
    is proposed where `close` is not given.
    """
    among = [str(a) for a in among]
    text = f"{visible(where)}: {what}"
    if got is not _UNSET:
        text += f", got {quoted(got)}" if isinstance(got, str) else f", got {got}"
    if expected is None and among and len(among) <= 12:
        expected = "one of " + ", ".join(sorted(among))
    if expected:
        text += f"; expected {visible(expected)}"
    if close is None and got is not _UNSET and among:
        close = nearest(str(got), among)
    if close:
        text += f"; did you mean '{visible(close)}'?"
    if do:
        text += f"  Do: {visible(do)}"
    return text


def quoted(text: str) -> str:
    """Return a text in quotes, on one line, with its backslashes as they are: a path, a pattern, another message.

    A text that was quoted or escaped before is not escaped once more; quotes of both kinds stay as they are.
    """
    quote, body = repr(text)[0], repr(text)[1:-1]
    escaped = r"\\([\\'])" if quote == "'" and "'" in text else r"\\(\\)"
    return f"{quote}{re.sub(escaped, lambda match: match[1], body)}{quote}"


def relative_path(path: Path) -> str:
    """Return a path as messages name it: relative to the current folder where possible."""
    here, path = Path.cwd(), path.absolute()
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else str(path)
