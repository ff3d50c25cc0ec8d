"""Coverage of every 95 % interval: how often it contains the true value, for samples whose true value is known.

    make bench-intervals                         all cases; the table goes to benchmarks/intervals.md
    make bench-intervals ARGS='--only roc_auc'   the cases with this in their name; the table is printed only

Each cell draws samples of n rows from a distribution in which the metric has the true value of its column, scores them
with `confidence_interval`, and counts. Seeds are fixed. A cell of 400 samples has a standard error of 1.1 points at a
coverage of 95 %.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.evaluation.intervals.score import confidence_interval
from pipeline.evaluation.metrics import Metric, named_metric
from pipeline.evaluation.per_class import class_report

Array = NDArray[Any]
ROWS, VALUES, REQUIRED = (20, 36, 100, 360), (0.5, 0.9, 0.97, 1.0), 0.93
TABLE = Path(__file__).with_suffix(".md")


@dataclass(frozen=True)
class Sample:
    """One sample: targets, predictions, the true value of the metric, and the declared groups of its rows."""

    targets: Array
    predictions: Array
    truth: float
    groups: Array | None = None


Draw = Callable[[np.random.Generator, int, float], Sample]


@dataclass(frozen=True)
class Case:
    """A metric, a distribution of samples, what that is, and how many samples of each cell are drawn."""

    metric: str | Metric
    draw: Draw
    what: str
    samples: int = 400
    kind: str = "classification"

    @property
    def name(self) -> str:
        return f"{self.metric if isinstance(self.metric, str) else self.metric.name}, {self.what}"


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


def cases() -> list[Case]:
    """Every interval that the product prints."""
    found = [Case("accuracy", of_classes("recall_macro", EVEN), "2 classes", 2000)]
    found += [Case(RECALL, of_classes("recall_macro", shares), PRIORS[shares]) for shares in (TEN, RARE)]
    for name in ("balanced_accuracy", "f1_macro", "precision_macro", "jaccard_macro", "f1_weighted"):
        for shares in PRIORS:
            found.append(Case(name, of_classes(name, shares), PRIORS[shares]))
    for name in ("f1", "precision", "recall", "jaccard"):
        found.append(Case(name, of_classes(name, EVEN), PRIORS[EVEN], 400, "binary"))
    found.append(Case("f1", of_classes("f1", (0.8, 0.2)), "2 classes, 8 to 2", 400, "binary"))
    for shares in (EVEN, RARE):
        found.append(Case("matthews_corrcoef", of_classes("matthews", shares), PRIORS[shares]))
    for name in ("f1_macro", "f1_micro"):
        found.append(Case(name, of_labels(name), "4 labels", 400, "multilabel"))
    found.append(Case("accuracy", of_tokens, "rows of 32 tokens", kind="language_model"))
    for positive in (0.5, 0.2):
        share = f"{100 * positive:.0f} % positive"
        found.append(Case("roc_auc", binormal(positive), f"normal scores, {share}", 400, "binary"))
        found.append(Case("roc_auc", mistaken(positive), f"rows at the wrong end, {share}", 400, "binary"))
    found += [
        Case("roc_auc_ovr", one_vs_rest, "3 classes, rows of the wrong class"),
        Case("average_precision", average_precision, "normal scores, 30 % positive", 200, "binary"),
        Case("neg_log_loss", confident("neg_log_loss", 0.9), "rows sure to 90 %", kind="binary"),
        Case("neg_log_loss", confident("neg_log_loss", 0.999), "rows sure to 99.9 %", kind="binary"),
        Case("neg_brier_score", confident("neg_brier_score", 0.9), "rows sure to 90 %", kind="binary"),
        Case("perplexity", token_losses, "rows of 16 tokens", kind="language_model"),
    ]
    for errors in NOISE:
        found.append(Case("r2", of_values("r2", errors), f"{errors} errors", kind="regression"))
    found += [
        Case("r2", of_values("r2", "normal", "exponential"), "normal errors, exponential targets", kind="regression"),
        Case("explained_variance", of_values("explained_variance", "normal"), "normal errors", kind="regression"),
        Case("rmse", of_values("rmse", "normal"), "normal errors", kind="regression"),
        Case("rmse", of_values("rmse", "Laplace"), "Laplace errors", kind="regression"),
        Case("mae", of_values("mae", "normal"), "normal errors", kind="regression"),
        Case("mae", of_values("mae", "Laplace"), "Laplace errors", kind="regression"),
        Case(MEDIAN_ERROR, of_values("median", "normal"), "resampled", 100, "regression"),
        Case(WITHIN, near_or_far, "resampled", 100, "regression"),
        Case(NEAREST, two_places, "half samples", 60, "custom"),
        Case("accuracy", in_groups(5, 0.3), "groups of 5, correlation 0.3"),
        Case("accuracy", in_groups(4, 1.0), "groups of 4, all of a group alike"),
        Case("balanced_accuracy", in_groups(4, 0.3), "2 classes, groups of 4, correlation 0.3"),
        Case("roc_auc", binormal(0.5, 4), "normal scores, groups of 4", 400, "binary"),
        Case("r2", of_values("r2", "normal", size=4), "normal errors, groups of 4", kind="regression"),
    ]
    return found


def coverage(case: Case, n: int, value: float, samples: int) -> tuple[float, float]:
    """Return the share of intervals that contain the true value, and their median width."""
    rng = np.random.default_rng(zlib.crc32(f"{case.name} {n} {value}".encode()))
    metric = case.metric if isinstance(case.metric, Metric) else named_metric(case.metric, case.kind)
    classes = getattr(case.draw, "classes", 0)
    if metric is not None and classes and metric.name != "accuracy":
        metric = quick(metric, classes)
    contained, widths = 0, []
    for i in range(samples):
        sample = case.draw(rng, n, value)
        if metric is None:
            low, high = recall_limits(sample, rng)
        else:
            low, high, *_ = confidence_interval(metric, sample.targets, sample.predictions, i, sample.groups)
        contained += low - 1e-9 <= sample.truth <= high + 1e-9
        widths.append(high - low)
    return contained / samples, float(np.median(widths))


def recall_limits(sample: Sample, rng: np.random.Generator) -> tuple[float, float]:
    """The limits of the recall of one of the classes that have a row."""
    names = [str(k) for k in range(int(max(sample.targets.max(), sample.predictions.max())) + 1)]
    rows = [row for row in class_report(sample.targets, sample.predictions, names)["per_class"] if row["support"]]
    row = rows[int(rng.integers(len(rows)))]
    return row["recall_low"], row["recall_high"]


def _cell(place: tuple[int, int, float, float]) -> tuple[float, float]:
    index, n, value, scale = place
    case = cases()[index]
    return coverage(case, n, value, max(20, round(case.samples * scale)))


def table(lines: Sequence[tuple[Case, Sequence[tuple[float, float]]]]) -> str:
    """Return the table in Markdown: coverage in percent, and the median width at 36 rows and a true value of 0.97."""
    head = [f"{n}: {value:g}" for n in ROWS for value in VALUES]
    text = [f"| interval | {' | '.join(head)} | width |", f"|---|{'---|' * (len(head) + 1)}"]
    for case, cells in lines:
        shown = [f"**{100 * share:.1f}**" if share < REQUIRED else f"{100 * share:.1f}" for share, _ in cells]
        width = cells[ROWS.index(36) * len(VALUES) + VALUES.index(0.97)][1]
        text.append(f"| {case.name} | {' | '.join(shown)} | {width:.3g} |")
    return "\n".join(text)


def main() -> None:
    """Print the table, and write it if it is of all cases."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="cases with this in their name; the table is not written")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of samples")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    sklearn.set_config(skip_parameter_validation=True)  # it would take most of the time
    began, found = time.perf_counter(), cases()
    chosen = [i for i, case in enumerate(found) if args.only in case.name]
    places = [(i, n, value, args.scale) for i in chosen for n in ROWS for value in VALUES]
    per_case, results = len(ROWS) * len(VALUES), list[tuple[float, float]]()
    with ProcessPoolExecutor(args.jobs) as pool:
        for result in pool.map(_cell, places, chunksize=4):
            results.append(result)
            if len(results) % per_case == 0:
                lowest = min(share for share, _ in results[-per_case:])
                print(f"{found[chosen[len(results) // per_case - 1]].name}: {100 * lowest:.1f} % or more", flush=True)
    lines = [(found[i], results[k * per_case : (k + 1) * per_case]) for k, i in enumerate(chosen)]
    below = sum(share < REQUIRED for _, cells in lines for share, _ in cells)
    summary = f"{below} of {len(results)} cells are below {100 * REQUIRED:.0f} %."
    print(table(lines), summary, f"{time.perf_counter() - began:.0f} seconds", sep="\n")
    if not args.only and args.scale == 1:
        TABLE.write_text(NOTE.format(table=table(lines), summary=summary))


NOTE = """# Coverage of the intervals

Written by `make bench-intervals`. How often the 95 % interval contains the true value, in percent, for samples of n
rows (first number of a column) from a distribution with the true value (second number). Bold: below 93 %. The last
column is the median width at 36 rows and a true value of 0.97. For errors and losses, the second number says how good
the model is: R2 is that value, or a row is right with that probability, or the perplexity is its inverse. A figure is
of 400 samples, so that 95 means 93 to 97; for a metric of the user it is of 100 or of 60, so that 95 means 91 to 99, or
89 to 100.

{table}

{summary}
"""

if __name__ == "__main__":
    main()
