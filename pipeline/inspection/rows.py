"""Rows: are train and validation rows alike, with the same labels, and does one feature give the labels away?

Small forests answer, each on a few hundred rows. They need no scaling and find what a single column does not show.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, permutations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.splits import Split
from pipeline.data.tree import Tree, named_leaves
from pipeline.inspection.finding import FEATURE, ONE_FEATURE, Finding, Measured, contradiction
from pipeline.inspection.subject import Subject
from pipeline.preprocess.modules import ScaledLoss

if TYPE_CHECKING:
    from pipeline.engine.setup import TrainingComponents

ROWS = 600  # of each split at most
COLUMNS = 200
TREES = 40
BATCHES = 20  # of the first epoch whose labels are looked at
FOLDS = 3
FEWEST = 24  # rows of a split that say anything
MAX_CLASSES = 6  # whose ids are tried in every order
SIGNAL = 0.1  # accuracy above that of the most frequent class, or explained variance, of a model that has learned
ALL_MISSING = 0.85  # of what validation rows teach: what is left may be chance
CERTAIN = 0.999  # of the rows: a feature that gives the target away

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows as a table [N, F] of finite numbers and their targets [N], with the numbers of the features that it has."""

    X: Array
    y: Array
    features: Array


def inspect_rows(
    train: Split, val: Split, augmented: tuple[Tree, Tensor] | None, kind: str
) -> Iterator[Finding | Measured]:
    """Yield how the splits differ and how much of the target simple models find.

    `augmented` are train rows as the model receives them, where they differ from the rows of the split.
    """
    first, second = table_of(train.X, train.y), table_of(val.X, val.y)
    if first is None or second is None:
        return
    yield from _one_feature(first, second, kind)
    if min(len(first.y), len(second.y)) < FEWEST:
        return
    apart = told_apart(first.X, second.X)
    yield Measured("splits_told_apart", apart)
    if augmented is None:
        yield from (Measured("augmented_told_apart", apart), Measured("signal_after_augmentation", 1.0))
    else:
        changed = table_of(*augmented)
        if changed is not None and changed.X.shape[1] == second.X.shape[1]:
            yield Measured("augmented_told_apart", told_apart(changed.X, second.X))
            if kind in ("classification", "binary"):
                plain, after = cross_validated(first), cross_validated(changed)
                chance = majority(first.y)
                if plain > chance + SIGNAL:
                    yield Measured("signal_after_augmentation", (after - chance) / (plain - chance))
    if kind in ("classification", "binary"):
        yield from _labels(first, second)
    elif kind == "regression":
        yield from _numbers(first, second)


def table_of(X: Tree, y: object) -> Sample | None:
    """Return some rows as a table; None for targets that are not one number per row, and for other inputs."""
    if not isinstance(y, Tensor) or y.numel() != len(y) or not len(y):
        return None
    draw = np.random.default_rng(0)
    rows = np.sort(draw.permutation(len(y))[:ROWS])
    parts = [leaf[rows].reshape(len(rows), -1).numpy() for leaf in named_leaves(X).values() if isinstance(leaf, Tensor)]
    table = np.concatenate(parts, axis=1).astype(np.float64)
    columns = np.sort(draw.permutation(table.shape[1])[:COLUMNS])
    table = np.clip(np.nan_to_num(table[:, columns], posinf=1e30, neginf=-1e30), -1e30, 1e30)
    return Sample(table, y[rows].reshape(-1).numpy(), columns)


def _forest() -> Any:
    from sklearn.ensemble import ExtraTreesClassifier

    return ExtraTreesClassifier(TREES, min_samples_leaf=2, random_state=0, n_jobs=1)


def told_apart(first: Array, second: Array) -> float:
    """Return the area under the curve of a forest that tells rows of two samples apart; 0.5 where they are alike.

    Lopez-Paz and Oquab, Revisiting classifier two-sample tests, 2017.
    """
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    n = min(len(first), len(second), ROWS // 2)
    X = np.concatenate([first[:n], second[:n]]).astype(np.float32)
    y = np.repeat([0, 1], n)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    scores = cross_val_predict(_forest(), X, y, cv=folds, method="predict_proba")[:, 1]
    return float(roc_auc_score(y, scores))


def majority(y: Array) -> float:
    return float(np.unique(y, return_counts=True)[1].max() / len(y))


def cross_validated(sample: Sample) -> float:
    """Return the accuracy of a forest on rows of the sample that it did not see."""
    from sklearn.model_selection import KFold, cross_val_predict

    folds = KFold(FOLDS, shuffle=True, random_state=0)
    return float((cross_val_predict(_forest(), sample.X.astype(np.float32), sample.y, cv=folds) == sample.y).mean())


def _labels(train: Sample, val: Sample) -> Iterator[Finding | Measured]:
    """Compare the accuracy on unseen train rows with the one on validation rows, also with classes exchanged."""
    classes = np.unique(train.y)
    if len(classes) < 2:
        others = sorted(set(np.unique(val.y).tolist()) - set(classes.tolist()))
        if others:
            sentence = (
                f"Every train row has class {classes[0]}, but validation has also {', '.join(map(str, others[:5]))}."
            )
            yield contradiction("labels_misencoded", "one_class", sentence, 1.0, "classes")
        return
    chance = majority(train.y)
    within, within_val = cross_validated(train), cross_validated(val)
    forest = _forest().fit(train.X.astype(np.float32), train.y)
    predicted = forest.predict(val.X.astype(np.float32))
    across = float((predicted == val.y).mean())
    yield Measured("accuracy_lost_on_validation", within - across)
    yield Measured("accuracy_gained_on_validation", across - within)
    signal, signal_of_val = max(within, across) - chance, within_val - majority(val.y)
    yield Measured("signal_in_features", max(signal, signal_of_val))
    expected = _forest().fit(val.X.astype(np.float32), val.y).predict(train.X.astype(np.float32))
    yield from _missing_in_train(max(signal, float((expected == train.y).mean()) - chance), signal_of_val)
    known = np.unique(np.concatenate([classes, np.unique(val.y)]))
    if len(known) > MAX_CLASSES:
        return
    gained = 0.0
    if within > chance + SIGNAL:  # a model that has learned nothing agrees with some order of the classes by chance
        orders = [dict(zip(known.tolist(), order, strict=True)) for order in permutations(known.tolist())]
        gained = max(float((np.vectorize(order.get)(predicted) == val.y).mean()) for order in orders) - across
    yield Measured("accuracy_by_exchanging_classes", gained)


def _missing_in_train(signal: float, signal_of_val: float) -> Iterator[Measured]:
    """Yield which share of what can be learned from validation rows cannot be learned from train rows.

    `signal` is the most of what train targets share with their features: on unseen train rows, on validation rows, and
    with what a model of the validation rows expects. Where next to nothing is left, the targets are of other rows;
    where a part is, some of them are wrong.
    """
    missing = max(0.0, 1 - max(0.0, signal) / signal_of_val) if signal_of_val > 2 * SIGNAL else 0.0
    yield Measured("signal_missing_in_train", missing if missing >= ALL_MISSING else 0.0)
    yield Measured("signal_reduced_in_train", missing if missing < ALL_MISSING else 0.0)


def _numbers(train: Sample, val: Sample) -> Iterator[Measured]:
    """The share of the variance of numeric targets that a forest explains on rows that it did not see."""
    from sklearn.ensemble import ExtraTreesRegressor
    from sklearn.model_selection import KFold, cross_val_score

    y, y_val = (sample.y.astype(np.float64) for sample in (train, val))
    with np.errstate(all="ignore"):
        spreads = y.std(), y_val.std()
    if not all(0 < spread < np.inf for spread in spreads):  # constant, not finite, or too large or small to be squared
        return
    y, y_val = (y - y.mean()) / spreads[0], (y_val - y.mean()) / spreads[0]
    X, X_val = train.X.astype(np.float32), val.X.astype(np.float32)
    forest = ExtraTreesRegressor(TREES, min_samples_leaf=2, random_state=0, n_jobs=1)
    folds = KFold(FOLDS, shuffle=True, random_state=0)
    within, within_val = (
        float(cross_val_score(forest, rows, numbers, cv=folds, scoring="r2").mean())
        for rows, numbers in ((X, y), (X_val, y_val))
    )
    across = float(forest.fit(X, y).score(X_val, y_val))
    yield Measured("variance_in_features", max(within, across, within_val))
    yield from _missing_in_train(max(within, across, float(forest.fit(X_val, y_val).score(X, y))), within_val)


def _one_feature(train: Sample, val: Sample, kind: str) -> Iterator[Measured]:
    """The share of the target that the best single feature determines, and whether it does so on validation too."""
    if len(train.y) < FEWEST or len(np.unique(train.y)) < 2 or train.X.shape[1] < 2:
        return
    if kind in ("classification", "binary"):
        scores = np.array([_determined(train.X[:, f], train.y) for f in range(train.X.shape[1])])
        best = int(np.argmax(scores))
        ranked = np.sort(scores)
        yield Measured(ONE_FEATURE, float(scores[best]), f"{FEATURE}{train.features[best]}")
        yield Measured("feature_ahead_of_others", float(ranked[-1] - ranked[-2]), f"{FEATURE}{train.features[best]}")
        if scores[best] > CERTAIN and len(val.y) >= FEWEST:
            there = _determined(val.X[:, best], val.y)
            yield Measured(
                "feature_lost_on_validation", float(scores[best]) - there, f"{FEATURE}{train.features[best]}"
            )
    elif kind == "regression":
        with np.errstate(all="ignore"):
            related = np.nan_to_num(np.abs(np.corrcoef(train.X, train.y, rowvar=False)[-1, :-1]))
        best = int(np.argmax(related))
        yield Measured(ONE_FEATURE, float(related[best]), f"{FEATURE}{train.features[best]}")


def _determined(feature: Array, y: Array) -> float:
    """Return the share of rows whose class follows from the value of a feature that has few values; else 0."""
    values, which = np.unique(feature, return_inverse=True)
    if len(values) > max(2, len(y) // 4):
        return 0.0
    _, codes = np.unique(y, return_inverse=True)
    counts = np.zeros((len(values), int(codes.max()) + 1))
    np.add.at(counts, (which, codes), 1)
    return float((counts.max(axis=1).sum() / len(y) - majority(y)) / max(1 - majority(y), 1e-9))


def inspect_targets(subject: Subject) -> Iterator[Measured]:
    """Yield the spread and the mean of numeric targets, on the scale on which the loss compares them."""
    task, targets = subject.task, subject.targets
    kind = task.kind if task is not None else subject.kind
    if not isinstance(targets, Tensor) or kind not in ("regression", "") or not targets.is_floating_point():
        return
    if task is not None and isinstance(task.loss, ScaledLoss):
        targets = task.loss.standardize(targets)
    values = targets.detach().double()
    values = values[torch.isfinite(values)]
    if len(values) < 2:
        return
    spread, mean = float(values.std()), float(values.mean())
    if spread > 0:
        yield Measured("target_spread_high", spread)
        yield Measured("target_spread_low", spread)
        yield Measured("target_mean_over_one", abs(mean) / max(1.0, min(spread, 1.0)))


def inspect_order(setup: TrainingComponents) -> Iterator[Measured]:
    """Yield how much of the labels' variety is missing inside the first batches of the first epoch.

    A data set that has to be read row by row is left out.
    """
    y = setup.train.y
    if setup.train.dataset is not None or not isinstance(y, Tensor) or y.is_floating_point() or y.ndim != 1:
        return
    groups = islice(setup.batches.accumulation_groups(1), BATCHES)
    batches = [y.numpy()[batch.rows] for group in groups for batch in group]
    yield from labels_in_order(y.numpy(), batches)


def labels_in_order(labels: Array, batches: Sequence[Array]) -> Iterator[Measured]:
    """Yield how much of the variety of all labels is missing inside batches, for at least three batches of four rows.

    It is 0 for batches that were drawn by chance, and 1 where each has one class.
    """
    overall, large = _variety(labels), [batch for batch in batches if len(batch) >= 4]
    if overall > 0 and len(large) >= 3:
        chance = overall * (1 - 1 / max(map(len, large)))
        yield Measured("labels_in_order", max(0.0, 1 - float(np.mean([_variety(batch) for batch in large])) / chance))


def _variety(labels: Array) -> float:
    """Return the probability that two rows have different labels."""
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    return float(1 - (shares**2).sum())
