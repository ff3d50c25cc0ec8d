"""The manifest of the data: what they are, where they come from, and the digests that identify them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from pipeline.data.analysis.quality import FloatColumns, float_columns
from pipeline.data.dataset import Data, SplitFacts
from pipeline.results import digest
from pipeline.run_store import files

MAX_COLUMNS = 1000  # of a tensor with more columns, one range of all values is recorded


class RowMetadataFacts(TypedDict, total=False):
    """By split: the number of groups, the first and last time, and, by slice, the number of rows."""

    groups: dict[str, int]
    times: dict[str, list[float]]
    slices: dict[str, dict[str, int]]


class ManifestEntries(TypedDict):
    """Source, licence, files, rows, schema, names and ranges of the data."""

    source: str
    licence: str | None
    files: dict[str, str]
    splits: dict[str, SplitFacts]
    additional: dict[str, SplitFacts]
    class_names: tuple[str, ...] | None
    feature_names: tuple[str, ...] | None
    ranges: dict[str, dict[str, list[float]]]
    row_metadata: RowMetadataFacts


class Manifest(ManifestEntries):
    """The entries and their digest."""

    digest: str


def manifest(data: Data, config: Mapping[str, Any]) -> Manifest:
    """The manifest of a run's data as plain values.

    Ranges are those of train and validation. Data without a declared source have the `_target_` that makes them as
    their source; the plan records its code. Files are those of the config's `path` and `*_path` with their SHA-256; of
    a folder, all files in it.
    """
    source: Mapping[str, object] = config["data"]
    entries: ManifestEntries = {
        "source": data.source or str(source.get("_target_")),
        "licence": data.licence,
        "files": _files(source),
        "splits": data.facts(),
        "additional": data.additional_facts(),
        "class_names": data.class_names,
        "feature_names": data.feature_names,
        "ranges": {s.name: _ranges(float_columns(s, data.feature_names)) for s in (data.train, data.val)},
        "row_metadata": _row_metadata_facts(data),
    }
    return {**entries, "digest": digest(entries)}


def format_row_digests(data: Data) -> str:
    """One line per row: its split, its number in the split, and the digest of its features."""
    splits = {"train": data.train.row_digests, "val": data.val.row_digests, "test": data.test.row_digests}
    lines = (f"{split} {row} {known}\n" for split, digests in splits.items() for row, known in enumerate(digests))
    return "".join(lines)


def _files(source: Mapping[str, object]) -> dict[str, str]:
    """SHA-256 of every file that the data section of the config names, by its name there."""
    paths = [str(value) for key, value in source.items() if isinstance(value, str) and f"_{key}".endswith("_path")]
    digests: dict[str, str] = {}
    for path in paths:
        inside = sorted(p for p in Path(path).rglob("*") if p.is_file()) if Path(path).is_dir() else [Path(path)]
        digests |= {file.as_posix(): files.sha256(file) for file in inside if file.is_file()}
    return digests


def _ranges(parts: list[FloatColumns]) -> dict[str, list[float]]:
    """Minimum and maximum of each column without missing values; of a wide tensor, of all its columns together."""
    ranges: dict[str, list[float]] = {}
    for part in parts:
        low, high = np.fmin.reduce(part.values, axis=0), np.fmax.reduce(part.values, axis=0)
        if len(low) <= MAX_COLUMNS:
            ranges |= {part.column(c): [float(low[c]), float(high[c])] for c in range(len(low))}
        else:
            ranges[part.name] = [float(np.fmin.reduce(low)), float(np.fmax.reduce(high))]
    return ranges


def _row_metadata_facts(data: Data) -> RowMetadataFacts:
    """The number of groups and the first and last time of each split, and the number of rows in each slice."""
    metadata = {"train": data.train.row_metadata, "val": data.val.row_metadata}
    facts: RowMetadataFacts = {}
    if data.test.groups:
        counts = {split: len(np.unique(rows.groups)) for split, rows in metadata.items() if rows.groups is not None}
        facts["groups"] = {**counts, "test": len(data.test.groups)}
    if data.test.times:
        times = {split: rows.times for split, rows in metadata.items() if rows.times is not None}
        spans = {split: [float(values.min()), float(values.max())] for split, values in times.items()}
        facts["times"] = {**spans, "test": list(data.test.times)}
    if data.test.slices:
        facts["slices"] = slice_counts(data)
    return facts


def slice_counts(data: Data) -> dict[str, dict[str, int]]:
    """Rows of every declared slice, by split."""
    slices = {"train": data.train.row_metadata.slices, "val": data.val.row_metadata.slices}
    return {
        name: {**{split: int(inside[name].sum()) for split, inside in slices.items()}, "test": rows}
        for name, rows in data.test.slices.items()
    }
