"""Quality of the data before anything is trained: missing values, constants, outliers, duplicates, labels.

Everything here is measured and not judged: the bounds are in the planning checklist. Only train and validation are
read; of test only what is public of the sealed set, digests and counts. Row numbers are those of the split. Nested
features are measured tensor by tensor; integers in them are codes, which have no scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from torch import Tensor

from pipeline.data.analysis.labels import Contradictions, LabelStatistics, contradictions, label_statistics
from pipeline.data.analysis.near_duplicates import NearDuplicates, near_duplicates
from pipeline.data.analysis.repeated_features import RepeatedFeatures, Table, repeated_features
from pipeline.data.dataset import Data
from pipeline.data.source_data import Array
from pipeline.data.splits import Split
from pipeline.data.tree import named_leaves
from pipeline.runtime.seeds import derive

MAX_SHOWN = 10  # rows or columns named at most; the counts are of all
MAX_SORTED = 8_000_000  # numbers sorted at most to find medians; larger data are represented by a sample of rows
MIN_SAMPLE = 200  # rows sampled at least, however wide they are
BLOCK = 2_000_000  # numbers sorted at a time, which bounds the memory
MAX_EXAMINED = 64  # columns with the farthest rows that are examined one by one
FEW_VARYING_ROWS = 5  # so few rows off the median do not show what distance is usual in their column
NORMAL = 1.4826  # the standard deviation of normal values over their median absolute deviation


class Nonfinite(TypedDict):
    """How many values are missing (NaN) or infinite, in how many rows, and the first rows and columns of them."""

    missing: int
    infinite: int
    rows: int
    in_targets: bool
    first_rows: list[int]
    columns: list[str]


class Constants(TypedDict):
    """The columns with one value in all rows: `count` of `features`; whether targets are such, and their spread."""

    count: int
    features: int
    columns: list[str]
    targets: list[str]
    targets_std: float | None


class Outlier(TypedDict):
    """A column and its farthest rows, see `outliers`."""

    column: str
    distance: float
    rows: int
    share: float
    weight: float
    gap: float
    first_rows: list[int]


class Quality(TypedDict):
    """What planning measures of the rows, by split; labels and contradictions are None for tasks without classes."""

    nonfinite: dict[str, Nonfinite]
    constant: Constants
    repeated_features: RepeatedFeatures
    outliers: dict[str, list[Outlier]]
    duplicates: dict[str, int]
    labels: LabelStatistics | None
    contradictions: dict[str, Contradictions] | None
    near_duplicates: NearDuplicates | None


def measure_quality(data: Data, kind: str) -> Quality:
    """The evidence on the data that the planning gate judges, as plain values, naming at most ten rows and columns.

    A pure function of the data, independent of the run's seed. It takes some hundredths of a second for thousands of
    rows, and time grows linearly: medians and near duplicates of large data are those of samples.
    """
    splits = (data.train, data.val)
    # Labels are codes, and the targets of an autoencoder are its features: neither is measured as values.
    include_targets = kind in ("regression", "custom")
    columns = {split.name: float_columns(split, data.feature_names, include_targets) for split in splits}
    digests = {**{split.name: split.row_digests for split in splits}, "test": data.test.row_digests}
    scales = [column_scale(part) for part in columns["train"]]
    classes = kind in ("classification", "binary")
    return {
        "nonfinite": {name: nonfinite(parts) for name, parts in columns.items()},
        "constant": constants(columns["train"]),
        "repeated_features": repeated_features(tables(columns["train"])),
        "outliers": {name: outliers(parts, scales) for name, parts in columns.items()},
        "duplicates": {name: len(rows) - len(set(rows)) for name, rows in digests.items()},
        "labels": label_statistics(data, kind) if classes else None,
        "contradictions": {s.name: contradictions(digests[s.name], s.y) for s in splits} if classes else None,
        "near_duplicates": near_duplicates(data.train, data.val),
    }


@dataclass(frozen=True, eq=False)
class FloatColumns:
    """One floating-point tensor of a split as columns [N, F]; `targets` means that it is y."""

    name: str
    values: Array
    shape: tuple[int, ...]
    names: tuple[str, ...] | None = None
    targets: bool = False

    def column(self, number: int) -> str:
        """The column's feature name if it has one, else its position: `X[3]`, `image[0, 7, 7]`."""
        if self.names is not None:
            return self.names[number]
        position = ", ".join(str(int(i)) for i in np.unravel_index(number, self.shape)) if self.shape else ""
        return f"{self.name}[{position}]" if position else self.name

    def nonfinite_columns(self) -> Array:
        """The numbers of the columns with a value that is not finite."""
        with np.errstate(invalid="ignore"):
            # A sum is finite only if all its terms are, and needs no array of booleans as large as the values.
            return np.flatnonzero(~np.isfinite(self.values.sum(axis=0, dtype=np.float64)))

    def finite_values(self) -> Array:
        """The values with NaN in place of infinities."""
        if not len(self.nonfinite_columns()):
            return self.values
        return np.where(np.isfinite(self.values), self.values, np.nan)


def float_columns(
    split: Split, feature_names: tuple[str, ...] | None = None, include_targets: bool = True
) -> list[FloatColumns]:
    """Every floating-point tensor of the features, and of the targets if they are included."""
    single = isinstance(split.X, Tensor)
    tensors = named_leaves(split.X, "X") if single else named_leaves(split.X)
    tensors |= {"y": split.y} if include_targets else {}
    columns = []
    for name, tensor in tensors.items():
        targets = include_targets and tensor is split.y
        if tensor.is_floating_point():
            array = tensor.detach().cpu().numpy()
            names = feature_names if single and not targets else None
            columns.append(FloatColumns(name, array.reshape(len(array), -1), array.shape[1:], names, targets))
    return columns


def tables(parts: list[FloatColumns]) -> list[Table]:
    """Return the features that are columns of a table; pixels of images and steps of sequences are left out."""
    return [(part.values, part.column) for part in parts if not part.targets and len(part.shape) <= 1]


def nonfinite(parts: list[FloatColumns]) -> Nonfinite:
    """How many values are missing or infinite, and where."""
    rows: set[int] = set()
    columns: list[str] = []
    missing = infinite = 0
    in_targets = False
    for part in parts:
        affected = part.nonfinite_columns()
        if len(affected):
            values = part.values[:, affected]
            missing += int(np.isnan(values).sum())
            infinite += int(np.isinf(values).sum())
            rows |= set(np.flatnonzero((~np.isfinite(values)).any(axis=1)).tolist())
            columns += [part.column(c) for c in affected[:MAX_SHOWN].tolist()]
            in_targets |= part.targets
    return {
        "missing": missing,
        "infinite": infinite,
        "rows": len(rows),
        "in_targets": in_targets,
        "first_rows": sorted(rows)[:MAX_SHOWN],
        "columns": columns[:MAX_SHOWN],
    }


def constants(parts: list[FloatColumns]) -> Constants:
    """The columns with the same value in every row, and the standard deviation of the targets."""
    columns: list[str] = []
    targets: list[str] = []
    features, targets_std = 0, None
    for part in parts:
        with np.errstate(invalid="ignore"):
            constant = np.flatnonzero(part.values.min(axis=0) == part.values.max(axis=0))
        names = [part.column(c) for c in constant.tolist()]
        if part.targets:
            targets = names
            finite = part.values[np.isfinite(part.values)]
            targets_std = float(finite.std(dtype=np.float64)) if len(finite) else None
        else:
            features += part.values.shape[1]
            columns += names
    return {
        "count": len(columns),
        "features": features,
        "columns": columns[:MAX_SHOWN],
        "targets": targets[:MAX_SHOWN],
        "targets_std": targets_std,
    }


@dataclass(frozen=True, eq=False)
class ColumnScale:
    """The median of each column [F], and the usual distance from it."""

    center: Array
    scale: Array


def column_scale(part: FloatColumns) -> ColumnScale:
    """Median and usual distance of every column; the latter is 0 if no row shows what would be usual.

    The usual distance is the median absolute deviation, scaled to the standard deviation of normal values. In a column
    that is mostly constant it is that of the rows that differ from the median, and in one where hardly a row differs,
    that of the other columns.
    """
    values = part.finite_values()
    n, columns = values.shape
    sample = max(MIN_SAMPLE, MAX_SORTED // max(columns, 1))
    if n > sample:
        rng = np.random.default_rng(derive(0, "quality"))
        values = values[np.sort(rng.choice(n, sample, replace=False))]
    width = max(1, BLOCK // max(len(values), 1))
    blocks = [_block_scale(values[:, at : at + width]) for at in range(0, max(columns, 1), width)]
    center, scale, varying_rows = map(np.concatenate, zip(*blocks, strict=True))
    nearly_constant = varying_rows <= max(FEW_VARYING_ROWS, len(values) // 1000)
    if (known := ~nearly_constant & (scale > 0)).any():
        others = np.median(scale[known])
        scale = np.where(nearly_constant, np.where(scale > 0, np.minimum(scale, others), others), scale)
    return ColumnScale(center, NORMAL * scale)


def _block_scale(block: Array) -> tuple[Array, Array, Array]:
    """Median, median absolute deviation, and number of rows off the median, of each column; NaN is left out."""
    block = block.astype(np.float64)
    known = np.isfinite(block).sum(axis=0)
    last = np.maximum(known - 1, 0)

    def at(ordered: Array, row: Array) -> Array:
        return np.take_along_axis(ordered, np.minimum(row, last)[None], axis=0)[0]

    center = at(np.sort(block, axis=0), known // 2)  # NaN is sorted to the end
    distance = np.sort(np.abs(block - center), axis=0)
    on_median = (distance == 0).sum(axis=0)
    usual = at(distance, known // 2)
    usual = np.where(usual > 0, usual, at(distance, on_median + (known - on_median) // 2))
    return center, np.nan_to_num(usual), known - on_median


def outliers(parts: list[FloatColumns], scales: list[ColumnScale]) -> list[Outlier]:
    """The columns whose farthest rows have the most weight, first.

    `distance` is that of the farthest row from train's median, in usual distances. `rows` are at least half as far,
    `share` is their share of all rows, `weight` their share of the squared distances, and `gap` the distance of the
    nearest of them over that of the farthest other row: in a long tail it is about 1, since one row follows another.
    """
    columns = [outlier for part, scale in zip(parts, scales, strict=True) for outlier in _part_outliers(part, scale)]
    # Far, heavy and few: the columns most likely to close the gate are named first.
    columns.sort(key=lambda outlier: -outlier["distance"] * outlier["weight"] / outlier["share"])
    return columns[:MAX_SHOWN]


def _part_outliers(part: FloatColumns, scale: ColumnScale) -> list[Outlier]:
    values = part.finite_values()
    farthest = np.fmax(np.fmax.reduce(values, axis=0) - scale.center, scale.center - np.fmin.reduce(values, axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.where(scale.scale > 0, farthest / scale.scale, 0.0)
    distance = np.nan_to_num(distance)
    columns: list[Outlier] = []
    for column in np.argsort(-distance, kind="stable")[:MAX_EXAMINED].tolist():
        if distance[column] > 0:
            away = np.nan_to_num(np.abs(values[:, column].astype(np.float64) - scale.center[column]))
            far = np.flatnonzero(away >= away.max() / 2)  # an outlier may have copies, or neighbours
            next_farthest = np.delete(away, far).max(initial=0.0)
            columns.append(
                {
                    "column": part.column(column),
                    "distance": float(distance[column]),
                    "rows": len(far),
                    "share": len(far) / len(away),
                    "weight": float((away[far] ** 2).sum() / (away**2).sum()),
                    "gap": float(away[far].min() / next_farthest) if next_farthest else float(distance[column]),
                    "first_rows": far[np.argsort(-away[far], kind="stable")][:MAX_SHOWN].tolist(),
                }
            )
    return columns
