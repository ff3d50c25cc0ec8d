"""DEPLOYMENT.md: the commands that check, serve, watch and withdraw a release."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from pipeline.documents.dossier import Dossier
from pipeline.documents.measurement_tables import measurement
from pipeline.documents.templates import render
from pipeline.supply_chain.distributions import SERVING

TEMPLATE = "deployment.md"
FILE = "DEPLOYMENT.md"


def deployment(dossier: Dossier) -> str:
    """Return the instructions as Markdown; those of files that the payload does not have are left out."""
    card = dossier.card
    limits = {name: value for name, value in (card.get("limits") or {}).items() if value is not None}
    values = {
        "run": dossier.inputs["run"],
        "files": dossier.inputs["files"],
        "watched": any(name.startswith("drift_reference.") for name in dossier.inputs["files"]),
        "requirements": Markup(_requirements(dossier.evidence["supply_chain"]["components"])),
        "limits": limits or {"none declared": None},
        "speed": _measurement(dossier, "within_limits"),
        "drift": _measurement(dossier, "drift_monitor"),
        "owner": card.get("owner") or "OWNER",
        "intended_use": card.get("intended_use") or "Not declared.",
        "out_of_scope": card.get("out_of_scope") or "not declared.",
    }
    return render(TEMPLATE, values)


def _requirements(components: list[Mapping[str, Any]]) -> str:
    """The exact versions of what serving needs directly."""
    listed = [f"{one['name']}=={one['version'].partition('+')[0]}" for one in components if one["name"] in SERVING]
    return " ".join(map(shlex.quote, listed))


def _measurement(dossier: Dossier, name: str) -> Markup:
    """Return the tables of an item's measurement; empty where there is none."""
    judged = next((judged for judged in dossier.judged if judged.item.id == name), None)
    measured = dossier.measurements(judged) if judged else {}
    return Markup("\n".join(measurement(measured)).strip("\n"))
