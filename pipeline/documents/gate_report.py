"""The gate report of a release: every item before the approval, how it was satisfied, and on which evidence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from markupsafe import Markup

from pipeline.documents.dossier import Dossier, JudgedItem
from pipeline.documents.figures import shown
from pipeline.documents.measurement_tables import table
from pipeline.documents.readiness_score import Readiness
from pipeline.documents.templates import render
from pipeline.escaping import code_span, markdown
from pipeline.results import plain
from pipeline.run_store.gate import Item

SCHEMA = 1
FILE = "report.json"
TEXT = "REPORT.md"
TEMPLATE = "report.md"


def gate_report(dossier: Dossier) -> dict[str, Any]:
    """Return the report as JSON. The digest of an item's evidence is over the named values in `measurements`."""
    readiness = dossier.readiness
    used = {name for judged in dossier.judged for name in judged.reads}
    report = {
        "schema": SCHEMA,
        "run": dossier.inputs["run"],
        "plan": dossier.plan.digest,
        "candidate": (dossier.evidence.get("lineage") or {}).get("weights"),
        "readiness": {
            "score": readiness.score,
            "weakest": list(readiness.weakest),
            "sections": {section.name: section.score for section in readiness.sections},
        },
        "items": [_item(dossier, judged) for judged in dossier.judged],
        "measurements": {name: value for name, value in dossier.evidence.items() if name in used},
    }
    plained: dict[str, Any] = plain(report)
    return plained


def _item(dossier: Dossier, judged: JudgedItem) -> dict[str, Any]:
    item = judged.item
    return {
        "number": judged.number,
        "id": item.id,
        "section": judged.section,
        "question": item.ask,
        "outcome": item.outcome,
        "value": item.value,
        "relation": item.relation,
        "bound": item.bound,
        "unit": item.unit,
        "satisfied": judged.answer,
        "why": item.why,
        "accepted_by": item.accepted_by,
        "waiver": judged.waiver,
        "evidence": {"names": list(judged.reads), "sha256": dossier.evidence_digest(judged)},
    }


def sections_table(dossier: Dossier) -> Markup:
    """Return the score of each section, and the items in it that no measurement answered."""
    rows = []
    for section in dossier.readiness.sections:
        of_section = [judged for judged in dossier.judged if judged.section == section.name]
        answers = dict.fromkeys(judged.answer for judged in of_section)
        counts = ", ".join(
            f"{_names(of_section, name)}: {'not satisfied' if name == 'no' else name}"
            for name in answers
            if name not in ("automatic", "not applicable")
        )
        rows.append([section.name.replace("_", " "), section.score, Markup(counts or "–")])
    return Markup("\n".join(table(["section", "score", "not answered by a measurement"], rows)).strip("\n"))


def _names(judged: Iterable[JudgedItem], answer: str) -> str:
    return ", ".join(code_span(one.item.id, in_table=True) for one in judged if one.answer == answer)


def items_table(dossier: Dossier) -> Markup:
    """Return one line per item: outcome, value, what was required, and how it was satisfied."""
    lines = ["| no. | item | outcome | value | required | satisfied |", "| --- | --- | --- | --- | --- | --- |"]
    for judged in dossier.judged:
        item = judged.item
        value = f"{_brief(item.value)} {markdown(item.unit)}".strip() if item.value is not None else "–"
        required = _required(item)
        cells = (str(judged.number), code_span(item.id, in_table=True), markdown(item.label), value, required)
        lines.append(f"| {' | '.join(cells)} | {markdown(judged.answer)} |")
    return Markup("\n".join(lines))


def _brief(value: object) -> str:
    return "–" if isinstance(value, list | dict) else shown(value)


def readiness_words(readiness: Readiness) -> Markup:
    """Return the score in a sentence with the sections that have it."""
    if readiness.score is None:
        return Markup("**No readiness score**: the plan assigns no item to a section.")
    weakest = " and ".join(name.replace("_", " ") for name in readiness.weakest)
    kind = "section" if len(readiness.weakest) == 1 else "sections"
    return Markup(f"**Readiness score {shown(readiness.score)}**, that of the weakest {kind}: {markdown(weakest)}.")


def outcome_lines(judged: JudgedItem) -> list[str]:
    """Return an item's question and its answer as two paragraphs of Markdown."""
    item = judged.item
    outcome = f"**{markdown(item.label.capitalize())}**"
    if item.value is not None and not isinstance(item.value, list | dict):
        outcome += f": {shown(item.value)} {markdown(item.unit)}".rstrip()
        outcome += f", required {_required(item)}" if item.bound is not None else ""
    outcome += f". {markdown(item.why[:1].upper() + item.why[1:])}." if item.why else "."
    if item.accepted_by:
        outcome += f" Accepted in the plan by {markdown(item.accepted_by)}."
    if judged.waiver:
        outcome += f" Waived by {markdown(judged.waiver['who'])}: {markdown(judged.waiver['why'])}."
    return [f"*{markdown(item.ask)}*", "", outcome, ""]


def _required(item: Item) -> str:
    return f"{item.relation} {_brief(item.bound)}".strip() if item.bound is not None else "–"


def text(dossier: Dossier) -> str:
    """Return the report as Markdown."""
    return render(
        TEMPLATE,
        {
            "run": dossier.inputs["run"],
            "candidate": (dossier.evidence.get("lineage") or {}).get("weights"),
            "readiness": readiness_words(dossier.readiness),
            "sections_table": sections_table(dossier),
            "items_table": items_table(dossier),
            "judged_items": [_shown(dossier, judged) for judged in dossier.judged],
        },
    )


def _shown(dossier: Dossier, judged: JudgedItem) -> dict[str, object]:
    return {
        "number": judged.number,
        "id": judged.item.id,
        "lines": Markup("\n".join(outcome_lines(judged)).strip("\n")),
        "answer": judged.answer,
        "names": Markup(", ".join(f"`{name}`" for name in judged.reads) or "none"),
        "sha256": dossier.evidence_digest(judged),
    }
