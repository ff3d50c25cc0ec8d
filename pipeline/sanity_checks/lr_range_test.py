"""The learning-rate range test: the loss while the learning rate grows from far too low to far too high."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pipeline.building.builder import build_optimizer
from pipeline.run_store.job import Delta
from pipeline.sanity_checks.context import CheckContext, NotApplicable

LOWEST, HIGHEST = 1e-7, 10.0
MIN_STEPS = 20  # with fewer steps the slope is noise
SMOOTHING = 0.03  # standard deviation of the smoothing, as a share of the steps

Curve = NDArray[np.float64]


class Suggestion(TypedDict):
    """Learning rates at which the smoothed loss falls fastest (`suggested`) and becomes worse than at the start."""

    suggested: float | None
    start: float | None
    lowest: float | None
    diverges: float | None


class RangeTestResult(Suggestion):
    steps: int
    planned: float


def lr_range_test(context: CheckContext) -> RangeTestResult:
    """Return the learning rate at which the loss falls fastest, with the largest one of the planned training.

    The rate grows by the same factor in every step; the suggestion is the steepest point of the smoothed loss over
    log(rate) (L. N. Smith, Cyclical Learning Rates for Training Neural Networks, 2017, sec. 3.3).
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
    history = context.train("sanity_check.lr_range_test", steps, ramp).history
    rates, losses = (history.series(name)[1].astype(np.float64) for name in ("lr", "train/loss"))
    control = context.control
    planned = float(control.history.series("lr")[1].max()) if control and control.steps else float(rate)
    return {"steps": len(losses), "planned": planned, **suggest(rates, losses)}


def _ramp(node: Mapping[str, Any], rate: float, steps: int) -> dict[str, object]:
    """Return overrides: the optimizer at the lowest rate, its groups in proportion, a schedule to the highest rate."""
    groups = [{**g, "lr": g["lr"] * LOWEST / rate} if "lr" in g else g for g in node.get("groups") or ()]
    factor = (HIGHEST / LOWEST) ** (1 / (steps - 1))
    ramp = {"_target_": "torch.optim.lr_scheduler.ExponentialLR", "_partial_": True, "gamma": factor}
    low = {**node, "lr": LOWEST, **({"groups": groups} if groups else {})}
    return {"optimizer": low, "scheduler": {**ramp, "interval": "step"}}


def suggest(rates: Curve, losses: Curve) -> Suggestion:
    """Return the suggestion of a range test.

    `suggested` is None if the loss falls by less than it varies, or became non-finite too soon.
    """
    from scipy.ndimage import gaussian_filter1d

    nonfinite = np.flatnonzero(~np.isfinite(losses))
    end = int(nonfinite[0]) if len(nonfinite) else len(losses)
    rates, finite = rates[:end], losses[:end]
    if end < MIN_STEPS // 2:
        return {"suggested": None, "start": None, "lowest": None, "diverges": None}
    early = finite[: max(3, end // 10)]
    start = float(np.median(early))
    # Capped, so that smoothing does not move an explosion of the loss to lower rates.
    ceiling = start + 2 * max(start - float(finite.min()), float(np.abs(early - start).max()))
    width = max(1.0, SMOOTHING * len(losses))
    smooth = gaussian_filter1d(np.minimum(finite, ceiling), width, mode="nearest")
    best = int(smooth.argmin())
    worse = np.flatnonzero(smooth[best:] > start)
    at = end if len(nonfinite) and not len(worse) else best + int(worse[0]) if len(worse) else None
    diverges = None if at is None else float(rates[min(at, end - 1)])
    suggested = None
    if start - smooth[best] > 2 * float(np.std(early)) and best >= 2:
        slope = np.gradient(smooth, np.log(rates))
        suggested = float(rates[int(slope[: best + 1].argmin())])
    return {"suggested": suggested, "start": start, "lowest": float(smooth[best]), "diverges": diverges}


def format_range_test(result: Mapping[str, Any]) -> str:
    """Return the result of a range test in one line."""
    plan = f"learning rate {result['planned']:.3g} is planned"
    if result["suggested"] is None:
        return f"{plan}; the range test suggests none, since at no rate does the loss fall by more than it varies"
    end = (
        f" and exceeds its initial value above a rate of {result['diverges']:.2g}"
        if result["diverges"] is not None
        else ""
    )
    fall = f"the loss falls from {result['start']:.3g} to {result['lowest']:.3g}{end}"
    return f"{plan}; the range test suggests {result['suggested']:.2g} ({fall})"
