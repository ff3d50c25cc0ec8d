"""Run all sanity checks in order, within their time.

A sanity check is a function of the context that returns values; the checklist decides what they mean. A check that
does not apply, has no time left, or raises an exception is recorded as such: nothing is raised, nothing is left out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.error_attribution import reraise_stop, text_of, unclaimed_error
from pipeline.errors import FivegateError
from pipeline.history import History
from pipeline.sanity_checks.ablations import overfit_one_batch, shuffled_labels, zeroed_inputs
from pipeline.sanity_checks.context import CheckContext, NotApplicable, NotRun
from pipeline.sanity_checks.forward_checks import (
    batch_independence,
    eval_determinism,
    gradient_flow,
    parameters_per_row,
)
from pipeline.sanity_checks.loss_sign import loss_sign
from pipeline.sanity_checks.lr_range_test import lr_range_test
from pipeline.sanity_checks.reproducibility import reproducibility_check

SanityCheck = Callable[[CheckContext], Mapping[str, Any]]
CheckResults = dict[str, dict[str, Any]]  # by name of the check: its outcome, values or reason, and seconds

SANITY_CHECKS: tuple[SanityCheck, ...] = (  # those that train come first, before others keep a model in memory
    overfit_one_batch,
    zeroed_inputs,
    shuffled_labels,
    lr_range_test,
    loss_sign,
    gradient_flow,
    batch_independence,
    eval_determinism,
    parameters_per_row,
)

FACTS = {  # facts of the history, where the diagnosis looks for them: (check, value)
    "inputs_gain": ("zeroed_inputs", "gain"),
    "share_untrained": ("gradient_flow", "share"),
    "above_chance_on_shuffled_labels": ("shuffled_labels", "half_widths_above"),
    "parameters_per_row": ("parameters_per_row", "per_row"),
}


def run_checks(context: CheckContext) -> CheckResults:
    """Return the result of every check by name.

    `outcome` is measured (with values), not_applicable, not_run or errored (with `why`). Interrupts are raised, and
    end the trainings in other processes.
    """
    with reproducibility_check(context) as reproducibility:
        results = {check.__name__: run_check(check, context) for check in SANITY_CHECKS}
        results["reproducibility"] = run_check(reproducibility, context)
    return results


def run_check(check: SanityCheck, context: CheckContext) -> dict[str, Any]:
    """Return the outcome of one check, its values or the reason why it has none, and its seconds."""
    began = time.perf_counter()
    try:
        result = {"outcome": "measured", **check(context)}
    except NotApplicable as reason:
        result = {"outcome": "not_applicable", "why": str(reason)}
    except NotRun as reason:
        result = {"outcome": "not_run", "why": f"not run: {reason}"}
    except FivegateError as error:
        result = {"outcome": "errored", "why": error.faults[0]}
    except BaseException as error:  # a user's model and data may fail in any way; missing evidence closes the gate
        reraise_stop(error)
        shown = unclaimed_error(error)
        why = str(shown) if shown is not error else text_of(error)
        result = {"outcome": "errored", "why": why}
    return {**result, "seconds": round(time.perf_counter() - began, 3)}


def add_facts(history: History, results: CheckResults) -> None:
    """Add what the checks measured to the facts of the history."""
    facts = {fact: results.get(check, {}).get(value) for fact, (check, value) in FACTS.items()}
    range_test = results.get("lr_range_test", {})
    if range_test.get("suggested"):
        facts["lr_over_suggested"] = range_test["planned"] / range_test["suggested"]
    repeated = results.get("reproducibility", {}).get("same")
    facts["rerun_differs"] = None if repeated is None else float(not repeated)
    for name, value in facts.items():
        if value is not None and not math.isnan(value):
            # Parameters without a gradient are as untrained as those that no optimizer updates, which the fact counts.
            before = history.facts.get(name, -math.inf)
            history.facts[name] = max(before, float(value)) if name == "share_untrained" else float(value)
