"""Arms: the planned training for a few steps, with one change each, beside what it does without the change."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pipeline.engine.loop import Fit
from pipeline.engine.setup import OVERFIT
from pipeline.errors import UserError
from pipeline.evaluation.evaluate import outputs_of
from pipeline.history import History
from pipeline.run_store.job import Delta
from pipeline.runtime.seeds import derive
from pipeline.sanity_checks.context import CheckContext, NotApplicable

REDEALT = 20  # times the validation targets are dealt out anew, to learn what outputs score that do not know them
SHUFFLES = 10  # an even chance to be above each time, as a binary task of two clusters has, is then one in a thousand
PER_ROW = ("classification", "binary", "multilabel", "regression")  # kinds whose targets belong to whole rows


def end_of(history: History) -> float:
    """The train loss at the end: the mean over the last tenth of the steps, at least five of them."""
    _, losses = history.series("train/loss")
    return float(np.mean(losses[-max(5, len(losses) // 10) :], dtype=np.float64)) if len(losses) else math.nan


def one_batch(bench: CheckContext) -> dict[str, Any]:
    """A fresh copy of the model trained on the first batch alone; how far its loss falls, as a share of its start."""
    tried = bench.train(OVERFIT, int(bench.settings["overfit_steps"]))
    _, losses = tried.history.series("train/loss")
    ratio = float(losses[-1] / losses[0]) if len(losses) and losses[0] else math.nan
    return {"steps": tried.steps, "stopped": tried.stopped, "loss_ratio": ratio}


def zeroed_inputs(bench: CheckContext) -> dict[str, Any]:
    """The train loss after some steps on the real rows, and on rows that have nothing but zeros for inputs.

    `gain`: the share of the second that the inputs take away. Leaves the first training to the bench.
    """
    steps = bench.steps(int(bench.settings["sanity_check_steps"]))
    bench.arm = real = bench.train("proof.control", steps)
    try:
        zeroed = bench.train("proof.zeroed_inputs", steps, Delta(train_rows={"inputs": "zeroed"}))
    except UserError as error:  # lengths, masks and angles of zero mean nothing to some models
        raise NotApplicable(f"the model does not take inputs of zeros ({error.faults[0]})") from error
    with_inputs, without = end_of(real.history), end_of(zeroed.history)
    gain = (without - with_inputs) / abs(without) if without else math.nan
    stopped = "nonfinite" if "nonfinite" in (real.stopped, zeroed.stopped) else "done"
    return {"steps": steps, "real": with_inputs, "zeroed": without, "gain": gain, "stopped": stopped}


def shuffled_labels(bench: CheckContext) -> dict[str, Any]:
    """What trainings on shuffled targets score on validation at their end, beside what nobody's knowledge scores.

    Chance is the better of a model without learning, and of these very outputs held against validation targets dealt
    out anew: a majority class has an F1 of nothing, and whoever names the rare one at random has more. Rows lie in
    clusters, and a model that is taught nonsense may by luck name a whole cluster right: the score of one shuffle
    scatters far beyond its own interval. So the targets are shuffled anew, ten times at most, until a score's 95 %
    interval holds chance. `half_widths_above`: of the lowest score, its distance from chance in halves of the
    interval. Whoever is above chance every time was told the answers on another way than through the labels.
    """
    kind = bench.config["task"]["kind"]
    if kind not in PER_ROW:
        raise NotApplicable(f"what chance is on shuffled targets is not known for a {kind} task")
    if bench.config["model"].get("init_from"):
        raise NotApplicable("the model starts from weights that may know the task already (model.init_from)")
    steps, scores = bench.steps(int(bench.settings["sanity_check_steps"])), list[dict[str, Any]]()
    while len(scores) < SHUFFLES and (not scores or scores[-1]["half_widths_above"] > 1):
        change = Delta(train_rows={"targets": "shuffled"})
        scores.append(_above_chance(bench, bench.train("proof.shuffled_labels", steps, change, len(scores))))
    lowest = min(scores, key=lambda score: float(score["half_widths_above"]))
    return {"steps": steps, "shuffles": len(scores), **lowest}


def _above_chance(bench: CheckContext, done: Fit) -> dict[str, Any]:
    """The score of the last epoch, chance, and how far they are apart. Raises NotApplicable where that is unknown."""
    if done.score is None:
        raise NotApplicable("the training on shuffled targets became non-finite: there is nothing to score")
    score, sign = done.score, 1 if done.score.greater_is_better else -1
    chance = sign * max(sign * float(done.bar["value"]), sign * _without_knowledge(bench, done))
    half = abs(score.value - (score.low if score.greater_is_better else score.high))
    if math.isnan(half) or math.isnan(chance):
        raise NotApplicable(f"{score.metric} has no interval here, or nothing to be held against")
    last = float(done.history.series(f"val/{score.metric}")[1][-1])  # no best epoch was chosen
    above = (last - chance) * sign
    halves = above / half if half else math.copysign(math.inf, above) if above else 0.0
    return {"metric": score.metric, "value": last, "chance": chance, "half_widths_above": halves, "n": score.n}


def _without_knowledge(bench: CheckContext, done: Fit) -> float:
    """The mean score of the trained model's outputs on validation targets that were dealt out anew; NaN: unknown."""
    task, val = bench.setup.task, bench.data.val
    outputs = None if task.metric.needs == "step" else outputs_of(done.model, val, task)
    if outputs is None:
        return math.nan
    draw = np.random.default_rng(derive(bench.seed, "redealt"))
    targets, judged = val.y.numpy(), task.judged(outputs, val.y)
    found = [task.metric(targets[draw.permutation(len(targets))], judged) for _ in range(REDEALT)]
    return float(np.mean(found))
