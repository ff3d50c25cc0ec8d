"""Planning: is it said, and fixed, what will be done, before anything is trained?

Needs the composed config. Produces the facts that the plan freezes (splits, digests, threads, budget in steps,
environment) and the evidence that gate 1 judges. Makes no optimizer step.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import Refused
from pipeline.phase import PhaseContext
from pipeline.record import files
from pipeline.records import Evidence

if TYPE_CHECKING:
    from pipeline.data.dataset import Data


def environment(threads: int | None, device: str) -> dict[str, Any]:
    """Where the figures will be made: versions, platform, device, cores, threads. No host or user name."""
    import numpy
    import torch

    from pipeline.conditions.threads import cores

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device,
        "cores": cores(),
        "threads": threads,
    }


def _budget(trainer: Mapping[str, Any], loader: Mapping[str, Any], rows: int) -> dict[str, int]:
    """The budget that decides, in optimizer steps; an epoch's last window may be short."""
    batches = math.ceil(rows / int(loader["batch_size"]))
    steps = math.ceil(batches / int(trainer["accumulate_grad_batches"]))
    most = steps * int(trainer["max_epochs"])
    return {"steps_per_epoch": steps, "max_steps": min(most, int(trainer["max_steps"] or most))}


def _declared(config: Mapping[str, Any], trust: Sequence[str]) -> dict[str, Any]:
    """What the owner said: needs no data."""
    from pipeline.evaluation.metrics import metric

    measured = metric(config["task"], trust)
    return {
        "seed": config["seed"],
        "metric": measured.name,
        "greater_is_better": measured.greater_is_better,
        "target": config["task"]["target"],
        "owner": config["plan"]["owner"] or "nobody",
        "card": _card(config["plan"]),
    }


def _card(plan: Mapping[str, Any]) -> dict[str, bool]:
    """Which fields of the problem card the owner filled; of a section, whether anything in it."""
    filled = {}
    for name, value in plan.items():
        filled[name] = any(v is not None for v in value.values()) if isinstance(value, Mapping) else bool(value)
    return filled


def _treatments(config: Mapping[str, Any], data: Data, trust: Sequence[str]) -> dict[str, Any]:
    """What the plan does about rare classes, as it was typed, and whether its model answers rows with holes."""
    weights, sampler = config["task"].get("class_weights"), config["loader"].get("sampler")
    named = [] if sampler in (None, "none") else [f"loader.sampler={sampler}"]
    if weights not in (None, "none"):
        named.append(f"task.class_weights={weights}")
    return {"imbalance": named, "missing": _answers_holes(config, data, trust)}


def _answers_holes(config: Mapping[str, Any], data: Data, trust: Sequence[str]) -> bool:
    """Whether the model as built gives finite numbers for train and validation rows in which features are missing."""
    import torch

    from pipeline.building.builder import build_model
    from pipeline.data.tree import leaves

    def holed(side: Any) -> Any:
        held = [t.isnan().flatten(1).any(1) if t.ndim > 1 else t.isnan() for t in leaves(side.X)]
        return torch.stack(held).any(0).nonzero().flatten()[:8]

    some = [side.take(rows) for side in (data.train, data.val) if len(rows := holed(side))]
    if not some:
        return False
    model = build_model(config, trust, int(config["seed"]), data).eval()
    try:
        with torch.no_grad():
            return all(bool(torch.isfinite(model(side.X)).all()) for side in some)
    except Exception:  # a model of anybody's may refuse such rows, or give something else than a tensor
        return False


def _trusted(ctx: PhaseContext) -> list[dict[str, str]]:
    """The packages of others with the digest of their source: a changed package is a changed plan."""
    return [{"package": grant["package"], "digest": grant["digest"]} for grant in ctx.state.trust]


def _start_digest(config: Mapping[str, Any]) -> str | None:
    """SHA-256 of the weights to start from, where there are any."""
    start = (config["model"] or {}).get("init_from")
    return files.sha256(Path(start)) if start else None


def _told(sizes: Mapping[str, int], parameters: int, count: int) -> str:
    """What will be trained on what, in one line."""
    rows = ", ".join(f"{n} {s}" for s, n in sizes.items())
    return f"planning: {rows} rows; {parameters:,} parameters; {count} thread(s)"


def _tries_the_seal(data: Data) -> bool:
    """Whether the test rows stay shut for somebody who asks without a key."""
    try:
        data.test.read(None)  # type: ignore[arg-type]
    except Refused:
        return True
    return False


def run(ctx: PhaseContext) -> Evidence:
    """Is this run planned well enough that its figures will mean something?

    Without a seed nothing that depends on chance is made: the items that need it end as errored, and the gate is
    closed. Raises UserError for data, a model or a loss that cannot be built or do not fit each other.
    """
    config = ctx.config
    values = _declared(config, ctx.trust)
    if config["seed"] is None:
        return Evidence({**values, "facts": {"trust": _trusted(ctx)}})

    from pipeline.building.probe import device_for, probe
    from pipeline.conditions.threads import threads
    from pipeline.data.load import load
    from pipeline.data.quality import quality
    from pipeline.data.shared import shared_fractions

    data = load(config, ctx.trust)
    proof = probe(config, data, ctx.trust)
    count = threads(config["trainer"]["threads"], proof.parameters)
    determinism = {"policy": config["trainer"]["deterministic"], "operations": list(proof.varying)}
    known = data.facts()
    where = environment(count, device_for(config["trainer"]["accelerator"]).type)
    facts = {
        "splits": known,
        "classes": data.classes,
        "threads": count,
        "parameters": proof.parameters,
        "budget": _budget(config["trainer"], config["loader"], len(data.train)),
        "environment": where,
        "determinism": determinism,
        "trust": _trusted(ctx),
        "init_from": _start_digest(config),
    }
    sizes = {split: k["rows"] for split, k in known.items()}
    ctx.say(_told(sizes, proof.parameters, count))
    if proof.varying:
        ctx.say(f"planning: no deterministic kernel on the {where['device']}: {', '.join(proof.varying)}")
    if data.ignored:
        ctx.say(f"planning: this version does not use {', '.join(data.ignored)} of your data")
    return Evidence(
        {
            **values,
            "facts": facts,
            "rows": sizes,
            "digests": {split: k["digest"] for split, k in known.items()},
            "shared_fraction": shared_fractions(data),
            "quality": quality(data, config["task"]["kind"]),
            "treatments": _treatments(config, data, ctx.trust),
            "test_sealed": _tries_the_seal(data),
            "test_opened": len(ctx.state.test_opened),
            "environment": where,
            "determinism": determinism,
        },
        units={"shared_fraction": "share of rows"},
    )
