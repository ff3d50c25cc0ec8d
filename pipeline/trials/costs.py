"""What a goal besides quality makes smaller, measured per training: its duration, latency, or memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.run_store import files
from pipeline.trials.executor import Trial
from pipeline.trials.fix_report import interleaved_latency, trained_model

if TYPE_CHECKING:
    from pipeline.data.dataset import Data

FILE = "cost.json"  # in the folder of a training: what it cost, for `verify` to compare again


class Measure(NamedTuple):
    """What a goal measures, in words, and its unit."""

    what: str
    unit: str


MEASURES = {
    "train_speed": Measure("duration of the training", "s"),
    "latency": Measure("latency of one row", "ms"),
    "memory": Measure("memory of the model", "MB"),
}


def measure_costs(
    run_dir: Path,
    goal: str,
    trials_by_seed: Sequence[Sequence[Trial]],
    planned: Mapping[str, Any],
    trust: Sequence[str],
) -> dict[str, float]:
    """Return the cost of each training by its id, and write it into the folder of the training.

    The trainings of one seed are measured in turn. A training without a model costs NaN.
    """
    data: dict[str, Data] = {}
    costs: dict[str, float] = {}
    for trials in trials_by_seed:
        if goal == "latency":
            values = interleaved_latency(run_dir, trials, planned, trust, data)
        elif goal == "memory":
            values = [_memory_mb(run_dir, trial, planned, trust) for trial in trials]
        else:
            values = [_seconds(trial) for trial in trials]
        for trial, value in zip(trials, values, strict=True):
            costs[trial.id] = value
            if math.isfinite(value):
                record = {"schema": 1, "goal": goal, "unit": MEASURES[goal].unit, "value": value}
                files.write_json(trial.folder / FILE, record)
    return costs


def as_scores(trials: Mapping[str, Trial], costs: Mapping[str, float]) -> dict[str, Trial]:
    """Return the trainings with their costs in the place of their scores, for a comparison of costs."""
    return {
        name: Trial(name, trial.job, trial.folder, _scored(costs.get(name, math.nan)), trial.died)
        for name, trial in trials.items()
    }


def _scored(cost: float) -> dict[str, Any]:
    return {"score": {"value": cost}} if math.isfinite(cost) else {}


def _seconds(trial: Trial) -> float:
    """Return how long a training took, with its validations, in the process that trained."""
    figures = trial.result.get("performance") or {}
    return float(figures.get("step_ms", math.nan)) * float(trial.result.get("steps", math.nan)) / 1000


def _memory_mb(run_dir: Path, trial: Trial, planned: Mapping[str, Any], trust: Sequence[str]) -> float:
    """Return the megabytes of the weights, and of the largest inputs and outputs of one module, for one row."""
    import torch

    from pipeline.data.load import load as load_data
    from pipeline.data.tree import chunks, tensors

    if not trial.result.get("checkpoint") or planned["task"].get("step"):
        return math.nan
    config = trial.job.config(planned)
    data = load_data(config, trust)
    model = trained_model(run_dir, trial, config, trust, data)
    largest = 0

    def measure(module: object, inputs: Any, outputs: Any) -> None:
        nonlocal largest
        involved = (*tensors(inputs), *tensors(outputs))
        largest = max(largest, sum(tensor.numel() * tensor.element_size() for tensor in involved))

    handles = [module.register_forward_hook(measure) for module in model.modules() if not list(module.children())]
    with torch.inference_mode():
        model(chunks(data.val.X, 1)[0])
    for handle in handles:
        handle.remove()
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    return (weights + largest) / 1e6
