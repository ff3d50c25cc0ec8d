"""Statistics of the labels: which classes there are, how frequent each is, and which rows contradict each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.splits import class_counts
from pipeline.errors import fault
from pipeline.results import counted

if TYPE_CHECKING:
    from pipeline.data.dataset import Data

MAX_EXAMPLES = 5


class LabelStatistics(TypedDict):
    """Codes and counts of the classes, see `label_statistics`."""

    classes: int
    counts: dict[str, dict[str, int]]
    unused: list[int]
    missing_in_train: dict[str, list[int]]
    missing_in_val: list[int]
    imbalance_ratio: float
    largest_class: str
    smallest_class: str


class Contradictions(TypedDict):
    """`rows` have another row with equal features and another label; `share` is their share of all rows."""

    rows: int
    share: float
    examples: list[list[int]]


def label_statistics(data: Data, kind: str) -> LabelStatistics:
    """Codes and counts of the classes of each split.

    `unused`: codes below the number of classes that do not occur in any split. `missing_in_train`: codes that occur in
    validation or test but not in train. `missing_in_val`: codes of train that do not occur in validation.
    `imbalance_ratio`: rows of the largest class of train over those of its smallest.
    """
    counts = {s.name: {int(c): n for c, n in class_counts(s.y).items()} for s in (data.train, data.val)}
    counts["test"] = {int(c): n for c, n in data.test.counts.items()}
    codes = sorted(set().union(*counts.values()))
    classes = max(data.classes or 0, 2 if kind == "binary" else 1, *(c + 1 for c in codes))
    train, val = counts["train"], counts["val"]
    largest, smallest = max(train, key=lambda c: (train[c], -c)), min(train, key=lambda c: (train[c], c))

    def name(code: int) -> str:
        return data.class_names[code] if data.class_names and code < len(data.class_names) else str(code)

    return {
        "classes": classes,
        "counts": {split: {name(c): rows.get(c, 0) for c in codes} for split, rows in counts.items()},
        "unused": [c for c in range(classes) if c not in codes],
        "missing_in_train": {s: [c for c in codes if c in counts[s] and c not in train] for s in ("val", "test")},
        "missing_in_val": [c for c in train if c not in val],
        "imbalance_ratio": train[largest] / train[smallest],
        "largest_class": name(largest),
        "smallest_class": name(smallest),
    }


def stray_labels(data: Data) -> str | None:
    """The message for labels above codes that occur in no row, with the rows; None where there are no such labels.

    One label 7 among 0 to 4 makes eight classes of five: more often a mistake in the row than three classes to come.
    Classes that the data name are meant.
    """
    by_split = {s.name: class_counts(s.y) for s in (data.train, data.val)} | {"test": data.test.counts}
    used = {int(code) for counts in by_split.values() for code in counts}
    empty = [code for code in range(max(used)) if code not in used]
    if not empty or data.class_names:
        return None
    stray = {code for code in used if code > empty[0]}
    places = [p for s in (data.train, data.val) for p in _places_of(s.name, s.y.numpy(), stray)]
    in_test = {int(code): rows for code, rows in data.test.counts.items() if int(code) in stray}
    places += [f"label {code} in {counted(rows, 'row')} of data.test" for code, rows in in_test.items()]
    codes = ", ".join(map(str, empty[:MAX_EXAMPLES])) + (", ..." if len(empty) > MAX_EXAMPLES else "")
    split = next(name for name, counts in by_split.items() if stray & set(map(int, counts)))
    what = f"labels lie above codes that no row has ({codes}): {'; '.join(places)}"
    do = "correct these rows, or number the classes 0, 1, 2, ...; name classes still to come in class_names"
    return fault(f"data.{split}.y", what, expected="class ids 0, 1, 2, ... without a gap", do=do)


def _places_of(split: str, labels: NDArray[Any], stray: Set[int]) -> Iterator[str]:
    """Where each of these labels occurs in a split, with the first rows."""
    for code in sorted(stray):
        rows = np.flatnonzero(labels == code).tolist()
        if rows:
            shown = ", ".join(map(str, rows[:MAX_EXAMPLES])) + (", ..." if len(rows) > MAX_EXAMPLES else "")
            yield f"label {code} in {'row' if len(rows) == 1 else 'rows'} {shown} of data.{split}"


def contradictions(digests: Sequence[str], y: Tensor) -> Contradictions:
    """The rows that have another row with equal features and another label.

    `digests` are those of the rows' features. Each example is a pair of row numbers with different labels, one pair for
    each group of equal rows.
    """
    labels = y.detach().cpu().numpy()
    _, group = np.unique(np.array(digests, dtype=str), return_inverse=True)
    group = group.reshape(-1)
    # A group of equal rows contradicts itself if its lowest label is not its highest.
    lowest = np.full(len(labels), np.iinfo(np.int64).max)
    highest = np.full(len(labels), np.iinfo(np.int64).min)
    np.minimum.at(lowest, group, labels)
    np.maximum.at(highest, group, labels)
    rows = np.flatnonzero((lowest != highest)[group])
    examples: dict[int, list[int]] = {}
    for row in rows.tolist():
        pair = examples.setdefault(int(group[row]), [row])
        if len(pair) == 1 and labels[pair[0]] != labels[row]:
            pair.append(row)
        if sum(len(p) == 2 for p in examples.values()) == MAX_EXAMPLES:
            break
    pairs = [pair for pair in examples.values() if len(pair) == 2]
    return {"rows": len(rows), "share": len(rows) / max(len(labels), 1), "examples": pairs}
