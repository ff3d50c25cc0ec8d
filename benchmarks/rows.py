"""Real data for the benchmarks, larger than the bundled digits: drawn-up digits and text of the standard library."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.digits import digits

TEXTS = (argparse, json, json.decoder, json.encoder)
SHARES = {"train": 1600, "val": 100, "test": 100}


def digits28() -> dict[str, Any]:
    """The digits as [N, 1, 28, 28], every pixel repeated and the border cut."""
    found = digits()
    for side in SHARES:
        X, y = found[side]
        large = X.reshape(-1, 8, 8).repeat(4, axis=1).repeat(4, axis=2)[:, 2:30, 2:30]
        found[side] = (large[:, None], y)
    return {**found, "feature_names": None}


def letters(context: int) -> dict[str, Any]:
    """`context` bytes [N, context] and what kind of byte comes next, from source files that come with Python."""
    sources = [Path(str(module.__file__)).read_bytes() for module in TEXTS]
    text = np.frombuffer(b"\n".join(sources), np.uint8)
    places = np.random.default_rng(0).choice(len(text) - context - 1, sum(SHARES.values()), replace=False)
    windows = text[places[:, None] + np.arange(context + 1)]
    kind = np.array([0 if chr(byte).isalpha() else 1 if chr(byte).isspace() else 2 for byte in range(256)])
    first, sides = 0, {}
    for side, size in SHARES.items():
        part = windows[first : first + size]
        sides[side], first = (part[:, :-1].astype(np.float32), kind[part[:, -1]]), first + size
    return {**sides, "class_names": ["letter", "space", "other"]}
