"""Compare the outputs of an exported file with those of the trained model, value by value and class by class.

The size of a difference is relative to the model's value where that is above 1: |d| / max(1, |value|).
"""

from __future__ import annotations

from typing import NamedTuple, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.evaluation.task import Task
from pipeline.export.exported import Batch, map_leaves, row_count
from pipeline.export.proof_rows import ProofRows
from pipeline.export.runners import Outputs, Runner
from pipeline.export.served_model import LABEL, OUTPUT, PROBABILITIES

BATCH_SIZES = (1, 2, 7)  # a squeezed batch axis fails at 1; 2 is the size of the trace, 7 is another one
SMALL_ROWS = 256  # rows for small batches, which test the batch axis and not the values
LARGEST = 1024  # rows of the largest batch


class Difference(TypedDict):
    """The largest difference of one output: its size, and where it is."""

    size: float
    output: str
    row: int
    index: list[int]
    model: float | None
    file: float | None
    shapes: NotRequired[list[list[int]]]  # of model and file, where they differ: the size is infinite


class Parity(TypedDict):
    """How far a file is from the model over some rows.

    `largest` is the largest difference over all outputs, `by_output` its size for each. `class_changes` counts rows
    whose predicted class differs, and `largest_margin` is the largest distance of the two largest scores of the model
    among them, relative to the largest score where that is above 1; `class_changes` is None where rows have no classes.
    `label_changes` counts rows whose class name is not the one of the file's own largest probability.
    """

    rows: int
    largest: Difference
    by_output: dict[str, float]
    class_changes: int | None
    largest_margin: float
    label_changes: int


class MetricDifference(TypedDict):
    """The deciding metric on validation of model and file; `bounded`: its values are fractions of 1."""

    name: str
    model: float
    file: float
    bounded: bool


class ModelParity(TypedDict):
    """The proof of one file: the parity at every batch size, the worst of all, and the metric of both.

    `nan_rows` counts validation rows for which the model's own outputs are NaN. `metric` is None, with `metric_why`,
    where outputs alone have no metric. `first` names the first differing value, where one differs by more than the
    tolerance of the proof.
    """

    rows: dict[str, int]
    outputs: list[str]
    worst: Parity
    batches: dict[str, Parity]
    nan_rows: int
    metric: MetricDifference | None
    metric_why: str
    first: str


class Classes(NamedTuple):
    """The axis of `output` that holds scores of classes, None without, and the names of `label`."""

    axis: int | None
    names: list[str] | None


def difference(name: str, model: np.ndarray, file: np.ndarray) -> Difference:
    """Return the largest difference of one output; of other shapes it is infinite.

    NaN agrees with NaN and inf with the same inf; every other pair that is not finite is infinitely far apart.
    """
    equal = Difference(size=0.0, output=name, row=0, index=[], model=None, file=None)
    if model.shape != file.shape:
        return {**equal, "size": float("inf"), "shapes": [list(model.shape), list(file.shape)]}
    if not model.size:
        return equal
    wanted, got = model.astype(np.float64), file.astype(np.float64)
    # `inf - inf` is NaN, so that equal infinities are found by comparison, not by distance.
    same = (wanted == got) | (np.isnan(wanted) & np.isnan(got))
    with np.errstate(invalid="ignore"):
        sizes = np.abs(wanted - got) / np.maximum(1.0, np.where(np.isfinite(wanted), np.abs(wanted), 1.0))
    sizes = np.where(same, 0.0, np.where(np.isnan(sizes), np.inf, sizes))
    index = [int(i) for i in np.unravel_index(int(sizes.argmax()), sizes.shape)]
    at = tuple(index)
    values = {"model": float(wanted[at]), "file": float(got[at])}
    return {**equal, "size": float(sizes[at]), "row": index[0], "index": index[1:], **values}  # type: ignore[typeddict-item]


def compare_outputs(model: Outputs, file: Outputs, classes: Classes) -> Parity:
    """Return the parity of the named outputs of model and file; an output that the file lacks is infinitely far."""
    absent = np.empty((0,))
    differences = {name: difference(name, values, file.get(name, absent)) for name, values in model.items()}
    worst = max(differences.values(), key=lambda d: d["size"])
    wanted, got = model[OUTPUT], file.get(OUTPUT, absent)
    changes, margin = None, 0.0
    if classes.axis is not None and wanted.shape == got.shape:
        changes, margin = _class_changes(wanted, got, classes.axis)
    labels = 0
    if classes.names is not None and LABEL in file and file.get(PROBABILITIES, absent).ndim == 2:
        names = np.array(classes.names, dtype=object)[file[PROBABILITIES].argmax(axis=1)]
        labels = int((names != file[LABEL]).sum())
    sizes = {name: value["size"] for name, value in differences.items()}
    return Parity(
        rows=len(wanted),
        largest=worst,
        by_output=sizes,
        class_changes=changes,
        largest_margin=margin,
        label_changes=labels,
    )


def _class_changes(model: np.ndarray, file: np.ndarray, axis: int) -> tuple[int, float]:
    """Return how many predicted classes differ, and the model's largest margin among them."""
    changed = model.argmax(axis) != file.argmax(axis)
    best = np.sort(np.moveaxis(model.astype(np.float64), axis, -1)[changed], axis=-1)
    if not len(best):
        return 0, 0.0
    return int(changed.sum()), float(((best[:, -1] - best[:, -2]) / np.maximum(1.0, np.abs(best[:, -1]))).max())


def run_in_batches(run: Runner, rows: Batch, size: int, stop: int) -> Outputs:
    """Return the outputs of the first `stop` rows, computed in batches of `size`."""
    parts = [run(_slice(rows, start, min(start + size, stop))) for start in range(0, stop, size)]
    return {name: np.concatenate([np.atleast_1d(part[name]) for part in parts]) for name in parts[0]}


def compare_with_model(
    reference: Outputs, run: Runner, rows: ProofRows, classes: Classes, *, tolerance: float
) -> ModelParity:
    """Return the parity of a file with the model's outputs for all rows, at every batch size.

    The model computed them in the largest batches, so that a file whose output for a row depends on the other rows of
    its batch is found, too.
    """
    count = row_count(rows.batch)
    batches: dict[str, Parity] = {}
    first = ""
    for size in (min(LARGEST, count), *BATCH_SIZES):
        stop = min(count, SMALL_ROWS) if size in BATCH_SIZES else count
        outputs = run_in_batches(run, rows.batch, size, stop)
        parity = compare_outputs({name: values[:stop] for name, values in reference.items()}, outputs, classes)
        batches[str(size)] = parity
        if not first and parity["largest"]["size"] > tolerance:
            first = describe(parity["largest"], size, rows)
    worst = max(batches.values(), key=lambda parity: (parity["largest"]["size"], parity["largest_margin"]))
    checked = reference[OUTPUT][rows.edge : rows.edge + rows.validation]
    nan_rows = int(np.isnan(checked.reshape(len(checked), -1).astype(np.float64)).any(axis=1).sum())
    margin = max(parity["largest_margin"] for parity in batches.values())
    labels = max(parity["label_changes"] for parity in batches.values())
    changes = [parity["class_changes"] for parity in batches.values() if parity["class_changes"] is not None]
    return {
        "rows": {"edge": rows.edge, "validation": rows.validation, "perturbed": rows.perturbed},
        "outputs": list(outputs),
        "worst": {
            **worst,
            "class_changes": max(changes, default=None),
            "largest_margin": margin,
            "label_changes": labels,
        },
        "batches": batches,
        "nan_rows": nan_rows,
        "metric": None,
        "metric_why": "",
        "first": first,
    }


def describe(largest: Difference, batch_size: int, rows: ProofRows) -> str:
    """Name a differing value: the output, its row and position, and both values."""
    where = f"in batches of {batch_size}, '{largest['output']}'"
    if "shapes" in largest:
        model, file = largest["shapes"]
        return f"{where} of {model[0]} rows has shape {file}, not {model}"
    index = f"[{', '.join(map(str, largest['index']))}]" if largest["index"] else ""
    return f"{where}{index} of {rows.name(largest['row'])} is {largest['file']:.9g}, not {largest['model']:.9g}"


def _slice(batch: Batch, start: int, stop: int) -> Batch:
    return map_leaves(batch, lambda leaf: leaf[start:stop])


class ValidationMetric(NamedTuple):
    """The task that measures, and the targets of the validation rows."""

    task: Task
    targets: object


class Compared(TypedDict):
    """The entries of a proof about the metric."""

    metric: MetricDifference | None
    metric_why: str


def metric_difference(measured: ValidationMetric, reference: Outputs, run: Runner, rows: ProofRows) -> Compared:
    """Return the metric of both on the validation rows, or why outputs alone have none."""
    task, targets = measured
    if task.metric.needs == "step" or task.step is not None:
        return {"metric": None, "metric_why": f"task.step computes '{task.metric.name}' itself"}
    if not isinstance(targets, Tensor):
        return {"metric": None, "metric_why": "the targets are nested"}
    chosen = slice(rows.edge, rows.edge + rows.validation)
    outputs = run_in_batches(run, rows.batch, LARGEST, chosen.stop)[OUTPUT]
    try:
        model, file = (
            task.deciding_value(torch.from_numpy(np.ascontiguousarray(values[chosen])), targets)
            for values in (reference[OUTPUT], outputs)
        )
    except UserError as error:  # a metric of the user's own may need more than outputs
        return {"metric": None, "metric_why": str(error)}
    comparison = MetricDifference(name=task.metric.name, model=model, file=file, bounded=_bounded(task))
    return {"metric": comparison, "metric_why": ""}


def _bounded(task: Task) -> bool:
    """Return whether the metric's values are fractions of 1, as those of class ids and ranks are; losses are not."""
    metric = task.metric
    fractions = metric.needs in ("classes", "scores") and metric.greater_is_better
    return fractions and not metric.users_own and not metric.name.startswith("neg_")
