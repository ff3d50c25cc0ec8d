"""Export by torch.export: a `.pt2` archive, the successor to TorchScript."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import nn

from pipeline.export.exported import Batch, Exported, ExportFacts, export, map_leaves
from pipeline.run_store.permits import ExportPermit


def export_program(permit: ExportPermit, model: nn.Module, example: Batch, path: Path) -> Exported:
    """Write the model to `path` as an exported program for batches of any length, without rows of data in it."""
    return export(permit, model, example, path, format="program", write=_write)


def _write(model: nn.Module, batch: Batch) -> tuple[bytes, ExportFacts]:
    rows = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (batch,), dynamic_shapes=(map_leaves(batch, lambda _: {0: rows}),))
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)  # it has paths of this machine
    program.example_inputs = None  # they would be saved, and are rows of the user's data
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue(), {"exporter": "torch.export"}
