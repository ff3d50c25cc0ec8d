"""The register of test openings: which models were scored on which test rows, over all runs of a root.

A test score is honest while the rows have decided nothing. A second model on the same rows is a second look at them,
whichever run it belongs to. So the budget of looks belongs to the rows: a copy of a run, or another run on the same
data, gets no new one. A model that was scored before may be scored again, since the score is the same.

`<run.root>/test_openings.jsonl` has one JSON line per opening, written before the rows are read. The ledgers of the
runs below the root are read as well, so that a deleted register forgets nothing that they have.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

from pipeline.errors import Refused, UserError, fault
from pipeline.results import canonical, counted
from pipeline.run_store import files
from pipeline.run_store.lock import locked
from pipeline.run_store.run import Run

REGISTER = "test_openings.jsonl"
LOCK_WAIT_S = 30.0  # for another run that writes its line


class Opening(TypedDict):
    """One opening: the digests of the rows and of the model's weights, and the run with the hash of its first entry."""

    rows: str
    candidate: str
    run: str
    identity: str
    time: str


def openings(root: Path, rows: str) -> list[Opening]:
    """Return the openings of these rows by any run of the root, the first one of each run and model, in order."""
    found: dict[tuple[str, str], Opening] = {}
    for opening in sorted([*_registered(root), *_in_ledgers(root, rows)], key=lambda opening: opening["time"]):
        if opening["rows"] == rows:
            found.setdefault((opening["identity"], opening["candidate"]), opening)
    return list(found.values())


def models(found: Sequence[Opening]) -> list[str]:
    """Return the different models of the openings, the first one first."""
    return list(dict.fromkeys(opening["candidate"] for opening in found))


def runs(found: Sequence[Opening]) -> list[str]:
    """Return the names of the runs of the openings, as they were at that time."""
    return list(dict.fromkeys(opening["run"] for opening in found))


def described(found: Sequence[Opening]) -> str:
    """Return how often the rows were opened, such as `2 models of digits, digits_hot`; empty where they were not."""
    return f"{counted(len(models(found)), 'model')} of {', '.join(runs(found))}" if found else ""


def record(run: Run, rows: str, candidate: str, budget: int | None = None) -> None:
    """Record that the rows are opened for a model, unless that is recorded already.

    Raises Refused, and records nothing, where `budget` other models were scored on the rows before; UserError where the
    register cannot be written.
    """
    root = run.path.parent
    path = root / REGISTER
    files.append_line(path, b"")  # creates it: only a file that exists can be locked
    descriptor = locked(path, LOCK_WAIT_S)
    if descriptor is None:
        raise UserError(fault(str(path), "is locked by another process", do="wait for it, and repeat the command"))
    try:
        found = openings(root, rows)
        if budget is not None and candidate not in models(found)[:budget] and len(models(found)) >= budget:
            _refuse(run, found, budget)
        if any(
            (o["identity"], o["candidate"], o["rows"]) == (run.identity, candidate, rows) for o in _registered(root)
        ):
            return
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        opening = Opening(rows=rows, candidate=candidate, run=run.name, identity=run.identity, time=now)
        raw = path.read_bytes()
        start = b"" if not raw or raw.endswith(b"\n") else b"\n"  # ends a line that a kill left incomplete
        files.append_line(path, start + canonical(opening).encode() + b"\n")
    finally:
        os.close(descriptor)


def _refuse(run: Run, found: Sequence[Opening], budget: int) -> None:
    what = f"scored on these test rows before: {described(found)}"
    expected = (
        f"at most {counted(budget, 'model')} on the same rows, since every further look makes the score optimistic"
    )
    again = f"python -m pipeline phase=planning {run.overrides_for('planning')}"
    do = f"declare test rows that no run has seen, and plan with them: {again}"
    raise Refused(fault("data.test", what, got="another model", expected=expected, do=do))


def planning_evidence(run: Run, rows: str, recorded: int, log: Callable[[str], None]) -> dict[str, object]:
    """Return how many models of the run were scored on test, and in words which were scored on these rows; log those.

    `recorded` is the number in the run's own ledger; its copies, which begin with the same entry, count as well.
    """
    found = openings(run.path.parent, rows)
    own = models([opening for opening in found if opening["identity"] == run.identity])
    if before := described(found):
        log(f"planning: warning: scored on these test rows before: {before}; another model is another look at them")
    return {"test_openings": max(len(own), recorded), "scored_before": before}


def _registered(root: Path) -> Iterator[Opening]:
    """Yield the lines of the register; one that is incomplete was never acknowledged, and is passed over."""
    try:
        lines = (root / REGISTER).read_bytes().splitlines()
    except FileNotFoundError:
        return
    except OSError as error:
        do = "make it readable: it says which test rows were opened"
        raise UserError(fault(str(root / REGISTER), "cannot be read", got=error.strerror, do=do)) from error
    for line in lines:
        if opening := _opening(line):
            yield opening


def _opening(line: bytes) -> Opening | None:
    try:
        content = json.loads(line)
        return Opening(**{key: str(content[key]) for key in ("rows", "candidate", "run", "identity", "time")})  # type: ignore[typeddict-item]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _in_ledgers(root: Path, rows: str) -> Iterator[Opening]:
    """Yield the openings of the rows in the ledgers below the root; a damaged line is passed over."""
    for path in root.glob("*/ledger.jsonl"):
        try:
            lines = path.read_bytes().splitlines()
            identity = str(json.loads(lines[0])["hash"])
        except (OSError, ValueError, TypeError, KeyError, IndexError, RecursionError):
            continue
        for line in lines:
            if b'"kind":"test.opened"' not in line or rows.encode() not in line:
                continue
            try:
                entry = json.loads(line)
                about = {"rows": str(entry["data"]["digest"]), "candidate": str(entry["data"]["candidate"])}
                time = str(entry["time"])
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
            yield Opening(
                rows=about["rows"], candidate=about["candidate"], run=path.parent.name, identity=identity, time=time
            )
