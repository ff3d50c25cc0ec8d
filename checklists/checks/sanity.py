"""Checks of the sanity checks' results. A fault of the model only warns; one that invalidates scores fails."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.results import Evidence, Relation, Result, counted


def _measured(evidence: Evidence, name: str) -> Mapping[str, Any] | Result:
    """Return the values of a sanity check, or the result of an item without values: errored, or not applicable."""
    values = evidence["sanity_checks"][name]
    if values["outcome"] == "measured":
        return values
    if values["outcome"] in ("not_applicable", "not_run"):
        return Result("not_applicable", why=values["why"])
    return Result("errored", why=f"the sanity check failed: {values['why']}")


def one_batch_tried(evidence: Evidence, *, min_steps: int, suspicious_ratio: float) -> Result:
    """Passing proves that the model was trained on one batch alone, for enough steps; not that it overfitted the batch.

    If a larger share of its first loss is left than the bound, or a loss that may be negative does not fall, the reason
    warns.
    """
    values = _measured(evidence, "overfit_one_batch")
    if isinstance(values, Result):
        return values
    steps, ratio = values["steps"], values["loss_ratio"]
    if steps < min_steps and values["stopped"] != "nonfinite":
        return Result("failed", steps, min_steps, "steps", "too few steps to tell", relation=">=")
    first, last = float(values["first"]), float(values["last"])
    if not math.isfinite(ratio) and first != 0:
        return Result("passed", why=f"warning: the loss of one batch became non-finite within {steps} steps")
    if min(first, last) < 0 or first == 0:  # a share of such a loss has no meaning
        fell = "loss fell" if last < first else "warning: the loss of one batch does not fall, it goes"
        return Result("passed", why=f"{fell} from {first:.3g} to {last:.3g} in {steps} steps")
    why = f"loss fell to {ratio:.2g} of its start in {steps} steps"
    if ratio > suspicious_ratio:
        why = f"warning: the loss of one batch hardly falls, {ratio:.2g} of its start is left after {steps} steps"
    return Result("passed", ratio, suspicious_ratio, "of the initial loss", why)


def inputs_matter(evidence: Evidence, *, min_gain: float) -> Result:
    """Passing proves that a training on zeroed inputs was compared with one on the real rows; not that inputs help.

    If the inputs remove a smaller share of the loss than the bound, the reason warns. Of a loss that is negative there
    is no share: then it warns if the inputs do not lower the loss.
    """
    values = _measured(evidence, "zeroed_inputs")
    if isinstance(values, Result):
        return values
    gain, unit = values["gain"], "of the loss removed by the inputs"
    losses = f"after {values['steps']} steps the loss is {values['real']:.3g}, on zeroed inputs {values['zeroed']:.3g}"
    if values["stopped"] == "nonfinite":
        return Result("passed", why="one of the two trainings became non-finite")
    if gain >= min_gain:
        return Result("passed", gain, min_gain, unit, losses, relation=">=")
    if math.isnan(gain) and values["real"] < values["zeroed"]:
        return Result("passed", why=f"{losses}; a share of a negative loss means nothing")
    if math.isnan(gain):
        return Result("passed", why=f"warning: {losses}; the inputs do not lower it", cause="inputs_uninformative")
    why = f"warning: {losses}; the inputs hardly matter"
    return Result("passed", gain, min_gain, unit, why, "inputs_uninformative", relation=">=")


def chance_on_shuffled_labels(evidence: Evidence, *, clear: float, shuffles: int) -> Result:
    """Passing proves that a model trained on shuffled labels is at chance on validation for at least one shuffle.

    Above chance means by more than `clear` half widths of its 95 % interval, in `shuffles` shuffles out of `shuffles`.
    """
    values = _measured(evidence, "shuffled_labels")
    if isinstance(values, Result):
        return values
    above, times = values["half_widths_above"], values["shuffles"]
    sign = 1 if values["greater_is_better"] else -1
    limit = values["chance"] + sign * clear * values["half_width"]
    relation: Relation = "<=" if sign > 0 else ">="
    unit, chance = f"{values['metric']} on validation", f"chance {values['chance']:.3g}, n = {values['n']}"
    if above <= clear or times < shuffles:
        lowest = f"; the lowest of {times} shuffles" if times > 1 else ""
        bound = limit if above <= clear else None
        return Result("passed", values["value"], bound, unit, chance + lowest, relation=relation)
    why = f"{chance}, the lowest of {times} shuffles: a model trained on shuffled labels knows the right ones"
    return Result("failed", values["value"], limit, unit, why, "data_leakage", relation=relation)


def gradients_reach(evidence: Evidence, *, named: int) -> Result:
    """Passing proves that the gradient of every parameter was checked; those without one are named, up to `named`.

    It fails if parameters that get a gradient are in a Python list or dict, where no optimizer finds them.
    """
    values = _measured(evidence, "gradient_flow")
    if isinstance(values, Result):
        return values
    silent = values["silent"]
    total, unit = f"{values['parameters']} trainable parameters", "parameters without a gradient"
    if not silent:
        return Result("passed", 0, 0, unit, f"each of {total} gets a gradient")
    if hidden := [name for name, state in silent.items() if state == "unregistered"]:
        shown = ", ".join(hidden if len(hidden) <= named else [*hidden[:named], "..."])
        why = f"{len(hidden)} of {total} are in a Python list or dict, and no optimizer gets them: {shown}; "
        why += "use nn.ModuleList, nn.ModuleDict or nn.ParameterList"
        return Result("failed", len(hidden), 0, "parameters that are not registered", why, "parameters_not_trained")
    states = [f"{name} ({'not in the loss' if state == 'none' else 'zero'})" for name, state in silent.items()]
    shown = ", ".join(states if len(states) <= named else [*states[:named], "..."])
    why = f"warning: {len(silent)} of {total} get none on {values['batches']} batches: {shown}"
    return Result("passed", len(silent), 0, unit, why, "parameters_not_trained")


def nothing_contradicts(evidence: Evidence, *, named: int, invalidating: Sequence[str]) -> Result:
    """Passing proves that model, loss, data and settings were inspected; what contradicts itself is a warning.

    It fails for a contradiction whose cause is `invalidating`: scores mean nothing then. Up to `named` are listed.
    """
    findings, not_checked = evidence["inspections"]["findings"], evidence["inspections"]["not_checked"]
    wrong = [finding for finding in findings if finding["kind"] == "definition"]
    shown = " ".join(finding["sentence"] for finding in wrong[:named])
    unit = "contradictions"
    for finding in wrong:
        if finding["cause"] in invalidating:
            return Result("failed", len(wrong), 0, unit, shown, finding["cause"])
    if wrong:
        return Result("passed", len(wrong), 0, unit, f"warning: {shown}", wrong[0]["cause"])
    unusual = f"{counted(len(findings), 'finding')} that healthy trainings rarely have"
    left_out = f"; {counted(len(not_checked), 'inspection')} without an answer" if not_checked else ""
    return Result("passed", 0, 0, unit, f"{unusual}{left_out}")


def rows_independent(evidence: Evidence, *, max_difference: float) -> Result:
    """Passing proves that in eval mode a row's outputs do not depend on the other rows of its batch.

    The bound is a share of the spread of outputs over rows. A model that cannot take a batch of one row passes with a
    warning: a batch of one row is not compared then.
    """
    values = _measured(evidence, "batch_independence")
    if isinstance(values, Result):
        return values
    change = max(values["difference"], values["alone"])
    unit = "of the spread of outputs"
    if change > max_difference:
        how = "when the others are replaced" if values["difference"] >= values["alone"] else "when it is alone"
        why = f"the outputs of a row change {how}: its score depends on the other rows of its batch"
        return Result("failed", change, max_difference, unit, why, _cause_of_dependence(evidence))
    alone = f"; warning: {values['alone_fails']}" if values["alone_fails"] else ""
    why = f"the first and the last of {values['rows']} rows, with other rows and alone{alone}"
    return Result("passed", change, max_difference, unit, why)


def _cause_of_dependence(evidence: Evidence) -> str:
    """Return why rows depend on each other: what the inspections found, else normalization."""
    findings = (evidence.get("inspections") or {}).get("findings", ())
    if any(finding["inspection"] == "norm_in_training_mode" for finding in findings):
        return "eval_mode_missing"
    causes = [finding["cause"] for finding in findings]
    known = ("batch_axis_swapped", "output_activation_mismatch", "normalization_misused")
    return next((cause for cause in known if cause in causes), "normalization_misused")


def evaluation_repeats(evidence: Evidence, *, max_rows: int) -> Result:
    """Passing proves that two evaluations of the same rows in eval mode give the same outputs."""
    values = _measured(evidence, "eval_determinism")
    if isinstance(values, Result):
        return values
    unit = "rows that differ"
    if values["differing"] > max_rows:
        why = f"the {values['of']} of the same rows differ in eval mode: dropout or other random numbers are active"
        return Result("failed", values["differing"], max_rows, unit, why, "eval_mode_missing")
    why = f"{values['rows']} rows twice: the same {values['of']}"
    return Result("passed", values["differing"], max_rows, unit, why)


def parameters_against_rows(evidence: Evidence, *, many: float) -> Result:
    """Passing proves that the number of parameters per train row is on record; a large one only warns."""
    values = _measured(evidence, "parameters_per_row")
    if isinstance(values, Result):
        return values
    why = f"{values['parameters']:,} trainable parameters, {values['rows']:,} train rows"
    if values["per_row"] > many:
        why = f"warning: {why}; enough to memorize every row"
    return Result("passed", values["per_row"], many, "parameters per row", why)


def learning_rate_tried(evidence: Evidence, *, far: float) -> Result:
    """Passing proves that a learning-rate range test was run; if the planned rate is far off, the reason warns."""
    values = _measured(evidence, "lr_range_test")
    if isinstance(values, Result):
        return values
    planned, suggested = values["planned"], values["suggested"]
    if suggested is None:
        why = values.get("why_none") or "at no learning rate does the loss fall by more than it varies"
        why = f"warning: no learning rate is suggested, since {why}"
        return Result("passed", planned, unit="learning rate", why=why)
    ratio, range_of_seeds = planned / suggested, ""
    seeds = [rate for rate in values.get("suggestions", []) if rate is not None]
    if len(seeds) > 1:
        range_of_seeds = f" ({values['low']:.2g} to {values['high']:.2g} over {len(seeds)} seeds)"
    why = f"the range test suggests {suggested:.2g}{range_of_seeds}, and {planned:.3g} is planned"
    if 1 / far <= ratio <= far:
        return Result("passed", planned, unit="learning rate", why=why)
    cause = "learning_rate_too_high" if ratio > 1 else "learning_rate_too_low"
    return Result("passed", planned, unit="learning rate", why=f"warning: {why}", cause=cause)


def loss_not_negative(evidence: Evidence) -> Result:
    """Passing proves that a loss that cannot be negative was looked at in a short training; if it is, the reason warns.

    Not applicable for a loss that may be negative.
    """
    values = _measured(evidence, "loss_sign")
    if isinstance(values, Result):
        return values
    name, lowest, step = values["loss"], values["lowest"], values["negative_at"]
    if step is None:
        return Result("passed", lowest, 0, "loss", f"{name} is never negative in a short training", relation=">=")
    why = f"warning: {name} cannot be negative, and is {lowest:.3g} (negative first at step {step}): {values['reason']}"
    return Result("passed", lowest, 0, "loss", why, values["cause"], relation=">=")


def training_repeats(evidence: Evidence) -> Result:
    """Passing proves that two new processes train to the same weights, or that the plan does not promise it."""
    values = _measured(evidence, "reproducibility")
    if isinstance(values, Result):
        return values
    steps = values["steps"]
    if values["same"]:
        return Result("passed", steps, unit="steps", why=f"{steps} steps in two new processes: the same weights")
    at = values["first_difference"]
    why = f"two new processes with the same seed differ, first at step {at} in {values['of']}"
    if values["deterministic"] is not True:
        why += "; the plan does not require determinism (trainer.deterministic)"
        return Result("passed", at, None, "steps with the same weights", why, "nondeterminism")
    return Result("failed", at, steps, "steps with the same weights", why, "nondeterminism", relation=">=")
