"""Export by TorchScript trace: deprecated in torch, but still in wide use.

Its deprecation warnings are recorded in the facts of the export and not shown.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import torch

from pipeline.export.exported import Exported, ExportFacts, ExportSource, branch_failure, export
from pipeline.run_store.permits import ExportPermit

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time in a zip archive: equal models have equal bytes


def export_torchscript(permit: ExportPermit, source: ExportSource, path: Path) -> Exported:
    """Write the model to `path` as a TorchScript archive, traced in eval mode, for batches of any length.

    A trace keeps one side of a branch that depends on values, without a word: such a model is refused.
    """
    return export(permit, source, path, format="torchscript", write=_write)


def _write(source: ExportSource) -> tuple[bytes, ExportFacts]:
    if place := source.branch():
        raise branch_failure("torchscript", place)
    buffer = io.BytesIO()
    # The proof compares the trace with the model on far more rows than `check_trace` does.
    traced = torch.jit.trace(source.model, (source.batch,), strict=False, check_trace=False)
    torch.jit.save(traced, buffer)
    return _without_debug(buffer.getvalue()), {"exporter": "torch.jit.trace", "deprecated": True}


def _without_debug(archive: bytes) -> bytes:
    """Return the archive without its `.debug_pkl` members, which have source lines and paths of this machine."""
    cleaned = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(cleaned, "w") as target:
        for name in source.namelist():
            if not name.endswith(".debug_pkl"):
                target.writestr(zipfile.ZipInfo(name, _EPOCH), source.read(name))
    return cleaned.getvalue()
