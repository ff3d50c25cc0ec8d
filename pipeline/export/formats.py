"""The formats of a release: file name and exporter of each, and its parity with the model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from pipeline.error_attribution import reraise_stop
from pipeline.errors import UserError, fault
from pipeline.export.capture import captured
from pipeline.export.exported import (
    Batch,
    Exported,
    ExportFailed,
    ExportSource,
    export_source,
    reason,
    row_count,
    run_once,
)
from pipeline.export.first_difference import first_onnx_difference, one_row
from pipeline.export.onnx import export_onnx
from pipeline.export.parity import (
    LARGEST,
    Classes,
    ModelParity,
    ValidationMetric,
    compare_with_model,
    metric_difference,
    run_in_batches,
)
from pipeline.export.program import export_program
from pipeline.export.proof_rows import ProofRows, proof_rows
from pipeline.export.randomness import random_module
from pipeline.export.runners import LOADERS, Outputs, torch_runner
from pipeline.export.served_model import OUTPUT, PROBABILITIES
from pipeline.export.torchscript import export_torchscript
from pipeline.results import plain
from pipeline.run_store import files
from pipeline.run_store.permits import ExportPermit

FORMATS: dict[str, tuple[str, Callable[[ExportPermit, ExportSource, Path], Exported]]] = {
    "onnx": ("model.onnx", export_onnx),
    "torchscript": ("model.torchscript.pt", export_torchscript),
    "program": ("model.pt2", export_program),
}
TOLERANCE = 1e-4  # above it, a proof looks for the first differing value; the gate has its own bound


@dataclass(frozen=True)
class ExportResult:
    """The result of one format: the file and its parity with the model, or why it could not be exported.

    `seconds` are those of writing the file and of its proof.
    """

    exported: Exported | None
    parity: ModelParity | None
    failure: str = ""
    seconds: dict[str, float] = field(default_factory=dict)

    def evidence(self) -> dict[str, object]:
        """Return the result as plain JSON: the proof with how the file was made, or the error. Times are not in it."""
        if self.exported is None or self.parity is None:
            return {"error": self.failure}
        facts = {key: value for key, value in self.exported.facts.items() if key != "warnings"}
        return {**plain(self.parity), "facts": facts, "size_bytes": self.exported.size_bytes}

    def summary(self, name: str) -> str:
        """Return one line about the file for the log."""
        if self.exported is None:
            return f"no {name} file: {self.failure}"
        seconds = ", ".join(f"{what} {value:.1f} s" for what, value in self.seconds.items())
        deprecated = (
            "; torch has deprecated TorchScript, prefer program" if self.exported.facts.get("deprecated") else ""
        )
        return f"{self.exported.path.name}, {self.exported.size_bytes / 1e6:.2g} MB ({seconds}){deprecated}"


@dataclass(frozen=True)
class _Proof:
    """What every file is compared with."""

    rows: ProofRows
    reference: Outputs
    classes: Classes
    metric: ValidationMetric | None


def export_formats(
    permit: ExportPermit,
    model: nn.Module,
    rows: Batch,
    folder: Path,
    *,
    formats: Sequence[str] = tuple(FORMATS),
    seed: int = 0,
    metric: ValidationMetric | None = None,
) -> dict[str, ExportResult]:
    """Export the model to `folder` in every format, and prove each file on `rows` (validation inputs) and others.

    A `ServedModel` has the outputs that its task gives it, any other model `output` alone. A format that fails does
    not stop the others. Raises UserError for an unknown format.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise UserError(*(fault("export.formats", "is not a format", got=name, among=FORMATS) for name in unknown))
    with export_source(model, rows) as source:
        exported = {name: _exported(permit, source, name, folder) for name in formats}
        written = [name for name, result in exported.items() if result.exported is not None]
        if not written:
            return exported
        try:
            proof = _proof(source, rows, seed, metric)
        except BaseException as error:  # the model gets rows of zeros and extremes, and may refuse them
            reraise_stop(error)
            what = "cannot be compared with its exported files"
            failure = str(error) if isinstance(error, ExportFailed) else fault("model", what, got=reason(error))
            return exported | {name: _dropped(exported[name], failure) for name in written}
        return exported | {name: _compared(name, exported[name], source, proof) for name in written}


def _exported(permit: ExportPermit, source: ExportSource, name: str, folder: Path) -> ExportResult:
    file, exporter = FORMATS[name]
    try:
        exported = exporter(permit, source, folder / file)
    except ExportFailed as failure:
        return ExportResult(None, None, str(failure))
    return ExportResult(exported, None, seconds={"export": exported.seconds})


def _proof(source: ExportSource, validation: Batch, seed: int, metric: ValidationMetric | None) -> _Proof:
    """Compute the model's outputs once. Raises ExportFailed for a model that draws random numbers in eval mode."""
    run_once(source)
    if module := random_module(source):
        what = "gives other outputs for the same rows in a second run in eval mode"
        do = "F.dropout(x, p, self.training), and no random numbers in eval mode"
        raise ExportFailed(fault("model", what, got=module, do=do))
    rows = proof_rows(validation, seed)
    count = row_count(rows.batch)
    reference = run_in_batches(torch_runner(source.model), rows.batch, min(LARGEST, count), count)
    names = source.model.label_names(reference[PROBABILITIES].shape[1]) if PROBABILITIES in reference else None
    return _Proof(rows, reference, Classes(source.model.class_axis(source.outputs[OUTPUT]), names), metric)


def _compared(name: str, result: ExportResult, source: ExportSource, proof: _Proof) -> ExportResult:
    """Compare an exported file with the model; a file that fails on these rows has no parity."""
    assert result.exported is not None
    started = time.perf_counter()
    with captured():
        try:
            run = LOADERS[name](result.exported.path)
            parity = compare_with_model(proof.reference, run, proof.rows, proof.classes, tolerance=TOLERANCE)
            if proof.metric is not None:
                parity |= metric_difference(proof.metric, proof.reference, run, proof.rows)
            if name == "onnx" and parity["first"]:
                parity["first"] += _origin(source, proof.rows, parity)
        except BaseException as error:
            reraise_stop(error)
            what = f"cannot be compared with its {name} file"
            return _dropped(result, fault("model", what, got=reason(error)))
    return replace(result, parity=parity, seconds={**result.seconds, "proof": time.perf_counter() - started})


def _dropped(result: ExportResult, failure: str) -> ExportResult:
    """Remove a file that has no proof, so that nothing serves it."""
    if result.exported is not None:
        files.remove(result.exported.path)
    return ExportResult(None, None, failure)


def _origin(source: ExportSource, rows: ProofRows, parity: ModelParity) -> str:
    """Return what the intermediate values say of the first difference; "" where they say nothing."""
    worst = parity["worst"]["largest"]
    if "shapes" in worst:
        return ""
    try:
        found = first_onnx_difference(source, one_row(rows.batch, worst["row"], 2), TOLERANCE)
    except Exception:  # an aid to the reader: a graph whose parts cannot be run alone keeps its own message
        return ""
    return f"; {found}" if found else ""
