"""torch.export: the `.pt2` archive, torch's own successor to TorchScript."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.release.exported import Exported, export, map_leaves
from pipeline.run_store.permits import ExportPermit


def export_program(permit: ExportPermit, model: nn.Module, example: Any, path: Path) -> Exported:
    """The model stands at `path` as an exported program with a free batch axis, without rows of data in it."""
    return export(permit, model, example, path, format="program", write=_write)


def _write(model: nn.Module, batch: Any) -> tuple[bytes, dict[str, Any]]:
    rows = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (batch,), dynamic_shapes=(map_leaves(batch, lambda _: {0: rows}),))
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)  # paths of this machine
    program.example_inputs = None  # would be saved: rows of somebody's data
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue(), {"exporter": "torch.export"}
