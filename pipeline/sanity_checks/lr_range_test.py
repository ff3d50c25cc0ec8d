"""The learning-rate range test: the loss while the rate climbs from far too low to far too high."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pipeline.building.builder import build_optimizer
from pipeline.run_store.job import Delta
from pipeline.sanity_checks.context import CheckContext, NotApplicable

LOWEST, HIGHEST = 1e-7, 10.0
LEAST = 20  # steps; with fewer the slope is noise
SMOOTH = 0.03  # width of the smoothing, as a share of the steps

Curve = NDArray[np.float64]


def learning_rate(bench: CheckContext) -> dict[str, Any]:
    """The rate at which the loss falls fastest, beside the largest of the planned training.

    The rate grows by the same factor with every step (L. N. Smith, Cyclical Learning Rates for Training Neural
    Networks, 2017, sec. 3.3); of the smoothed loss over log(rate) the steepest point is suggested.
    """
    bench.require_permit()
    node = {name: value for name, value in bench.config["optimizer"].items() if name != "groups"}
    optimizer = build_optimizer({"optimizer": node}, nn.Linear(1, 1), bench.trust)  # for its defaults alone
    rate = optimizer.defaults.get("lr")
    kind = type(optimizer).__name__
    if not isinstance(rate, int | float) or rate <= 0 or "lr" not in inspect.signature(type(optimizer)).parameters:
        raise NotApplicable(f"{kind} has no learning rate to choose")
    steps = bench.steps(int(bench.settings["sanity_check_steps"]))
    if steps < LEAST:
        raise NotApplicable(f"{steps} steps are too few to tell a slope from noise; {LEAST} are needed")
    done = bench.train("proof.learning_rate", steps, Delta(_ramp(bench.config["optimizer"], float(rate), steps)))
    rates, losses = (done.history.series(name)[1].astype(np.float64) for name in ("lr", "train/loss"))
    planned = float(bench.arm.history.series("lr")[1].max()) if bench.arm and bench.arm.steps else float(rate)
    return {"steps": len(losses), "planned": planned, **suggested(rates, losses)}


def _ramp(node: Mapping[str, Any], rate: float, steps: int) -> dict[str, Any]:
    """The optimizer at the lowest rate, its groups in proportion, and a schedule that ends at the highest."""
    groups = [{**g, "lr": g["lr"] * LOWEST / rate} if "lr" in g else g for g in node.get("groups") or ()]
    factor = (HIGHEST / LOWEST) ** (1 / (steps - 1))
    ramp = {"_target_": "torch.optim.lr_scheduler.ExponentialLR", "_partial_": True, "gamma": factor}
    low = {**node, "lr": LOWEST, **({"groups": groups} if groups else {})}
    return {"optimizer": low, "scheduler": {**ramp, "interval": "step"}}


def suggested(rates: Curve, losses: Curve) -> dict[str, float | None]:
    """Where the smoothed loss falls fastest, its start and its lowest, and the rate from which it is worse than before.

    `suggested` is None where the loss falls by less than it varies anyway, or too soon became non-finite.
    """
    from scipy.ndimage import gaussian_filter1d

    nothing: dict[str, float | None] = {"suggested": None, "start": None, "lowest": None, "diverges": None}
    bad = np.flatnonzero(~np.isfinite(losses))
    end = int(bad[0]) if len(bad) else len(losses)
    rates, known = rates[:end], losses[:end]
    if end < LEAST // 2:
        return nothing
    early = known[: max(3, end // 10)]
    start = float(np.median(early))
    ceiling = start + 2 * max(start - float(known.min()), float(np.abs(early - start).max()))
    width = max(1.0, SMOOTH * len(losses))
    smooth = gaussian_filter1d(np.minimum(known, ceiling), width, mode="nearest")
    best = int(smooth.argmin())
    behind = np.flatnonzero(smooth[best:] > start)
    at = end if len(bad) and not len(behind) else best + int(behind[0]) if len(behind) else None
    diverges = None if at is None else float(rates[min(at, end - 1)])
    found = {"start": start, "lowest": float(smooth[best]), "diverges": diverges}
    if start - smooth[best] <= 2 * float(np.std(early)) or best < 2:
        return {"suggested": None, **found}
    slope = np.gradient(smooth, np.log(rates))
    return {"suggested": float(rates[int(slope[: best + 1].argmin())]), **found}


def told(found: Mapping[str, Any]) -> str:
    """The test in one line."""
    plan = f"learning rate {found['planned']:.3g} is planned"
    if found["suggested"] is None:
        return f"{plan}; the range test suggests none, since at none the loss falls by more than it varies"
    end = f"; worse than at its start from {found['diverges']:.2g} on" if found["diverges"] is not None else ""
    fall = f"loss falls from {found['start']:.3g} to {found['lowest']:.3g}{end}"
    return f"{plan}; the range test suggests {found['suggested']:.2g} ({fall})"
