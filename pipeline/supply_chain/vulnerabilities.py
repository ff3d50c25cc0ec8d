"""Known vulnerabilities of distributions, by a local copy of an OSV database. Nothing is fetched.

The format is that of https://ossf.github.io/osv-schema/: one JSON file per vulnerability, in a folder or a zip archive,
as osv.dev exports them per ecosystem.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

from pipeline.errors import UserError, fault
from pipeline.foreign_files import MAX_BYTES, read_bytes
from pipeline.supply_chain.distributions import Component

KEY = "export.vulnerability_db"
MAX_RECORD_BYTES = 2**24


class Vulnerability(TypedDict):
    """A known vulnerability of a component in its installed version."""

    id: str
    aliases: list[str]
    name: str
    version: str
    scope: str
    summary: str


class Database(TypedDict):
    """A database as it was read: its number of records, its newest change, and a digest of all records."""

    records: int
    newest: str
    sha256: str


class Audit(TypedDict):
    """The vulnerabilities that were found; `database` is None where no database is configured."""

    database: Database | None
    found: list[Vulnerability]


def audit(components: Iterable[Component], database: str | None) -> Audit:
    """Return the known vulnerabilities of components. Raises UserError for a database that is not in OSV format."""
    if not database:
        return {"database": None, "found": []}
    by_name = {component.name: component for component in components}
    hashed, newest, records = hashlib.sha256(), "", 0
    matches: list[Vulnerability] = []
    for name, content in _files(Path(database)):
        hashed.update(hashlib.sha256(content).digest())
        records += 1
        try:
            record = json.loads(content)
            newest = max(newest, str(record.get("modified", "")))
            matches += _matches(record, by_name)
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            what = f"is not a record of an OSV database ({type(error).__name__}: {error})"
            raise UserError(fault(f"{KEY}: {name}", what, expected="JSON as osv.dev exports it")) from None
    if not records:
        raise UserError(fault(KEY, "has no record", got=database, expected="a folder or zip archive of OSV JSON files"))
    matches.sort(key=lambda v: (v["scope"], v["name"], v["id"]))
    return {"database": {"records": records, "newest": newest, "sha256": hashed.hexdigest()}, "found": matches}


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    expected = "a folder or zip archive of OSV JSON files"
    if path.is_dir():
        for file in sorted(path.rglob("*.json")):
            yield file.name, read_bytes(file, "an OSV record", MAX_RECORD_BYTES)
        return
    if not path.is_file():
        raise UserError(fault(KEY, "does not exist", got=str(path), expected=expected))
    try:
        with zipfile.ZipFile(path) as archive:
            members = sorted((m for m in archive.infolist() if m.filename.endswith(".json")), key=lambda m: m.filename)
            if sum(m.file_size for m in members) > 2 * MAX_BYTES or any(
                m.file_size > MAX_RECORD_BYTES for m in members
            ):
                raise UserError(fault(KEY, "unpacks to more than a database has", got=str(path)))
            for member in members:
                yield member.filename, archive.read(member)
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
        raise UserError(fault(KEY, f"cannot be read ({error})", got=str(path), expected=expected)) from None


def _matches(record: Mapping[str, Any], components: Mapping[str, Component]) -> Iterator[Vulnerability]:
    from packaging.utils import canonicalize_name

    if not isinstance(record["id"], str):
        raise TypeError("its id is not a text")
    if record.get("withdrawn"):
        return
    named = set()
    for affected in record.get("affected", ()):
        package = affected.get("package", {})
        name = str(canonicalize_name(str(package.get("name", ""))))
        component = components.get(name) if package.get("ecosystem") == "PyPI" else None
        if component and name not in named and _is_affected(component.version, affected):
            named.add(name)
            yield {
                "id": record["id"],
                "aliases": [str(alias) for alias in record.get("aliases", ())],
                "name": name,
                "version": component.version,
                "scope": component.scope,
                "summary": str(record.get("summary", "")),
            }


def _is_affected(installed: str, affected: Mapping[str, Any]) -> bool:
    """Whether a version is listed, or lies in one of the ranges: from `introduced` to before `fixed`."""
    from packaging.version import InvalidVersion, Version

    try:
        version = Version(Version(installed).public)  # a build such as 2.13.0+cpu has the faults of 2.13.0
    except InvalidVersion:
        return installed in affected.get("versions", ())
    if str(version) in affected.get("versions", ()):
        return True
    ranges = [r["events"] for r in affected.get("ranges", ()) if r.get("type") == "ECOSYSTEM"]
    return any(_in_range(version, events) for events in ranges)


def _in_range(version: Any, events: Iterable[Mapping[str, str]]) -> bool:
    from packaging.version import InvalidVersion, Version

    def bound(text: str) -> Any:
        try:
            return Version("0.dev0" if text == "0" else text)
        except InvalidVersion:  # of the time before PEP 440, older than what is installed
            return Version("0.dev0")

    affected = False
    order = {"introduced": 0, "last_affected": 1, "fixed": 1}
    steps = [(bound(text), kind) for event in events for kind, text in event.items() if kind in order]
    for limit, kind in sorted(steps, key=lambda step: (step[0], order[step[1]])):
        if kind == "introduced" and version >= limit:
            affected = True
        elif (kind == "fixed" and version >= limit) or (kind == "last_affected" and version > limit):
            affected = False
    return affected
