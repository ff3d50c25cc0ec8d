"""The files that a payload is served with, and what is measured of them before the release."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from pipeline.readiness.subject import Subject
from pipeline.results import plain
from pipeline.run_store import files
from pipeline.serving import latency, sandbox
from pipeline.serving.golden import build_golden
from pipeline.serving.schema import build_schema
from pipeline.serving.standalone import predict

MODEL = "model.onnx"


def package(
    subject: Subject, folder: Path, served: nn.Module | None = None
) -> tuple[dict[str, Path], dict[str, object]]:
    """Write schema, golden requests and `predict.py` beside the ONNX file of `folder`, and serve with them.

    Returns the files by name, and the evidence of `sandbox_serve` and `within_limits`. `served` is the module whose
    graph was exported, where it is not the model itself. Without an ONNX file there is only the schema.
    """
    onnx_file = folder / MODEL
    exported = onnx_file.is_file()
    schema = build_schema(subject.data, subject.config, onnx_file if exported else None)
    files.write_json(folder / "schema.json", schema)
    paths = {"schema.json": folder / "schema.json"}
    if not exported:
        missing = {"why": f"there is no {MODEL} to serve, see onnx_parity"}
        return paths, {"sandbox_serve": missing, "within_limits": missing}
    golden = build_golden(served or subject.model, subject.data, schema)
    files.write_json(folder / "golden.json", golden)
    files.write_bytes(folder / "predict.py", Path(str(predict.__file__)).read_bytes())
    paths |= {name: folder / name for name in ("golden.json", "predict.py")}
    answers = sandbox.measure(folder, schema, golden)
    timings = latency.measure(subject, folder, schema, golden, served)
    return paths, {"sandbox_serve": plain(answers), "within_limits": plain(timings)}
