"""All proofs in order, within their allowance: what careful engineers try by hand before a long training.

A proof is a function of the bench that gives values; what they mean is for checks to say. One that does not apply, has
no time left, or fails, says so in its place: nothing is raised, and nothing is left out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.errors import FivegateError
from pipeline.history import History
from pipeline.sanity_checks.ablations import one_batch, shuffled_labels, zeroed_inputs
from pipeline.sanity_checks.context import CheckContext, NotApplicable, NotRun
from pipeline.sanity_checks.forward_checks import evaluation_repeats, gradients, parameters_per_row, rows_apart
from pipeline.sanity_checks.lr_range_test import learning_rate
from pipeline.sanity_checks.reproducibility import repetition

Proof = Callable[[CheckContext], Mapping[str, Any]]
PROOFS: tuple[Proof, ...] = (  # what trains first, while nothing else holds a model in memory
    one_batch,
    zeroed_inputs,
    shuffled_labels,
    learning_rate,
    gradients,
    rows_apart,
    evaluation_repeats,
    parameters_per_row,
)

CheckResults = dict[str, dict[str, Any]]


def prove(bench: CheckContext) -> CheckResults:
    """Every proof by name: `outcome` is measured, not_applicable, not_run or errored, beside its values or its `why`.

    An interrupt goes through, and ends what was begun in other processes.
    """
    with repetition(bench) as same_seed:
        found = {proof.__name__: _tried(proof, bench) for proof in PROOFS}
        found["same_seed"] = _tried(same_seed, bench)
    return found


def _tried(proof: Proof, bench: CheckContext) -> dict[str, Any]:
    began = time.perf_counter()
    try:
        answer = {"outcome": "measured", **proof(bench)}
    except NotApplicable as reason:
        answer = {"outcome": "not_applicable", "why": str(reason)}
    except NotRun as reason:
        answer = {"outcome": "not_run", "why": f"not run: {reason}"}
    except FivegateError as error:
        answer = {"outcome": "errored", "why": error.faults[0]}
    except Exception as error:  # anybody's model and data may fail in any way; missing evidence closes the gate
        answer = {"outcome": "errored", "why": f"{type(error).__name__}: {error}"}
    return {**answer, "seconds": round(time.perf_counter() - began, 3)}


def note(history: History, found: CheckResults) -> None:
    """What the proofs found is among the facts of the history, where the diagnosis looks for it.

    Parameters that get no gradient are as untrained as those that no optimizer holds.
    """
    wanted = {
        "inputs_gain": ("zeroed_inputs", "gain"),
        "share_untrained": ("gradients", "share"),
        "above_chance_on_shuffled_labels": ("shuffled_labels", "half_widths_above"),
        "parameters_per_row": ("parameters_per_row", "per_row"),
    }
    known = {fact: found.get(proof, {}).get(value) for fact, (proof, value) in wanted.items()}
    rates = found.get("learning_rate", {})
    if rates.get("suggested"):
        known["lr_over_suggested"] = rates["planned"] / rates["suggested"]
    for name, value in known.items():
        if value is not None and not math.isnan(value):
            before = history.facts.get(name, -math.inf)
            history.facts[name] = max(before, float(value)) if name == "share_untrained" else float(value)
