"""Ablations: short trainings on one batch, on zeroed inputs and on shuffled labels, compared with what is expected."""

from __future__ import annotations

import math
from typing import TypedDict

import numpy as np
import torch

from pipeline.data.splits import Split
from pipeline.engine.progress import Fit
from pipeline.engine.setup import OVERFIT
from pipeline.errors import UserError
from pipeline.evaluation.evaluate import outputs_of
from pipeline.history import History
from pipeline.run_store.job import Delta
from pipeline.runtime.seeds import derive
from pipeline.sanity_checks.context import CheckContext, NotApplicable

PERMUTATIONS = 20  # of the validation targets, to estimate the score of outputs that know nothing of them
MAX_SHUFFLES = 10  # a binary task of two clusters is above chance half of the time: 10 times in a row is 1 in 1000
PER_ROW = ("classification", "binary", "multilabel", "regression")  # task kinds with one target per row


class OverfitResult(TypedDict):
    steps: int
    stopped: str
    first: float
    last: float
    loss_ratio: float


class ZeroedInputsResult(TypedDict):
    steps: int
    real: float
    zeroed: float
    gain: float
    stopped: str


class ScoreAboveChance(TypedDict):
    metric: str
    value: float
    chance: float
    half_width: float  # of the 95 % interval of the score
    half_widths_above: float
    greater_is_better: bool
    n: int


class ShuffledLabelsResult(ScoreAboveChance):
    steps: int
    shuffles: int


def final_loss(history: History) -> float:
    """Return the train loss at the end: the mean over the last tenth of the steps, at least five of them."""
    _, losses = history.series("train/loss")
    return float(np.mean(losses[-max(5, len(losses) // 10) :], dtype=np.float64)) if len(losses) else math.nan


def overfit_one_batch(context: CheckContext) -> OverfitResult:
    """Train a fresh model on the first batch alone; `loss_ratio` is its last loss over its first."""
    fit_result = context.train(OVERFIT, int(context.settings["overfit_steps"]))
    _, losses = fit_result.history.series("train/loss")
    first, last = (float(losses[0]), float(losses[-1])) if len(losses) else (math.nan, math.nan)
    ratio = float(losses[-1] / losses[0]) if first else math.nan
    stopped = fit_result.stop_reason
    return {"steps": fit_result.steps, "stopped": stopped, "first": first, "last": last, "loss_ratio": ratio}


def zeroed_inputs(context: CheckContext) -> ZeroedInputsResult:
    """Train on the real rows and on rows whose inputs are zeros, and compare the losses.

    `gain` is the share of the loss on zeroed inputs that the real inputs remove; NaN where a loss is negative or that
    on zeroed inputs is 0, since a share needs a zero that is the best loss. The training on the real rows becomes the
    control of the context.
    """
    steps = context.steps("sanity_check_steps")
    context.control = control = context.train("sanity_check.control", steps)
    try:
        zeroed = context.train("sanity_check.zeroed_inputs", steps, Delta(train_rows={"inputs": "zeroed"}))
    except UserError as error:  # some models cannot take lengths, masks or angles of zero
        raise NotApplicable(f"the model does not take inputs of zeros ({error.faults[0]})") from error
    with_inputs, without = final_loss(control.history), final_loss(zeroed.history)
    gain = (without - with_inputs) / without if without > 0 and not with_inputs < 0 else math.nan
    stopped = "nonfinite" if "nonfinite" in (control.stop_reason, zeroed.stop_reason) else "done"
    return {"steps": steps, "real": with_inputs, "zeroed": without, "gain": gain, "stopped": stopped}


def shuffled_labels(context: CheckContext) -> ShuffledLabelsResult:
    """Train on shuffled targets and compare the validation score with chance: above it, labels leak into the model.

    Chance is the better of two scores: that of the trivial baseline, and that of the trained model's outputs against
    permuted validation targets. Rows lie in
    clusters, so a model may by luck predict a whole cluster right: one score scatters far beyond its own interval.
    Therefore targets are shuffled again, up to ten times, until chance lies within a score's 95 % interval.
    `half_widths_above` is the distance of the lowest score from chance, in half widths of its interval.
    """
    kind = context.config["task"]["kind"]
    if kind not in PER_ROW:
        raise NotApplicable(f"chance on shuffled targets is not known for a {kind} task")
    if context.config["model"].get("init_from"):
        raise NotApplicable("the model starts from weights that may know the task already (model.init_from)")
    steps, scores = context.steps("sanity_check_steps"), list[ScoreAboveChance]()
    while len(scores) < MAX_SHUFFLES and (not scores or scores[-1]["half_widths_above"] > 1):
        change = Delta(train_rows={"targets": "shuffled"})
        fit_result = context.train("sanity_check.shuffled_labels", steps, change, len(scores))
        scores.append(_score_above_chance(context, fit_result))
    lowest = min(scores, key=lambda score: score["half_widths_above"])
    if lowest["half_widths_above"] > 1 and _step_ignores_targets(context, fit_result):
        what = f"{lowest['metric']} {lowest['value']:.4g} on shuffled targets, chance {lowest['chance']:.4g}"
        raise NotApplicable(f"task.step teaches more than the targets of a batch, as with a frozen teacher ({what})")
    return {"steps": steps, "shuffles": len(scores), **lowest}


def _step_ignores_targets(context: CheckContext, fit_result: Fit) -> bool:
    """Return whether the outputs of a custom step stay the same when it gets the targets of other rows.

    Then a score above chance does not come from the targets of the rows that are scored. What remains is knowledge that
    the step brings itself, such as the outputs of a teacher, which shuffling does not take away.
    """
    task, val = context.setup.task, context.data.val
    if task.step is None:
        return False
    others = Split(val.name, val.X, val.y.roll(1, dims=0))
    given, exchanged = (outputs_of(fit_result.model, rows, task) for rows in (val, others))
    return given is not None and exchanged is not None and torch.equal(given, exchanged)


def _score_above_chance(context: CheckContext, fit_result: Fit) -> ScoreAboveChance:
    """Return the score of the last epoch, chance, and their distance. Raises NotApplicable if one is unknown."""
    if fit_result.score is None:
        raise NotApplicable("the training on shuffled targets became non-finite: there is no score")
    score, sign = fit_result.score, 1 if fit_result.score.greater_is_better else -1
    chance = sign * max(
        sign * float(fit_result.baseline_score["value"]), sign * _score_on_permuted_targets(context, fit_result)
    )
    half = abs(score.value - (score.low if score.greater_is_better else score.high))
    if math.isnan(half) or math.isnan(chance):
        raise NotApplicable(f"{score.metric} has no interval here, or chance is not known")
    last = float(fit_result.history.series(f"val/{score.metric}")[1][-1])  # the best epoch is a choice by these rows
    above = (last - chance) * sign
    halves = above / half if half else math.copysign(math.inf, above) if above else 0.0
    return {
        "metric": score.metric,
        "value": last,
        "chance": chance,
        "half_width": half,
        "half_widths_above": halves,
        "greater_is_better": score.greater_is_better,
        "n": score.n,
    }


def _score_on_permuted_targets(context: CheckContext, fit_result: Fit) -> float:
    """Return the mean score of the trained model's outputs on permuted validation targets; NaN without outputs."""
    task, val = context.setup.task, context.data.val
    outputs = None if task.metric.needs == "step" else outputs_of(fit_result.model, val, task)
    if outputs is None:
        return math.nan
    draw = np.random.default_rng(derive(context.seed, "redealt"))
    targets, predictions = val.y.numpy(), task.metric_inputs(outputs, val.y)
    values = [task.metric(targets[draw.permutation(len(targets))], predictions) for _ in range(PERMUTATIONS)]
    return float(np.mean(values))
