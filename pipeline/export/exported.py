"""What every exporter shares: the model as it will serve, the rows it is traced with, and the resulting file.

A *batch* is what the model takes: one array [B, ...], or a dict, tuple or list of batches.
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
from typing import Any, TypedDict

import numpy as np
import torch
from torch import nn

from pipeline.error_attribution import message_of, place_of, reraise_stop
from pipeline.errors import FivegateError, fault
from pipeline.run_store import files
from pipeline.run_store.permits import ExportPermit, require

Leaf = torch.Tensor | np.ndarray
Batch = Leaf | Mapping[str, "Batch"] | tuple["Batch", ...] | list["Batch"]

TRACE_ROWS = 2  # exporters would fix the batch axis at 1 for a batch of one row


class ExportFailed(FivegateError):
    """The model cannot be exported in this format; the message says why. Other formats may still work."""


class ExportFacts(TypedDict, total=False):
    """How a file was exported; `warnings` are those of the exporter."""

    exporter: str
    torch: str
    onnx: str
    opset: dict[str, int]
    ir: int
    deprecated: bool
    inputs: list[str]
    warnings: list[str]


Writer = Callable[[nn.Module, Batch], tuple[bytes, ExportFacts]]


@dataclass(frozen=True)
class Exported:
    """A model file: its format, path, SHA-256 and size, the seconds it took, and how it was exported."""

    format: str
    path: Path
    sha256: str
    size_bytes: int
    seconds: float
    facts: ExportFacts = field(default_factory=ExportFacts)


def map_leaves(batch: Batch, change: Callable[[Leaf], Any]) -> Any:
    """Return the same nesting with every array replaced by `change(array)`."""
    if isinstance(batch, Mapping):
        return {key: map_leaves(value, change) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(map_leaves(value, change) for value in batch)
    return change(batch)


def named_leaves(batch: Batch, name: str = "input") -> dict[str, Leaf]:
    """Return the arrays of a batch by name, in order: `input`, or `input.image` and `input.0` where it is nested."""
    if isinstance(batch, Mapping):
        parts = {str(key): value for key, value in batch.items()}
    elif isinstance(batch, tuple | list):
        parts = {str(i): value for i, value in enumerate(batch)}
    else:
        return {name: batch}
    return {n: leaf for key, value in parts.items() for n, leaf in named_leaves(value, f"{name}.{key}").items()}


def row_count(batch: Batch) -> int:
    """Return B, the number of rows of a batch."""
    return len(next(iter(named_leaves(batch).values())))


@contextmanager
def serving(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the model in eval mode, on the CPU, without gradients; restore the training flag of every module after.

    A model on another device is copied, because exported files contain the device.
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


def trace_batch(example: Batch) -> Batch:
    """Return the first rows of a batch as new CPU tensors: the exported file of a view would contain its whole base."""

    def first_rows(leaf: Leaf) -> torch.Tensor:
        rows = torch.as_tensor(leaf)[:TRACE_ROWS].detach().cpu().clone()
        return rows if len(rows) == TRACE_ROWS else rows.repeat(TRACE_ROWS, *[1] * (rows.ndim - 1))

    return map_leaves(example, first_rows)


@contextmanager
def _captured_warnings() -> Iterator[list[str]]:
    """Collect the warnings of the block, each once, in the yielded list, and silence the exporter's log."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    messages: list[str] = []
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield messages
    finally:
        log.setLevel(level)
        messages += dict.fromkeys(f"{w.category.__name__}: {w.message}" for w in caught)


def reason(error: BaseException) -> str:
    """Return the first line of the error that caused an exporter's error, with the line of the user's code, if any."""
    while error.__cause__ is not None:
        error = error.__cause__
    first = next((line.strip() for line in message_of(error).splitlines() if line.strip()), "no message")
    place = place_of(error)
    return f"{type(error).__name__}: {first[:300]}{place and f' at {place}'}"


def export(
    permit: ExportPermit,
    model: nn.Module,
    example: Batch,
    path: Path,
    *,
    format: str,
    write: Writer,
) -> Exported:
    """Write the bytes that `write(model, batch)` returns to `path`.

    Raises Refused without a real permit, and ExportFailed when the model cannot be exported in this format.
    """
    require(permit, ExportPermit)
    started = time.perf_counter()
    with _captured_warnings() as messages, serving(model) as frozen:
        batch = trace_batch(example)
        try:
            outputs = frozen(batch)
        except BaseException as error:  # a custom step may call the model in another way
            reraise_stop(error)
            what = "cannot be called with one batch of inputs, as exported forms are"
            raise ExportFailed(fault("model", what, got=reason(error))) from error
        if not isinstance(outputs, torch.Tensor) or outputs.ndim == 0 or len(outputs) != TRACE_ROWS:
            got = list(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
            raise ExportFailed(fault("model", "its outputs cannot be exported", got=got, expected="a tensor [B, ...]"))
        try:
            data, facts = write(frozen, batch)
        except BaseException as error:  # exporters raise anything, from RuntimeError to their own
            reraise_stop(error)
            raise ExportFailed(fault("model", f"cannot be exported as {format}", got=reason(error))) from error
    files.write_bytes(path, data)
    seconds = time.perf_counter() - started
    facts = {"torch": torch.__version__, "inputs": list(named_leaves(batch)), **facts, "warnings": messages}
    return Exported(format, path, files.sha256(path), len(data), seconds, facts)
