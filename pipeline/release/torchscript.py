"""TorchScript by trace: deprecated in torch, still asked for, so it stays beside ONNX and torch.export.

Its warnings are recorded in the file's facts and not shown.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.release.exported import Exported, export
from pipeline.run_store.permits import ExportPermit

_EPOCH = (1980, 1, 1, 0, 0, 0)


def export_torchscript(permit: ExportPermit, model: nn.Module, example: Any, path: Path) -> Exported:
    """The model stands at `path` as a TorchScript archive, traced in eval mode, for batches of any length."""
    return export(permit, model, example, path, format="torchscript", write=_write)


def _write(model: nn.Module, batch: Any) -> tuple[bytes, dict[str, Any]]:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, (batch,)), buffer)
    return _without_debug(buffer.getvalue()), {"exporter": "torch.jit.trace", "deprecated": True}


def _without_debug(archive: bytes) -> bytes:
    """The archive without its `.debug_pkl` members: only source lines and paths of this machine."""
    cleaned = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(cleaned, "w") as target:
        for name in source.namelist():
            if not name.endswith(".debug_pkl"):
                target.writestr(zipfile.ZipInfo(name, _EPOCH), source.read(name))
    return cleaned.getvalue()
