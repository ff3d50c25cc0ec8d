"""Export by TorchScript trace: deprecated in torch, but still in wide use.

Its deprecation warnings are recorded in the facts of the export and not shown.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import torch
from torch import nn

from pipeline.export.exported import Batch, Exported, ExportFacts, export
from pipeline.run_store.permits import ExportPermit

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time in a zip archive: equal models have equal bytes


def export_torchscript(permit: ExportPermit, model: nn.Module, example: Batch, path: Path) -> Exported:
    """Write the model to `path` as a TorchScript archive, traced in eval mode, for batches of any length."""
    return export(permit, model, example, path, format="torchscript", write=_write)


def _write(model: nn.Module, batch: Batch) -> tuple[bytes, ExportFacts]:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, (batch,)), buffer)
    return _without_debug(buffer.getvalue()), {"exporter": "torch.jit.trace", "deprecated": True}


def _without_debug(archive: bytes) -> bytes:
    """Return the archive without its `.debug_pkl` members, which have source lines and paths of this machine."""
    cleaned = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(cleaned, "w") as target:
        for name in source.namelist():
            if not name.endswith(".debug_pkl"):
                target.writestr(zipfile.ZipInfo(name, _EPOCH), source.read(name))
    return cleaned.getvalue()
