"""What the labels say: which classes there are, how often each, and which rows contradict each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pipeline.data.splits import class_counts

if TYPE_CHECKING:
    from pipeline.data.dataset import Data

EXAMPLES = 5


def label_facts(data: Data, kind: str) -> dict[str, Any]:
    """Codes and counts of the classes of each split: `{classes, counts, unused, unlearned, unseen, ratio, ...}`.

    `unused`: codes below the number of classes that no row of any split bears. `unlearned`: codes that validation or
    test bear and train does not; `unseen`: those of train that validation does not bear. `ratio`: rows of the largest
    class of train over those of its smallest.
    """
    counts = {s.name: {int(c): n for c, n in class_counts(s.y).items()} for s in (data.train, data.val)}
    counts["test"] = {int(c): n for c, n in data.test.counts.items()}
    there = sorted(set().union(*counts.values()))
    known = max(data.classes or 0, 2 if kind == "binary" else 1, *(c + 1 for c in there))
    train, val = counts["train"], counts["val"]
    large, small = max(train, key=lambda c: (train[c], -c)), min(train, key=lambda c: (train[c], c))

    def name(code: int) -> str:
        return data.class_names[code] if data.class_names and code < len(data.class_names) else str(code)

    return {
        "classes": known,
        "counts": {split: {name(c): of.get(c, 0) for c in there} for split, of in counts.items()},
        "unused": [c for c in range(known) if c not in there],
        "unlearned": {s: [c for c in there if counts[s].get(c) and not train.get(c)] for s in ("val", "test")},
        "unseen": [c for c in train if c not in val],
        "ratio": train[large] / train[small],
        "largest": name(large),
        "smallest": name(small),
    }


def contradictions(digests: Sequence[str], y: Tensor) -> dict[str, Any]:
    """The rows that have another with equal features and another label: `{rows, share, examples}`.

    Each example is two row numbers of one such group, with different labels.
    """
    labels = y.detach().cpu().numpy()
    _, group = np.unique(np.array(digests, dtype=str), return_inverse=True)
    group = group.reshape(-1)
    lowest = np.full(len(labels), np.iinfo(np.int64).max)
    highest = np.full(len(labels), np.iinfo(np.int64).min)
    np.minimum.at(lowest, group, labels)
    np.maximum.at(highest, group, labels)
    wrong = np.flatnonzero((lowest != highest)[group])
    examples: dict[int, list[int]] = {}
    for row in wrong.tolist():
        pair = examples.setdefault(int(group[row]), [row])
        if len(pair) == 1 and labels[pair[0]] != labels[row]:
            pair.append(row)
        if sum(len(p) == 2 for p in examples.values()) == EXAMPLES:
            break
    pairs = [pair for pair in examples.values() if len(pair) == 2]
    return {"rows": len(wrong), "share": len(wrong) / max(len(labels), 1), "examples": pairs}
