"""MODEL_CARD.md: the nine sections of Mitchell et al. (2019) with the front matter of the Hugging Face Hub.

The owner's texts come from the plan, every number from the evidence; what was not measured is said to be missing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from markupsafe import Markup

from pipeline.documents import measurement_tables
from pipeline.documents.dossier import Dossier
from pipeline.documents.figures import figure, shown
from pipeline.documents.gate_report import outcome_lines, readiness_words, sections_table
from pipeline.documents.templates import render
from pipeline.escaping import code_span, markdown
from pipeline.results import format_sample

TEMPLATE = "model_card.md"
FILE = "MODEL_CARD.md"
FORMATS = {"onnx": "ONNX", "torchscript": "TorchScript (deprecated by PyTorch)", "program": "torch.export"}

# In which section of the card the measurements of an item stand; those of the others are quantitative analyses.
_FACTORS = ("population_covered", "slices")
_EVALUATION = ("split_integrity", "test_opened_once")
_METRICS = ("target_on_test", "seed_stability")
_ELSEWHERE = ("lineage", "bundle_layout", "supply_chain", "documents")  # in other documents of the release
_PIPELINE_TAGS = {  # of the Hub, by kind of task and of input
    ("classification", "table"): "tabular-classification", ("binary", "table"): "tabular-classification",
    ("regression", "table"): "tabular-regression", ("classification", "image"): "image-classification",
    ("binary", "image"): "image-classification", ("language_model", "tokens"): "text-generation",
    ("classification", "tokens"): "text-classification", ("binary", "tokens"): "text-classification",
}  # fmt: skip

# Of https://huggingface.co/docs/hub/repositories-licenses, those that are SPDX identifiers too.
_HUB_LICENSES = {
    "afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear",
    "bsl-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
    "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0",
    "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2", "gpl-2.0", "gpl-3.0", "isc", "lgpl-2.1",
    "lgpl-3.0", "lppl-1.3c", "mit", "mpl-2.0", "ms-pl", "ncsa", "ofl-1.1", "osl-3.0", "postgresql", "unlicense",
    "wtfpl", "zlib",
}  # fmt: skip


def model_card(dossier: Dossier) -> str:
    """Return the card as Markdown; the same records give the same text."""
    values = {
        "front_matter": Markup(front_matter(dossier)),
        "run": dossier.inputs["run"],
        "card": {**_NOTHING_DECLARED, **dossier.card},
        "config": dossier.plan.config,
        "readiness": readiness_words(dossier.readiness),
        "sections_table": sections_table(dossier),
        "details_table": _lines(_details(dossier)),
        "formats": ", ".join(FORMATS.get(name, name) for name in dossier.plan.config["export"]["formats"]) or "none",
        "metrics_table": _lines(_metrics(dossier)),
        "evaluation_table": _lines(_splits(dossier, ("val", "test"))),
        "training_table": _lines([*_splits(dossier, ("train",)), *_training(dossier)]),
        "score_line": Markup(_score_line(dossier)),
        "open_points": _lines(_open_points(dossier)),
        "measured": {
            "factors": _measured(dossier, _FACTORS),
            "evaluation": _measured(dossier, _EVALUATION),
            "metrics": _measured(dossier, _METRICS),
            "quantitative": _measured(dossier, _rest(dossier)),
        },
    }
    return render(TEMPLATE, values)


_NOTHING_DECLARED = {
    "purpose": None, "intended_use": None, "out_of_scope": None, "population": None, "owner": None,
    "risks": (), "assumptions": (),
}  # fmt: skip


def front_matter(dossier: Dossier) -> str:
    """Return the metadata of the Hub as YAML: licence, library, tags, metrics and `model-index` with the test score."""
    import yaml

    task, kind = dossier.plan.config["task"], input_kind(dossier.plan.facts)
    tag = _PIPELINE_TAGS.get((task["kind"], kind))
    metadata: dict[str, Any] = {
        **_license(dossier.card.get("license")),
        "library_name": "onnx",
        **({"pipeline_tag": tag} if tag else {}),
        "tags": ["onnx", "pytorch", "fivegate", task["kind"].replace("_", "-")],
        "metrics": [metric_name(dossier)],
    }
    score = dossier.evidence.get("test_score")
    if score:
        function = str(dossier.plan.config["data"].get("_target_")).rpartition(".")[2]
        dataset = str(dossier.plan.facts["data"].get("source") or function)
        result = {
            "task": {"type": tag or "other", "name": task["kind"].replace("_", " ")},
            "dataset": {"type": function, "name": dataset, "split": score["split"]},
            "metrics": [
                {"type": score["metric"], "value": score["value"], "name": f"{score['split']} {score['metric']}"}
            ],
        }
        metadata["model-index"] = [{"name": dossier.inputs["run"], "results": [result]}]
    return str(yaml.safe_dump(metadata, sort_keys=False, allow_unicode=False, width=100))


def _license(expression: str | None) -> dict[str, str]:
    """Return the Hub's words for an SPDX expression: one of its own identifiers, or `other` with a name."""
    if expression is None:
        return {"license": "unknown"}
    name = expression.lower()
    for identifier in (name, name.removesuffix("-only").removesuffix("-or-later")):
        if identifier in _HUB_LICENSES:
            return {"license": identifier}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.-]+", "-", name).strip("-")}


def input_kind(facts: Mapping[str, Any]) -> str:
    """Return what a row of the data is: a table's row, an image, tokens, or several inputs."""
    schema = facts["splits"]["train"].get("schema") or {}
    described = schema.get("X") or {}
    shape, dtype = described.get("shape"), str(described.get("dtype", ""))
    if shape is None:
        return "several"
    if len(shape) == 3:
        return "image"
    return "tokens" if dtype.startswith(("int", "uint")) else "table" if len(shape) == 1 else "sequence"


def metric_name(dossier: Dossier) -> str:
    """Return the name of the metric that decides."""
    score = dossier.evidence.get("test_score") or {}
    metric = dossier.plan.config["task"]["metric"]
    return str(score.get("metric") or (metric["_target_"] if isinstance(metric, Mapping) else metric))


def _lines(lines: Iterable[str]) -> Markup:
    return Markup("\n".join(lines).strip("\n"))


def _details(dossier: Dossier) -> list[str]:
    plan, training = dossier.plan, dossier.inputs["training"]
    environment = plan.facts.get("environment") or {}
    determinism = plan.facts.get("determinism") or {}
    policy = determinism.get("policy")
    rows = [
        ["Task", plan.config["task"]["kind"].replace("_", " ")],
        ["Model", Markup(code_span(training.get("model"), in_table=True))],
        ["Parameters", plan.facts.get("parameters")],
        ["Licence", dossier.card.get("license")],
        ["Owner", dossier.card.get("owner")],
        ["Approvers", ", ".join(dossier.card.get("approvers") or ()) or None],
        ["Weights (SHA-256)", (dossier.evidence.get("lineage") or {}).get("weights")],
        ["Plan (SHA-256), revision", Markup(f"{shown(plan.digest)}, {plan.revision}")],
        ["Master seed", str(plan.seed)],
        ["Trained with", f"torch {environment.get('torch')}, Python {environment.get('python')}"],
        ["Platform", f"{environment.get('platform')}, {environment.get('device')}"],
        ["Deterministic kernels", "warned about, not enforced" if policy == "warn" else policy],
    ]
    if determinism.get("operations"):
        rows.append(["Operations without one", ", ".join(determinism["operations"])])
    return measurement_tables.table(["fact", "value"], rows)


def _metrics(dossier: Dossier) -> list[str]:
    task, margins, limits = dossier.plan.config["task"], dossier.card.get("margins"), dossier.card.get("limits")
    rows = [["target", task.get("target")], ["further metrics", [str(m) for m in task.get("metrics") or ()] or None]]
    rows += [[f"margin: {measurement_tables.words(name)}", value] for name, value in (margins or {}).items()]
    rows += [[f"limit: {measurement_tables.words(name)}", value] for name, value in (limits or {}).items()]
    return measurement_tables.table(["declared in the plan", "value"], [row for row in rows if row[1] is not None])


def _splits(dossier: Dossier, names: Iterable[str]) -> list[str]:
    splits = dossier.plan.facts["splits"]
    rows = [[name, splits[name]["rows"], splits[name]["digest"]] for name in names if name in splits]
    return measurement_tables.table(["split", "rows", "digest"], rows)


def _training(dossier: Dossier) -> list[str]:
    data = dossier.plan.facts["data"]
    rows = [["Source", data.get("source")], ["Licence of the data", data.get("licence")]]
    rows += [[name.replace("_", " "), value] for name, value in dossier.inputs["training"].items() if name != "model"]
    return measurement_tables.table(["fact", "value"], rows)


def _score_line(dossier: Dossier) -> str:
    score = dossier.evidence.get("test_score")
    if not score:
        return "The model was not scored on the test rows."
    low, high = (score.get(end) for end in ("low", "high"))
    known = isinstance(low, float) and isinstance(high, float) and not math.isnan(low + high)
    interval = f"95 % interval {figure(low)} to {figure(high)}" if known else "no 95 % interval"
    sample = markdown(format_sample(score))
    return f"Test {markdown(score['metric'])} **{figure(score['value'])}**, {interval}, {sample}."


def _rest(dossier: Dossier) -> list[str]:
    placed = {*_FACTORS, *_EVALUATION, *_METRICS, *_ELSEWHERE}
    return [judged.item.id for judged in dossier.judged if judged.item.id not in placed]


def _measured(dossier: Dossier, ids: Iterable[str]) -> Markup:
    """Return question, answer and measurements of the items that could be answered; the others are caveats."""
    lines: list[str] = []
    shown_before: set[str] = set()
    known = {judged.item.id: judged for judged in dossier.judged if judged.item.is_built}
    for judged in (known[name] for name in ids if name in known):
        lines += [f"### {markdown(judged.item.id.replace('_', ' '))}", "", *outcome_lines(judged)]
        measured = dossier.measurements(judged)
        lines += measurement_tables.measurement({k: v for k, v in measured.items() if k not in shown_before})
        shown_before |= measured.keys()
    return _lines(lines)


_OPEN = {
    "no": "These questions are not answered, or the answer is no",
    "waived": "These were waived by a named person",
    "small sample": "The data are too small for these, which the owner accepted",
    "not audited": "These could not be audited, which the owner accepted",
    "attested": "These rest on statements of the owner",
    "not applicable": "These do not apply",
}


def _open_points(dossier: Dossier) -> list[str]:
    lines: list[str] = []
    for answer, heading in _OPEN.items():
        of_kind = [judged for judged in dossier.judged if judged.answer == answer]
        if not of_kind:
            continue
        lines += [f"{heading}:", ""]
        for judged in of_kind:
            why = markdown(judged.item.why) if answer != "attested" else ""
            who = f" ({markdown(judged.waiver['who'])}: {markdown(judged.waiver['why'])})" if judged.waiver else ""
            lines.append(f"- {markdown(judged.item.ask)} {why}{who}".rstrip())
        lines.append("")
    return lines or ["Every question of the last gate was answered by a measurement."]
