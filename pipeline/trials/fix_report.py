"""The report on a fix, `implementation.json`: changes, checks, performance before and after; and the rerun command."""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.build import section_of
from pipeline.config.override_keys import key_of
from pipeline.repair.config_edits import format_override_value, get
from pipeline.run_naming import DEFAULT_ROOT
from pipeline.run_store.job import Delta
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState
from pipeline.trials.executor import Trial

if TYPE_CHECKING:
    from torch import nn

    from pipeline.data.dataset import Data
    from pipeline.evaluation.evaluate import Evaluation
    from pipeline.evaluation.per_class import ClassReport
    from pipeline.evaluation.task import Task

FIGURES = ("params", "step_ms", "memory_mb", "inference_ms")
PASSES = 100  # of each model whose latency is measured
WARM_UP = 10  # passes that are not timed
MAX_NAME = 57  # with `-fixed` a run name has at most 63 characters


def _override_arguments(key: str, old: object, new: object) -> list[str]:
    """Return the command-line overrides that replace `old` by `new`.

    A section is replaced key by key: Hydra would merge a whole section with the one before.
    """
    if new is None and isinstance(old, Mapping):
        return [f"{key}=none"]  # the option of a config group that stands for nothing
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return [f"{key}={format_override_value(new)}"]
    changed = {name: value for name, value in new.items() if old.get(name) != value}
    arguments = [f"{'' if k in old else '+'}{key}.{k}={format_override_value(v)}" for k, v in changed.items()]
    return [*arguments, *(f"~{key}.{name}" for name in old if name not in new)]


def _is_superseded(key: str, changes: Mapping[str, object]) -> bool:
    """Whether an override of the plan has no effect after the changes.

    Overrides inside a section that is replaced are kept: they choose the section that the changes start from.
    """
    scalars = (name for name, value in changes.items() if not isinstance(value, Mapping))
    return any(key == name or key.startswith(f"{name}.") for name in scalars)


def rerun_command(run: Run, state: RunState, before: Mapping[str, object], delta: Delta) -> str:
    """Return the command that plans and trains the fixed config as a new run, with the overrides of the plan.

    `before` is the config that the delta changes.
    """
    assert state.plan is not None
    config_dirs = [argument for folder in state.plan["config_dirs"] for argument in ("--config-dir", folder)]
    changes = dict(delta.overrides)
    if delta.surgery:
        steps: Any = before.get("surgery") or []
        changes["surgery"] = [*steps, *delta.surgery]
    planned = [override for override in state.plan["overrides"] if not _is_superseded(key_of(override), changes)]
    packages = [grant["package"] for grant in state.trust]
    trust = [f"trust={format_override_value(packages)}"] if packages else []
    variables = state.plan.get("env", [])
    env = [f"env={format_override_value(variables)}"] if variables else []
    root = [] if run.shown_root == DEFAULT_ROOT else [f"run.root={format_override_value(run.shown_root)}"]
    name = f"run.name={run.name[:MAX_NAME]}-fixed"
    overrides = [item for key, value in changes.items() for item in _override_arguments(key, get(before, key), value)]
    words = [*config_dirs, *planned, *trust, *env, *root, name, *overrides]
    return shlex.join(["python", "-m", "pipeline", "phase=baseline", *words])


def trained_model(
    run_dir: Path, trial: Trial, config: Mapping[str, object], trust: Sequence[str], data: Data
) -> nn.Module:
    """Return the model of a trial with its trained weights, in eval mode."""
    from pipeline.building.builder import build_model
    from pipeline.checkpoints.generation import load

    model = build_model(config, trust, seed=0, data=data)  # any seed: the weights are loaded below
    model.load_state_dict(load(run_dir / trial.result["checkpoint"])[0])
    return model.eval()


def inference_ms(run_dir: Path, trial: Trial, config: Mapping[str, object], trust: Sequence[str]) -> float:
    """Return the median milliseconds of an eager forward pass of one row on this machine."""
    import torch

    predict = _forward_pass(run_dir, trial, config, trust, {})
    seconds = []
    with torch.inference_mode():
        for _ in range(PASSES):
            start = time.perf_counter()
            predict()
            seconds.append(time.perf_counter() - start)
    return 1000 * sorted(seconds)[PASSES // 2]  # the median: the first passes warm up


def paired_latency(
    run_dir: Path, before: Sequence[Trial], after: Sequence[Trial], planned: Mapping[str, Any], trust: Sequence[str]
) -> tuple[list[float], list[float]]:
    """Return the median milliseconds of one row for each pair of trainings, NaN where one of the two has no model."""
    data: dict[str, Data] = {}
    medians = [
        interleaved_latency(run_dir, pair, planned, trust, data)
        if all(trial.result.get("checkpoint") for trial in pair)
        else [math.nan, math.nan]
        for pair in zip(before, after, strict=True)
    ]
    return [first for first, _ in medians], [second for _, second in medians]


def interleaved_latency(
    run_dir: Path, trials: Sequence[Trial], planned: Mapping[str, Any], trust: Sequence[str], data: dict[str, Data]
) -> list[float]:
    """Return the median milliseconds of one row for each trained model; NaN for a training without one.

    The models take turns, in an order that is reversed from pass to pass. With a `task.step` all are NaN: only the step
    knows how its model is called. `data` keeps the data of each change from call to call.
    """
    import torch

    alive = [number for number, trial in enumerate(trials) if trial.result.get("checkpoint")]
    medians = [math.nan] * len(trials)
    if section_of(planned, "task").get("step"):
        return medians
    passes = {n: _forward_pass(run_dir, trials[n], trials[n].job.config(planned), trust, data) for n in alive}
    seconds: dict[int, list[float]] = {number: [] for number in alive}
    with torch.inference_mode():
        for turn in range(WARM_UP + PASSES):
            for number in alive if turn % 2 else reversed(alive):
                start = time.perf_counter()
                passes[number]()
                seconds[number].append(time.perf_counter() - start)
    for number in alive:
        medians[number] = 1000 * sorted(seconds[number][WARM_UP:])[PASSES // 2]
    return medians


def _forward_pass(
    run_dir: Path, trial: Trial, config: Mapping[str, Any], trust: Sequence[str], data: dict[str, Data]
) -> Callable[[], object]:
    """Return the forward pass of a trained model on the first validation row; `data` keeps those of each change."""
    from pipeline.data.load import load as load_data
    from pipeline.data.tree import chunks

    change = trial.job.delta.describe()
    if change not in data:
        data[change] = load_data(config, trust)
    model = trained_model(run_dir, trial, config, trust, data[change])
    row = chunks(data[change].val.X, 1)[0]
    return lambda: model(row)


def class_results(
    run_dir: Path, trial: Trial, config: Mapping[str, object], trust: Sequence[str], data: Data | None = None
) -> ClassReport:
    """Return the results per class of a trial's model on the validation rows; `data` are those of the config."""
    from pipeline.evaluation.per_class import report_of

    evaluation, _, data = evaluate_trial(run_dir, trial, config, trust, data)
    return report_of(evaluation, data, str(section_of(config, "task")["kind"]))


def evaluate_trial(
    run_dir: Path, trial: Trial, config: Mapping[str, object], trust: Sequence[str], data: Data | None = None
) -> tuple[Evaluation, Task, Data]:
    """Return the evaluation of a trial's model on the validation rows, its task, and the data."""
    from pipeline.building.builder import build_training_task
    from pipeline.data.load import load as load_data
    from pipeline.data.splits import class_counts
    from pipeline.evaluation.evaluate import score_split

    data = load_data(config, trust) if data is None else data
    model = trained_model(run_dir, trial, config, trust, data)
    task = build_training_task(config, model, trust, class_counts(data.train.y), data.column_targets)
    return score_split(model, data.val, task), task, data


def performance(run_dir: Path, trial: Trial, config: Mapping[str, object], trust: Sequence[str]) -> dict[str, float]:
    """Return `{params, step_ms, memory_mb, inference_ms}` of one trial.

    `inference_ms` is missing with a `task.step`: only the step knows how its model is called.
    """
    # The worker measured the first three figures in its own process.
    figures = dict(trial.result.get("performance", {}))
    if trial.result.get("checkpoint") and not section_of(config, "task").get("step"):
        figures["inference_ms"] = inference_ms(run_dir, trial, config, trust)
    return figures


def _code_changes(before: Mapping[str, object], delta: Delta) -> list[dict[str, str]]:
    changes = [
        (f"{key}: {get(before, key)} -> {value}", f"set {key} to {value}") for key, value in delta.overrides.items()
    ]
    changes += [(f"surgery: {json.dumps(step)}", f"change the model by {next(iter(step))}") for step in delta.surgery]
    return [{"file": "fixed.yaml", "change": change, "description": text} for change, text in changes]


def implementation(
    before: Mapping[str, object],
    trial: Trial,
    criteria: Mapping[str, tuple[bool, object]],
    figures: Mapping[str, Mapping[str, float]],
    checks: Sequence[tuple[str, bool]] = (),
) -> dict[str, object]:
    """Return the content of `implementation.json`.

    `criteria` maps each acceptance criterion to whether it is met and its figure; `figures` is
    `{"before": ..., "after": ...}` from `performance`. `checks` are sanity checks and regression trials that were run
    again, and whether they pass; `tests` counts them with the criteria.
    """
    passed = [*(met for met, _ in criteria.values()), *(met for _, met in checks)]
    return {
        "schema": 1,
        "code_changes": _code_changes(before, trial.job.delta),
        "tests": f"{sum(passed)}/{len(passed)} passing",
        "verification": {name: figure for name, (_, figure) in criteria.items()},
        "performance": {name: {moment: values.get(name) for moment, values in figures.items()} for name in FIGURES},
    }
