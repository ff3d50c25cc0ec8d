"""The rows of a rehearsal as the monitor sees them, and windows of them that are compared with the reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from pipeline.drift.answers import ServedModel
from pipeline.drift.compare import Comparison, Live, compare
from pipeline.drift.features import Array, Observations, frequent_tokens, input_observations, output_observations
from pipeline.drift.reference import MAX_ROWS, Reference
from pipeline.drift.shifts import Shift
from pipeline.export.exported import named_leaves
from pipeline.readiness.subject import Subject
from pipeline.serving.schema_file import Schema

MAX_WINDOW = 500  # rows of a window
STRETCHES = 40  # of the train rows that are compared with all others


class Rows:
    """The rows of a rehearsal as tensors, their order in time, the served model, and what is compared of them.

    Rows without times are in the order of their data.
    """

    def __init__(self, subject: Subject, folder: Path, schema: Schema) -> None:
        self.schema, self.seed = schema, subject.seed
        self.train, self.val = (tensors_of(split.X) for split in (subject.data.train, subject.data.val))
        times = [split.row_metadata.times for split in (subject.data.train, subject.data.val)]
        self.has_times = all(of is not None for of in times)
        self.train_order, self.val_order = (
            np.arange(len(next(iter(split.values())))) if of is None else np.argsort(of, kind="stable")
            for split, of in zip((self.train, self.val), times, strict=True)
        )
        self.task, self.takes = subject.task.kind, subject.task.takes
        self.tokens = frequent_tokens(schema, self.train)
        self.model = ServedModel(folder, schema)

    def live(self, tensors: Mapping[str, Array]) -> Live:
        """Return rows as the monitor sees them."""
        outputs, answered = self.model.answer(tensors)
        inputs = input_observations(self.schema, tensors, self.tokens)
        if not outputs:
            return Live(inputs, None, int((~answered).sum()))
        rows = {name: values[answered] for name, values in tensors.items()}
        observed = output_observations(outputs, self.task, self.takes, rows)
        return Live(inputs, observed, int((~answered).sum()))


def tensors_of(X: object) -> dict[str, Array]:
    leaves = named_leaves(X)  # type: ignore[arg-type]
    return {name: leaf.cpu().numpy() if isinstance(leaf, Tensor) else leaf for name, leaf in leaves.items()}


def taken(tensors: Mapping[str, Array], rows: Array) -> dict[str, Array]:
    return {name: values[rows] for name, values in tensors.items()}


class Windows:
    """Windows of validation rows, each compared with the reference without its rows.

    `origin` has the row that each row of the reference is, counted over train rows and then validation rows.
    """

    def __init__(self, reference: Reference, rows: Rows, origin: Array) -> None:
        self.reference, self.rows, self.origin = reference, rows, origin
        self.trained, self.count = (len(next(iter(of.values()))) for of in (rows.train, rows.val))
        self.size = min(self.count // 2, MAX_WINDOW)
        clean = rows.live(rows.val)
        self.clean = clean if not clean.refused else None  # else rows and outputs do not correspond

    def drawn(self, rng: np.random.Generator) -> Array:
        """Return the validation rows of a window: any, or consecutive ones where stretches of the data differ."""
        if self.reference.about["bounds"]:
            start = int(rng.integers(self.count - self.size + 1))
            return self.rows.val_order[start : start + self.size]
        chosen: Array = rng.choice(self.count, self.size, replace=False)
        return chosen

    def of_train(self, rng: np.random.Generator) -> list[Comparison]:
        """Compare stretches of consecutive train rows, each as long as a window, with the other train rows.

        What the model answers to them is compared with what it answers to other train rows: it knows all of them.
        """
        starts = np.unique(np.linspace(0, self.trained - self.size, STRETCHES).astype(int))
        answered = np.sort(rng.permutation(self.trained)[:MAX_ROWS])
        known = self.rows.live(taken(self.rows.train, answered))
        validation = self.trained + np.arange(self.count)
        comparisons = []
        for stretch in (self.rows.train_order[start : start + self.size] for start in starts if start >= 0):
            live = self.rows.live(taken(self.rows.train, stretch))
            outputs = (
                None if known.refused or known.outputs is None else known.outputs.take(~np.isin(answered, stretch))
            )
            reference = self._without(np.r_[stretch, validation], outputs)
            comparisons.append(compare(reference, live, rng, distances=False))
        return comparisons

    def _without(self, rows: Array, outputs: Observations | None) -> Reference:
        """Return the reference with these outputs and without the inputs of these rows, train rows first."""
        others = ~np.isin(self.origin, rows)
        return Reference(self.reference.about, self.reference.inputs.take(others), outputs)

    def compared(self, chosen: Array, shift: Shift | None, rng: np.random.Generator) -> Comparison:
        """Return the comparison of these validation rows, shifted or as they are."""
        in_window = np.zeros(self.count, bool)
        in_window[chosen] = True
        reference = self._without(chosen + self.trained, self._outputs(in_window, rng))
        if shift is None and self.clean is not None:
            answers = self.clean.outputs
            live = Live(self.clean.inputs.take(chosen), None if answers is None else answers.take(chosen))
        else:
            tensors = taken(self.rows.val, chosen)
            live = self.rows.live(tensors if shift is None else shift.change(tensors, rng))
        return compare(reference, live, rng, distances=False)

    def _outputs(self, in_window: Array, rng: np.random.Generator) -> Observations | None:
        """Return what the model answers to validation rows outside of the window, as many as a reference has."""
        if self.clean is None or self.clean.outputs is None:
            return self.reference.outputs
        others = np.flatnonzero(~in_window)
        chosen = others if len(others) <= MAX_ROWS else rng.choice(others, MAX_ROWS, replace=False)
        return self.clean.outputs.take(chosen)
