"""What the data say about the population that the model is meant for."""

from __future__ import annotations

from typing import TypedDict

from pipeline.data.analysis.manifest import slice_counts
from pipeline.data.analysis.representative import Representativeness, measure_representativeness
from pipeline.data.dataset import Data
from pipeline.data.splits import class_counts
from pipeline.readiness.on_test import TestShift
from pipeline.readiness.subject import Subject


class Population(TypedDict):
    """Rows per class and declared slice in each split, and distances between the splits and production rows.

    `population` is the owner's description; `test` how far test rows are from train, measured at their opening.
    """

    population: str | None
    classes: dict[str, dict[str, int]]
    slices: dict[str, dict[str, int]]
    representative: Representativeness
    test: TestShift


def measure_population(subject: Subject, test: TestShift) -> Population:
    """Measure how well the rows cover the classes, the declared slices and production data."""
    data, kind = subject.data, subject.task.kind
    return {
        "population": subject.config["plan"].get("population"),
        "classes": _support(data) if kind in ("classification", "binary") and data.train.y.ndim == 1 else {},
        "slices": slice_counts(data) if data.test.slices else {},
        "representative": measure_representativeness(data, kind),
        "test": test,
    }


def _support(data: Data) -> dict[str, dict[str, int]]:
    """Return the rows of each class by split."""
    counts = {"train": class_counts(data.train.y), "val": class_counts(data.val.y), "test": data.test.counts}
    classes = sorted({c for of in counts.values() for c in of}, key=int)
    named = data.class_names or ()
    names = {c: named[int(c)] if int(c) < len(named) else c for c in classes}
    return {names[c]: {split: of.get(c, 0) for split, of in counts.items()} for c in classes}
