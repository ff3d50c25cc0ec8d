"""How a fault of a loop is said: what no loop does by intention, and what few do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline.history import History
from pipeline.inspection.finding import Finding

SURE, LIKELY = 0.9995, 0.99  # the abnormality of what no healthy loop does unless it is meant, and of what few do
EXAMPLES = 3
FITTED = 0.1  # share of the first training loss below which a model has fitted its train rows
AGAINST_FITTING = ("regularization_too_strong", "learning_rate_too_low", "model_too_small", "model_too_deep")


def without_refuted(findings: Iterable[Finding], history: History) -> list[Finding]:
    """Leave out what is unusual and would keep a model from fitting its train rows, where it has fitted them."""
    losses = history.series("train/loss")[1]
    last = losses[-max(1, len(losses) // 10) :]
    fitted = len(losses) > 1 and float(sum(last)) / len(last) < FITTED * float(losses[0])
    return [f for f in findings if not (fitted and f.kind != "definition" and f.cause in AGAINST_FITTING)]


def listed(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - EXAMPLES} more" if len(names) > EXAMPLES else ""
    return ", ".join(names[:EXAMPLES]) + more
