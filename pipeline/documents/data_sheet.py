"""DATA_SHEET.md: the seven sections of Gebru et al. (2021), from the plan and from what planning measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from pipeline.documents.dossier import Dossier
from pipeline.documents.measurement_tables import table, tables
from pipeline.documents.templates import render

TEMPLATE = "data_sheet.md"
FILE = "DATA_SHEET.md"
SHOWN_CLASSES = 15


def data_sheet(dossier: Dossier) -> str:
    """Return the data sheet as Markdown; the same records give the same text."""
    facts, config = dossier.plan.facts, dossier.plan.config
    declared = ("purpose", "intended_use", "out_of_scope", "population", "owner", "assumptions")
    values = {
        "run": dossier.inputs["run"],
        "card": {**dict.fromkeys(declared, ()), **dossier.card},
        "source": facts["data"].get("source"),
        "licence": facts["data"].get("licence"),
        "model_licence": dossier.card.get("license"),
        "splits_table": _markup(_splits(facts["splits"])),
        "counts_table": _markup(_class_counts(facts["splits"])),
        "quality_table": _markup(tables(dossier.inputs["data"])),
        "files_table": _markup(_files(facts["data"].get("files") or {})),
        "rows_table": _markup(tables(facts["data"].get("row_metadata") or {})),
        "preprocess_table": _markup(_preprocessing(config)),
    }
    return render(TEMPLATE, values)


def _markup(lines: list[str]) -> Markup:
    return Markup("\n".join(lines).strip("\n"))


def _splits(splits: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, facts in splits.items():
        schema = (facts.get("schema") or {}).get("X") or {}
        rows.append([name, facts["rows"], schema.get("shape"), schema.get("dtype"), facts["digest"]])
    return table(["split", "rows", "shape of a row", "type", "digest of all rows"], rows)


def _class_counts(splits: Mapping[str, Any]) -> list[str]:
    """A row per class; of many classes, the rarest, since those are at risk."""
    counts = {name: facts.get("counts") or {} for name, facts in splits.items()}
    classes = list(counts.get("train") or {})
    if not classes:
        return []
    rarest = sorted(classes, key=lambda label: counts["train"][label])[:SHOWN_CLASSES]
    shown = classes if len(classes) <= SHOWN_CLASSES else rarest
    rows = [[label, *(of_split.get(label) for of_split in counts.values())] for label in shown]
    return table(["class", *counts], rows) + (
        [] if shown is classes else [f"The rarest of {len(classes)} classes.", ""]
    )


def _files(files: Mapping[str, Any]) -> list[str]:
    return table(["file", "SHA-256"], [[name.rpartition("/")[2], value] for name, value in files.items()])


def _preprocessing(config: Mapping[str, Any]) -> list[str]:
    rows = [[name.replace("_", " "), value] for name, value in (config.get("preprocess") or {}).items()]
    augment = (config.get("loader") or {}).get("augment") or []
    rows.append(["augmentation of train rows", [str(one.get("_target_")) for one in augment] or "none"])
    rows.append(["class weights", str((config.get("task") or {}).get("class_weights"))])
    rows.append(["sampler", (config.get("loader") or {}).get("sampler")])
    return table(["transform", "value"], rows)
