"""What a repair did to the run, as `implementation.json` states it: changes, checks, figures before and after."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.keys import key_of
from pipeline.job import Delta
from pipeline.trials.executor import Trial


def typed(value: Any) -> str:
    """A value as one types it behind `key=` on the command line."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{typed(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(typed, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def rerun_command(name: str, record: Mapping[str, Any], delta: Delta, surgery: Sequence[Any]) -> str:
    """The command that plans and trains the mended config as a run of its own, from a plan's recorded words."""
    dirs = [f"--config-dir {folder}" for folder in record["config_dirs"]]
    changed = {**delta.overrides, **({"surgery": list(surgery)} if delta.surgery else {})}
    kept = [word for word in record["overrides"] if key_of(word) not in changed]
    words = [shlex.quote(f"{key}={typed(value)}") for key, value in changed.items()]
    return " ".join(["python -m pipeline phase=baseline", *dirs, *kept, f"run.name={name}-fixed", *words])


def inference_ms(config: Mapping[str, Any], trust: Sequence[str], checkpoint: Path, rows: int = 100) -> float:
    """Median milliseconds of one forward pass of one row, eager, on this machine."""
    import torch

    from pipeline.data.load import load as load_data
    from pipeline.engine.builder import build_model
    from pipeline.engine.weights import load

    model = build_model(config, trust, seed=0)
    model.load_state_dict(load(checkpoint)[0])
    model.eval()
    X = load_data(config, trust).val.X[:1]
    taken = []
    with torch.inference_mode():
        for _ in range(rows):
            started = time.perf_counter()
            model(X)
            taken.append(time.perf_counter() - started)
    return 1000 * sorted(taken)[rows // 2]


def performance(run_dir: Path, trial: Trial, config: Mapping[str, Any], trust: Sequence[str]) -> dict[str, float]:
    """`{params, step_ms, memory_mb, inference_ms}` of one trial, from its own process and its checkpoint."""
    measured = dict(trial.result.get("performance", {}))
    checkpoint = trial.result.get("checkpoint")
    if checkpoint:
        measured["inference_ms"] = inference_ms(config, trust, run_dir / checkpoint)
    return measured


def _code_changes(before: Mapping[str, Any], trial: Trial) -> list[dict[str, Any]]:
    def old(key: str) -> Any:
        node: Any = before
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        return node

    delta = trial.job.delta
    changes = [
        {"file": "fixed.yaml", "change": f"{key}: {old(key)} -> {value}", "description": f"set {key} to {value}"}
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
