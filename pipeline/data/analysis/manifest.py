"""The manifest of the data: what they are, where they are from, and by which digests anybody can tell them again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.analysis.quality import Part, parts_of
from pipeline.data.dataset import Data
from pipeline.results import digest
from pipeline.run_store import files

MANY = 1000  # columns; a wider part says its range as a whole


def manifest(data: Data, config: Mapping[str, Any]) -> dict[str, Any]:
    """Source, licence, files, rows, schema, names and ranges, as plain values; `digest` is of all the others.

    Ranges are of train and validation. Where the data name no source it is the target that makes them, whose code the
    plan records. Files are those of the config's `path` and `*_path`, each with its SHA-256; of a folder, all in it.
    """
    known = {
        "source": data.source or str(config["data"].get("_target_")),
        "licence": data.licence,
        "files": _files(config["data"]),
        "splits": data.facts(),
        "others": data.others(),
        "class_names": data.class_names,
        "feature_names": data.feature_names,
        "ranges": {s.name: _ranges(parts_of(s, data.feature_names)) for s in (data.train, data.val)},
        "marks": _marks(data),
    }
    return {**known, "digest": digest(known)}


def rows_told(data: Data) -> str:
    """One line per row: its split, its number there, the digest of its features."""
    sides = {"train": data.train.row_digests, "val": data.val.row_digests, "test": data.test.row_digests}
    return "".join(f"{split} {row} {told}\n" for split, digests in sides.items() for row, told in enumerate(digests))


def _files(node: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of every file that the data's config names, by its name there."""
    named = [str(value) for key, value in node.items() if isinstance(value, str) and f"_{key}".endswith("_path")]
    found: dict[str, str] = {}
    for name in named:
        inside = sorted(p for p in Path(name).rglob("*") if p.is_file()) if Path(name).is_dir() else [Path(name)]
        found |= {path.as_posix(): files.sha256(path) for path in inside if path.is_file()}
    return found


def _ranges(parts: list[Part]) -> dict[str, list[float]]:
    """Least and greatest value of each column, missing ones apart; of a wide part, of all its columns together."""
    found: dict[str, list[float]] = {}
    for part in parts:
        low, high = np.fmin.reduce(part.values, axis=0), np.fmax.reduce(part.values, axis=0)
        if len(low) <= MANY:
            found |= {part.column(c): [float(low[c]), float(high[c])] for c in range(len(low))}
        else:
            found[part.name] = [float(np.fmin.reduce(low)), float(np.fmax.reduce(high))]
    return found


def _marks(data: Data) -> dict[str, Any]:
    """How many groups there are, which time each side covers, and how many rows stand in each slice."""
    sides = {"train": data.train.marks, "val": data.val.marks}
    found: dict[str, Any] = {}
    if data.test.groups:
        ids = {split: marks.groups for split, marks in sides.items() if marks.groups is not None}
        found["groups"] = {**{split: len(np.unique(of)) for split, of in ids.items()}, "test": len(data.test.groups)}
    if data.test.times:
        times = {split: marks.times for split, marks in sides.items() if marks.times is not None}
        spans = {split: [float(of.min()), float(of.max())] for split, of in times.items()}
        found["times"] = {**spans, "test": list(data.test.times)}
    if data.test.slices:
        found["slices"] = slice_support(data)
    return found


def slice_support(data: Data) -> dict[str, dict[str, int]]:
    """Rows of every declared slice, by split."""
    sides = {"train": data.train.marks.slices, "val": data.val.marks.slices}
    return {
        name: {**{split: int(of[name].sum()) for split, of in sides.items()}, "test": rows}
        for name, rows in data.test.slices.items()
    }
