"""Checks of the supply chain: dependencies, their licences, and their known vulnerabilities."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pipeline.results import Evidence, Result

NAMED = 5  # distributions that a sentence lists


def supply_chain(evidence: Evidence, *, licences: list[str], max_vulnerabilities: int) -> Result:
    """Pass when every dependency is listed, has an allowed licence, and serving has few enough known vulnerabilities.

    The licence of a distribution is allowed where its SPDX expression can be satisfied with allowed licences only. A
    vulnerability of a distribution that only trains is a warning. Without a database of vulnerabilities the result is
    inconclusive: nothing was audited.
    """
    chain = evidence["supply_chain"]
    components, vulnerabilities = chain["components"], chain["vulnerabilities"]["found"]
    if faults := [*(f"{name} is not installed" for name in chain["absent"]), *chain["schema_faults"]]:
        return Result("failed", len(faults), 0, "faults", f"the bill of materials is not complete: {_listed(faults)}")
    refused = [_described(one) for one in components if not _is_allowed(one["licence"], licences)]
    if refused:
        return Result("failed", len(refused), 0, "distributions", f"licence not allowed: {_listed(refused)}")
    serving = [one for one in vulnerabilities if one["scope"] == "serving"]
    if len(serving) > max_vulnerabilities:
        why = "vulnerable: " + _listed([f"{one['name']} {one['version']} ({one['id']})" for one in serving])
        return Result("failed", len(serving), max_vulnerabilities, "known vulnerabilities", why)
    listed = f"{len(components)} distributions with an allowed licence"
    if chain["vulnerabilities"]["database"] is None:
        why = f"{listed}; known vulnerabilities were not audited: export.vulnerability_db names no local OSV database"
        return Result("inconclusive", why=why, acceptable="not_audited")
    why = f"{listed}, audited with {chain['vulnerabilities']['database']['records']:,} records"
    if training := [
        f"{one['name']} {one['version']} ({one['id']})" for one in vulnerabilities if one["scope"] != "serving"
    ]:
        why += f"; warning: vulnerable, but not needed for serving: {_listed(training)}"
    return Result("passed", len(serving), max_vulnerabilities, "known vulnerabilities", why)


def _described(component: dict[str, Any]) -> str:
    licence = component["licence"] or (f"unknown, it says '{component['declared']}'" if component["declared"] else "")
    return f"{component['name']} {component['version']} ({licence or 'unknown, it declares none'})"


def _listed(texts: list[str]) -> str:
    rest = f" and {len(texts) - NAMED} more" if len(texts) > NAMED else ""
    return ", ".join(texts[:NAMED]) + rest


def _is_allowed(expression: str, allowed: Collection[str]) -> bool:
    """Whether an SPDX expression can be satisfied with allowed licences; an exception only widens its licence."""
    from license_expression import ExpressionError, Licensing

    if not expression:
        return False

    def satisfied(node: Any) -> bool:
        if node.isliteral:
            return str(node) in allowed or str(getattr(node, "license_symbol", node)) in allowed
        return (any if node.operator.strip().upper() == "OR" else all)(map(satisfied, node.args))

    try:
        return satisfied(Licensing().parse(expression))
    except ExpressionError:
        return False
