"""The learning-rate range test: the loss while the learning rate grows from far too low to far too high."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pipeline.building.builder import build_optimizer
from pipeline.run_store.job import Delta
from pipeline.sanity_checks.context import CheckContext, NotApplicable, NotRun
from pipeline.sanity_checks.loss_sign import NEGATIVE, never_negative_loss

LOWEST, HIGHEST = 1e-7, 10.0
MIN_STEPS = 20  # with fewer steps the slope is noise
SMOOTHING = 0.03  # standard deviation of the smoothing, as a share of the steps
SEEDS = 3  # the first is the master seed; the batches, and so the steepest point, differ from seed to seed
UNBOUNDED = (
    1000.0  # a negative loss this many times its early size has no lower bound; losses between -1 and 1 fall 50 times
)

FLAT = "at no rate does the loss fall by more than it varies"
NO_LOWER_BOUND = "the loss has no lower bound, so that a larger rate always looks better"

Curve = NDArray[np.float64]


class Suggestion(TypedDict):
    """Learning rates at which the smoothed loss falls fastest (`suggested`) and becomes worse than at the start.

    `why_none` is the reason where nothing is suggested, else empty.
    """

    suggested: float | None
    start: float | None
    lowest: float | None
    diverges: float | None
    why_none: str


class CombinedSuggestion(Suggestion):
    """The suggestion of the median seed, with the smallest and the largest of all seeds that have one."""

    low: NotRequired[float]
    high: NotRequired[float]
    suggestions: list[float | None]  # by seed


class RangeTestResult(CombinedSuggestion):
    steps: int
    planned: float


def lr_range_test(context: CheckContext) -> RangeTestResult:
    """Return the learning rate at which the loss falls fastest, with the largest one of the planned training.

    The rate grows by the same factor in every step; the suggestion is the steepest point of the smoothed loss over
    log(rate) (L. N. Smith, Cyclical Learning Rates for Training Neural Networks, 2017, sec. 3.3). It is repeated with
    other seeds as long as the time allows; the median is suggested if most of the seeds suggest a rate.
    """
    context.require_permit()
    node = {name: value for name, value in context.config["optimizer"].items() if name != "groups"}
    optimizer = build_optimizer({"optimizer": node}, nn.Linear(1, 1), context.trust)  # only for its defaults
    rate = optimizer.defaults.get("lr")
    kind = type(optimizer).__name__
    if not isinstance(rate, int | float) or rate <= 0 or "lr" not in inspect.signature(type(optimizer)).parameters:
        raise NotApplicable(f"{kind} has no learning rate")
    steps = context.steps("sanity_check_steps")
    if steps < MIN_STEPS:
        raise NotApplicable(f"{steps} steps are too few to tell a slope from noise; {MIN_STEPS} are needed")
    ramp = Delta(_ramp(context.config["optimizer"], float(rate), steps))
    suggestions = list[Suggestion]()
    for index in range(SEEDS):
        try:
            fit_result = context.train("sanity_check.lr_range_test", steps, ramp, index)
        except NotRun:
            if not suggestions:
                raise
            break  # the seeds so far give a suggestion as well
        rates, losses = (fit_result.history.series(name)[1].astype(np.float64) for name in ("lr", "train/loss"))
        suggestions.append(suggest(rates, losses, never_negative_loss(fit_result.task)))
    control = context.control
    planned = float(control.history.series("lr")[1].max()) if control and control.steps else float(rate)
    return {"steps": steps, "planned": planned, **combine(suggestions)}


def _ramp(node: Mapping[str, Any], rate: float, steps: int) -> dict[str, object]:
    """Return overrides: the optimizer at the lowest rate, its groups in proportion, a schedule to the highest rate."""
    groups = [{**g, "lr": g["lr"] * LOWEST / rate} if "lr" in g else g for g in node.get("groups") or ()]
    factor = (HIGHEST / LOWEST) ** (1 / (steps - 1))
    ramp = {"_target_": "torch.optim.lr_scheduler.ExponentialLR", "_partial_": True, "gamma": factor}
    low = {**node, "lr": LOWEST, **({"groups": groups} if groups else {})}
    return {"optimizer": low, "scheduler": {**ramp, "interval": "step"}}


def suggest(rates: Curve, losses: Curve, never_negative: str | None = None) -> Suggestion:
    """Return the suggestion of one range test; `never_negative` is the name of a loss that cannot be negative.

    Nothing is suggested if the loss falls by less than it varies, became non-finite too soon, or falls without a bound.
    """
    from scipy.ndimage import gaussian_filter1d

    nonfinite = np.flatnonzero(~np.isfinite(losses))
    end = int(nonfinite[0]) if len(nonfinite) else len(losses)
    rates, finite = rates[:end], losses[:end]
    if end < MIN_STEPS // 2:
        return {"suggested": None, "start": None, "lowest": None, "diverges": None, "why_none": FLAT}
    early = finite[: max(3, end // 10)]
    start, spread = float(np.median(early)), float(np.std(early))
    # Capped, so that smoothing does not move an explosion of the loss to lower rates.
    ceiling = start + 2 * max(start - float(finite.min()), float(np.abs(early - start).max()))
    width = max(1.0, SMOOTHING * len(losses))
    smooth = gaussian_filter1d(np.minimum(finite, ceiling), width, mode="nearest")
    best = int(smooth.argmin())
    worse = np.flatnonzero(smooth[best:] > start)
    at = end if len(nonfinite) and not len(worse) else best + int(worse[0]) if len(worse) else None
    diverges = None if at is None else float(rates[min(at, end - 1)])
    steepest = int(np.gradient(smooth, np.log(rates))[: best + 1].argmin())
    why_none = ""
    if never_negative and finite.min() < NEGATIVE:
        why_none = f"{never_negative} cannot be negative, and falls to {finite.min():.3g}"
    elif start - smooth[best] <= 2 * spread or best < 2:
        why_none = FLAT
    elif smooth[best] < 0:
        falls_at_the_end = best >= end - 1 - width and best - steepest <= 2 * width
        if falls_at_the_end or start - smooth[best] > UNBOUNDED * max(abs(start), spread):
            why_none = f"{NO_LOWER_BOUND}; it falls to {smooth[best]:.3g}"
    suggested = None if why_none else float(rates[steepest])
    lowest = float(smooth[best])
    return {"suggested": suggested, "start": start, "lowest": lowest, "diverges": diverges, "why_none": why_none}


def combine(seeds: Sequence[Suggestion]) -> CombinedSuggestion:
    """Return the suggestion of the median seed with the range of all; none if most of the seeds suggest none."""
    suggestions = [seed["suggested"] for seed in seeds]
    rates = sorted(rate for rate in suggestions if rate)
    if 2 * len(rates) <= len(seeds):
        return {**next(seed for seed in seeds if not seed["suggested"]), "suggestions": suggestions}
    middle = next(seed for seed in seeds if seed["suggested"] == rates[(len(rates) - 1) // 2])
    return {**middle, "low": rates[0], "high": rates[-1], "suggestions": suggestions}


def format_suggestion(result: Mapping[str, Any]) -> str:
    """Return the suggested rate with its range, `0.015 (0.012 to 0.02 over 3 seeds)`, or `none, since ...`."""
    if result["suggested"] is None:
        return f"none, since {result.get('why_none') or FLAT}"
    seeds = result.get("suggestions", [])
    counted_seeds = [rate for rate in seeds if rate is not None]
    if len(counted_seeds) < 2:
        return f"{result['suggested']:.2g}" + (" (one seed)" if seeds else "")
    of = f"{len(seeds)}" if len(counted_seeds) == len(seeds) else f"{len(counted_seeds)} of {len(seeds)}"
    return f"{result['suggested']:.2g} ({result['low']:.2g} to {result['high']:.2g} over {of} seeds)"


def format_range_test(result: Mapping[str, Any]) -> str:
    """Return the result of a range test in one line."""
    plan = f"learning rate {result['planned']:.3g} is planned; the range test suggests {format_suggestion(result)}"
    if result["suggested"] is None:
        return plan
    end = (
        f" and exceeds its initial value above a rate of {result['diverges']:.2g}"
        if result["diverges"] is not None
        else ""
    )
    return f"{plan}: the loss falls from {result['start']:.3g} to {result['lowest']:.3g}{end}"
