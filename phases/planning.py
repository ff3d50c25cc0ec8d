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
    }


def _trusted(ctx: PhaseContext) -> list[dict[str, str]]:
    """The packages of others with the digest of their source: a changed package is a changed plan."""
    return [{"package": grant["package"], "digest": grant["digest"]} for grant in ctx.state.trust]


def _start_digest(config: Mapping[str, Any]) -> str | None:
    """SHA-256 of the weights to start from, where there are any."""
    start = (config["model"] or {}).get("init_from")
    return files.sha256(Path(start)) if start else None


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
    from pipeline.data.shared import shared_fractions

    data = load(config, ctx.trust)
    proof = probe(config, data, ctx.trust)
    parameters = proof.parameters
    count = threads(config["trainer"]["threads"], parameters)
    determinism = {"policy": config["trainer"]["deterministic"], "operations": list(proof.varying)}
    known = data.facts()
    where = environment(count, device_for(config["trainer"]["accelerator"]).type)
    facts = {
        "splits": known,
        "classes": data.classes,
        "threads": count,
        "parameters": parameters,
        "budget": _budget(config["trainer"], config["loader"], len(data.train)),
        "environment": where,
        "determinism": determinism,
        "trust": _trusted(ctx),
        "init_from": _start_digest(config),
    }
    sizes = {split: k["rows"] for split, k in known.items()}
    ctx.say(
        f"planning: {', '.join(f'{n} {s}' for s, n in sizes.items())} rows; "
        f"{parameters:,} parameters; {count} thread(s)"
    )
    if determinism["operations"]:
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
            "test_sealed": _tries_the_seal(data),
            "test_opened": len(ctx.state.test_opened),
            "environment": where,
            "determinism": determinism,
        },
        units={"shared_fraction": "share of rows"},
    )
