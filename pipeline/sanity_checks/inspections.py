"""The inspections of a planned training, together with what the sanity checks measured of it already."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from pipeline.error_attribution import reraise_stop, text_of
from pipeline.inspection.finding import Inspections, Measured, NotChecked
from pipeline.inspection.inspect import inspect_training
from pipeline.sanity_checks.context import CheckContext
from pipeline.sanity_checks.run_checks import CheckResults

NORMS = (nn.modules.batchnorm._NormBase,)


def inspect_plan(context: CheckContext, results: CheckResults) -> tuple[Inspections, list[Measured]]:
    """Return what is wrong or unusual about a plan's training before its first step, and all that was measured.

    `results` are those of its sanity checks. Nothing is raised for a training that cannot be inspected: it is recorded
    as not checked.
    """
    try:
        with context.training_conditions() as setup:
            measured = tuple(_from_checks(results, setup.model))
            return inspect_training(setup, context.data, measured, context.left)
    except BaseException as error:  # a user's model and data may fail in any way
        reraise_stop(error)
        return Inspections(not_checked=(NotChecked("all inspections", text_of(error)),)), []


def _from_checks(results: CheckResults, model: nn.Module) -> Iterator[Measured]:
    """Yield the quantities that sanity checks measured, so that nothing is measured twice."""
    flow = results.get("gradient_flow", {})
    if flow.get("outcome") == "measured":
        outside = [name for name, state in flow["silent"].items() if state == "none"]
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        share = sum(sizes.get(name, 0) for name in outside) / max(1, sum(sizes.values()))
        yield Measured("share_silent", share, ", ".join(outside[:3]))
    rows = results.get("batch_independence", {})
    if rows.get("outcome") == "measured" and not any(isinstance(module, NORMS) for module in model.modules()):
        yield Measured("rows_seen_by_others", max(float(rows["difference"]), float(rows["alone"])))
    repeated = results.get("eval_determinism", {})
    if repeated.get("outcome") == "measured" and repeated["of"] == "outputs":
        yield Measured("noise_in_evaluation", repeated["differing"] / max(1, repeated["rows"]))
