"""LICENSES.md: the distributions that serve and train the model, with licences and known vulnerabilities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from markupsafe import Markup

from pipeline.documents.dossier import Dossier
from pipeline.documents.figures import figure
from pipeline.documents.templates import render
from pipeline.escaping import markdown

TEMPLATE = "licences.md"
FILE = "LICENSES.md"


def licences(dossier: Dossier) -> str:
    """Return the table of licences as Markdown, from the evidence of the item `supply_chain`."""
    supply = dossier.evidence["supply_chain"]
    return render(
        TEMPLATE,
        {
            "run": dossier.inputs["run"],
            "model_licence": dossier.card.get("license"),
            "data_licence": dossier.plan.facts["data"].get("licence"),
            "serving_table": _table(supply["components"], "serving"),
            "training_table": _table(supply["components"], "training"),
            "audit": Markup(_audit(supply["vulnerabilities"])),
        },
    )


def _table(components: Iterable[Mapping[str, Any]], scope: str) -> Markup:
    """Every distribution of a scope: a list of licences has to be complete."""
    lines = ["| distribution | version | licence |", "| --- | --- | --- |"]
    for one in (component for component in components if component["scope"] == scope):
        unknown = f"unknown ({one['declared']})" if one["declared"] else "unknown"
        cells = (one["name"], one["version"], one["licence"] or unknown)
        lines.append(f"| {' | '.join(map(markdown, cells))} |")
    return Markup("\n".join(lines))


def _audit(vulnerabilities: Mapping[str, Any]) -> str:
    database = vulnerabilities["database"]
    if database is None:
        return "Not audited: no database was given, and nothing is fetched from a network."
    about = f"a database of {figure(database['records'])} records, the newest of {markdown(database['newest'])}"
    lines = [f"{'None' if not vulnerabilities['found'] else 'Some'} by {about}.", ""]
    for one in vulnerabilities["found"]:
        also = f" ({', '.join(map(markdown, one['aliases']))})" if one["aliases"] else ""
        where = f"{markdown(one['name'])} {markdown(one['version'])}, {one['scope']}"
        lines.append(f"- {markdown(one['id'])}{also}, {where}: {markdown(one['summary'])}")
    return "\n".join(lines)
