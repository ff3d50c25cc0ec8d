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
from pipeline.export.exported import Exported, ExportFailed, export_source, serving
from pipeline.export.formats import FORMATS, ExportResult, export_formats
from pipeline.export.onnx import export_onnx, inspect_onnx
from pipeline.export.parity import Classes, compare_outputs, difference
from pipeline.export.proof_rows import edge_rows, perturbed_rows
from pipeline.export.runners import load_onnx, torch_runner
from pipeline.export.served_model import ServedModel
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


def onnx_file(permit: permits.ExportPermit, model: nn.Module, rows: np.ndarray, path: Path) -> Exported:
    with export_source(model, rows) as source:
        return export_onnx(permit, source, path)


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
    """Each exported file computes the outputs of the model for 1,000 rows, in batches of 1, 2, 7 and all rows."""
    result = proven[format].parity
    assert result is not None, proven[format].failure
    assert list(result["batches"]) == ["1003", "1", "2", "7"]
    assert result["rows"] == {"edge": 3, "validation": 40, "perturbed": 960}
    assert result["worst"]["largest"]["size"] < 1e-5 and result["first"] == ""


@pytest.mark.parametrize("format", FORMATS)
def test_export_needs_a_permit(format: str, rows: np.ndarray, tmp_path: Path) -> None:
    """An exporter refuses anything but a permit, and writes nothing."""
    with export_source(net(), rows) as source:
        for pretender in (None, object(), "permit"):
            with pytest.raises(Refused, match="this needs an ExportPermit"):
                FORMATS[format][1](pretender, source, tmp_path / "model")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
def test_onnx_file_runs_without_torch(proven: dict[str, ExportResult], rows: np.ndarray) -> None:
    """onnxruntime computes golden rows in a process in which torch cannot be imported."""
    exported = proven["onnx"].exported
    assert exported is not None
    question = json.dumps({"path": str(exported.path), "rows": rows[:5].tolist()})
    command = [sys.executable, "-I", "-c", WITHOUT_TORCH]
    answer = subprocess.run(command, input=question, capture_output=True, text=True, check=True)
    golden = torch_runner(ServedModel(net()))(rows[:5])["output"]
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
    first, second = (onnx_file(permit, net(), rows, tmp_path / name) for name in ("a.onnx", "b.onnx"))
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


def test_export_keeps_what_exporters_say_in_a_file(
    permit: permits.ExportPermit, rows: np.ndarray, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Warnings and the dump of a failed export are in a log beside the file, and nothing of them is on the screen."""
    export_formats(permit, net(), rows, tmp_path, formats=["torchscript"])
    export_formats(permit, LooksAtItsData(), rows, tmp_path, formats=["program"])
    assert "torch.jit.trace" in (tmp_path / "torchscript.log").read_text()
    assert "GuardOnDataDependentSymNode" in (tmp_path / "program.log").read_text()
    assert capfd.readouterr() == ("", "")


def test_export_traces_with_one_row(permit: permits.ExportPermit, rows: np.ndarray, tmp_path: Path) -> None:
    """An example of a single row still gives a free batch axis."""
    exported = onnx_file(permit, net(), rows[:1], tmp_path / "m.onnx")
    assert load_onnx(exported.path)(rows[:9])["output"].shape == (9, 3)


def test_export_keeps_the_names_of_a_nested_batch(permit: permits.ExportPermit, tmp_path: Path) -> None:
    """A model that takes a dictionary exports to every format, one ONNX input per entry."""
    draw = np.random.default_rng(1)
    batch = {"words": draw.integers(1, 11, (12, 5)), "image": draw.normal(size=(12, 1, 4, 4)).astype(np.float32)}
    outcomes = export_formats(permit, TwoInputs(), batch, tmp_path)
    assert {name: outcome.failure for name, outcome in outcomes.items()} == dict.fromkeys(FORMATS, "")
    assert all(outcome.parity and outcome.parity["first"] == "" for outcome in outcomes.values())
    assert outcomes["onnx"].exported and outcomes["onnx"].exported.facts["inputs"] == ["input.words", "input.image"]


def test_export_formats_refuse_a_branch_on_values(
    permit: permits.ExportPermit, rows: np.ndarray, tmp_path: Path
) -> None:
    """A model whose path depends on values has no file in any format: a trace would keep one side of the branch."""
    outcomes = export_formats(permit, LooksAtItsData(), rows, tmp_path)
    line = next(n for n, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "sum() > 50" in text)
    for name, (file, _) in FORMATS.items():
        assert f"cannot be exported as {name}: it takes a branch" in outcomes[name].failure
        assert f"{Path(__file__).name}:{line}" in outcomes[name].failure
        assert not (tmp_path / file).exists()


def test_export_needs_one_output_tensor(permit: permits.ExportPermit, rows: np.ndarray, tmp_path: Path) -> None:
    """A model with another kind of output is refused before the exporter runs."""

    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x

    with pytest.raises(ExportFailed, match=r"got 'tuple'; expected a tensor \[B"):
        onnx_file(permit, Pair(), rows, tmp_path / "m.onnx")


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


CLASSES = Classes(axis=1, names=None)


@given(arrays(np.float32, (4, 3), elements=st.one_of(finite, st.just(np.nan), st.just(np.inf))))
def test_difference_of_equal_arrays(outputs: np.ndarray) -> None:
    """Any array is at no distance from itself."""
    assert difference("output", outputs, outputs.copy())["size"] == 0.0


@given(arrays(np.float64, (4, 3), elements=finite), st.floats(1e-3, 10))
def test_difference_is_relative_above_one(outputs: np.ndarray, shift: float) -> None:
    """The shift of one element is the distance, divided by the value where that is above 1, and is found."""
    moved = outputs.copy()
    moved[2, 1] += shift
    found = difference("output", outputs, moved)
    assert found["size"] == pytest.approx(shift / max(1.0, abs(outputs[2, 1])), rel=1e-6)
    assert (found["row"], found["index"]) == (2, [1])


def test_difference_with_one_nan() -> None:
    """Where only one value is NaN, infinities differ in sign, or shapes differ, the distance is infinite."""
    one, other = np.array([[1.0, np.nan]]), np.array([[1.0, 2.0]])
    assert difference("output", one, other)["size"] == difference("output", other, one)["size"] == np.inf
    assert difference("output", np.array([np.inf]), np.array([-np.inf]))["size"] == np.inf
    assert difference("output", np.ones((2, 3)), np.ones((3, 2)))["shapes"] == [[2, 3], [3, 2]]


def test_compare_outputs_measures_the_margin_of_disagreements() -> None:
    """When the predicted class differs, the model's margin shows whether it was a tie."""
    model = {"output": np.array([[1.0, 1.00001], [3.0, 0.0]])}
    result = compare_outputs(model, {"output": np.array([[1.00002, 1.0], [3.0, 0.0]])}, CLASSES)
    assert result["class_changes"] == 1
    assert result["largest_margin"] == pytest.approx(1e-5, rel=1e-3)


def test_compare_outputs_without_an_output() -> None:
    """A file that lacks one of the model's outputs is infinitely far from it."""
    model = {"output": np.ones((2, 3)), "probabilities": np.ones((2, 3))}
    result = compare_outputs(model, {"output": np.ones((2, 3))}, CLASSES)
    assert result["by_output"] == {"output": 0.0, "probabilities": np.inf}


def test_edge_rows_stay_in_the_range_of_the_data() -> None:
    """Floats get zeros, minimum and maximum per column; ids, also in a table of floats, only values that occur."""
    batch: dict[str, Any] = {
        "x": np.array([[1.5, -2.5], [3.0, 5.0]]),
        "ids": np.array([[4, 7], [9, 5]]),
        "codes": np.array([[1.0], [3.0]]),
    }
    edges = edge_rows(batch)
    assert edges["x"].tolist() == [[0, 0], [1.5, -2.5], [3, 5]]
    assert edges["ids"].tolist() == [[4, 5], [4, 5], [9, 7]]
    assert edges["codes"].tolist() == [[1], [1], [3]]


@given(arrays(np.float32, (6, 2), elements=st.floats(-100, 100, width=32)), st.integers(0, 9))
def test_perturbed_rows_keep_codes(values: np.ndarray, seed: int) -> None:
    """Equal seeds give equal rows; a column of whole numbers gets no other values, and NaN stays where it was."""
    table = np.concatenate([values, np.array([[0.0], [3.0], [3.0], [7.0], [0.0], [np.nan]], np.float32)], axis=1)
    first, second = (perturbed_rows(table, 20, np.random.default_rng(seed)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.shape == (20, 3) and first.dtype == np.float32
    assert set(first[~np.isnan(first[:, 2]), 2]) <= {0.0, 3.0, 7.0}


class OverTheBatch(nn.Module):
    """Subtracts the mean of the batch, so that a row's output depends on the other rows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)


def test_export_formats_find_a_dependence_on_the_batch(
    permit: permits.ExportPermit, rows: np.ndarray, tmp_path: Path
) -> None:
    """A model that normalizes over the batch is itself in one batch, and fails at other sizes."""
    result = export_formats(permit, OverTheBatch(), rows, tmp_path, formats=["program"])["program"].parity
    assert result is not None
    assert [size for size, part in result["batches"].items() if part["largest"]["size"] < 1e-4] == ["1003"]
    assert result["first"].startswith("in batches of 1, 'output'[")


class ForgottenDropout(nn.Module):
    """Uses dropout in eval mode, too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x, 0.5)


def test_export_formats_refuse_random_numbers(permit: permits.ExportPermit, rows: np.ndarray, tmp_path: Path) -> None:
    """A model that draws random numbers in eval mode equals no file; the module is named, and no file stays."""
    model = nn.Sequential(nn.Linear(8, 4), ForgottenDropout())
    outcome = export_formats(permit, model, rows, tmp_path, formats=["torchscript"])["torchscript"]
    assert "second run in eval mode, got '1 (ForgottenDropout)'" in outcome.failure
    assert not (tmp_path / "model.torchscript.pt").exists()
