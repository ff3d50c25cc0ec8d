"""Samples whose metric has a known true value: targets and predictions of n rows, drawn from a distribution."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.metrics import Metric

Array = NDArray[Any]


@dataclass(frozen=True)
class Sample:
    """One sample: targets, predictions, the true value of the metric, and the declared groups of its rows."""

    targets: Array
    predictions: Array
    truth: float
    groups: Array | None = None


Draw = Callable[[np.random.Generator, int, float], Sample]


# --- classes ---------------------------------------------------------------------------------------------------------

EVEN, UNEVEN, TEN, RARE = (0.5, 0.5), (0.9, 0.1), (0.1,) * 10, (0.6, 0.2, 0.1, 0.07, 0.03)
PRIORS = {EVEN: "2 classes", UNEVEN: "2 classes, 9 to 1", TEN: "10 classes", RARE: "5 classes, rare ones of 7 and 3 %"}


def confusion(shares: Sequence[float], right: float) -> Array:
    """The joint probabilities of true and predicted class, if a row is right with probability `right`."""
    joint = np.outer(shares, np.full(len(shares), (1 - right) / (len(shares) - 1)))
    np.fill_diagonal(joint, np.multiply(shares, right))
    return joint


def average_of(name: str, joint: Array) -> float:
    """The metric of counts, or probabilities, of true (row) and predicted (column) class: quicker than scikit-learn."""
    hits, true, predicted = joint.diagonal(), joint.sum(axis=1), joint.sum(axis=0)
    share, _, average = name.partition("_")
    if share == "matthews":
        n, both = joint.sum(), (true * predicted).sum()
        squares = (n**2 - (true**2).sum()) * (n**2 - (predicted**2).sum())
        return float((hits.sum() * n - both) / math.sqrt(squares)) if squares > 0 else 0.0
    over = {"recall": true, "balanced": true, "precision": predicted, "f1": (true + predicted) / 2}
    trials = over.get(share, true + predicted - hits)
    shares = np.where(trials > 0, hits / np.where(trials > 0, trials, 1), 0.0)
    if not average:
        return float(shares[1])
    weights = true if average == "weighted" else (true > 0 if share == "balanced" else true + predicted > 0)
    return float((shares * weights).sum() / weights.sum())


@functools.cache
def solved(name: str, shares: Sequence[float], value: float) -> tuple[Array, float]:
    """The joint probabilities whose metric has the value, which falls with the share of wrong rows; and the value."""
    low, high = 1e-6, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if average_of(name, confusion(shares, middle)) < value else (low, middle)
    joint = confusion(shares, 1.0 if value == 1 else high)
    return joint, average_of(name, joint)


def quick(metric: Metric, classes: int) -> Metric:
    """The metric of class ids with a function that takes a fiftieth of the time."""

    def value(targets: Array, predictions: Array) -> float:
        cells = np.bincount(targets * classes + predictions, minlength=classes**2)
        return average_of(metric.name, cells.reshape(classes, classes).astype(float))

    return replace(metric, function=value)


def of_classes(name: str, shares: Sequence[float]) -> Draw:
    def draw(rng: np.random.Generator, n: int, value: float) -> Sample:
        joint, truth = solved(name, shares, value)
        cells = rng.choice(joint.size, n, p=joint.reshape(-1))
        return Sample(*np.divmod(cells, len(shares)), truth)

    draw.classes = len(shares)  # type: ignore[attr-defined]
    return draw


def of_labels(name: str) -> Draw:
    """Four labels, each on half of the rows; half of the wrong rows are wrong in all labels, the others in one."""

    def draw(rng: np.random.Generator, n: int, value: float) -> Sample:
        # A label that is wrong with probability e has as many false positives as false negatives: F1 is 1 - e.
        wrong = 1 - value
        targets = (rng.random((n, 4)) < 0.5).astype(int)
        together = rng.random((n, 1)) < wrong / 2
        alone = (rng.random((n, 4)) < wrong / 2 / (1 - wrong / 2)) & ~together
        return Sample(targets, np.where(together | alone, 1 - targets, targets), value)

    return draw


def of_tokens(rng: np.random.Generator, n: int, value: float) -> Sample:
    """Rows of 32 tokens; the share of right ones differs from row to row."""
    shares = rng.beta(8 * value, 8 * (1 - value), (n, 1)) if value < 1 else np.ones((n, 1))
    targets = rng.integers(0, 9, (n, 32))
    return Sample(targets, np.where(rng.random((n, 32)) < shares, targets, 9), value)


def in_groups(size: int, correlation: float, name: str = "accuracy") -> Draw:
    """Groups of rows whose correctness is correlated within a group; two classes."""

    def draw(rng: np.random.Generator, n: int, value: float) -> Sample:
        groups = np.arange(n) // size
        k, count = (1 - correlation) / correlation, groups[-1] + 1
        if value == 1 or not k:
            shares = (rng.random(count) < value).astype(float)
        else:
            shares = rng.beta(k * value, k * (1 - value), count)
        targets = rng.integers(0, 2, n)
        right = rng.random(n) < shares[groups]
        return Sample(targets, np.where(right, targets, 1 - targets), value, groups)

    return draw


# --- scores ----------------------------------------------------------------------------------------------------------


def binormal(positive: float, size: int | None = None) -> Draw:
    """Normal scores in both classes, `positive` of the rows in class 1; with `size`, groups share part of the noise."""

    def draw(rng: np.random.Generator, n: int, value: float) -> Sample:
        from scipy.special import ndtri

        distance = math.sqrt(2) * float(ndtri(value)) if value < 1 else 60.0
        targets = (rng.random(n) < positive).astype(int)
        targets[:4] = (0, 0, 1, 1)
        noise = rng.normal(size=n)
        groups = None if size is None else np.arange(n) // size
        if groups is not None:
            noise = math.sqrt(0.7) * noise + math.sqrt(0.3) * rng.normal(size=groups[-1] + 1)[groups]
        return Sample(targets, targets * distance + noise, value, groups)

    return draw


def mistaken(positive: float) -> Draw:
    """Positive rows that are above all negative rows, or, the mistaken ones, below all of them."""

    def draw(rng: np.random.Generator, n: int, value: float) -> Sample:
        targets = (rng.random(n) < positive).astype(int)
        targets[:4] = (0, 0, 1, 1)
        sign = np.where(rng.random(n) < value, 20.0, -20.0)
        return Sample(targets, targets * sign + rng.normal(size=n), value)

    return draw


def one_vs_rest(rng: np.random.Generator, n: int, value: float) -> Sample:
    """Three classes; rows are sure of one of them, of the right one so often that the mean area has its value."""
    right = (4 * value - 1) / 3
    targets = rng.integers(0, 3, n)
    targets[:6] = (0, 0, 1, 1, 2, 2)
    chosen = np.where(rng.random(n) < right, targets, (targets + rng.integers(1, 3, n)) % 3)
    scores = 9 * np.eye(3)[chosen] + rng.random((n, 3))
    return Sample(targets, scores / scores.sum(axis=1, keepdims=True), value)


@functools.cache
def precision_distance(positive: float, value: float) -> float:
    """The distance of normal scores of both classes at which average precision has the value."""
    from scipy.special import ndtr

    x = np.linspace(-9, 75, 84001)
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)

    def at(distance: float) -> float:
        of_positive = np.interp(x - distance, x, density, left=0.0)
        above, negatives = positive * ndtr(distance - x), (1 - positive) * ndtr(-x)
        return float(np.sum(of_positive * above / np.maximum(above + negatives, 1e-300)) * (x[1] - x[0]))

    low, high = 0.0, 12.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle) < value else (low, middle)
    return high


def average_precision(rng: np.random.Generator, n: int, value: float) -> Sample:
    """Normal scores, three rows of ten positive."""
    distance = precision_distance(0.3, value) if value < 1 else 60.0
    targets = (rng.random(n) < 0.3).astype(int)
    targets[:4] = (0, 0, 1, 1)
    return Sample(targets, targets * distance + rng.normal(size=n), value)


def confident(name: str, chosen: float) -> Draw:
    """Every row gives its class the probability `chosen`, and is right with the probability of the column."""

    def draw(rng: np.random.Generator, n: int, value: float) -> Sample:
        targets = rng.integers(0, 2, n)
        right = rng.random(n) < value
        scores = np.where(right == (targets == 1), chosen, 1 - chosen)
        if name == "neg_log_loss":
            truth = value * math.log(chosen) + (1 - value) * math.log(1 - chosen)
        else:
            truth = -(value * (1 - chosen) ** 2 + (1 - value) * chosen**2)
        return Sample(targets, scores, truth)

    return draw


def token_losses(rng: np.random.Generator, n: int, value: float) -> Sample:
    """Rows of 16 tokens with a mean loss of -ln(value), which differs from row to row."""
    scale = -math.log(value) * rng.gamma(4, 0.25, (n, 1))
    return Sample(rng.integers(0, 9, (n, 16)), rng.exponential(1, (n, 16)) * scale, 1 / value)


# --- values ----------------------------------------------------------------------------------------------------------

NOISE: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "Laplace": lambda rng, n: rng.laplace(0, math.sqrt(0.5), n),
    "t with 5 degrees": lambda rng, n: rng.standard_t(5, n) * math.sqrt(0.6),
    "exponential": lambda rng, n: rng.exponential(1, n) - 1,
}
ABSOLUTE = {"normal": math.sqrt(2 / math.pi), "Laplace": math.sqrt(0.5)}  # mean absolute value of unit variance
MEDIAN = {"normal": 0.6744897501960817}


def of_values(name: str, errors: str, targets: str = "normal", size: int | None = None) -> Draw:
    """Targets of variance 1, and errors whose variance is 1 minus the value of the column: R2 is that value."""

    def draw(rng: np.random.Generator, n: int, value: float) -> Sample:
        y, error = NOISE[targets](rng, n), NOISE[errors](rng, n)
        groups = None if size is None else np.arange(n) // size
        if groups is not None:  # half of the variance, of targets and of errors, is between groups
            count = groups[-1] + 1
            y, error = (math.sqrt(0.5) * (x + rng.normal(size=count)[groups]) for x in (y, error))
        deviation = math.sqrt(1 - value)
        truth = {
            "rmse": deviation,
            "mae": deviation * ABSOLUTE.get(errors, 0),
            "median": deviation * MEDIAN.get(errors, 0),
        }.get(name, value)
        return Sample(y, y + deviation * error, truth, groups)

    return draw


# --- metrics of a user's own -----------------------------------------------------------------------------------------


def within(targets: Array, predictions: Array) -> float:
    """The share of predictions within 1 of the target."""
    return float((np.abs(targets - predictions) < 1).mean())


def near_or_far(rng: np.random.Generator, n: int, value: float) -> Sample:
    targets = rng.normal(0, 9, n)
    return Sample(targets, targets + np.where(rng.random(n) < value, 0.5, 30.0), value)


def nearest_label(labels: Array, positions: Array) -> float:
    """The share of rows whose nearest other row has their label."""
    if len(labels) < 2:
        return math.nan
    order = np.argsort(positions)
    ordered, gaps = labels[order], np.diff(positions[order])
    left, right = np.append(math.inf, gaps), np.append(gaps, math.inf)
    return float((np.where(left < right, np.roll(ordered, 1), np.roll(ordered, -1)) == ordered).mean())


def two_places(rng: np.random.Generator, n: int, value: float) -> Sample:
    """Two labels with a place each, and rows at the other label's place, so often that the metric has its value."""
    right = (1 + math.sqrt(2 * value - 1)) / 2
    labels = rng.integers(0, 2, n)
    place = np.where(rng.random(n) < right, labels, 1 - labels)
    return Sample(labels, 100.0 * place + rng.random(n), value)


def median_error(targets: Array, predictions: Array) -> float:
    return float(np.median(np.abs(targets - predictions)))


WITHIN = Metric("user's share", within, "values", users_own=True)
MEDIAN_ERROR = Metric("user's median error", median_error, "values", greater_is_better=False, users_own=True)
NEAREST = Metric("user's nearest label", nearest_label, "values", users_own=True)
RECALL = "recall in the report of a class"
