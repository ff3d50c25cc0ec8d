"""A check as its gate calls it: bound by name, on evidence that a test wrote by hand."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from checklists.resolve import CHECKS, resolve_check
from pipeline.results import Artifact, Evidence
from pipeline.run_store import checklist
from pipeline.run_store.gate import Item
from pipeline.run_store.run import Run

SCHEMAS = Path(__file__).resolve().parents[1] / "docs" / "schemas"


def judge(name: str, values: dict[str, Any], *artifacts: str, **thresholds: Any) -> Item:
    """Return the item that a checklist with this one check would record."""
    files = {a: Artifact(f"somewhere/{a}", "0" * 64) for a in artifacts}
    item = {"id": "it", "ask": "Is it?", "check": name, "with": thresholds, "waivable": True}
    return checklist.judge([item], Evidence(values, artifacts=files), resolve_check)[0]


def read_evidence(run: Run, phase: str, *inside: str | int) -> dict[str, Any]:
    """Return the values that a phase handed to its gate."""
    return json.loads(run.inside(phase, *inside, "evidence.json").read_text())["values"]


def open_items(run: Run) -> list[Item]:
    """Return the items, apart from signatures, that keep the last gate of a run closed."""
    items = run.state().gates["finalization"].items
    return [i for i in items if i.outcome not in ("passed", "not_applicable", "pending") and not i.accepted_by]


def with_values(values: dict[str, Any], **new: Any) -> dict[str, Any]:
    """Return a deep copy with some values replaced; `a__b` reaches into `a`, and ... removes a value."""
    values = copy.deepcopy(values)
    for key, value in new.items():
        *path, last = key.split("__")
        node = values
        for part in path:
            node = node[part]
        if value is ...:
            del node[last]
        else:
            node[last] = value
    return values


def questions(phase: str, config: dict[str, Any]) -> list[dict[str, Any]]:
    """A checklist's items with their thresholds."""
    return checklist.read(CHECKS.parent / f"{phase}.yaml", config, resolve_check)


def assert_schema(name: str, document: Any) -> None:
    """The document is as docs/schemas/<name>.json says."""
    from jsonschema import Draft202012Validator

    schema = Draft202012Validator(json.loads((SCHEMAS / f"{name}.json").read_text()))
    wrong = [f"{error.json_path}: {error.message[-200:]}" for error in schema.iter_errors(document)]
    assert wrong == [], "\n".join(wrong)
