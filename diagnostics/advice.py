"""What helps when a log cannot be read: the `Do:` of every refusal of `diagnose`."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path

from pipeline.errors import UserError, nearest

LOGS = (".npz", ".csv", ".tsv", ".jsonl", ".ndjson")
COMMAND = "python -m pipeline diagnose"
HELP = f"{COMMAND} --help"
MAX_LISTED = 100  # files of a folder that are looked at
MARK = "  Do: "


def command(path: Path) -> str:
    """Return the command that diagnoses this file."""
    return f"{COMMAND} {shlex.quote(str(path))}"


def with_advice(error: UserError, path: Path) -> UserError:
    """Return the error with something to do at the end of its last message, unless it has that already."""
    if any(MARK in message for message in error.faults):
        return error
    *others, last = error.faults
    return UserError(*others, f"{last}{MARK}{_advice(path)}")


def shortened(path: Path, shell: str) -> str:
    """Return the command that writes the part of a log that can be read beside it, and diagnoses that."""
    short = path.with_name(f"short-{path.name}")
    return f"{shell} > {shlex.quote(str(short))} && {command(short)}"


def _advice(path: Path) -> str:
    """Return what to do: correct a log, rename one of another name, or diagnose the log that was meant."""
    if path.is_file() and path.suffix in LOGS and path.suffix != ".npz":
        return f"correct the file, then repeat: {command(path)}"
    if path.is_file() and path.suffix not in LOGS and (suffix := _format_of(path)):
        copy = path.with_name(path.name + suffix)
        return f"{shlex.join(['cp', '--', str(path), str(copy)])} && {command(copy)}"
    names = {str(other): other for other in _logs_near(path) if other != path}
    close = nearest(str(path), names)
    if names:
        return command(names[close] if close else next(iter(names.values())))
    return HELP


def _format_of(path: Path) -> str:
    """Return the suffix that a text file would have as a log; empty for a file that is not text."""
    with path.open("rb") as stream:
        start = stream.read(4096)
    try:
        text = start.decode("utf-8-sig", errors="strict" if len(start) < 4096 else "ignore").lstrip()
    except UnicodeDecodeError:
        return ""
    if not text or "\0" in text or text[0] == "[":
        return ""
    return ".jsonl" if text[0] == "{" else ".csv"


def _logs_near(path: Path) -> list[Path]:
    """Return the logs in the folder of a path, or in the folder that it is, and the histories of a run below that."""
    folder = path if path.is_dir() else path.parent
    try:
        inside = sorted(itertools.islice(folder.iterdir(), MAX_LISTED))
        below = sorted(itertools.islice(folder.rglob("history.npz"), MAX_LISTED)) if path.is_dir() else []
    except (OSError, ValueError):
        return []
    return [*(other for other in inside if other.suffix in LOGS and other.is_file()), *below]
