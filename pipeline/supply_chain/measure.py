"""What the item `supply_chain` is judged on: the distributions with their licences, the audit, the bill's faults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from pipeline.supply_chain.bill_of_materials import SPECIFICATION, ModelFacts, bill_of_materials, schema_faults
from pipeline.supply_chain.distributions import Component, missing_roots
from pipeline.supply_chain.vulnerabilities import Audit, audit


class SupplyChain(TypedDict):
    """The measurement: `absent` are distributions that serving needs and that are not installed."""

    components: list[dict[str, Any]]
    absent: list[str]
    vulnerabilities: Audit
    specification: str
    schema_faults: list[str]


def measure(model: ModelFacts, components: Sequence[Component], database: str | None) -> tuple[SupplyChain, str]:
    """Return the measurement and the bill of materials as JSON text. Raises UserError for a damaged database."""
    bill = bill_of_materials(model, components)
    measured: SupplyChain = {
        "components": [component.to_json() for component in components],
        "absent": missing_roots(components),
        "vulnerabilities": audit(components, database),
        "specification": f"CycloneDX {SPECIFICATION}",
        "schema_faults": schema_faults(bill),
    }
    return measured, bill
