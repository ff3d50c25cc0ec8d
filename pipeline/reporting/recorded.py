"""What the evidence of a phase holds, for the page: only from the file that the ledger recorded, and in its form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, fault
from pipeline.foreign_files import parse_json, read_bytes
from pipeline.json_types import mismatch
from pipeline.run_store.ledger import is_intact
from pipeline.run_store.records import PhaseRecord
from pipeline.run_store.run import Run

EVIDENCE = "the evidence that a phase wrote"


def recorded_values(run: Run, finished: PhaseRecord | None, kind: type, missing: list[str]) -> Mapping[str, Any]:
    """Return the values of a phase's evidence, which have the types of `kind`, a TypedDict; empty where it has none.

    Evidence that is not as the ledger recorded it, or that this version did not write, is added to `missing` instead.
    """
    if finished is None:
        return {}
    name = finished["evidence"]["path"]
    if not is_intact(run.path, **finished["evidence"]):
        what = f"{name} is not what the ledger recorded"
        missing += [what] if what not in missing else []
        return {}
    try:
        return _checked_values(run.path / name, name, kind)
    except UserError as error:
        missing += [text for text in error.faults if text not in missing]
        return {}


def _checked_values(path: Path, name: str, kind: type) -> Mapping[str, Any]:
    """Return the values of an evidence file. Raises UserError for one that this version did not write."""
    body = parse_json(read_bytes(path, EVIDENCE), name, EVIDENCE)
    values = body.get("values") if isinstance(body, dict) else None
    if (what := mismatch(values, kind, "values")) is not None:
        raise UserError(fault(name, f"cannot be read: {what}", expected=EVIDENCE))
    return values or {}
