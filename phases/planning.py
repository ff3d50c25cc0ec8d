"""Planning: is it said, and fixed, what will be done, before anything is trained?

Needs the composed config. Produces the facts that the plan freezes (splits, digests, threads, budget in steps,
environment) and the evidence that gate 1 judges. Makes no optimizer step.
"""

from __future__ import annotations

import math
import platform
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import Refused
from pipeline.orchestration.phase import PhaseContext
from pipeline.results import Artifact, Evidence
from pipeline.run_store import files

if TYPE_CHECKING:
    from pipeline.building.probe import ConfigProbe
    from pipeline.data.dataset import Data

TRIED = 64  # rows with holes given to the model at a time


def environment(threads: int | None, device: str) -> dict[str, Any]:
    """Where the figures will be made: versions, platform, device, cores, threads. No host or user name."""
    import numpy
    import torch

    from pipeline.runtime.threads import cores

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device,
        "cores": cores(),
        "threads": threads,
    }


def _budget(config: Mapping[str, Any], rows: int) -> dict[str, int]:
    """Return the budget of the planned training in optimizer steps, as the plan records it."""
    from pipeline.config.sections import LoaderConfig, TrainerConfig
    from pipeline.engine.budget import planned_budget

    trainer, loader = TrainerConfig.from_mapping(config["trainer"]), LoaderConfig.from_mapping(config["loader"])
    budget = planned_budget(trainer, loader, rows)
    return {"steps_per_epoch": budget.steps_per_epoch, "max_steps": budget.max_steps}


def _declared(config: Mapping[str, Any], trust: Sequence[str]) -> dict[str, Any]:
    """What the owner said: needs no data."""
    from pipeline.evaluation.metrics import metric_from_config

    measured = metric_from_config(config["task"], trust)
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
    """What the plan does about rare classes, as it was typed, about holes, as its model answers them, and targets."""
    weights, sampler = config["task"].get("class_weights"), config["loader"].get("sampler")
    named = [] if sampler in (None, "none") else [f"loader.sampler={sampler}"]
    if weights not in (None, "none"):
        named.append(f"task.class_weights={weights}")
    scaled = config["preprocess"]["targets"] != "none"
    return {"imbalance": named, "missing": _answers_holes(config, data, trust), "targets": scaled}


def _answers_holes(config: Mapping[str, Any], data: Data, trust: Sequence[str]) -> bool:
    """Whether the model as built gives finite numbers for train and validation rows in which features are missing.

    Of each side the row with most holes is tried, and for every feature the first row that lacks it.
    """
    import torch

    from pipeline.building.builder import build_model
    from pipeline.data.tree import leaves

    def holed(side: Any) -> Any:
        holes = torch.cat([t.isnan().reshape(len(t), math.prod(t.shape[1:])) for t in leaves(side.X)], 1)
        lacking, first = holes.any(0), holes.int().argmax(0)
        return torch.cat([first[lacking], holes.sum(1).argmax()[None]]).unique() if lacking.any() else first[:0]

    parts = [(side, rows) for side in (data.train, data.val) for rows in holed(side).split(TRIED)]
    some = [side.take(rows) for side, rows in parts if len(rows)]
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


def _facts(ctx: PhaseContext, data: Data, proof: ConfigProbe, known: Mapping[str, Any]) -> dict[str, Any]:
    """What the plan freezes: a pure function of config, data and machine, in which nothing is timed."""
    from pipeline.building.probe import device_for
    from pipeline.runtime.threads import threads

    trainer = ctx.config["trainer"]
    count = threads(trainer["threads"], proof.parameters)
    return {
        "splits": known["splits"],
        "data": {key: known[key] for key in ("source", "licence", "files", "others", "marks")},
        "classes": data.classes,
        "threads": count,
        "parameters": proof.parameters,
        "budget": _budget(ctx.config, len(data.train)),
        "environment": environment(count, device_for(trainer["accelerator"]).type),
        "determinism": {"policy": trainer["deterministic"], "operations": list(proof.nondeterministic)},
        "trust": _trusted(ctx),
        "init_from": _start_digest(ctx.config),
    }


def _examined(data: Data, kind: str) -> dict[str, Any]:
    """What the rows are worth, what the sides know of each other, and whom they stand for."""
    from pipeline.data.analysis.leakage import out_of_order, shared_fractions, shared_groups
    from pipeline.data.analysis.manifest import slice_support
    from pipeline.data.analysis.quality import quality
    from pipeline.data.analysis.representative import representative

    return {
        "shared_fraction": shared_fractions(data),
        "groups": shared_groups(data),
        "times": out_of_order(data),
        "slices": slice_support(data),
        "quality": quality(data, kind),
        "representative": representative(data, kind),
    }


def _cost(ctx: PhaseContext, proof: ConfigProbe, data: Data, budget: Mapping[str, int]) -> dict[str, Any]:
    """What the training will take, beside what there is: minutes, memory, disk. Timing, and so no part of the plan."""
    from pipeline.building.resource_estimate import estimate_training

    assert proof.cost is not None
    steps, epochs = budget["max_steps"], math.ceil(budget["max_steps"] / budget["steps_per_epoch"])
    trainer = ctx.config["trainer"]
    cost = estimate_training(
        proof.cost,
        steps=steps,
        epochs=epochs,
        evaluated_rows=len(data.val) + min(len(data.val), len(data.train)),  # a sample of train is evaluated as well
        accumulate=int(trainer["accumulate_grad_batches"]),
        max_minutes=trainer["max_minutes"],
        export_formats=len(ctx.config["export"]["formats"]),
    )
    return {**cost, "disk_free": shutil.disk_usage(ctx.folder).free}


def _tell(ctx: PhaseContext, facts: Mapping[str, Any], cost: Mapping[str, Any]) -> None:
    """What will be trained on what, and what it will take, in two lines, and which operations may vary."""
    rows = ", ".join(f"{known['rows']} {split}" for split, known in facts["splits"].items())
    ctx.log(f"planning: {rows} rows; {facts['parameters']:,} parameters; {facts['threads']} thread(s)")
    minutes = cost["minutes"]
    long = "time unknown" if minutes is None else f"about {minutes:.2g} minutes"
    long = f"about {max(60 * minutes, 1):.0f} s" if minutes is not None and minutes < 0.1 else long
    megabytes = f"{cost['memory'] / 1e6:,.0f} MB, {max(cost['disk'] / 1e6, 1):,.0f} MB of disk"
    ctx.log(f"planning: {long}, {megabytes} for {cost['steps']:,} steps")
    if varying := facts["determinism"]["operations"]:
        device = facts["environment"]["device"]
        ctx.log(f"planning: no deterministic kernel on the {device}: {', '.join(varying)}")


def _written(ctx: PhaseContext, data: Data, known: Mapping[str, Any]) -> dict[str, Artifact]:
    """The data's manifest, and the digest of every row, as files of this phase."""
    from pipeline.data.analysis.manifest import rows_told

    manifest, rows = ctx.folder / "manifest.json", ctx.folder / "rows.txt"
    files.write_json(manifest, known)
    files.write_text(rows, rows_told(data))
    return {"manifest": ctx.artifact(manifest), "rows": ctx.artifact(rows)}


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

    from pipeline.building.probe import probe
    from pipeline.data.analysis.manifest import manifest
    from pipeline.data.load import load

    data = load(config, ctx.trust)
    proof = probe(config, data, ctx.trust)
    known = manifest(data, config)
    facts = _facts(ctx, data, proof, known)
    cost = _cost(ctx, proof, data, facts["budget"])
    _tell(ctx, facts, cost)
    return Evidence(
        {
            **values,
            **_examined(data, config["task"]["kind"]),
            "facts": facts,
            "manifest": {key: known[key] for key in ("source", "licence", "files", "digest")},
            "rows": {split: k["rows"] for split, k in known["splits"].items()},
            "digests": {split: k["digest"] for split, k in known["splits"].items()},
            "treatments": _treatments(config, data, ctx.trust),
            "test_sealed": _tries_the_seal(data),
            "test_opened": len(ctx.state.test_opened),
            "environment": facts["environment"],
            "determinism": facts["determinism"],
            "resources": cost,
        },
        units={"shared_fraction": "share of rows"},
        artifacts=_written(ctx, data, known),
    )
