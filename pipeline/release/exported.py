"""What every exporter shares: the model as it will serve, the rows it is traced with, the file that results.

A *batch* here is what the model takes: one array [B, ...], or a dict, tuple or list of such (nested at will).
"""

from __future__ import annotations

import copy
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import FivegateError, fault
from pipeline.run_store import files
from pipeline.run_store.permits import ExportPermit, require

TRACE_ROWS = 2  # a batch of one row would freeze the batch axis at 1


class ExportFailed(FivegateError):
    """This model has no form in this format; the message says which and why. Other formats may still work."""


@dataclass(frozen=True)
class Exported:
    """A model file: its format, where it stands, its SHA-256 and size, and how it was made.

    `facts` holds plain values: the exporter, its version, the opset, warnings in its own words.
    """

    format: str
    path: Path
    sha256: str
    size_bytes: int
    seconds: float
    facts: Mapping[str, Any] = field(default_factory=dict)


def map_leaves(batch: Any, change: Callable[[Any], Any]) -> Any:
    """The same nesting with every array changed."""
    if isinstance(batch, Mapping):
        return {key: map_leaves(value, change) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(map_leaves(value, change) for value in batch)
    return change(batch)


def named_leaves(batch: Any, name: str = "input") -> dict[str, Any]:
    """The arrays of a batch by name, in order: `input`, or `input.image`, `input.0` where it is nested."""
    if isinstance(batch, Mapping):
        parts = {str(key): value for key, value in batch.items()}
    elif isinstance(batch, tuple | list):
        parts = {str(i): value for i, value in enumerate(batch)}
    else:
        return {name: batch}
    return {n: leaf for key, value in parts.items() for n, leaf in named_leaves(value, f"{name}.{key}").items()}


def rows_of(batch: Any) -> int:
    """B, the number of rows of a batch."""
    return len(next(iter(named_leaves(batch).values())))


@contextmanager
def serving(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode, on the CPU, without gradients; every module's training flag is put back after.

    A model that lives on another device is copied, because exported files remember the device.
    """
    if any(tensor.device.type != "cpu" for tensor in (*model.parameters(), *model.buffers())):
        model = copy.deepcopy(model).cpu()
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, training in flags.items():
            module.training = training


def trace_batch(example: Any) -> Any:
    """The first rows of a batch as fresh CPU tensors of their own: views would carry their whole base along."""

    def first_rows(leaf: Any) -> torch.Tensor:
        rows = torch.as_tensor(leaf)[:TRACE_ROWS].detach().cpu().clone()
        return rows if len(rows) == TRACE_ROWS else rows.repeat(TRACE_ROWS, *[1] * (rows.ndim - 1))

    return map_leaves(example, first_rows)


@contextmanager
def _captured() -> Iterator[list[str]]:
    """Warnings end up in the list, each once, instead of on the screen; the exporter's log is silent."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    said: list[str] = []
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield said
    finally:
        log.setLevel(level)
        said += dict.fromkeys(f"{w.category.__name__}: {w.message}" for w in caught)


def _reason(error: BaseException) -> str:
    """The first line of what lies at the bottom of an exporter's error."""
    while error.__cause__ is not None:
        error = error.__cause__
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return f"{type(error).__name__}: {first[:300]}"


def export(
    permit: ExportPermit,
    model: nn.Module,
    example: Any,
    path: Path,
    *,
    format: str,
    write: Callable[[nn.Module, Any], tuple[bytes, dict[str, Any]]],
) -> Exported:
    """The model stands at `path` as `write(model, batch) -> (bytes, facts)` made it.

    Raises Refused without a real permit, and ExportFailed when the format cannot hold this model.
    """
    require(permit, ExportPermit)
    started = time.perf_counter()
    with _captured() as said, serving(model) as still:
        batch = trace_batch(example)
        try:
            outputs = still(batch)
        except Exception as error:  # trained by a step that calls it in another way
            what = "cannot be called with one batch of inputs, as exported forms are"
            raise ExportFailed(fault("model", what, got=_reason(error))) from error
        if not isinstance(outputs, torch.Tensor) or outputs.ndim == 0 or len(outputs) != TRACE_ROWS:
            got = list(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
            raise ExportFailed(
                fault("model", "its outputs have no exported form", got=got, expected="a tensor [B, ...]")
            )
        try:
            data, facts = write(still, batch)
        except Exception as error:  # exporters raise anything, from RuntimeError to their own
            raise ExportFailed(fault("model", f"cannot be exported as {format}", got=_reason(error))) from error
    files.write_bytes(path, data)
    seconds = time.perf_counter() - started
    facts = {"torch": torch.__version__, "inputs": list(named_leaves(batch)), **facts, "warnings": said}
    return Exported(format, path, files.sha256(path), len(data), seconds, facts)
