"""Whether a loss that cannot be negative by its definition is never negative in the short trainings."""

from __future__ import annotations

from typing import TypedDict

from pipeline.evaluation.task import Task, loss_name
from pipeline.sanity_checks.context import CheckContext, NotApplicable, NotRun

NEGATIVE = -1e-6  # cross entropy of a certain prediction can be below 0 by rounding

# Why a loss of torch is negative, by name of its class or function, with the cause. Losses that are missing here, such
# as GaussianNLLLoss or a loss of the user's own, may be negative.
_TARGETS = ("its targets are not shares between 0 and 1", "labels_misencoded")
_LOG_PROBABILITIES = ("the outputs of the model are not log-probabilities", "loss_mismatch")
_SIGN = ("its sign is flipped, or something is subtracted from it", "loss_reduction_or_sign")
REASONS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("CrossEntropyLoss", "cross_entropy"), _TARGETS),
    **dict.fromkeys(("BCELoss", "binary_cross_entropy"), _TARGETS),
    **dict.fromkeys(("BCEWithLogitsLoss", "binary_cross_entropy_with_logits"), _TARGETS),
    **dict.fromkeys(("MultiLabelSoftMarginLoss", "multilabel_soft_margin_loss"), _TARGETS),
    **dict.fromkeys(("NLLLoss", "nll_loss"), _LOG_PROBABILITIES),
    **dict.fromkeys(("MSELoss", "mse_loss", "L1Loss", "l1_loss", "HuberLoss", "huber_loss"), _SIGN),
    **dict.fromkeys(("SmoothL1Loss", "smooth_l1_loss", "MultiMarginLoss", "multi_margin_loss"), _SIGN),
    **dict.fromkeys(("SoftMarginLoss", "soft_margin_loss", "TripletMarginLoss", "triplet_margin_loss"), _SIGN),
    **dict.fromkeys(("MarginRankingLoss", "margin_ranking_loss"), _SIGN),
}


class LossSignResult(TypedDict):
    """The lowest loss of the short trainings, and the first step in which the loss is negative, if it ever is."""

    loss: str
    lowest: float
    negative_at: int | None
    reason: str
    cause: str


def never_negative_loss(task: Task) -> str | None:
    """Return the name of the task's loss if it cannot be negative by its definition; None if it may be."""
    name = None if task.step is not None else loss_name(task.loss)
    return name if name in REASONS else None


def loss_sign(context: CheckContext) -> LossSignResult:
    """Return the lowest train loss of the control training, for a loss that cannot be negative."""
    if context.control is None:
        raise NotRun("there is no short training of the plan to look at")
    name = never_negative_loss(context.control.task)
    if name is None:
        raise NotApplicable("this loss may be negative, as far as its name tells")
    steps, losses = context.control.history.series("train/loss")
    finite = [(int(step), float(loss)) for step, loss in zip(steps, losses, strict=True) if loss == loss]
    if not finite:
        raise NotApplicable("the loss is NaN from the first step on")
    negative = [step for step, loss in finite if loss < NEGATIVE]
    reason, cause = REASONS[name]
    return {
        "loss": name,
        "lowest": min(loss for _, loss in finite),
        "negative_at": negative[0] if negative else None,
        "reason": reason,
        "cause": cause,
    }
