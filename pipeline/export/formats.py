"""The formats of a release: file name and exporter of each, and its parity with the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from pipeline.error_attribution import reraise_stop
from pipeline.errors import UserError, fault
from pipeline.export.exported import Batch, Exported, ExportFailed, reason
from pipeline.export.onnx import export_onnx
from pipeline.export.parity import LOADERS, ModelParity, compare_with_model
from pipeline.export.program import export_program
from pipeline.export.torchscript import export_torchscript
from pipeline.run_store.permits import ExportPermit

FORMATS: dict[str, tuple[str, Callable[[ExportPermit, nn.Module, Batch, Path], Exported]]] = {
    "onnx": ("model.onnx", export_onnx),
    "torchscript": ("model.torchscript.pt", export_torchscript),
    "program": ("model.pt2", export_program),
}


@dataclass(frozen=True)
class ExportResult:
    """The result of one format: the file and its parity with the model, or why it could not be exported."""

    exported: Exported | None
    parity: ModelParity | None
    failure: str = ""


def export_formats(
    permit: ExportPermit,
    model: nn.Module,
    rows: Batch,
    folder: Path,
    *,
    formats: Sequence[str] = tuple(FORMATS),
    rtol: float = 1e-3,
    atol: float = 1e-5,
) -> dict[str, ExportResult]:
    """Export the model to `folder` in every format, and compare each file with it over `rows` (validation inputs).

    A format that fails does not stop the others. Raises UserError for an unknown format.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise UserError(*(fault("export.formats", "is not a format", got=name, among=FORMATS) for name in unknown))
    results: dict[str, ExportResult] = {}
    for name in formats:
        file, exporter = FORMATS[name]
        try:
            exported = exporter(permit, model, rows, folder / file)
        except ExportFailed as failure:
            results[name] = ExportResult(None, None, str(failure))
        else:
            results[name] = _compared(name, exported, model, rows, rtol, atol)
    return results


def _compared(name: str, exported: Exported, model: nn.Module, rows: Batch, rtol: float, atol: float) -> ExportResult:
    """Compare an exported file with the model; a file or a model that fails on these rows has no parity."""
    try:
        parity = compare_with_model(model, LOADERS[name](exported.path), rows, rtol=rtol, atol=atol)
    except BaseException as error:  # the model gets rows of zeros and extremes, alone and in batches, may refuse them
        reraise_stop(error)
        what = f"cannot be compared with its {name} file"
        return ExportResult(None, None, fault("model", what, got=reason(error)))
    return ExportResult(exported, parity)
