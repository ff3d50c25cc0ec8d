"""Is the exported file still the trained model? Outputs are compared row by row, at batches of 1, 2, 7 and all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.release.exported import map_leaves, named_leaves, rows_of, serving

Outputs = np.ndarray
Runner = Callable[[Any], Outputs]

BATCHES = (1, 2, 7)
SMALL_ROWS = 256  # small batches prove the batch axis, not more data: this many rows are enough


def parity(reference: Outputs, candidate: Outputs, rtol: float = 1e-3, atol: float = 1e-5) -> dict[str, Any]:
    """How far the candidate's outputs [B, ...] are from the reference's.

    `max_abs` and `max_rel` are over elements, the latter where |reference| exceeds `atol`; `close` = every element
    within atol + rtol * |reference|. `argmax_agreement` is a fraction of rows, None unless outputs are [B, C >= 2];
    `worst_margin` is the largest distance between the two best reference outputs among rows that disagree. NaN
    agrees with NaN and inf with the same inf, every other non-finite pair is infinitely far apart.
    """
    reference, candidate = np.asarray(reference, np.float64), np.asarray(candidate, np.float64)
    result: dict[str, Any] = {"rows": len(reference), "max_abs": np.inf, "max_rel": np.inf, "close": False}
    result |= {"argmax_agreement": None, "worst_margin": 0.0}
    if reference.shape != candidate.shape:
        return result | {"shapes": [list(reference.shape), list(candidate.shape)]}
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


def edge_rows(batch: Any) -> Any:
    """Three rows at the edge of a batch's values: zeros, the minimum and the maximum of every column.

    Whole numbers are ids, and an id of 0 may not exist: their first row is the minimum as well.
    """

    def edges(leaf: Any) -> np.ndarray:
        rows = np.asarray(leaf)
        low, high = rows.min(axis=0), rows.max(axis=0)
        return np.stack([np.zeros_like(low) if rows.dtype.kind == "f" else low, low, high])

    return map_leaves(batch, edges)


def open_torch(model: Any) -> Runner:
    """Runs a module as it will serve: eval mode, CPU."""
    import torch

    def run(batch: Any) -> Outputs:
        with serving(model) as still:
            return still(map_leaves(batch, torch.as_tensor)).numpy()

    return run


def open_onnx(path: Path) -> Runner:
    """Runs an ONNX file by onnxruntime, one thread, arrays given by name."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(batch: Any) -> Outputs:
        return session.run(None, {name: np.asarray(leaf) for name, leaf in named_leaves(batch).items()})[0]

    return run


def open_torchscript(path: Path) -> Runner:
    """Runs a TorchScript archive; torch's deprecation warnings are not shown."""
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return open_torch(torch.jit.load(str(path), map_location="cpu"))


def open_program(path: Path) -> Runner:
    """Runs a `.pt2` exported program."""
    import torch

    module = torch.export.load(str(path)).module()

    def run(batch: Any) -> Outputs:
        with torch.no_grad():
            return module(map_leaves(batch, torch.as_tensor)).numpy()

    return run


OPEN: dict[str, Callable[[Path], Runner]] = {
    "onnx": open_onnx,
    "torchscript": open_torchscript,
    "program": open_program,
}


def run_onnx(path: Path, batch: Any) -> Outputs:
    return open_onnx(path)(batch)


def run_torchscript(path: Path, batch: Any) -> Outputs:
    return open_torchscript(path)(batch)


def run_program(path: Path, batch: Any) -> Outputs:
    return open_program(path)(batch)


def prove(model: Any, run: Runner, batch: Any, *, rtol: float = 1e-3, atol: float = 1e-5) -> dict[str, Any]:
    """The worst parity of a runner with the model over edge rows and the batch's rows, at every batch size.

    `batches` holds the comparison at each size. The model answers once, with all rows in one batch: a runner
    whose answer for a row depends on its neighbours is found out too.
    """
    rows = _join(edge_rows(batch), batch)
    reference = open_torch(model)(rows)
    batches = {}
    for size in (*BATCHES, rows_of(rows)):
        part = min(rows_of(rows), SMALL_ROWS) if size in BATCHES else rows_of(rows)
        starts = range(0, part, size)
        candidate = np.concatenate([run(_cut(rows, i, min(i + size, part))) for i in starts])
        batches["all" if size == rows_of(rows) else str(size)] = parity(reference[:part], candidate, rtol, atol)
    agreements = [b["argmax_agreement"] for b in batches.values() if b["argmax_agreement"] is not None]
    return {
        "rows": rows_of(rows),
        "max_abs": max(b["max_abs"] for b in batches.values()),
        "max_rel": max(b["max_rel"] for b in batches.values()),
        "close": all(b["close"] for b in batches.values()),
        "argmax_agreement": min(agreements, default=None),
        "worst_margin": max(b["worst_margin"] for b in batches.values()),
        "rtol": rtol,
        "atol": atol,
        "batches": batches,
    }


def _cut(batch: Any, start: int, stop: int) -> Any:
    return map_leaves(batch, lambda leaf: leaf[start:stop])


def _join(first: Any, second: Any) -> Any:
    others = iter(named_leaves(second).values())
    return map_leaves(first, lambda leaf: np.concatenate([leaf, np.asarray(next(others))]))
