"""Comparing a ledger with what the tracker has of it: the hashes of its decisions, as params that nobody can change.

A local database is read by SQLite, since importing MLflow takes seconds, and read-only. Another tracker is asked by
MLflow's client, with a short timeout. The tracker may be behind the ledger.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import FivegateError
from pipeline.release.attestation import anchor_fault
from pipeline.results import counted
from pipeline.run_store import plan as plans
from pipeline.run_store.ledger import Entry
from pipeline.run_store.run import Run
from pipeline.run_store.state import fold
from pipeline.tracking.connection import ENVIRONMENT, tracking_uri, without_credentials

ANCHOR = "ledger/"  # what a param is named by, before the number of an entry; its value is the hash of the entry
ANCHORED = frozenset(
    {
        "plan.frozen",
        "gate.decided",
        "branch.decided",
        "test.opened",
        "waiver",
        "sign_off",
        "review.approved",
        "released",
        "rolled_back",
    }
)
IDENTITY_TAG, NAME_TAG = "fivegate.identity", "fivegate.run"
SQLITE = "sqlite:///"
WAIT_S = 1.0  # for a database that another process is writing to


class Comparison(NamedTuple):
    """What in the tracker does not agree with the ledger, and one line that says what was compared, or why nothing."""

    faults: list[str]
    note: str


@dataclass
class TrackedRun:
    """What the tracker has of one run: its identity, its name, when it started (ms since 1970), and its anchors."""

    identity: str = ""
    name: str = ""
    started: int = 0
    anchors: dict[int, str] = field(default_factory=dict)


def anchors(entries: Sequence[Entry]) -> dict[str, str]:
    """Return the hash of every decision in the ledger, by the name of its param in the tracker."""
    return {f"{ANCHOR}{entry['seq']}": entry["hash"] for entry in entries if entry["kind"] in ANCHORED}


def compare(run: Run, entries: Sequence[Entry]) -> Comparison:
    """Compare the ledger with its anchors in the tracker. A tracker that cannot be read is said, and is no fault."""
    uri, kind, experiment = _tracker_of(run, entries)
    shown = without_credentials(uri)
    if not entries or (kind == "none" and not _is_file(uri)):
        return Comparison([], f"no anchor compared: {'the run has no tracker' if entries else 'the ledger is empty'}")
    try:
        tracked = list(
            _from_sqlite(uri, run, entries) if uri.startswith(SQLITE) else _from_client(uri, experiment, entries)
        )
    except Exception as error:  # MLflow, SQLAlchemy and requests raise anything
        first_line = next(iter(str(error).splitlines()), "").replace(uri, shown)[:200]
        return Comparison([], f"no anchor compared: the tracker {shown} cannot be read ({first_line})")
    return _compared(run, entries, tracked, f"the tracker {shown}")


def has_identity(run_dir: Path, identity: str) -> bool:
    """Whether the folder has a ledger that begins with this entry."""
    try:
        with (run_dir / "ledger.jsonl").open("rb") as stream:
            return bool(json.loads(stream.readline())["hash"] == identity)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _tracker_of(run: Run, entries: Sequence[Entry]) -> tuple[str, str, str]:
    """Return the URI of the run's tracker, its kind and its experiment, as far as the plan can be read."""
    try:
        section = plans.load(run, fold(entries)).config.get("tracking") or {}
    except FivegateError:
        section = {}
    uri = tracking_uri(run.path.parent, section.get("uri"))
    return uri, str(section.get("kind") or "mlflow"), str(section.get("experiment") or "")


def _is_file(uri: str) -> bool:
    return uri.startswith(SQLITE) and Path(uri.removeprefix(SQLITE).partition("?")[0]).is_file()


def _compared(run: Run, entries: Sequence[Entry], tracked: Sequence[TrackedRun], where: str) -> Comparison:
    identity, started = entries[0]["hash"], _milliseconds(entries[0])
    own = [t for t in tracked if t.identity == identity]
    # A run that was renamed is known by its earlier name; a copy is not what was sent under the name of its original.
    mine = [t for t in own if t.name == run.name or not has_identity(run.path.parent / t.name, identity)]
    replaced = [t for t in tracked if t.identity != identity and t.name == run.name and t.started == started]
    faults = [f"{where}: this run began there with another entry 0: the ledger was rewritten" for _ in replaced[:1]]
    for seq, known in sorted((seq, known) for t in mine for seq, known in t.anchors.items()):
        if why := anchor_fault({"seq": seq, "hash": known}, entries):
            faults.append(f"{where}: {why}, or another copy of this run went on")
    compared = sum(len(t.anchors) for t in mine)
    if faults or compared:
        return Comparison(faults, f"{counted(compared, 'anchor')} compared with {where}")
    if own:
        return Comparison([], f"no anchor compared: {where} knows {own[0].name}, of which this folder is a copy")
    return Comparison([], f"no anchor compared: {where} has none of this run")


def _milliseconds(entry: Entry) -> int:
    return round(datetime.fromisoformat(entry["time"]).timestamp() * 1000)


def _from_sqlite(uri: str, run: Run, entries: Sequence[Entry]) -> Iterator[TrackedRun]:
    """Yield the runs of a local database with the identity of the ledger, or with the name of the run."""
    path = Path(uri.removeprefix(SQLITE).partition("?")[0])
    if not path.is_file():
        raise FileNotFoundError("there is no such file")
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=WAIT_S)) as database:
        query = "SELECT DISTINCT run_uuid FROM tags WHERE (key = ? AND value = ?) OR (key = ? AND value = ?)"
        wanted = (IDENTITY_TAG, entries[0]["hash"], NAME_TAG, run.name)
        for (uuid,) in database.execute(query, wanted).fetchall():
            tags = dict(database.execute("SELECT key, value FROM tags WHERE run_uuid = ?", (uuid,)))
            params = dict(database.execute("SELECT key, value FROM params WHERE run_uuid = ?", (uuid,)))
            started = database.execute("SELECT start_time FROM runs WHERE run_uuid = ?", (uuid,)).fetchone()
            yield _tracked(tags, params, started[0] if started else 0)


def _from_client(uri: str, experiment: str, entries: Sequence[Entry]) -> Iterator[TrackedRun]:
    """Yield the runs of another tracker with the identity of the ledger."""
    before = dict(os.environ)
    os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in before})
    try:
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=uri)
        experiments = [e.experiment_id for e in client.search_experiments() if not experiment or e.name == experiment]
        query = f"tags.`{IDENTITY_TAG}` = '{entries[0]['hash']}'"
        for found in client.search_runs(experiments, filter_string=query, max_results=100) if experiments else ():
            yield _tracked(found.data.tags, found.data.params, found.info.start_time)
    finally:
        for key in ENVIRONMENT.keys() - before.keys():
            os.environ.pop(key, None)


def _tracked(tags: Mapping[str, str], params: Mapping[str, str], started: int) -> TrackedRun:
    numbers = {name.removeprefix(ANCHOR): value for name, value in params.items() if name.startswith(ANCHOR)}
    known = {int(number): value for number, value in numbers.items() if number.isdecimal()}
    name = tags.get(NAME_TAG) or tags.get("mlflow.runName", "")
    return TrackedRun(tags.get(IDENTITY_TAG, ""), name, started, known)
