"""What the rows are worth before anything is trained on them: holes, constants, outliers, duplicates, labels.

Everything here is measured and nothing judged: the bounds stand in the checklist of planning. Only train and
validation are looked at; of the test rows no more than their seal says, digests and counts. Row numbers are those of
the split. Nested features are measured part by part; whole numbers inside them are codes and have no scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.analysis.labels import contradictions, label_facts
from pipeline.data.analysis.near_duplicates import near_duplicates
from pipeline.data.dataset import Data
from pipeline.data.splits import Split
from pipeline.data.tree import named
from pipeline.runtime.seeds import derive

Array = NDArray[Any]

SHOWN = 10  # rows or columns named at most; the counts beside them are of all
SORTED = 8_000_000  # numbers sorted at most to find medians; beyond that a sample of rows stands for all
AT_ONCE = 2_000_000  # numbers in memory at a time while they are sorted
LOOKED_AT = 64  # columns with the farthest rows that are looked at one by one
LONELY = 5  # rows off the median, at most, that say nothing of what would be usual in their column
NORMAL = 1.4826  # median distance from the median, times this, is the standard deviation of normal values


def quality(data: Data, kind: str) -> dict[str, Any]:
    """The evidence on the data that gate 1 judges, as plain values, at most ten rows and columns named of a kind.

    The same for the same data, whatever the run's seed. Costs some hundredths of a second for thousands of rows, and
    stays linear: medians and near duplicates are of samples where there are many.
    """
    sides = (data.train, data.val)
    values = kind in ("regression", "custom")  # labels have codes, and an autoencoder's targets are its features
    parts = {side.name: parts_of(side, data.feature_names, values) for side in sides}
    digests = {**{side.name: side.row_digests for side in sides}, "test": data.test.row_digests}
    spreads = [spread_of(part) for part in parts["train"]]
    classes = kind in ("classification", "binary")
    return {
        "nonfinite": {name: nonfinite(found) for name, found in parts.items()},
        "constant": constants(parts["train"]),
        "outliers": {name: outliers(found, spreads) for name, found in parts.items()},
        "duplicates": {name: len(found) - len(set(found)) for name, found in digests.items()},
        "labels": label_facts(data, kind) if classes else None,
        "contradictions": {s.name: contradictions(digests[s.name], s.y) for s in sides} if classes else None,
        "near_duplicates": near_duplicates(data.train, data.val),
    }


@dataclass(frozen=True, eq=False)
class Part:
    """One floating tensor of a split as columns [N, F]; `targets` says that it is y."""

    name: str
    values: Array
    shape: tuple[int, ...]
    names: tuple[str, ...] | None = None
    targets: bool = False

    def column(self, number: int) -> str:
        """A column's own name where the owner gave one, else its place: `X[3]`, `image[0, 7, 7]`."""
        if self.names is not None:
            return self.names[number]
        place = ", ".join(str(int(i)) for i in np.unravel_index(number, self.shape)) if self.shape else ""
        return f"{self.name}[{place}]" if place else self.name

    def broken(self) -> Array:
        """The numbers of the columns that hold a value that is not finite."""
        with np.errstate(invalid="ignore"):
            return np.flatnonzero(~np.isfinite(self.values.sum(axis=0, dtype=np.float64)))

    def finite(self) -> Array:
        """The values, NaN in place of infinities."""
        return np.where(np.isfinite(self.values), self.values, np.nan) if len(self.broken()) else self.values


def parts_of(split: Split, feature_names: tuple[str, ...] | None = None, values: bool = True) -> list[Part]:
    """Every floating part of the features, and the targets where they are `values`."""
    lone = isinstance(split.X, Tensor)
    tensors = named(split.X, "X") if lone else named(split.X)
    tensors |= {"y": split.y} if values else {}
    found = []
    for name, tensor in tensors.items():
        targets = values and tensor is split.y
        if tensor.is_floating_point():
            array = tensor.detach().cpu().numpy()
            names = feature_names if lone and not targets else None
            found.append(Part(name, array.reshape(len(array), -1), array.shape[1:], names, targets))
    return found


def nonfinite(parts: list[Part]) -> dict[str, Any]:
    """How many values are missing (NaN) or infinite, in how many rows, and the first rows and columns of them."""
    rows: set[int] = set()
    columns: list[str] = []
    missing = infinite = 0
    targets = False
    for part in parts:
        broken = part.broken()
        if len(broken):
            block = part.values[:, broken]
            holes = ~np.isfinite(block)
            missing += int(np.isnan(block).sum())
            infinite += int(np.isinf(block).sum())
            rows |= set(np.flatnonzero(holes.any(axis=1)).tolist())
            columns += [part.column(c) for c in broken[:SHOWN].tolist()]
            targets |= part.targets
    first = {"first_rows": sorted(rows)[:SHOWN], "columns": columns[:SHOWN]}
    return {"missing": missing, "infinite": infinite, "rows": len(rows), "targets": targets, **first}


def constants(parts: list[Part]) -> dict[str, Any]:
    """The columns in which every row says the same; whether the targets do, and how large these are."""
    same: list[str] = []
    features, of_targets, scale = 0, [], None
    for part in parts:
        with np.errstate(invalid="ignore"):
            flat = np.flatnonzero(part.values.min(axis=0) == part.values.max(axis=0))
        if part.targets:
            of_targets = [part.column(c) for c in flat.tolist()]
            known = part.values[np.isfinite(part.values)]
            scale = float(known.std(dtype=np.float64)) if len(known) else None
        else:
            features += part.values.shape[1]
            same += [part.column(c) for c in flat.tolist()]
    return {
        "count": len(same), "of": features, "columns": same[:SHOWN],
        "targets": of_targets[:SHOWN], "targets_std": scale,
    }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Spread:
    """Where the values of each column lie [F]: their median, and the distance from it that is usual."""

    center: Array
    scale: Array


def spread_of(part: Part) -> Spread:
    """Median and usual distance of every column; the latter is 0 where nothing says what would be usual.

    Usual is the median distance, in standard deviations of normal values. A column that mostly stands still is judged
    by the distances of the rows that do move, and one in which hardly a row moves by its neighbours.
    """
    values = part.finite()
    n, columns = values.shape
    keep = max(200, SORTED // max(columns, 1))
    if n > keep:
        draw = np.random.default_rng(derive(0, "quality"))
        values = values[np.sort(draw.choice(n, keep, replace=False))]
    width = max(1, AT_ONCE // max(len(values), 1))
    blocks = [_spread(values[:, at : at + width]) for at in range(0, max(columns, 1), width)]
    center, scale, moving = map(np.concatenate, zip(*blocks, strict=True))
    lonely = moving <= max(LONELY, len(values) // 1000)
    if (known := ~lonely & (scale > 0)).any():
        neighbours = np.median(scale[known])
        scale = np.where(lonely, np.where(scale > 0, np.minimum(scale, neighbours), neighbours), scale)
    return Spread(center, NORMAL * scale)


def _spread(block: Array) -> tuple[Array, Array, Array]:
    """Median, usual distance, and the number of rows off the median, of each column; NaN counts nowhere."""
    block = block.astype(np.float64)
    known = np.isfinite(block).sum(axis=0)
    last = np.maximum(known - 1, 0)

    def at(ordered: Array, row: Array) -> Array:
        return np.take_along_axis(ordered, np.minimum(row, last)[None], axis=0)[0]

    center = at(np.sort(block, axis=0), known // 2)
    away = np.sort(np.abs(block - center), axis=0)
    still = (away == 0).sum(axis=0)
    usual = at(away, known // 2)
    usual = np.where(usual > 0, usual, at(away, still + (known - still) // 2))
    return center, np.nan_to_num(usual), known - still


def outliers(parts: list[Part], spreads: list[Spread]) -> list[dict[str, Any]]:
    """The columns whose farthest rows weigh most, first: `{column, distance, rows, share, weight, gap, first_rows}`.

    `distance` of the farthest row from train's median, in usual distances. `rows` are at least half as far, `share` is
    their share of all rows, `weight` their share of the squared distances, and `gap` how many times as far the nearest
    of them lies as the farthest of all others: in a long tail one follows the other.
    """
    found = [one for part, spread in zip(parts, spreads, strict=True) for one in _outliers(part, spread)]
    found.sort(key=lambda one: -one["distance"] * one["weight"] / one["share"])
    return found[:SHOWN]


def _outliers(part: Part, spread: Spread) -> list[dict[str, Any]]:
    values = part.finite()
    reach = np.fmax(np.fmax.reduce(values, axis=0) - spread.center, spread.center - np.fmin.reduce(values, axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.where(spread.scale > 0, reach / spread.scale, 0.0)
    distance = np.nan_to_num(distance)
    found = []
    for column in np.argsort(-distance, kind="stable")[:LOOKED_AT].tolist():
        if distance[column] > 0:
            away = np.nan_to_num(np.abs(values[:, column].astype(np.float64) - spread.center[column]))
            far = np.flatnonzero(away >= away.max() / 2)
            next_to = np.delete(away, far).max(initial=0.0)
            gap = float(away[far].min() / next_to) if next_to else float(distance[column])
            one = {
                "column": part.column(column), "distance": float(distance[column]), "rows": len(far),
                "share": len(far) / len(away), "weight": float((away[far] ** 2).sum() / (away**2).sum()),
                "gap": gap,
                "first_rows": far[np.argsort(-away[far], kind="stable")][:SHOWN].tolist(),
            }  # fmt: skip
            found.append(one)
    return found
