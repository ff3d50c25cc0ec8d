"""Names of metrics as other trainers log them, as columns of a history."""

from __future__ import annotations

import re
from collections.abc import Mapping

PREFIX = re.compile(r"^(val(?:id(?:ation)?)?|eval|train|training)[_/]")
TIMES = re.compile(r"(runtime|samples_per_second|steps_per_second|epoch|_step|jit_compilation_time)$")


def as_columns(metrics: Mapping[str, object]) -> dict[str, float]:
    """Return numbers as `val/<name>` and `train/<name>`; names without a split are those of validation.

    `val_loss`, `valid/loss` and `eval_loss` are `val/loss`. Times, epochs and values that are not numbers are left out.
    """
    columns: dict[str, float] = {}
    for name, value in metrics.items():
        plain = name.removesuffix("_epoch")
        if TIMES.search(plain) or not hasattr(value, "__float__"):
            continue
        prefix = PREFIX.match(plain)
        split = "train" if prefix and prefix[1].startswith("train") else "val"
        columns[f"{split}/{plain[prefix.end() :] if prefix else plain}"] = float(value)  # type: ignore[arg-type]
    return columns
