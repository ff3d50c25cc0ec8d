"""The bill of materials of a release, in the format CycloneDX 1.6.

It lists the model with its model card, the distributions that serving needs (scope `required`), and the other
distributions that trained the model (scope `excluded`: they are not used at run time).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipeline.supply_chain.distributions import SERVING, Component

FILE = "sbom.cdx.json"
SPECIFICATION = "1.6"
_LEARNING = {"autoencoder": "unsupervised", "language_model": "self-supervised"}
_NAMESPACE = uuid.UUID("7b3e0c52-6f0a-4c53-9d5e-5b8c0e6d1a42")  # of the serial numbers


@dataclass(frozen=True)
class ModelFacts:
    """What the bill of materials says about the model.

    `metrics` are (name, value, low, high, split), `licence` is an SPDX expression, empty where none is declared.
    """

    name: str
    weights: str
    task: str
    architecture: str
    datasets: Sequence[str]
    metrics: Sequence[tuple[str, str, str, str, str]]
    users: str
    use_cases: Sequence[str]
    limitations: Sequence[str]
    risks: Sequence[str]
    time: datetime
    licence: str = ""


def bill_of_materials(model: ModelFacts, components: Iterable[Component]) -> str:
    """Return the bill as JSON text; the same facts give the same text."""
    from cyclonedx.output.json import JsonV1Dot6

    bom = _library_bom(model, components)
    bill: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    # The library has no model cards yet.
    bill["metadata"]["component"]["modelCard"] = _model_card(model)
    return json.dumps(bill, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def schema_faults(text: str) -> list[str]:
    """Return what the strict CycloneDX schema refuses in a bill."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    try:
        errors = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text, all_errors=True)
    except ValueError as error:
        return [f"is not JSON: {error}"]
    # The library's errors print the whole document; the error of jsonschema says what and where.
    return [f"{error.data.json_path}: {error.data.message[:200]}" for error in errors or ()]


def _library_bom(model: ModelFacts, components: Iterable[Component]) -> Any:
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component as Listed
    from cyclonedx.model.component import ComponentScope, ComponentType
    from packageurl import PackageURL

    subject = Listed(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=model.name,
        version=model.weights[:12],
        bom_ref="model",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=model.weights)],
        licenses=_licences(model.licence),
    )
    bom = Bom(serial_number=uuid.uuid5(_NAMESPACE, f"{model.name} {model.weights} {model.time.isoformat()}"))
    bom.metadata.timestamp = model.time
    bom.metadata.component = subject
    scopes = {"serving": ComponentScope.REQUIRED, "training": ComponentScope.EXCLUDED}
    listed, needs = {}, {}
    for component in components:
        url = PackageURL(type="pypi", name=component.name, version=component.version)
        listed[component.name] = Listed(
            type=ComponentType.LIBRARY,
            name=component.name,
            version=component.version,
            scope=scopes[component.scope],
            bom_ref=url.to_string(),
            purl=url,
            licenses=_licences(component.licence, component.declared),
        )
        needs[component.name] = component.needs
    bom.components = listed.values()  # type: ignore[assignment]
    bom.register_dependency(subject, [listed[name] for name in SERVING if name in listed])
    for name, required in needs.items():
        bom.register_dependency(listed[name], [listed[other] for other in required if other in listed])
    return bom


def _licences(expression: str, declared: str = "") -> list[Any]:
    from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression
    from cyclonedx.spdx import is_supported_id

    if is_supported_id(expression):
        return [DisjunctiveLicense(id=expression)]
    if expression:
        return [LicenseExpression(expression)]
    return [DisjunctiveLicense(name=declared)] if declared else []


def _model_card(model: ModelFacts) -> Mapping[str, Any]:
    parameters = {
        "approach": {"type": _LEARNING.get(model.task, "supervised")},
        "task": model.task,
        "modelArchitecture": model.architecture,
        "datasets": [{"type": "dataset", "name": name} for name in model.datasets],
    }
    metrics = [_metric(*metric) for metric in model.metrics]
    considerations = {
        "users": [model.users] if model.users else [],
        "useCases": list(model.use_cases),
        "technicalLimitations": list(model.limitations),
        "ethicalConsiderations": [{"name": risk} for risk in model.risks],
    }
    return {
        "modelParameters": parameters,
        "quantitativeAnalysis": {"performanceMetrics": metrics},
        "considerations": considerations,
    }


def _metric(name: str, value: str, low: str, high: str, split: str) -> dict[str, Any]:
    metric: dict[str, Any] = {"type": name, "value": value, "slice": split}
    return {**metric, "confidenceInterval": {"lowerBound": low, "upperBound": high}} if low and high else metric
