"""Export by torch.export: a `.pt2` archive, the successor to TorchScript."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from pipeline.export.exported import Exported, ExportFacts, ExportSource, export
from pipeline.run_store.permits import ExportPermit


def export_program(permit: ExportPermit, source: ExportSource, path: Path) -> Exported:
    """Write the model to `path` as an exported program for batches of any length, without rows of data in it."""
    return export(permit, source, path, format="program", write=_write)


def _write(source: ExportSource) -> tuple[bytes, ExportFacts]:
    program = source.program()
    buffer = io.BytesIO()
    with _anonymous(program):
        torch.export.save(program, buffer)
    return buffer.getvalue(), {"exporter": "torch.export"}


@contextmanager
def _anonymous(program: torch.export.ExportedProgram) -> Iterator[None]:
    """Take paths of this machine and rows of the user's data out of the program, and put them back at the end.

    Later exports still name the lines of the model by them.
    """
    graphs = [getattr(module, "graph", None) for module in program.graph_module.modules()]
    nodes = [node for graph in graphs for node in getattr(graph, "nodes", ())]
    traces = [node.meta.pop("stack_trace", None) for node in nodes]
    rows, program.example_inputs = program.example_inputs, None
    try:
        yield
    finally:
        program.example_inputs = rows
        for node, trace in zip(nodes, traces, strict=True):
            if trace is not None:
                node.meta["stack_trace"] = trace
