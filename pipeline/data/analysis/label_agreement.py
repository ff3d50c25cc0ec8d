"""Which train rows have a target that a simple model, fitted on the other rows, does not expect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.splits import Split
from pipeline.data.tree import named_leaves

FOLDS = 5
TREES = 50
MAX_ROWS = 5000  # that a forest is fitted on
COLUMNS = 400
DEVIATIONS = 3.0  # robust deviations of the residuals, beyond which a value is not expected


@dataclass(frozen=True, eq=False)
class Agreement:
    """Whether the target of each row is expected [N], and what a forest that did not see the row expects [N]."""

    agrees: NDArray[np.bool_]
    expected: NDArray[Any]


def label_agreement(train: Split) -> Agreement:
    """Compare every target with the prediction of a forest that was fitted on other folds of the rows.

    A class agrees where it is the predicted one, a value where it is within 3 robust deviations of its prediction.
    Raises ValueError for targets that are not one number per row.
    """
    from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor
    from sklearn.model_selection import KFold

    y = train.y.reshape(-1).numpy()
    if len(y) != len(train) or len(train) < 2 * FOLDS:
        raise ValueError("the targets are not one number per row")
    table, is_class = _table(train), not train.y.is_floating_point()
    kind: Any = ExtraTreesClassifier if is_class else ExtraTreesRegressor
    expected = np.empty_like(y)
    for fitted, left_out in KFold(FOLDS, shuffle=True, random_state=0).split(table):
        rows = fitted[:MAX_ROWS]
        forest = kind(TREES, min_samples_leaf=2, random_state=0, n_jobs=1).fit(table[rows], y[rows])
        expected[left_out] = forest.predict(table[left_out])
    if is_class:
        return Agreement(expected == y, expected)
    residual = np.abs(y - expected)
    return Agreement(residual <= DEVIATIONS * 1.4826 * np.median(residual), expected)


def _table(train: Split) -> NDArray[np.float32]:
    """The rows as finite numbers [N, F], of which at most 400 columns, at equal distances, are taken."""
    leaves = [leaf for leaf in named_leaves(train.X).values() if isinstance(leaf, Tensor)]
    table = np.concatenate([leaf.reshape(len(train), -1).float().numpy() for leaf in leaves], axis=1)
    columns = table[:, :: max(1, -(-table.shape[1] // COLUMNS))]
    return np.clip(np.nan_to_num(columns, posinf=1e30, neginf=-1e30), -1e30, 1e30).astype(np.float32)
