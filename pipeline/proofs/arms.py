"""Arms: the planned training for a few steps, with one change each, beside what it does without the change."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pipeline.engine.setup import OVERFIT
from pipeline.errors import UserError
from pipeline.history import History
from pipeline.job import Delta
from pipeline.proofs.bench import Bench, NotApplicable

PER_ROW = ("classification", "binary", "multilabel", "regression")  # kinds whose targets belong to whole rows


def end_of(history: History) -> float:
    """The train loss at the end: the mean over the last tenth of the steps, at least five of them."""
    _, losses = history.series("train/loss")
    return float(np.mean(losses[-max(5, len(losses) // 10) :], dtype=np.float64)) if len(losses) else math.nan


def one_batch(bench: Bench) -> dict[str, Any]:
    """A fresh copy of the model trained on the first batch alone; how far its loss falls, as a share of its start."""
    tried = bench.train(OVERFIT, int(bench.settings["overfit_steps"]))
    _, losses = tried.history.series("train/loss")
    ratio = float(losses[-1] / losses[0]) if len(losses) and losses[0] else math.nan
    return {"steps": tried.steps, "stopped": tried.stopped, "loss_ratio": ratio}


def zeroed_inputs(bench: Bench) -> dict[str, Any]:
    """The train loss after some steps on the real rows, and on rows that have nothing but zeros for inputs.

    `gain`: the share of the second that the inputs take away. Leaves the first training to the bench.
    """
    steps = bench.steps(int(bench.settings["proof_steps"]))
    bench.arm = real = bench.train("proof.control", steps)
    try:
        zeroed = bench.train("proof.zeroed_inputs", steps, Delta(train_rows={"inputs": "zeroed"}))
    except UserError as error:  # lengths, masks and angles of zero mean nothing to some models
        raise NotApplicable(f"the model does not take inputs of zeros ({error.faults[0]})") from error
    with_inputs, without = end_of(real.history), end_of(zeroed.history)
    gain = (without - with_inputs) / abs(without) if without else math.nan
    stopped = "nonfinite" if "nonfinite" in (real.stopped, zeroed.stopped) else "done"
    return {"steps": steps, "real": with_inputs, "zeroed": without, "gain": gain, "stopped": stopped}


def shuffled_labels(bench: Bench) -> dict[str, Any]:
    """What a training on shuffled targets scores on validation at its end, beside a model without learning.

    `half_width` is half of the score's 95 % interval. Whoever is above chance here was told the answers elsewhere.
    """
    kind = bench.config["task"]["kind"]
    if kind not in PER_ROW:
        raise NotApplicable(f"what chance is on shuffled targets is not known for a {kind} task")
    if bench.config["model"].get("init_from"):
        raise NotApplicable("the model starts from weights that may know the task already (model.init_from)")
    steps = bench.steps(int(bench.settings["proof_steps"]))
    done = bench.train("proof.shuffled_labels", steps, Delta(train_rows={"targets": "shuffled"}))
    if done.score is None:
        raise NotApplicable("the training on shuffled targets became non-finite: there is nothing to score")
    score = done.score
    half = abs(score.value - (score.low if score.greater_is_better else score.high))
    if math.isnan(half) or math.isnan(done.bar["value"]):
        raise NotApplicable(f"{score.metric} has no interval here, or nothing to be held against")
    last = float(done.history.series(f"val/{score.metric}")[1][-1])  # of the last epoch: no best one was chosen
    excess = (last - done.bar["value"]) * (1 if score.greater_is_better else -1)
    return {
        "steps": steps,
        "metric": score.metric,
        "value": last,
        "trivial": done.bar["value"],
        "half_width": half,
        "half_widths_above": excess / half if half else math.inf * np.sign(excess) if excess else 0.0,
        "n": score.n,
    }
