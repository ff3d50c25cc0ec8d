"""What a repair did to the run, as `implementation.json` states it: changes, checks, figures before and after."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.override_keys import key_of
from pipeline.repair.config_edits import look
from pipeline.run_store.job import Delta
from pipeline.run_store.next_step import HOME
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState
from pipeline.trials.executor import Trial

PLAIN = re.compile(r"[A-Za-z_./][\w./-]*")  # what Hydra reads as a word without quotes,
NO_WORDS = ("null", "true", "false", "nan", "inf")  # unless it is one of these


def typed(value: Any) -> str:
    """A value as one types it behind `key=` on the command line."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{typed(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(typed, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str) and (not PLAIN.fullmatch(value) or value.lower() in NO_WORDS):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return str(value)


def _words(key: str, old: Any, new: Any) -> list[str]:
    """What one types to put `new` in the place of `old`; a whole piece is replaced key by key, since Hydra would lay it
    over the one before."""
    if new is None and isinstance(old, Mapping):
        return [f"{key}=none"]  # the option of a group that stands for nothing
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return [f"{key}={typed(new)}"]
    put = [f"{'' if k in old else '+'}{key}.{k}={typed(v)}" for k, v in new.items() if old.get(k) != v]
    return [*put, *(f"~{key}.{k}" for k in old if k not in new)]


def _outdone(key: str, changed: Mapping[str, Any]) -> bool:
    """Whether a remembered word says nothing any more beside the changes. A piece that is replaced needs its words."""
    scalars = (k for k, value in changed.items() if not isinstance(value, Mapping))
    return any(key == k or key.startswith(f"{k}.") for k in scalars)


def rerun_command(run: Run, state: RunState, before: Mapping[str, Any], delta: Delta) -> str:
    """The command that plans and trains the mended config as a run of its own, from the plan's recorded words.

    `before` is the config that the delta changes.
    """
    assert state.plan is not None
    dirs = [word for folder in state.plan["config_dirs"] for word in ("--config-dir", folder)]
    changed = dict(delta.overrides)
    if delta.surgery:
        changed["surgery"] = [*(before.get("surgery") or []), *delta.surgery]
    kept = [word for word in state.plan["overrides"] if not _outdone(key_of(word), changed)]
    trust = [f"trust={typed([grant['package'] for grant in state.trust])}"] if state.trust else []
    root = [] if run.shown_root == HOME else [f"run.root={typed(run.shown_root)}"]
    words = [word for key, value in changed.items() for word in _words(key, look(before, key), value)]
    start = ["python", "-m", "pipeline", "phase=baseline"]
    return shlex.join([*start, *dirs, *kept, *trust, *root, f"run.name={run.name[:57]}-fixed", *words])


def inference_ms(config: Mapping[str, Any], trust: Sequence[str], checkpoint: Path, rows: int = 100) -> float:
    """Median milliseconds of one forward pass of one row, eager, on this machine."""
    import torch

    from pipeline.building.builder import build_model
    from pipeline.checkpoints.generation import load
    from pipeline.data.load import load as load_data
    from pipeline.data.tree import split

    data = load_data(config, trust)
    model = build_model(config, trust, seed=0, data=data)
    model.load_state_dict(load(checkpoint)[0])
    model.eval()
    X = split(data.val.X, 1)[0]
    taken = []
    with torch.inference_mode():
        for _ in range(rows):
            started = time.perf_counter()
            model(X)
            taken.append(time.perf_counter() - started)
    return 1000 * sorted(taken)[rows // 2]


def performance(run_dir: Path, trial: Trial, config: Mapping[str, Any], trust: Sequence[str]) -> dict[str, float]:
    """`{params, step_ms, memory_mb, inference_ms}` of one trial, from its own process and its checkpoint.

    Without the last where a step stands between inputs and model: it alone knows how that one is called.
    """
    measured = dict(trial.result.get("performance", {}))
    checkpoint = trial.result.get("checkpoint")
    if checkpoint and not config["task"].get("step"):
        measured["inference_ms"] = inference_ms(config, trust, run_dir / checkpoint)
    return measured


def _code_changes(before: Mapping[str, Any], trial: Trial) -> list[dict[str, Any]]:
    delta = trial.job.delta
    changes = [
        {
            "file": "fixed.yaml",
            "change": f"{key}: {look(before, key)} -> {value}",
            "description": f"set {key} to {value}",
        }
        for key, value in delta.overrides.items()
    ]
    for change in delta.surgery:
        name = next(iter(change))
        changes.append(
            {
                "file": "fixed.yaml",
                "change": f"surgery: {json.dumps(change)}",
                "description": f"change the model by {name}",
            }
        )
    return changes


def implementation(
    before: Mapping[str, Any],
    trial: Trial,
    criteria: Mapping[str, tuple[bool, Any]],
    figures: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """The document. `criteria` are what the repair was held against, each with whether it holds and its figure;
    `figures` is `{"before": ..., "after": ...}` from `performance`."""
    held = sum(good for good, _ in criteria.values())
    return {
        "schema": 1,
        "code_changes": _code_changes(before, trial),
        "tests": f"{held}/{len(criteria)} passing",
        "verification": {name: figure for name, (_, figure) in criteria.items()},
        "performance": {
            name: {side: values.get(name) for side, values in figures.items()}
            for name in ("params", "step_ms", "memory_mb", "inference_ms")
        },
    }
