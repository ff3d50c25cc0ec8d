"""Planning: is everything that will be done stated and fixed before anything is trained?

Needs the composed config. Produces the facts that the plan freezes (splits, digests, threads, budget in steps,
environment) and the evidence that gate 1 judges. Makes no optimizer step.
"""

from __future__ import annotations

import math
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from pipeline.errors import Refused
from pipeline.orchestration import problem_card
from pipeline.orchestration.phase import PhaseContext
from pipeline.results import Artifact, Evidence, counted
from pipeline.run_naming import composing_overrides
from pipeline.run_store import files
from pipeline.run_store import plan as plans
from pipeline.runtime.announce import announced

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.building.probe import ConfigProbe
    from pipeline.building.resource_estimate import TrainingCost
    from pipeline.data.analysis.identifiers import IdentifierColumn
    from pipeline.data.analysis.manifest import Manifest
    from pipeline.data.dataset import Data, SplitFacts
    from pipeline.data.splits import Split

PROBE_ROWS = 64  # rows with missing values given to the model at a time


class Environment(TypedDict):
    """Where the results are made. It has no host or user name, since it is released with the model."""

    python: str
    torch: str
    numpy: str
    platform: str
    device: str
    cores: int
    threads: int | None


class Budget(TypedDict):
    """The budget in optimizer steps, which decides when training ends."""

    steps_per_epoch: int
    max_steps: int


class Determinism(TypedDict):
    """`trainer.deterministic`, and the operations without a deterministic kernel on this device."""

    policy: bool | str
    operations: list[str]


class PlanFacts(TypedDict):
    """What the plan freezes besides the config: a pure function of config, data and machine, without any timing."""

    splits: dict[str, SplitFacts]
    data: dict[str, object]
    classes: int | None
    threads: int
    parameters: int
    budget: Budget
    environment: Environment
    determinism: Determinism
    trust: list[dict[str, str]]
    init_from: str | None
    resolved: dict[str, object]  # by config key, the values that were `auto` and follow from the data
    env: NotRequired[list[str]]  # the environment variables that the config was allowed to read


def _environment(threads: int, device: str) -> Environment:
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


def _budget(ctx: PhaseContext, rows: int) -> Budget:
    from pipeline.config.sections import LoaderConfig, TrainerConfig
    from pipeline.engine.budget import planned_budget, stated_limits

    trainer = TrainerConfig.from_mapping(ctx.config["trainer"])
    budget = planned_budget(trainer, LoaderConfig.from_mapping(ctx.config["loader"]), rows)
    for limit in stated_limits(trainer, budget, rows):
        ctx.log(f"planning: {limit}")
    return {"steps_per_epoch": budget.steps_per_epoch, "max_steps": budget.max_steps}


def _declared(ctx: PhaseContext) -> dict[str, object]:
    """What the owner declares in the config; needs no data."""
    from pipeline.evaluation.metric_config import metric_from_config

    task, plan = ctx.config["task"], ctx.config["plan"]
    metric = metric_from_config(task, ctx.trust)
    return {
        "seed": ctx.config["seed"],
        "metric": metric.name,
        "greater_is_better": metric.greater_is_better,
        "target": task["target"],
        "owner": plan["owner"] or "nobody",
        "card": {name: problem_card.is_filled(value) for name, value in plan.items()},
    }


def _identifiers(ctx: PhaseContext, data: Data) -> list[IdentifierColumn]:
    """Return the features that look like identifiers, after each was logged with what leaves it out.

    Features that the owner lists one by one are what the owner wants.
    """
    from pipeline.data.analysis.identifiers import identifier_columns

    chosen = ctx.config["data"].get("features") or ctx.config["task"]["kind"] == "language_model"
    columns = [] if chosen else identifier_columns(data)
    names = [column["column"] for column in columns]
    ignored = [*(ctx.config["data"].get("ignore") or ()), *names]
    do = f"'data.ignore=[{','.join(ignored)}]'" if "ignore" in ctx.config["data"] else "leave it out of X"
    for column in columns:
        ctx.log(
            f"planning: warning: feature '{column['column']}' looks like an identifier ({column['why']}), by which a "
            f"model can remember rows.  Do: {do}"
        )
    return columns


def _treatments(ctx: PhaseContext, data: Data) -> dict[str, object]:
    """What the plan does about rare classes, missing values and the scale of targets."""
    weights, sampler = ctx.config["task"].get("class_weights"), ctx.config["loader"].get("sampler")
    # In the form of the override that sets it, since the gate shows it to the user.
    imbalance = [] if sampler in (None, "none") else [f"loader.sampler={sampler}"]
    if weights not in (None, "none"):
        imbalance.append(f"task.class_weights={weights}")
    return {
        "imbalance": imbalance,
        "missing_values": _handles_missing_values(ctx.config, data, ctx.trust),
        "target_scale": ctx.config["preprocess"]["targets"] != "none",
    }


def _handles_missing_values(config: Mapping[str, Any], data: Data, trust: Sequence[str]) -> bool:
    """Whether the model as built gives finite outputs for train and validation rows with missing features.

    Of each split it is given the row with most missing values, and for every feature the first row that lacks it.
    """
    import torch

    from pipeline.building.builder import build_model
    from pipeline.data.tree import leaves
    from pipeline.error_attribution import reraise_stop

    def rows_to_probe(split: Split) -> Tensor:
        missing = torch.cat([t.isnan().reshape(len(t), math.prod(t.shape[1:])) for t in leaves(split.X)], 1)
        columns, first_row = missing.any(0), missing.int().argmax(0)
        if not columns.any():
            return first_row[:0]
        return torch.cat([first_row[columns], missing.sum(1).argmax()[None]]).unique()

    chunks = [(split, rows) for split in (data.train, data.val) for rows in rows_to_probe(split).split(PROBE_ROWS)]
    parts = [split.take(rows) for split, rows in chunks if len(rows)]
    if not parts:
        return False
    model = build_model(config, trust, int(config["seed"]), data).eval()
    try:
        with torch.no_grad():
            return all(bool(torch.isfinite(model(part.X)).all()) for part in parts)
    except BaseException as error:  # the user's model may refuse such rows, or return something else than a tensor
        reraise_stop(error)
        return False


def _trusted(ctx: PhaseContext) -> list[dict[str, str]]:
    """The user's packages with the digest of their source: a changed package is a changed plan."""
    return [{"package": grant["package"], "digest": grant["digest"]} for grant in ctx.state.trust]


def _plan_facts(
    ctx: PhaseContext, data: Data, probe_result: ConfigProbe, manifest: Manifest, resolved: dict[str, object]
) -> PlanFacts:
    from pipeline.building.probe import device_for
    from pipeline.runtime.threads import threads

    trainer = ctx.config["trainer"]
    count = threads(trainer["threads"], probe_result.parameters)
    init_from = (ctx.config["model"] or {}).get("init_from")
    facts: PlanFacts = {
        "splits": manifest["splits"],
        "data": {
            "source": manifest["source"],
            "licence": manifest["licence"],
            "files": manifest["files"],
            "additional": manifest["additional"],
            "row_metadata": manifest["row_metadata"],
            "identifiers": _identifiers(ctx, data),
        },
        "classes": data.classes,
        "threads": count,
        "parameters": probe_result.parameters,
        "budget": _budget(ctx, len(data.train)),
        "environment": _environment(count, device_for(trainer["accelerator"]).type),
        "determinism": {"policy": trainer["deterministic"], "operations": list(probe_result.nondeterministic)},
        "trust": _trusted(ctx),
        "init_from": files.sha256(Path(init_from)) if init_from else None,
        "resolved": resolved,
    }
    if variables := ctx.config.get("env"):
        facts["env"] = sorted(variables)
    return facts


def _analyse(data: Data, kind: str) -> dict[str, object]:
    """Leakage between the splits, the quality of the rows, and how well they represent the population."""
    from pipeline.data.analysis.leakage import shared_fractions, shared_groups, time_overlap
    from pipeline.data.analysis.manifest import slice_counts
    from pipeline.data.analysis.quality import measure_quality
    from pipeline.data.analysis.representative import measure_representativeness

    return {
        "shared_fraction": shared_fractions(data),
        "groups": shared_groups(data),
        "times": time_overlap(data),
        "slices": slice_counts(data),
        "quality": measure_quality(data, kind),
        "representative": measure_representativeness(data, kind),
    }


def _cost(ctx: PhaseContext, probe_result: ConfigProbe, data: Data, budget: Budget) -> TrainingCost:
    """The estimated minutes, memory and disk of a training. It is evidence only: timings are not part of the plan."""
    from pipeline.building.resource_estimate import estimate_training

    assert probe_result.cost is not None
    steps, epochs = budget["max_steps"], math.ceil(budget["max_steps"] / budget["steps_per_epoch"])
    trainer = ctx.config["trainer"]
    return estimate_training(
        probe_result.cost,
        steps=steps,
        epochs=epochs,
        evaluated_rows=len(data.val) + min(len(data.val), len(data.train)),  # a sample of train is evaluated as well
        accumulate=int(trainer["accumulate_grad_batches"]),
        max_minutes=trainer["max_minutes"],
        export_formats=len(ctx.config["export"]["formats"]),
    )


def _log_summary(ctx: PhaseContext, facts: PlanFacts, cost: TrainingCost) -> None:
    """Log the rows, the model and the estimated cost in two lines, and the nondeterministic operations, if any."""
    rows = ", ".join(f"{split_facts['rows']} {split}" for split, split_facts in facts["splits"].items())
    ctx.log(f"planning: {rows} rows; {facts['parameters']:,} parameters; {counted(facts['threads'], 'thread')}")
    minutes = cost["minutes"]
    duration = "time unknown" if minutes is None else f"about {minutes:.2g} minutes"
    duration = f"about {max(60 * minutes, 1):.0f} s" if minutes is not None and minutes < 0.1 else duration
    size = f"{cost['memory'] / 1e6:,.0f} MB of memory, {max(cost['disk'] / 1e6, 1):,.0f} MB of disk"
    ctx.log(f"planning: {duration}, {size} for {cost['steps']:,} steps")
    if operations := facts["determinism"]["operations"]:
        device = facts["environment"]["device"]
        ctx.log(f"planning: no deterministic kernel on the {device}: {', '.join(operations)}")


def _write_artifacts(ctx: PhaseContext, data: Data, manifest: Manifest) -> dict[str, Artifact]:
    """Write the manifest of the data and the digest of every row."""
    from pipeline.data.analysis.manifest import format_row_digests

    manifest_path, rows_path = ctx.folder / "manifest.json", ctx.folder / "rows.txt"
    files.write_json(manifest_path, manifest)
    files.write_text(rows_path, format_row_digests(data))
    return {"manifest": ctx.artifact(manifest_path), "rows": ctx.artifact(rows_path)}


def _refuses_without_key(data: Data) -> bool:
    """Whether the sealed test set refuses to be read without a key; tried, not assumed."""
    try:
        data.test.read(None)  # type: ignore[arg-type]
    except Refused:
        return True
    return False


def run(ctx: PhaseContext) -> Evidence:
    """Is this run planned well enough for its results to be meaningful?

    Without a seed nothing random is computed: the items that need it are errored, and the gate is closed. Raises
    UserError for data, a model or a loss that cannot be built or do not fit each other.
    """
    config = ctx.config
    declared = _declared(ctx)
    again = composing_overrides(ctx.run.path, config.get("env") or [])
    for line in problem_card.request(config["plan"], again).splitlines():  # before the data, which may take long
        ctx.log(line)
    # Gate 1 closes without a seed; splits or a model made by an arbitrary seed would only look like results.
    if config["seed"] is None:
        return Evidence({**declared, "facts": {"trust": _trusted(ctx)}})

    with announced(ctx.log, "planning: importing torch"):
        from pipeline.building.auto_values import load_resolved
        from pipeline.building.probe import probe
        from pipeline.data.analysis.manifest import manifest as make_manifest
        from pipeline.data.test_openings import planning_evidence

    with announced(ctx.log, "planning: reading the data"):
        data, resolved = load_resolved(config, ctx.trust, ctx.log)
    ctx = replace(ctx, config=plans.with_resolved(config, {"resolved": resolved}))
    config = ctx.config
    with announced(ctx.log, "planning: building the model and measuring a training step"):
        probe_result = probe(config, data, ctx.trust)
    with announced(ctx.log, "planning: computing the digests of all rows"):
        manifest = make_manifest(data, config)
    with announced(ctx.log, "planning: looking for shared rows, outliers and drift"):
        analysis = _analyse(data, config["task"]["kind"])
    facts = _plan_facts(ctx, data, probe_result, manifest, resolved)
    cost = _cost(ctx, probe_result, data, facts["budget"])
    _log_summary(ctx, facts, cost)
    return Evidence(
        {
            **declared,
            **analysis,
            "facts": facts,
            "manifest": {key: manifest[key] for key in ("source", "licence", "files", "digest")},
            "rows": {split: split_facts["rows"] for split, split_facts in manifest["splits"].items()},
            "digests": {split: split_facts["digest"] for split, split_facts in manifest["splits"].items()},
            "treatments": _treatments(ctx, data),
            "test_sealed": _refuses_without_key(data),
            **planning_evidence(ctx.run, data.test.digest, len(ctx.state.test_opened), ctx.log),
            "environment": facts["environment"],
            "determinism": facts["determinism"],
            "resources": {**cost, "disk_free": shutil.disk_usage(ctx.folder).free},
        },
        units={"shared_fraction": "share of rows"},
        artifacts=_write_artifacts(ctx, data, manifest),
    )
