from __future__ import annotations

import json
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from pipeline.errors import Refused, UserError
from pipeline.export import parity
from pipeline.export.exported import ExportFailed, serving
from pipeline.export.formats import FORMATS, ExportResult, export_formats
from pipeline.export.onnx import export_onnx, inspect_onnx
from pipeline.run_store import permits
from tests.ledger_fixtures import baseline_done

WITHOUT_TORCH = """
import json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch is blocked")
sys.meta_path.insert(0, Blocked())
import numpy, onnxruntime
given = json.load(sys.stdin)
session = onnxruntime.InferenceSession(given["path"])
[outputs] = session.run(None, {"input": numpy.asarray(given["rows"], numpy.float32)})
assert "torch" not in sys.modules
print(json.dumps(outputs.tolist()))
"""


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))


class TwoInputs(nn.Module):
    """Takes {"words": ids [B, 5], "image": [B, 1, 4, 4]}."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.image, self.head = nn.Embedding(11, 6), nn.Conv2d(1, 2, 3), nn.Linear(6 + 8, 2)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        parts = [self.words(batch["words"]).mean(1), self.image(batch["image"]).flatten(1)]
        return self.head(torch.cat(parts, 1))


class LooksAtItsData(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if bool(x.abs().sum() > 50) else x


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def permit(tmp_path_factory: pytest.TempPathFactory) -> permits.ExportPermit:
    return permits.export(baseline_done(tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="module")
def proven(
    permit: permits.ExportPermit, rows: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, ExportResult]:
    return export_formats(permit, net(), rows, tmp_path_factory.mktemp("exported"))


@pytest.mark.parametrize("format", FORMATS)
def test_export_formats_match_the_model_at_every_batch_size(proven: dict[str, ExportResult], format: str) -> None:
    """Each exported file computes the outputs of the model, also for edge rows, in batches of 1, 2, 7 and all rows."""
    result = proven[format].parity
    assert result is not None, proven[format].failure
    assert list(result["batches"]) == ["1", "2", "7", "all"]
    assert result["close"] and result["argmax_agreement"] == 1.0
    assert result["rows"] == 43
    assert result["max_abs"] < 1e-5


@pytest.mark.parametrize("format", FORMATS)
def test_export_needs_a_permit(format: str, rows: np.ndarray, tmp_path: Path) -> None:
    """An exporter refuses anything but a permit, and writes nothing."""
    for pretender in (None, object(), "permit"):
        with pytest.raises(Refused, match="this needs an ExportPermit"):
            FORMATS[format][1](pretender, net(), rows, tmp_path / "model")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
def test_onnx_file_runs_without_torch(proven: dict[str, ExportResult], rows: np.ndarray) -> None:
    """onnxruntime computes golden rows in a process in which torch cannot be imported."""
    exported = proven["onnx"].exported
    assert exported is not None
    question = json.dumps({"path": str(exported.path), "rows": rows[:5].tolist()})
    command = [sys.executable, "-I", "-c", WITHOUT_TORCH]
    answer = subprocess.run(command, input=question, capture_output=True, text=True, check=True)
    golden = parity.torch_runner(net())(rows[:5])
    np.testing.assert_allclose(golden, np.array(json.loads(answer.stdout)), rtol=1e-4, atol=1e-5)


def test_export_onnx_writes_one_clean_file(proven: dict[str, ExportResult]) -> None:
    """The ONNX file has all its tensors, only standard operators and a free batch axis; its opset is recorded."""
    exported = proven["onnx"].exported
    assert exported is not None
    assert inspect_onnx(exported.path) == []
    proto = onnx.load(str(exported.path), load_external_data=False)
    assert not any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in proto.graph.initializer)
    assert [value.type.tensor_type.shape.dim[0].dim_param for value in proto.graph.input] == ["batch"]
    assert exported.facts["opset"] == {"ai.onnx": proto.opset_import[0].version}
    assert [path.name for path in exported.path.parent.glob("model.onnx*")] == ["model.onnx"]


@pytest.mark.parametrize("format", FORMATS)
def test_exports_have_no_paths_of_the_machine(proven: dict[str, ExportResult], format: str) -> None:
    """No exported file and no member of an archive has a path of this machine."""
    exported = proven[format].exported
    assert exported is not None
    blobs = {exported.path.name: exported.path.read_bytes()}
    if zipfile.is_zipfile(exported.path):
        with zipfile.ZipFile(exported.path) as archive:
            blobs |= {name: archive.read(name) for name in archive.namelist()}
    messages = [
        name
        for name, blob in blobs.items()
        for path in (b"site-packages", str(Path(__file__).parents[1]).encode())
        if path in blob
    ]
    assert messages == []


def test_exports_have_no_rows_of_the_example(permit: permits.ExportPermit, tmp_path: Path) -> None:
    """The batch that a model is traced with is not saved, and neither is the base of a view."""
    secret = np.full((100_000, 8), 123.456, np.float32)
    for name, outcome in export_formats(
        permit, net(), secret[5:7], tmp_path, formats=["torchscript", "program"]
    ).items():
        assert outcome.exported is not None, name
        assert outcome.exported.size_bytes < 100_000
        with zipfile.ZipFile(outcome.exported.path) as archive:
            assert not any(np.float32(123.456).tobytes() in archive.read(member) for member in archive.namelist())


def test_export_onnx_is_deterministic(permit: permits.ExportPermit, rows: np.ndarray, tmp_path: Path) -> None:
    """Two exports of one model are the same ONNX bytes."""
    first, second = (export_onnx(permit, net(), rows, tmp_path / name) for name in ("a.onnx", "b.onnx"))
    assert first.sha256 == second.sha256


def test_export_leaves_the_model_unchanged(permit: permits.ExportPermit, rows: np.ndarray, tmp_path: Path) -> None:
    """Every module's training flag and every buffer is unchanged, also when parts of the model were frozen."""
    model = net().train()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_formats(permit, model, rows, tmp_path, formats=["torchscript"])
    assert [module.training for module in model] == [True, False, True, True, True]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_export_records_warnings(permit: permits.ExportPermit, rows: np.ndarray, tmp_path: Path) -> None:
    """TorchScript's deprecation warning is in the facts of the export, and is not shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome = export_formats(permit, net(), rows, tmp_path, formats=["torchscript"])["torchscript"]
    assert outcome.exported is not None
    assert outcome.exported.facts["deprecated"] is True
    assert any("torch.jit.trace" in message for message in outcome.exported.facts["warnings"])


def test_export_traces_with_one_row(permit: permits.ExportPermit, rows: np.ndarray, tmp_path: Path) -> None:
    """An example of a single row still gives a free batch axis."""
    exported = export_onnx(permit, net(), rows[:1], tmp_path / "m.onnx")
    assert parity.load_onnx(exported.path)(rows[:9]).shape == (9, 3)


def test_export_keeps_the_names_of_a_nested_batch(permit: permits.ExportPermit, tmp_path: Path) -> None:
    """A model that takes a dictionary exports to every format, one ONNX input per entry."""
    draw = np.random.default_rng(1)
    batch = {"words": draw.integers(1, 11, (12, 5)), "image": draw.normal(size=(12, 1, 4, 4)).astype(np.float32)}
    outcomes = export_formats(permit, TwoInputs(), batch, tmp_path)
    assert {name: outcome.failure for name, outcome in outcomes.items()} == dict.fromkeys(FORMATS, "")
    assert all(outcome.parity and outcome.parity["close"] for outcome in outcomes.values())
    assert outcomes["onnx"].exported and outcomes["onnx"].exported.facts["inputs"] == ["input.words", "input.image"]


def test_export_formats_report_a_failed_format(permit: permits.ExportPermit, rows: np.ndarray, tmp_path: Path) -> None:
    """A model with data-dependent control flow fails in the formats that cannot have it; the others succeed."""
    outcomes = export_formats(permit, LooksAtItsData(), rows, tmp_path)
    assert outcomes["program"].failure.startswith("model: cannot be exported as program, got")
    assert not (tmp_path / "model.pt2").exists()
    traced = outcomes["torchscript"]
    assert traced.parity is not None and not traced.parity["close"], "the trace froze one side of the branch"


def test_export_needs_one_output_tensor(permit: permits.ExportPermit, rows: np.ndarray, tmp_path: Path) -> None:
    """A model with another kind of output is refused before the exporter runs."""

    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x

    with pytest.raises(ExportFailed, match=r"got 'tuple'; expected a tensor \[B"):
        export_onnx(permit, Pair(), rows, tmp_path / "m.onnx")


def test_export_formats_refuse_an_unknown_format(
    permit: permits.ExportPermit, rows: np.ndarray, tmp_path: Path
) -> None:
    """A misspelt format is a UserError with the closest known format."""
    with pytest.raises(UserError, match=r"export.formats: is not a format, got 'onx'.*did you mean 'onnx'"):
        export_formats(permit, net(), rows, tmp_path, formats=["onx"])


def test_inspect_onnx_finds_forbidden_content(proven: dict[str, ExportResult], tmp_path: Path) -> None:
    """External tensors, unknown operators and paths in metadata are each reported."""
    exported = proven["onnx"].exported
    assert exported is not None
    proto = onnx.load(str(exported.path))
    proto.graph.node[0].metadata_props.add(key="trace", value='File "/home/ada/net.py", line 3')
    proto.opset_import.add(domain="com.example", version=1)
    onnx.save(proto, str(tmp_path / "bad.onnx"))
    faults = " | ".join(inspect_onnx(tmp_path / "bad.onnx"))
    assert "unknown domain 'com.example'" in faults
    assert "contains a path" in faults
    (tmp_path / "no.onnx").write_bytes(b"\x80\x04not a model")
    assert "is not a valid ONNX model" in inspect_onnx(tmp_path / "no.onnx")[0]


def test_serving_disables_gradients() -> None:
    """Inside the block gradients and dropout are off; after it, both are as before."""
    model = net().train()
    with serving(model) as still:
        assert not still.training and not still(torch.ones(1, 8)).requires_grad
    assert model.training and torch.is_grad_enabled()


finite = st.floats(-1e3, 1e3, width=32)


@given(arrays(np.float32, (4, 3), elements=st.one_of(finite, st.just(np.nan), st.just(np.inf))))
def test_compare_outputs_of_equal_arrays(outputs: np.ndarray) -> None:
    """Any array is at parity with itself."""
    result = parity.compare_outputs(outputs, outputs.copy())
    assert (result["max_abs"], result["max_rel"], result["close"]) == (0.0, 0.0, True)


@given(arrays(np.float64, (4, 3), elements=finite), st.floats(1e-3, 10))
def test_compare_outputs_measures_the_distance(outputs: np.ndarray, shift: float) -> None:
    """The shift of one element is the distance, and is out of tolerance when it exceeds it."""
    moved = outputs.copy()
    moved[2, 1] += shift
    result = parity.compare_outputs(outputs, moved, rtol=0.0, atol=1e-5)
    assert result["max_abs"] == pytest.approx(shift, rel=1e-6)
    assert not result["close"]


def test_compare_outputs_with_one_nan() -> None:
    """Where only one value is NaN, or infinities differ in sign, the distance is infinite."""
    one, other = np.array([[1.0, np.nan]]), np.array([[1.0, 2.0]])
    assert parity.compare_outputs(one, other)["max_abs"] == np.inf
    assert not parity.compare_outputs(other, one)["close"]
    assert parity.compare_outputs(np.array([np.inf]), np.array([-np.inf]))["max_abs"] == np.inf
    assert parity.compare_outputs(np.ones((2, 3)), np.ones((3, 2)))["shapes"] == [[2, 3], [3, 2]]


def test_compare_outputs_measures_the_margin_of_disagreements() -> None:
    """When the predicted class differs, the reference's margin shows whether it was a tie."""
    result = parity.compare_outputs(
        np.array([[1.0, 1.00001], [3.0, 0.0]]), np.array([[1.00002, 1.0], [3.0, 0.0]]), atol=1e-3
    )
    assert (result["argmax_agreement"], result["close"]) == (0.5, True)
    assert result["worst_margin"] == pytest.approx(1e-5, rel=1e-3)


def test_edge_rows_stay_in_the_range_of_the_data() -> None:
    """Floats get zeros, minimum and maximum per column; ids only values that occur."""
    batch: dict[str, Any] = {"x": np.array([[1.0, -2.0], [3.0, 5.0]]), "ids": np.array([[4, 7], [9, 5]])}
    edges = parity.edge_rows(batch)
    assert edges["x"].tolist() == [[0, 0], [1, -2], [3, 5]]
    assert edges["ids"].tolist() == [[4, 5], [4, 5], [9, 7]]


def test_compare_with_model_detects_dependence_on_the_batch(rows: np.ndarray) -> None:
    """A model that normalizes over the batch matches in one batch and fails at other sizes."""
    model = nn.Linear(8, 3)

    def run(batch: np.ndarray) -> np.ndarray:
        outputs = parity.torch_runner(model)(batch)
        return outputs if len(batch) > 7 else outputs - outputs.mean(0)

    result = parity.compare_with_model(model, run, rows)
    assert [result["batches"][size]["close"] for size in ("1", "2", "7", "all")] == [False, False, False, True]
    assert not result["close"]
