"""The documents of a release, and what the items `documents` and `supply_chain` are judged on.

Every document is a function of recorded evidence: `render` gives the same texts again, as `verify` does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from pipeline.documents import data_sheet, deployment, gate_report, licences, model_card
from pipeline.documents.completeness import CARD_SECTIONS, SHEET_SECTIONS, declared_faults, section_faults
from pipeline.documents.dossier import Dossier, Inputs, judge_items
from pipeline.documents.figures import differences, figure, numbers_in, numbers_of, unproven_numbers
from pipeline.documents.templates import renderer_digest, words_of
from pipeline.results import Evidence
from pipeline.run_store.checklist import Judge
from pipeline.run_store.gate import Item
from pipeline.run_store.plan import Plan
from pipeline.supply_chain import bill_of_materials, measure
from pipeline.supply_chain.bill_of_materials import ModelFacts
from pipeline.supply_chain.distributions import Component
from pipeline.supply_chain.provenance import FILE as PROVENANCE
from pipeline.supply_chain.provenance import Build, provenance

_TEXTS: dict[str, Callable[[Dossier], str]] = {
    model_card.FILE: model_card.model_card,
    data_sheet.FILE: data_sheet.data_sheet,
    deployment.FILE: deployment.deployment,
    licences.FILE: licences.licences,
    gate_report.TEXT: gate_report.text,
    gate_report.FILE: lambda dossier: _json(gate_report.gate_report(dossier)),
}
_SECTIONS = {model_card.FILE: CARD_SECTIONS, data_sheet.FILE: SHEET_SECTIONS}
_COUNTED = (model_card.FILE, data_sheet.FILE)  # whose numbers the item counts
_PYTHON_WORDS = ("95 %",)  # numbers in sentences that are not in a template
MAX_PASSES = 4


class Release(NamedTuple):
    """What a release is documented from: the plan, this phase's measurements, and the digests of the model's files."""

    plan: Plan
    measured: Mapping[str, object]
    inputs: Inputs
    subjects: Mapping[str, str]
    components: Sequence[Component]


class Documents(NamedTuple):
    """The files of the documents, and the evidence of their items."""

    contents: dict[str, bytes]
    evidence: dict[str, object]


def write(release: Release, judge: Judge) -> Documents:
    """Return the documents with the evidence about them. The texts contain their own items, as judged on it."""
    plan, inputs = release.plan, release.inputs
    database = (plan.config.get("export") or {}).get("vulnerability_db")
    chain, bill = measure.measure(_model_facts(release), release.components, database)
    missing, placeholders = declared_faults(plan.config.get("plan") or {})
    documents: dict[str, Any] = {
        "inputs": inputs, "renderer": renderer_digest(), "reads": {}, "missing": missing, "placeholders": placeholders,
        "sections": [], "figures": 0, "unproven": [], "different": [],
    }  # fmt: skip
    texts: dict[str, str] = {}
    for _ in range(MAX_PASSES):
        evidence = {**release.measured, "supply_chain": chain, "documents": documents}
        items, documents["reads"] = judge_items(plan, Evidence(evidence), judge)
        dossier = recorded_dossier(plan, Evidence(evidence), items)
        texts = render(dossier)
        checked = {**documents, **_faults(texts, dossier), "different": _different(texts, render(dossier))}
        if checked == documents:
            break
        documents = checked
    build = Build(inputs["run"], plan, inputs["weights"], inputs["origin"], inputs["commit"], release.components)
    contents = {**texts, bill_of_materials.FILE: bill, PROVENANCE: _json(provenance(build, release.subjects))}
    encoded = {name: text.encode() for name, text in contents.items()}
    return Documents(encoded, {"supply_chain": chain, "documents": documents})


def recorded_dossier(plan: Plan, evidence: Evidence, items: tuple[Item, ...]) -> Dossier:
    """Return the records as they are read from disk, so that both give the same texts."""
    values = Evidence.from_json(json.loads(json.dumps(evidence.to_json(), sort_keys=True))).values
    return Dossier(plan, values, items, values["documents"]["reads"])


def render(dossier: Dossier) -> dict[str, str]:
    """Return every document that is a function of the records alone, by file name."""
    return {name: text_of(dossier) for name, text_of in _TEXTS.items()}


def text_faults(name: str, text: str, dossier: Dossier) -> list[str]:
    """Return what a document says otherwise than the records: numbers that none of them has, and other texts."""
    return [*unproven_numbers(text, _proven(dossier)), *differences(text, render(dossier)[name])]


def recorded_texts(plan: Plan, evidence: Evidence, items: tuple[Item, ...]) -> dict[str, str]:
    """Return the documents as recorded evidence gives them, by file name; none where another version wrote them."""
    documents = evidence.get("documents")
    if not documents or documents["renderer"] != renderer_digest():
        return {}
    return render(recorded_dossier(plan, evidence, items))


def _faults(texts: Mapping[str, str], dossier: Dossier) -> dict[str, Any]:
    proven = _proven(dossier)
    prose = {name: text for name, text in texts.items() if name.endswith(".md")}
    lacking = [section_faults(texts[name], sections, name) for name, sections in _SECTIONS.items()]
    return {
        "sections": [fault for faults in lacking for fault in faults],
        "figures": sum(len(numbers_in(texts[name])) for name in _COUNTED),
        "unproven": [f"{name}, {fault}" for name, text in prose.items() for fault in unproven_numbers(text, proven)],
    }


def _proven(dossier: Dossier) -> set[str]:
    templates = (model_card.TEMPLATE, data_sheet.TEMPLATE, deployment.TEMPLATE, licences.TEMPLATE, gate_report.TEMPLATE)
    return numbers_of(dossier.records, [*map(words_of, templates), *_PYTHON_WORDS])


def _different(texts: Mapping[str, str], again: Mapping[str, str]) -> list[str]:
    return [name for name in texts if texts[name] != again[name]]


def _json(value: object) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _model_facts(release: Release) -> ModelFacts:
    plan, card = release.plan, release.plan.config.get("plan") or {}
    score: Any = release.measured.get("test_score")
    low, high = (
        ("" if str(score[end]) == "nan" else figure(score[end]) for end in ("low", "high")) if score else ("", "")
    )
    return ModelFacts(
        name=release.inputs["run"],
        weights=release.inputs["weights"],
        task=plan.config["task"]["kind"],
        architecture=str(release.inputs["training"].get("model")),
        datasets=[str(plan.facts["data"].get("source") or "not declared")],
        metrics=[(score["metric"], figure(score["value"]), low, high, score["split"])] if score else [],
        users=card.get("intended_use") or "",
        use_cases=[card["purpose"]] if card.get("purpose") else [],
        limitations=[card["out_of_scope"]] if card.get("out_of_scope") else [],
        risks=card.get("risks") or [],
        licence=card.get("license") or "",
        time=datetime.fromisoformat(release.inputs["origin"]["time"]),
    )
