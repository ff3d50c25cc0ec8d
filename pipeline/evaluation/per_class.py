"""Per class: how many rows of it were found, how many of what was named were it, and which pairs are confused most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORST = 5  # pairs that are named
NO_CLASS = "no class"
TOLD = 3  # of them on the screen
Z = 1.959963984540054  # two-sided 95 %


def confusion(targets: NDArray[Any], predictions: NDArray[Any], names: Sequence[str]) -> dict[str, Any]:
    """`{classes, matrix, per_class, worst_pairs}` of class ids [N], or of labels beside each other [N, L].

    `matrix` counts true class (row) against predicted class (column), and is None for labels, where row and label are
    not one to one. Predictions that are no class, as a wrong `task.predict` gives, are counted as `NO_CLASS`, the last
    of the classes then. Raises ValueError for targets that have no name.
    """
    if targets.ndim == 2:
        found = [_counts(targets[:, i] == 1, predictions[:, i] == 1) for i in range(len(names))]
        return {"classes": list(names), "matrix": None, "per_class": _table(names, *np.transpose(found)),
                "worst_pairs": []}  # fmt: skip
    if targets.max() >= len(names):
        raise ValueError(f"class {targets.max()} has no name among {len(names)}")
    stray = (predictions < 0) | (predictions >= len(names))
    if stray.any():
        names, predictions = [*names, NO_CLASS], np.where(stray, len(names), predictions)
    matrix = np.zeros((len(names), len(names)), np.int64)
    np.add.at(matrix, (targets, predictions), 1)
    table = _table(names, matrix.diagonal(), matrix.sum(axis=0), matrix.sum(axis=1))
    return {"classes": list(names), "matrix": matrix, "per_class": table, "worst_pairs": worst_pairs(matrix, names)}


def _counts(is_it: NDArray[np.bool_], named: NDArray[np.bool_]) -> tuple[int, int, int]:
    return int((is_it & named).sum()), int(named.sum()), int(is_it.sum())


def _table(
    names: Sequence[str], right: NDArray[Any], named: NDArray[Any], support: NDArray[Any]
) -> list[dict[str, Any]]:
    """A row per class. Precision is NaN for a class that was never named, recall for one that has no rows."""
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall, f1 = right / named, right / support, 2 * right / (named + support)
    low, high = wilson(right, support)
    columns = {"precision": precision, "recall": recall, "recall_low": low, "recall_high": high, "f1": f1}
    return [
        {"class": name, **{key: float(column[i]) for key, column in columns.items()}, "support": int(support[i])}
        for i, name in enumerate(names)
    ]


def wilson(successes: NDArray[Any], trials: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The 95 % interval of each share (Wilson, JASA 22, 1927); NaN for no trials."""
    with np.errstate(invalid="ignore", divide="ignore"):
        share = successes / trials
        middle = (share + Z**2 / (2 * trials)) / (1 + Z**2 / trials)
        reach = Z / (1 + Z**2 / trials) * np.sqrt(share * (1 - share) / trials + Z**2 / (4 * trials**2))
    return np.clip(middle - reach, 0.0, 1.0), np.clip(middle + reach, 0.0, 1.0)


def worst_pairs(matrix: NDArray[Any], names: Sequence[Any]) -> list[dict[str, Any]]:
    """The pairs confused most often, by count and then by their share of the true class: at most `WORST`."""
    counts = np.asarray(matrix)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    pairs = [(a, b) for a, b in np.argwhere(counts > 0).tolist() if a != b]
    pairs.sort(key=lambda pair: (-counts[pair], -share[pair], pair))
    return [
        {"true": names[a], "predicted": names[b], "count": int(counts[a, b]), "share": float(share[a, b])}
        for a, b in pairs[:WORST]
    ]


def told(found: Mapping[str, Any]) -> str:
    """One line: the class found least of, and the pairs confused most."""
    known = [row for row in found["per_class"] if row["support"]]
    if not known:
        return "no label has a row to be found in"
    least = min(known, key=lambda row: float(row["recall"]))
    kind = "label" if found["matrix"] is None else "class"
    line = (
        f"least found {kind}: {least['class']}, recall {least['recall']:.3g} "
        f"(95 % interval {least['recall_low']:.2g} to {least['recall_high']:.2g}, {least['support']} rows)"
    )
    pairs = found["worst_pairs"][:TOLD]
    if not pairs:
        return line if found["matrix"] is None else f"{line}; no class is taken for another"
    each = (f"{pair['true']} → {pair['predicted']} {pair['count']}× ({pair['share']:.0%})" for pair in pairs)
    return f"{line}; most confused, true → predicted: {', '.join(each)}"
