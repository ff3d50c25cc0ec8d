"""What helps when a log cannot be read: the `Do:` of every refusal of `diagnose`."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path

from pipeline.errors import UserError, nearest

COMMAND = "python -m pipeline diagnose"
HELP = f"{COMMAND} --help"
SUFFIXES = (".npz", ".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".log", ".txt", ".out")
MAX_LISTED = 100  # files of a folder that are looked at
MARK = "  Do: "


def with_advice(error: UserError, path: Path) -> UserError:
    """Return the error with something to do at the end of its last message, unless it has that already."""
    if any(MARK in message for message in error.faults):
        return error
    *others, last = error.faults
    return UserError(*others, f"{last}{MARK}{_advice(path)}")


def _advice(path: Path) -> str:
    """Return the command for the log that was meant: the one of the most similar name in the folder, or the help."""
    names = {str(other): other for other in _logs_near(path) if other != path}
    close = nearest(str(path), names)
    if names:
        return f"{COMMAND} {shlex.quote(str(names[close] if close else next(iter(names.values()))))}"
    return HELP


def _logs_near(path: Path) -> list[Path]:
    """Return the logs in the folder of a path, or in the folder that it is, and the histories of a run below that."""
    folder = path if path.is_dir() else path.parent
    try:
        inside = sorted(itertools.islice(folder.iterdir(), MAX_LISTED))
        below = sorted(itertools.islice(folder.rglob("history.npz"), MAX_LISTED)) if path.is_dir() else []
    except (OSError, ValueError):
        return []
    return [*(other for other in inside if other.suffix in SUFFIXES and other.is_file()), *below]
