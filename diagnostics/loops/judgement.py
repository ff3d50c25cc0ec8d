"""How a fault of a loop is said: what no loop does by intention, and what few do."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.inspection.finding import Finding

SURE, LIKELY = 0.9995, 0.99  # the abnormality of what no healthy loop does unless it is meant, and of what few do
EXAMPLES = 3


def unusual(
    cause: str,
    inspection: str,
    sentence: str,
    abnormality: float,
    value: float | None = None,
    unit: str = "",
    where: str = "",
) -> Finding:
    """Return a finding that is a fault only in a run that needs mending."""
    return Finding(cause, inspection, "abnormality", abnormality, value, None, unit, sentence, where)


def listed(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - EXAMPLES} more" if len(names) > EXAMPLES else ""
    return ", ".join(names[:EXAMPLES]) + more
