"""What every exporter shares: the model as it will serve, the rows it is traced with, and the resulting file.

A *batch* is what the model takes: one array [B, ...], or a dict, tuple or list of batches.
"""

from __future__ import annotations

import copy
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import numpy as np
import torch
from torch import nn

from pipeline.error_attribution import message_of, place_of, reraise_stop
from pipeline.errors import FivegateError, fault
from pipeline.export.capture import captured
from pipeline.export.served_model import ServedModel
from pipeline.run_store import files
from pipeline.run_store.permits import ExportPermit, require

Leaf = torch.Tensor | np.ndarray
Module = TypeVar("Module", bound=nn.Module)
Batch = Leaf | Mapping[str, "Batch"] | tuple["Batch", ...] | list["Batch"]

DATA_DEPENDENT = ("GuardOnDataDependentSymNode", "DynamicOutputShapeException", "DataDependentOutputException")
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
    outputs: list[str]
    warnings: list[str]


class ExportSource:
    """What every exporter of a model starts from: the served model in eval mode, and the batch that it is traced with.

    The exported program is made once: `torch.export` writes it, ONNX is translated from it, and both find the same
    data-dependent branch in it.
    """

    def __init__(self, model: ServedModel, batch: Batch) -> None:
        self.model, self.batch = model, batch
        self.outputs: dict[str, torch.Tensor] = {}
        self._program: torch.export.ExportedProgram | None = None
        self._failure: BaseException | None = None

    def program(self) -> torch.export.ExportedProgram:
        """Return the exported program with a free number of rows. Raises what torch.export raises, each time."""
        if self._program is None and self._failure is None:
            rows = torch.export.Dim("batch", min=1)
            shapes = (map_leaves(self.batch, lambda _: {0: rows}),)
            try:
                self._program = torch.export.export(self.model, (self.batch,), dynamic_shapes=shapes)
            except BaseException as error:
                reraise_stop(error)
                self._failure = error
        if self._failure is not None:
            raise self._failure
        assert self._program is not None
        return self._program

    def branch(self) -> str:
        """Return where the model takes a branch that depends on the values of its inputs, or ""."""
        try:
            self.program()
        except BaseException as error:
            reraise_stop(error)
            return place_of(error) or "a line of a library" if depends_on_data(error) else ""
        return ""


def depends_on_data(error: BaseException) -> bool:
    """Return whether torch.export refused a branch, loop or index that depends on the values of the inputs."""
    seen: BaseException | None = error
    while seen is not None:
        if any(kind.__name__ in DATA_DEPENDENT for kind in type(seen).__mro__):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


Writer = Callable[[ExportSource], tuple[bytes, ExportFacts]]


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
def serving(model: Module) -> Iterator[Module]:
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


def reason(error: BaseException) -> str:
    """Return the first line of the error that caused an exporter's error, with the line of the user's code, if any."""
    while error.__cause__ is not None:
        error = error.__cause__
    first = next((line.strip() for line in message_of(error).splitlines() if line.strip()), "no message")
    place = place_of(error)
    return f"{type(error).__name__}: {first[:300]}{place and f' at {place}'}"


@contextmanager
def export_source(model: nn.Module, example: Batch) -> Iterator[ExportSource]:
    """Yield the source of all exports of a model; a model that is not served yet is served with its bare output."""
    served = model if isinstance(model, ServedModel) else ServedModel(model)
    with serving(served) as frozen:
        yield ExportSource(frozen, trace_batch(example))


def run_once(source: ExportSource) -> None:
    """Compute the outputs of the source's batch. Raises ExportFailed for a model that no format can have."""
    if source.outputs:
        return
    try:
        outputs = source.model(source.batch)
    except BaseException as error:  # a custom step may call the model in another way
        reraise_stop(error)
        what = "cannot be called with one batch of inputs, as exported forms are"
        raise ExportFailed(fault("model", what, got=reason(error))) from error
    output = outputs["output"]
    if not isinstance(output, torch.Tensor) or output.ndim == 0 or len(output) != TRACE_ROWS:
        got = list(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ExportFailed(fault("model", "its outputs cannot be exported", got=got, expected="a tensor [B, ...]"))
    source.outputs = outputs


def export(permit: ExportPermit, source: ExportSource, path: Path, *, format: str, write: Writer) -> Exported:
    """Write the bytes that `write(source)` returns to `path`.

    Whatever the exporter prints, logs or warns of goes to `<format>.log` beside it. Raises Refused without a real
    permit, and ExportFailed when the model cannot be exported in this format.
    """
    require(permit, ExportPermit)
    started = time.perf_counter()
    failure: ExportFailed | None = None
    with captured() as said:
        try:
            run_once(source)
            data, facts = write(source)
        except BaseException as error:  # exporters raise anything, from RuntimeError to their own
            reraise_stop(error)
            said.note("".join(traceback.format_exception(error)))
            failure = error if isinstance(error, ExportFailed) else _failed(format, error)
    files.write_text(path.with_name(f"{format}.log"), said.text)
    if failure is not None:
        raise failure
    files.write_bytes(path, data)
    seconds = time.perf_counter() - started
    names = ExportFacts(inputs=list(named_leaves(source.batch)), outputs=list(source.outputs))
    facts = {"torch": torch.__version__, **names, **facts, "warnings": said.warnings}
    return Exported(format, path, files.sha256(path), len(data), seconds, facts)


def _failed(format: str, error: BaseException) -> ExportFailed:
    """Return the failure of one format, with the user's line."""
    if depends_on_data(error):
        return branch_failure(format, place_of(error) or "a line of a library")
    return ExportFailed(fault("model", f"cannot be exported as {format}", got=reason(error)))


def branch_failure(format: str, place: str) -> ExportFailed:
    """Return the failure of a model whose path depends on the values of its inputs: a file would have one path only."""
    what = f"cannot be exported as {format}: it takes a branch that depends on the values of its inputs"
    do = "compute both sides and choose with torch.where, or leave the branch to the caller"
    return ExportFailed(fault("model", what, got=place, do=do))
