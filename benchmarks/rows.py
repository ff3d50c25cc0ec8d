"""Real data for the benchmarks, larger than the bundled digits: enlarged digits, and text of the standard library."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.digits import digits

TEXTS = (argparse, json, json.decoder, json.encoder)
SIZES = {"train": 1600, "val": 100, "test": 100}


def digits28() -> dict[str, Any]:
    """Return the digits as images [N, 1, 28, 28]: every pixel four times, the border cropped."""
    data = digits()
    for split in SIZES:
        X, y = data[split]
        large = X.reshape(-1, 8, 8).repeat(4, axis=1).repeat(4, axis=2)[:, 2:30, 2:30]
        data[split] = (large[:, None], y)
    return {**data, "feature_names": None}


def letters(context: int) -> dict[str, Any]:
    """Return windows of Python source [N, context] in bytes, and the kind of the next byte: letter, space or other."""
    sources = [Path(str(module.__file__)).read_bytes() for module in TEXTS]
    text = np.frombuffer(b"\n".join(sources), np.uint8)
    starts = np.random.default_rng(0).choice(len(text) - context - 1, sum(SIZES.values()), replace=False)
    windows = text[starts[:, None] + np.arange(context + 1)]
    kind = np.array([0 if chr(byte).isalpha() else 1 if chr(byte).isspace() else 2 for byte in range(256)])
    first, splits = 0, {}
    for split, size in SIZES.items():
        part = windows[first : first + size]
        splits[split], first = (part[:, :-1].astype(np.float32), kind[part[:, -1]]), first + size
    return {**splits, "class_names": ["letter", "space", "other"]}
