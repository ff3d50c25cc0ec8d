"""Per-class results: precision, recall and F1 of every class, the confusion matrix, and the most confused pairs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.intervals.bounded import Floats, exact_limits
from pipeline.evaluation.intervals.classes import proportion_interval
from pipeline.results import counted

if TYPE_CHECKING:
    from pipeline.data.dataset import Data
    from pipeline.evaluation.evaluate import Evaluation

WORST = 5  # pairs in the evidence
SHOWN = 3  # pairs in a line of text
NO_CLASS = "no class"

ClassRow = TypedDict(
    "ClassRow",
    {"class": str, "precision": float, "recall": float, "recall_low": float, "recall_high": float, "f1": float,
     "support": int},
)  # fmt: skip


class ConfusedPair(TypedDict):
    """How often rows of the class `true` are predicted as `predicted`; `share` of all rows of `true`."""

    true: Any  # as the caller names its classes
    predicted: Any
    count: int
    share: float


class ClassReport(TypedDict):
    """Results per class. `matrix` [C, C] counts true class (row) by predicted class (column); None for labels."""

    classes: list[str]
    matrix: NDArray[np.int64] | None
    per_class: list[ClassRow]
    worst_pairs: list[ConfusedPair]


def empty_report() -> ClassReport:
    """Return the report of a task without classes."""
    return {"classes": [], "matrix": None, "per_class": [], "worst_pairs": []}


def report_of(evaluation: Evaluation, data: Data, kind: str) -> ClassReport:
    """Return the results per class of a model on a split; no rows where there are no classes."""
    predictions = evaluation.predictions
    labels = predictions.shape[1] if predictions is not None and predictions.ndim == 2 else None
    count = data.classes or (labels if kind == "multilabel" else None)
    # A custom step, or a predictor of the user's own, may return anything.
    comparable = predictions is not None and getattr(evaluation.targets, "shape", None) == predictions.shape
    if predictions is None or not comparable or predictions.dtype.kind not in "iu" or not count:
        return empty_report()
    names, groups = data.class_names or tuple(map(str, range(count))), data.val.row_metadata.groups
    groups = groups if groups is not None and len(groups) == len(predictions) else None
    return class_report(evaluation.targets, predictions, names, groups)


def class_report(
    targets: NDArray[Any], predictions: NDArray[Any], names: Sequence[str], groups: NDArray[Any] | None = None
) -> ClassReport:
    """Return the results per class of class ids [N], or per label of several labels [N, L].

    Labels have no confusion matrix, since a row may have several. Predictions outside the classes, as a wrong
    `task.predict` gives them, are counted as `NO_CLASS`, then the last of the classes. With declared `groups` [N],
    intervals are those of independent groups. Raises ValueError for targets without a name.
    """
    if targets.ndim == 2:
        return _label_report(targets == 1, predictions == 1, names, groups)
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    if targets.max() >= len(names):
        raise ValueError(f"class {targets.max()} has no name among {len(names)}")
    outside = (predictions < 0) | (predictions >= len(names))
    if outside.any():
        names, predictions = [*names, NO_CLASS], np.where(outside, len(names), predictions)
    ids = np.arange(len(names))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a split may have rows of one class only
        matrix = confusion_matrix(targets, predictions, labels=ids)
    precision, recall, f1, support = precision_recall_fscore_support(
        targets, predictions, labels=ids, zero_division=np.nan
    )
    hits = matrix.diagonal()
    if groups is None:
        limits = exact_limits(hits, support)
    else:
        limits = _limits_by_class(targets[:, None] == ids, (targets == predictions)[:, None], groups)
    table = _table(names, precision, recall, f1, support, limits)
    return {"classes": list(names), "matrix": matrix, "per_class": table, "worst_pairs": worst_pairs(matrix, names)}


def _label_report(
    targets: NDArray[np.bool_], predictions: NDArray[np.bool_], names: Sequence[str], groups: NDArray[Any] | None
) -> ClassReport:
    from sklearn.metrics import precision_recall_fscore_support

    # One label at a time: scikit-learn would read a single column as two classes.
    figures = [
        precision_recall_fscore_support(targets[:, i], predictions[:, i], labels=[True], zero_division=np.nan)
        for i in range(len(names))
    ]
    precision, recall, f1, support = (np.concatenate(column) for column in zip(*figures, strict=True))
    if groups is None:
        limits = exact_limits((targets & predictions).sum(axis=0), support)
    else:
        limits = _limits_by_class(targets, predictions, groups)
    table = _table(names, precision, recall, f1, support, limits)
    return {"classes": list(names), "matrix": None, "per_class": table, "worst_pairs": []}


def _limits_by_class(
    members: NDArray[np.bool_], right: NDArray[np.bool_], groups: NDArray[Any]
) -> tuple[Floats, Floats]:
    """Return the limits of each recall from the rows [N, C] of a class that are right, if groups are sampled."""
    numbers = np.unique(groups, return_inverse=True)[1].reshape(-1)
    limits = [
        proportion_interval((inside & hit).astype(float), inside.astype(float), numbers)
        for inside, hit in zip(members.T, np.broadcast_to(right, members.shape).T, strict=True)
    ]
    return np.array([interval.low for interval in limits]), np.array([interval.high for interval in limits])


def _table(
    names: Sequence[str],
    precision: NDArray[Any],
    recall: NDArray[Any],
    f1: NDArray[Any],
    support: NDArray[Any],
    limits: tuple[Floats, Floats],
) -> list[ClassRow]:
    """Return a row per class. Precision is NaN for a class that is never predicted, recall for one without rows."""
    low, high = (np.where(support > 0, of_recall, np.nan) for of_recall in limits)
    return [
        {
            "class": name,
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "recall_low": float(low[i]),
            "recall_high": float(high[i]),
            "f1": float(f1[i]),
            "support": int(support[i]),
        }
        for i, name in enumerate(names)
    ]


def worst_pairs(matrix: NDArray[Any], names: Sequence[Any]) -> list[ConfusedPair]:
    """Return the most confused pairs, by count, then by their share of the true class: at most `WORST`."""
    counts = np.asarray(matrix)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    pairs = [(a, b) for a, b in np.argwhere(counts > 0).tolist() if a != b]
    pairs.sort(key=lambda pair: (-counts[pair], -share[pair], pair))
    return [
        {"true": names[a], "predicted": names[b], "count": int(counts[a, b]), "share": float(share[a, b])}
        for a, b in pairs[:WORST]
    ]


def format_class_report(report: ClassReport) -> str:
    """Return one line: the class with the lowest recall, and the most confused pairs."""
    rows = [row for row in report["per_class"] if row["support"]]
    if not rows:
        return "no label has a row"
    lowest = min(rows, key=lambda row: row["recall"])
    kind = "label" if report["matrix"] is None else "class"
    if lowest["recall"] == 1:
        return f"recall is 1 for every {kind}"
    line = (
        f"{kind} with the lowest recall: {lowest['class']}, recall {lowest['recall']:.3g} "
        f"(95 % interval {lowest['recall_low']:.2g} to {lowest['recall_high']:.2g}, {lowest['support']} rows)"
    )
    pairs = report["worst_pairs"][:SHOWN]
    if not pairs:
        return line
    shown = (
        f"{pair['true']} → {pair['predicted']} ({counted(pair['count'], 'row')}, {100 * pair['share']:.0f} %)"
        for pair in pairs
    )
    return f"{line}; most confused (true → predicted): {', '.join(shown)}"
