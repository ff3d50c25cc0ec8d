"""What the proofs showed: what they say of the model fails nothing, what makes its figures dishonest does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pipeline.results import Evidence, Result


def _measured(evidence: Evidence, proof: str) -> Mapping[str, Any] | Result:
    """The values of a proof, or what to answer where there are none: errored, or not applicable with its reason."""
    found = evidence["sanity_checks"][proof]
    if found["outcome"] == "measured":
        return found
    if found["outcome"] in ("not_applicable", "not_run"):
        return Result("not_applicable", why=found["why"])
    return Result("errored", why=f"the proof failed: {found['why']}")


def one_batch_tried(evidence: Evidence, *, min_steps: int, suspicious_ratio: float) -> Result:
    """Passing proves that the model was trained on one batch alone, for enough steps to tell; not that it fitted.

    Where its loss keeps a larger share of its start than the bound, the reason warns.
    """
    found = _measured(evidence, "one_batch")
    if isinstance(found, Result):
        return found
    steps, ratio = found["steps"], found["loss_ratio"]
    if steps < min_steps and found["stopped"] != "nonfinite":
        return Result("failed", steps, min_steps, "steps", "too few steps to tell")
    if not math.isfinite(ratio):
        why = "warning: the loss became non-finite"
    elif ratio > suspicious_ratio:
        why = f"warning: the loss of one batch hardly falls, {ratio:.2g} of its start is left"
    else:
        why = f"loss fell to {ratio:.2g} of its start"
    return Result("passed", steps, min_steps, "steps", why)


def inputs_matter(evidence: Evidence, *, min_gain: float) -> Result:
    """Passing proves that a training on zeroed inputs was held against one on the real rows; not that inputs help.

    Where they take away a smaller share of the loss than the bound, the reason warns.
    """
    found = _measured(evidence, "zeroed_inputs")
    if isinstance(found, Result):
        return found
    said = f"after {found['steps']} steps the loss is {found['real']:.3g}, on zeroed inputs {found['zeroed']:.3g}"
    if found["stopped"] == "nonfinite":
        return Result("passed", found["gain"], min_gain, "share of the loss", "one of the two became non-finite")
    if found["gain"] >= min_gain:
        return Result("passed", found["gain"], min_gain, "share of the loss", said)
    why = f"warning: {said}; the inputs hardly matter yet"
    return Result("passed", found["gain"], min_gain, "share of the loss", why, "inputs_uninformative")


def chance_on_shuffled_labels(evidence: Evidence, *, clear: float, shuffles: int) -> Result:
    """Passing proves that a model trained on shuffled labels is not above chance on validation every time.

    Above chance: by more than so many halves of its 95 % interval, in so many shuffles without an exception.
    """
    found = _measured(evidence, "shuffled_labels")
    if isinstance(found, Result):
        return found
    above, times = found["half_widths_above"], found["shuffles"]
    said = f"{found['metric']} {found['value']:.3g} on validation, by chance {found['chance']:.3g} (n = {found['n']})"
    if above <= clear or times < shuffles:
        again = f"; the lowest of {times} shuffles" if times > 1 else ""
        return Result("passed", above, clear, "half intervals", said + again)
    why = f"{said}, the lowest of {times} shuffles: a model that was taught nonsense knows the answers"
    return Result("failed", above, clear, "half intervals", why, "data_leakage")


def gradients_reach(evidence: Evidence, *, named: int) -> Result:
    """Passing proves that it was looked which parameters get a gradient; those that get none are named, so many."""
    found = _measured(evidence, "gradients")
    if isinstance(found, Result):
        return found
    silent = found["silent"]
    of = f"{found['parameters']} parameters that train"
    if not silent:
        return Result("passed", 0, 0, "parameters", f"each of {of} gets a gradient")
    shown = ", ".join(f"{name} ({'not in the loss' if how == 'none' else 'zero'})" for name, how in silent.items())
    shown = shown if len(silent) <= named else ", ".join([*shown.split(", ")[:named], "..."])
    why = f"warning: {len(silent)} of {of} get none on {found['batches']} batches: {shown}"
    return Result("passed", len(silent), 0, "parameters", why, "parameters_not_trained")


def rows_independent(evidence: Evidence, *, max_difference: float) -> Result:
    """Passing proves that in eval mode a row's outputs do not depend on the rows that stand beside it in a batch.

    The bound is a share of the distance between the outputs of different rows. A model that cannot take one row alone
    is said to, and passes: no figure is made of it.
    """
    found = _measured(evidence, "rows_apart")
    if isinstance(found, Result):
        return found
    moved = max(found["difference"], found["alone"])
    unit = "of the distance between rows"
    if moved > max_difference:
        how = "when the others are replaced" if found["difference"] >= found["alone"] else "when it is alone"
        why = f"the outputs of a row move {how}: its score depends on its neighbours"
        return Result("failed", moved, max_difference, unit, why, "normalization_misused")
    alone = f"; warning: {found['alone_fails']}" if found["alone_fails"] else ""
    why = f"the first and the last of {found['rows']} rows, beside others and alone{alone}"
    return Result("passed", moved, max_difference, unit, why)


def evaluation_repeats(evidence: Evidence, *, max_rows: int) -> Result:
    """Passing proves that the same rows give the same outputs twice in eval mode."""
    found = _measured(evidence, "evaluation_repeats")
    if isinstance(found, Result):
        return found
    if found["differing"] > max_rows:
        why = f"the {found['of']} of the same rows differ in eval mode: dropout or another draw is at work"
        return Result("failed", found["differing"], max_rows, "rows", why, "eval_mode_missing")
    return Result("passed", found["differing"], max_rows, "rows", f"{found['rows']} rows twice: the same {found['of']}")


def parameters_against_rows(evidence: Evidence, *, many: float) -> Result:
    """Passing proves that it is on record how many parameters there are for each train row; many fail nothing."""
    found = _measured(evidence, "parameters_per_row")
    if isinstance(found, Result):
        return found
    why = f"{found['parameters']:,} parameters that train, {found['rows']:,} train rows"
    if found["per_row"] > many:
        why = f"warning: {why}; enough to learn every row by heart"
    return Result("passed", found["per_row"], many, "parameters per row", why)


def learning_rate_tried(evidence: Evidence, *, far: float) -> Result:
    """Passing proves that rates were tried from far too low to far too high; a plan that is far off is told so."""
    found = _measured(evidence, "learning_rate")
    if isinstance(found, Result):
        return found
    if found["suggested"] is None:
        return Result(
            "passed",
            found["planned"],
            None,
            "learning rate",
            "warning: the loss falls at no rate by more than it varies",
        )
    times = found["planned"] / found["suggested"]
    why = f"the range test suggests {found['suggested']:.2g}, and {found['planned']:.3g} is planned"
    if 1 / far <= times <= far:
        return Result("passed", found["planned"], found["suggested"], "learning rate", why)
    cause = "learning_rate_too_high" if times > 1 else "learning_rate_too_low"
    return Result("passed", found["planned"], found["suggested"], "learning rate", f"warning: {why}", cause)


def training_repeats(evidence: Evidence) -> Result:
    """Passing proves that two fresh processes train to the same weights, or that the plan promised no such thing."""
    found = _measured(evidence, "same_seed")
    if isinstance(found, Result):
        return found
    steps = found["steps"]
    if found["same"]:
        return Result("passed", steps, unit="steps", why=f"{steps} steps in two fresh processes: the same weights")
    at = found["first_difference"]
    why = f"two fresh processes of one seed differ, first at step {at} in {found['of']}"
    if found["deterministic"] is not True:
        why += "; the plan does not promise to repeat (trainer.deterministic)"
        return Result("passed", at, steps, "steps", why, "nondeterminism")
    return Result("failed", at, steps, "steps", why, "nondeterminism")
