"""Compare an exported file with the trained model, row by row, at batches of 1, 2, 7 and all rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
from torch import nn

from pipeline.export.exported import Batch, Leaf, map_leaves, named_leaves, row_count, serving

Outputs = np.ndarray
Runner = Callable[[Batch], Outputs]

BATCH_SIZES = (1, 2, 7)  # a squeezed batch axis fails at 1; 2 is the size of the trace, 7 is another one
SMALL_ROWS = 256  # rows for small batches, which test the batch axis and not the values


class OutputDistance(TypedDict):
    """How far the outputs of a candidate [B, ...] are from those of the reference.

    `max_abs` and `max_rel` are over elements, `max_rel` where |reference| exceeds `atol`; `close` means that every
    element is within atol + rtol * |reference|. `argmax_agreement` is a fraction of rows, None unless outputs are
    [B, C >= 2]; `worst_margin` is the largest distance between the two largest reference outputs among the rows that
    disagree. NaN agrees with NaN and inf with the same inf; every other non-finite pair is infinitely far apart.
    """

    rows: int
    max_abs: float
    max_rel: float
    close: bool
    argmax_agreement: float | None
    worst_margin: float


class Parity(OutputDistance):
    """The distance for one batch; `shapes` of reference and candidate where they differ."""

    shapes: NotRequired[list[list[int]]]


class ModelParity(OutputDistance):
    """The largest distance over all batch sizes, and `batches`, the parity at each of them."""

    rtol: float
    atol: float
    batches: dict[str, Parity]


def compare_outputs(reference: Outputs, candidate: Outputs, rtol: float = 1e-3, atol: float = 1e-5) -> Parity:
    """Return the parity of two outputs; outputs of different shapes are infinitely far apart."""
    reference, candidate = np.asarray(reference, np.float64), np.asarray(candidate, np.float64)
    result = Parity(
        rows=len(reference), max_abs=np.inf, max_rel=np.inf, close=False, argmax_agreement=None, worst_margin=0.0
    )
    if reference.shape != candidate.shape:
        return {**result, "shapes": [list(reference.shape), list(candidate.shape)]}
    # `inf - inf` is NaN, so that equal infinities are found by comparison, not by distance.
    same = (reference == candidate) | (np.isnan(reference) & np.isnan(candidate))
    with np.errstate(invalid="ignore", divide="ignore"):
        apart = np.where(same, 0.0, np.abs(reference - candidate))
        apart = np.where(np.isnan(apart), np.inf, apart)
        size = np.where(np.isfinite(reference), np.abs(reference), 0.0)
        relative = np.where(size > atol, apart / size, 0.0)
    result["max_abs"] = float(apart.max(initial=0.0))
    result["max_rel"] = float(relative.max(initial=0.0))
    result["close"] = bool((apart <= atol + rtol * size).all())
    if reference.ndim == 2 and reference.shape[1] >= 2 and len(reference):
        disagree = reference.argmax(1) != candidate.argmax(1)
        best = np.sort(reference[disagree], axis=1)
        result["argmax_agreement"] = float(1 - disagree.mean())
        result["worst_margin"] = float((best[:, -1] - best[:, -2]).max(initial=0.0))
    return result


def edge_rows(batch: Batch) -> Batch:
    """Return three rows at the edges of a batch's values: zeros, the minimum and the maximum of every column.

    Integers are ids, and an id of 0 may not exist: their first row is the minimum as well.
    """

    def edges(leaf: Leaf) -> np.ndarray:
        rows = np.asarray(leaf)
        low, high = rows.min(axis=0), rows.max(axis=0)
        return np.stack([np.zeros_like(low) if rows.dtype.kind == "f" else low, low, high])

    return map_leaves(batch, edges)


def torch_runner(model: nn.Module) -> Runner:
    """Return a function that runs a module as it will serve: in eval mode, on the CPU."""
    import torch

    def run(batch: Batch) -> Outputs:
        with serving(model) as frozen:
            return frozen(map_leaves(batch, torch.as_tensor)).numpy()

    return run


def load_onnx(path: Path) -> Runner:
    """Return a function that runs an ONNX file in onnxruntime, in one thread, with the inputs by name."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # One thread, so that sums have one order and the parity is the same on every machine.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(batch: Batch) -> Outputs:
        return session.run(None, {name: np.asarray(leaf) for name, leaf in named_leaves(batch).items()})[0]

    return run


def load_torchscript(path: Path) -> Runner:
    """Return a function that runs a TorchScript archive; torch's deprecation warnings are hidden."""
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch_runner(torch.jit.load(str(path), map_location="cpu"))


def load_program(path: Path) -> Runner:
    """Return a function that runs a `.pt2` exported program."""
    import torch

    module = torch.export.load(str(path)).module()

    def run(batch: Batch) -> Outputs:
        with torch.no_grad():
            return module(map_leaves(batch, torch.as_tensor)).numpy()

    return run


LOADERS: dict[str, Callable[[Path], Runner]] = {
    "onnx": load_onnx,
    "torchscript": load_torchscript,
    "program": load_program,
}


def compare_with_model(
    model: nn.Module, run: Runner, batch: Batch, *, rtol: float = 1e-3, atol: float = 1e-5
) -> ModelParity:
    """Return the worst parity of a runner with the model over edge rows and the batch's rows, at every batch size.

    The model computes all rows in one batch, so that a runner whose output for a row depends on the other rows of its
    batch is detected, too.
    """
    rows = _concatenate(edge_rows(batch), batch)
    count = row_count(rows)
    reference = torch_runner(model)(rows)
    batches = {}
    for size in (*BATCH_SIZES, count):
        stop = min(count, SMALL_ROWS) if size in BATCH_SIZES else count
        outputs = np.concatenate([run(_slice(rows, i, min(i + size, stop))) for i in range(0, stop, size)])
        batches["all" if size == count else str(size)] = compare_outputs(reference[:stop], outputs, rtol, atol)
    agreements = [b["argmax_agreement"] for b in batches.values() if b["argmax_agreement"] is not None]
    return {
        "rows": count,
        "max_abs": max(b["max_abs"] for b in batches.values()),
        "max_rel": max(b["max_rel"] for b in batches.values()),
        "close": all(b["close"] for b in batches.values()),
        "argmax_agreement": min(agreements, default=None),
        "worst_margin": max(b["worst_margin"] for b in batches.values()),
        "rtol": rtol,
        "atol": atol,
        "batches": batches,
    }


def _slice(batch: Batch, start: int, stop: int) -> Batch:
    return map_leaves(batch, lambda leaf: leaf[start:stop])


def _concatenate(first: Batch, second: Batch) -> Batch:
    others = iter(named_leaves(second).values())
    return map_leaves(first, lambda leaf: np.concatenate([leaf, np.asarray(next(others))]))
