"""Inspections: each speaks of the flaw that it is made for, and is silent on healthy trainings."""

from __future__ import annotations

import json
import math

from pipeline.inspection.finding import Finding, Inspections, NotChecked


def test_inspections_survive_json() -> None:
    """Findings read back from JSON equal those that were written, also with a value that is not a number."""
    finding = Finding("nonfinite_inputs", "rows", "definition", 1.0, math.inf, None, "rows", "Infinity is in a row.")
    inspections = Inspections((finding,), (NotChecked("outputs", "the step returns none"),))
    assert Inspections.from_json(json.loads(json.dumps(inspections.to_json()))) == inspections
    assert Inspections.from_json({}) == Inspections()
