"""The formats a release can carry: file name, exporter and proof of parity of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.errors import UserError, fault
from pipeline.release.exported import Exported, ExportFailed
from pipeline.release.onnx import export_onnx
from pipeline.release.parity import OPEN, prove
from pipeline.release.program import export_program
from pipeline.release.torchscript import export_torchscript
from pipeline.run_store.permits import ExportPermit

FORMATS: dict[str, tuple[str, Callable[[ExportPermit, nn.Module, Any, Path], Exported]]] = {
    "onnx": ("model.onnx", export_onnx),
    "torchscript": ("model.torchscript.pt", export_torchscript),
    "program": ("model.pt2", export_program),
}


@dataclass(frozen=True)
class Proven:
    """One format's outcome: the file and its parity with the model, or the sentence that says why there is none."""

    exported: Exported | None
    parity: dict[str, Any] | None
    failure: str = ""


def export_formats(
    permit: ExportPermit,
    model: nn.Module,
    rows: Any,
    folder: Path,
    *,
    formats: Sequence[str] = tuple(FORMATS),
    rtol: float = 1e-3,
    atol: float = 1e-5,
) -> dict[str, Proven]:
    """Every format asked for stands in `folder` with its proof over `rows` (validation inputs), or says why not.

    One format that fails does not stop the others. Raises UserError for a format that does not exist.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise UserError(*(fault("export.formats", "unknown format", got=name, among=FORMATS) for name in unknown))
    proven: dict[str, Proven] = {}
    for name in formats:
        file, exporter = FORMATS[name]
        try:
            exported = exporter(permit, model, rows, folder / file)
        except ExportFailed as failure:
            proven[name] = Proven(None, None, str(failure))
        else:
            proven[name] = Proven(exported, prove(model, OPEN[name](exported.path), rows, rtol=rtol, atol=atol))
    return proven
