"""The registry of released models: which bundle is the `champion` of a task, and which one is its `challenger`.

It is `<run.root>/registry.json`:

    {"schema": 1, "models": {"digits": {
        "aliases": {"champion": {"run": "digits", "subject": DIGEST, "time": UTC, "who": NAME, "why": TEXT}},
        "history": [{"alias": "champion", "run": ..., "subject": ..., ...}, ...]}}}

A model has the name of its experiment, so that the models of two tasks under one root do not replace each other. The
bundle that waits for a person is the challenger; a release makes it the champion. `subject` is the digest of the
payload, by which the bundle is found and checked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypedDict

from pipeline.errors import UserError, fault
from pipeline.release.bundle import bundle_digest, previous_release
from pipeline.run_store import files
from pipeline.run_store.lock import locked
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState

REGISTRY = "registry.json"
LOCK = "registry.lock"
LOCK_WAIT_S = 10.0
SCHEMA = 1

Alias = Literal["champion", "challenger"]


class Entry(TypedDict):
    """A bundle under an alias: its run, the digest of its payload, when and by whom it got the alias, and why."""

    run: str
    subject: str
    time: str
    who: str
    why: str


class Move(Entry):
    """An entry of the history. An empty `subject` means that the alias was removed.

    `withdrawn` is the bundle that lost the alias by a rollback; empty for other moves.
    """

    alias: Alias
    withdrawn: str


class Model(TypedDict):
    """The aliases of one model, and all their moves in order."""

    aliases: dict[Alias, Entry]
    history: list[Move]


def model_name(state: RunState) -> str:
    """Return the name under which the models of this run are registered: its experiment."""
    return state.experiment or state.name


def read(root: Path) -> dict[str, Model]:
    """Return the models of a root by name. Raises UserError for a file that no registry wrote."""
    path = root / REGISTRY
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        models: dict[str, Model] = content["models"]
        for model in models.values():
            for entry in (*model["aliases"].values(), *model["history"]):
                if not all(isinstance(entry[key], str) for key in ("run", "subject", "time", "who", "why")):
                    raise TypeError("an entry without run or subject")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        do = f"restore it, or move it away: its bundles stay as they are, in {root}/*/bundle"
        what = "cannot be read as a registry of models"
        raise UserError(fault(str(path), what, got=f"{type(error).__name__}: {error}", do=do)) from error
    return models


def champion(root: Path, name: str) -> Entry | None:
    """Return the champion of a model; None without one."""
    model = read(root).get(name)
    return model["aliases"].get("champion") if model else None


def payload_of(root: Path, entry: Entry) -> Path | None:
    """Return the payload of an entry, where it is or where it was moved; None if it was changed."""
    run = Run.at(root, entry["run"])
    for payload in (run.inside("bundle", "payload"), previous_release(run, entry["subject"]) / "payload"):
        if payload.is_dir() and bundle_digest(payload) == entry["subject"]:
            return payload
    return None


def move(root: Path, name: str, alias: Alias, run: str, subject: str, who: str, why: str = "") -> None:
    """Give the alias to a bundle. A challenger that becomes champion loses the alias `challenger`. Idempotent."""
    with _changed(root) as models:
        model = models.setdefault(name, {"aliases": {}, "history": []})
        known = model["aliases"].get(alias)
        if known and (known["run"], known["subject"]) == (run, subject):
            return
        entry = Entry(run=run, subject=subject, time=_now(), who=who, why=why)
        model["aliases"][alias] = entry
        model["history"].append({"alias": alias, "withdrawn": "", **entry})
        challenger = model["aliases"].get("challenger")
        if alias == "champion" and challenger and challenger["subject"] == subject:
            del model["aliases"]["challenger"]


def withdraw(root: Path, name: str, subject: str, who: str, why: str = "") -> Entry | None:
    """Take the alias `champion` from a bundle, and give it back to the champion before it, whose payload is intact.

    Returns the champion afterwards; None where there is none before it: then nothing should be served.
    """
    with _changed(root) as models:
        model = models.get(name)
        current = model["aliases"].get("champion") if model else None
        if model is None or current is None or current["subject"] != subject:
            return current
        history = model["history"]
        lost = {subject, "", *(past["withdrawn"] for past in history)}
        earlier = [past for past in history if past["alias"] == "champion" and past["subject"] not in lost]
        before = next((past for past in reversed(earlier) if payload_of(root, past)), None)
        entry = Entry(run="", subject="", time=_now(), who=who, why=why)
        if before is None:
            del model["aliases"]["champion"]
        else:
            entry |= {"run": before["run"], "subject": before["subject"]}
            model["aliases"]["champion"] = entry
        history.append({"alias": "champion", "withdrawn": subject, **entry})
        return entry if before else None


def drop_challenger(root: Path, name: str, run: str, who: str, why: str = "") -> None:
    """Take the alias `challenger` from the bundle of a run, whose model is no longer the run's candidate."""
    if name not in read(root):
        return
    with _changed(root) as models:
        aliases = models[name]["aliases"]
        challenger = aliases.get("challenger")
        if challenger is not None and challenger["run"] == run:
            del aliases["challenger"]
            gone = Entry(run="", subject="", time=_now(), who=who, why=why)
            models[name]["history"].append({"alias": "challenger", "withdrawn": challenger["subject"], **gone})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def _changed(root: Path) -> Iterator[dict[str, Model]]:
    """Yield the models to be changed, under the lock of the registry, and write them where they differ afterwards."""
    lock = files.folder(root) / LOCK
    files.append_line(lock, b"")  # creates it: only a file that exists can be locked
    descriptor = locked(lock, LOCK_WAIT_S)
    if descriptor is None:
        raise UserError(fault(str(lock), "is locked by another process", do="wait for it, and repeat the command"))
    try:
        models = read(root)
        before = json.dumps(models, sort_keys=True)
        yield models
        if json.dumps(models, sort_keys=True) != before:
            files.write_json(root / REGISTRY, {"schema": SCHEMA, "models": models})
    finally:
        os.close(descriptor)
