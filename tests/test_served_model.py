"""The served graph of every kind of model: what its outputs mean, and that the files compute what the model does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from checklists.checks.release import parity
from pipeline.data.dataset import Data
from pipeline.data.load import seal
from pipeline.evaluation.evaluate import outputs_of
from pipeline.export import formats
from pipeline.export.formats import FORMATS, ExportResult, export_formats
from pipeline.export.onnx import translate
from pipeline.export.parity import ValidationMetric
from pipeline.export.runners import LOADERS, torch_runner
from pipeline.export.served_model import ServedModel
from pipeline.models.autoencoder import Autoencoder
from pipeline.models.cnn import CNN
from pipeline.models.encoder import Encoder
from pipeline.models.gru import GRU
from pipeline.models.mlp import MLP
from pipeline.models.transformer import Transformer
from pipeline.readiness.calibration import fit, logits_of, probabilities
from pipeline.readiness.subject import Subject
from pipeline.results import Evidence, Result
from pipeline.run_store import permits
from tests.ledger_fixtures import baseline_done
from tests.readiness_subjects import subject_of, table, uniform_rows

BOUNDS: dict[str, Any] = {"tolerance": 1e-4, "max_metric_points": 0.1, "max_metric_relative": 1e-3}
DRAW = np.random.default_rng(3)
X = uniform_rows(240)
LABELS = (X[:, 0] > 0).astype(np.int64)  # two classes
THREE = LABELS + (X[:, 1] > 0.5)  # three classes
SEVERAL = (X[:, :2] > 0).astype(np.int64)  # two labels per row
VALUES = (3 * X[:, 0] + X[:, 1] ** 2).astype(np.float32)
TASKS: dict[str, tuple[str, str]] = {
    "classification": ("accuracy", "torch.nn.CrossEntropyLoss"),
    "binary": ("accuracy", "torch.nn.BCEWithLogitsLoss"),
    "multilabel": ("f1_macro", "torch.nn.BCEWithLogitsLoss"),
    "regression": ("rmse", "torch.nn.MSELoss"),
    "autoencoder": ("rmse", "torch.nn.BCEWithLogitsLoss"),
    "language_model": ("perplexity", "torch.nn.CrossEntropyLoss"),
}


class Foreign(nn.Module):
    """A model of somebody else's: words and an image as a dictionary, a skipped connection, functional calls."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.image = nn.Embedding(11, 6, padding_idx=0), nn.Conv2d(1, 6, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(6), nn.Linear(12, 3)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        words = self.words(batch["words"])
        words = words.sum(1) / batch["words"].ne(0).sum(1, keepdim=True).clamp(min=1)
        image = self.image(batch["image"])
        image = nn.functional.adaptive_avg_pool2d(nn.functional.gelu(self.norm(image)) + image, 1).flatten(1)
        return self.head(torch.cat([words, image], 1))


def subject(kind: str, model: nn.Module, data: Data) -> Subject:
    metric, loss = TASKS[kind]
    task = {"kind": kind, "metric": metric, "target": 0.9, "predict": "auto"}
    return subject_of(model, data, task=task, loss={"_target_": loss})


def nested() -> Data:
    half, rest = slice(0, 120), slice(120, 180)
    words = DRAW.integers(0, 11, (240, 5))
    image = DRAW.normal(size=(240, 1, 4, 4)).astype(np.float32)
    parts = {"train": half, "val": rest, "test": slice(180, None)}
    return seal({n: ({"words": words[s], "image": image[s]}, THREE[s]) for n, s in parts.items()}, "classification")


def windows() -> Data:
    tokens = DRAW.integers(0, 13, (240, 9))
    return table(tokens[:, :-1], tokens[:, 1:], "language_model")


def digits() -> Data:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.data[:600].reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    return table(images, bunch.target[:600], class_names=[f"digit {n}" for n in range(10)])


SUBJECTS: dict[str, tuple[Callable[[], Subject], list[str]]] = {
    "mlp": (
        lambda: subject("regression", MLP(6, 1, hidden=[16], normalization="batch"), table(X, VALUES, "regression")),
        ["output", "lower", "upper"],
    ),
    "cnn": (
        lambda: subject("classification", CNN([1, 8, 8], 10, width=4), digits()),
        ["output", "probabilities", "label"],
    ),
    "gru": (
        lambda: subject("binary", GRU(2, 1, width=8), table(X.reshape(-1, 3, 2), LABELS, "binary")),
        ["output", "probabilities", "label"],
    ),
    "transformer": (
        lambda: subject("language_model", Transformer(13, context=8, width=16, depth=2, heads=2), windows()),
        ["output"],
    ),
    "encoder": (
        lambda: subject("multilabel", Encoder(6, 2, width=8, heads=2), table(X, SEVERAL, "multilabel")),
        ["output", "probabilities"],
    ),
    "autoencoder": (
        lambda: subject("autoencoder", Autoencoder(6, bottleneck=3, width=8), table(abs(X), abs(X), "autoencoder")),
        ["output", "reconstruction"],
    ),
    "foreign": (lambda: subject("classification", Foreign(), nested()), ["output", "probabilities", "label"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def permit(tmp_path_factory: pytest.TempPathFactory) -> permits.ExportPermit:
    return permits.export(baseline_done(tmp_path_factory.mktemp("runs")))


def served_of(about: Subject) -> ServedModel:
    fitted = fit(about)
    return ServedModel(about.model, about.task, fitted.temperature, fitted.half_width, about.data.class_names).eval()


def proven(permit: permits.ExportPermit, about: Subject, folder: Path, *names: str) -> dict[str, ExportResult]:
    metric = ValidationMetric(about.task, about.data.val.y)
    return export_formats(
        permit, served_of(about), about.data.val.X, folder, formats=names or tuple(FORMATS), metric=metric
    )


def judged(results: dict[str, ExportResult], *forms: str) -> Result:
    evidence = Evidence({"parity": {name: result.evidence() for name, result in results.items()}})
    return parity(evidence, forms=forms or tuple(FORMATS), **BOUNDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", SUBJECTS)
def test_parity_passes_for_every_kind_of_model(name: str, permit: permits.ExportPermit, tmp_path: Path) -> None:
    """All formats of the bundled models and of a foreign one compute the same, with the outputs of their task."""
    torch.manual_seed(1)
    make, outputs = SUBJECTS[name]
    about = make()
    results = proven(permit, about, tmp_path)

    assert {form: result.failure for form, result in results.items()} == dict.fromkeys(FORMATS, "")
    result = judged(results)
    assert result.outcome == "passed", result.why
    assert "opset ai.onnx " in result.why and "deprecated by torch" in result.why
    assert result.value is not None and result.value < 1e-4
    for form, exported in results.items():
        assert exported.exported is not None and exported.parity is not None
        assert exported.parity["outputs"] == [o for o in outputs if form == "onnx" or o != "label"]
        assert sum(exported.parity["rows"].values()) >= 1000
        assert exported.parity["metric"] is not None, exported.parity["metric_why"]
    proto = onnx.load(str(tmp_path / "model.onnx"))
    assert all(v.type.tensor_type.shape.dim[0].dim_param == "batch" for v in (*proto.graph.input, *proto.graph.output))


@pytest.mark.parametrize("kind", ["classification", "binary", "two columns", "multilabel"])
def test_served_model_returns_the_calibrated_probabilities(kind: str) -> None:
    """The graph's probabilities are those that the calibration was measured with on test rows."""
    torch.manual_seed(0)
    task, wide = ("binary", 2) if kind == "two columns" else (kind, {"classification": 3, "binary": 1}.get(kind, 2))
    labels = (
        (X[:, :2] > 0).astype(np.int64)
        if kind == "multilabel"
        else LABELS + (kind == "classification") * (X[:, 1] > 0.5)
    )
    metric, loss = TASKS["classification" if wide > 1 and task == "binary" else task]
    body = {"kind": task, "metric": metric, "target": 0.9, "predict": "auto"}
    about = subject_of(MLP(6, wide), table(X, labels, task), task=body, loss={"_target_": loss})
    fitted = fit(about)
    assert fitted.temperature is not None and fitted.temperature != 1.0

    outputs = outputs_of(about.model, about.data.val, about.task)
    assert outputs is not None
    expected = probabilities(about.task, logits_of(about.task, outputs), fitted.temperature)
    served = torch_runner(served_of(about))(about.data.val.X)["probabilities"]

    if expected.ndim == 1:
        expected = np.stack([1 - expected, expected], axis=1)
    np.testing.assert_allclose(served, expected, atol=1e-6)


def test_served_model_returns_the_conformal_interval() -> None:
    """The ends of the interval are half a width from the value, and contain nine of ten validation targets."""
    about = subject("regression", MLP(6, 1), table(X, VALUES, "regression"))
    served = torch_runner(served_of(about))(about.data.val.X)
    targets = about.data.val.y.numpy().reshape(-1)
    inside = (served["lower"].reshape(-1) <= targets) & (targets <= served["upper"].reshape(-1))
    assert 0.88 <= inside.mean() <= 0.95


def test_served_model_of_a_step_has_its_bare_output() -> None:
    """Without a task, or with a step of the user's own, nobody knows what the outputs mean."""
    assert list(ServedModel(MLP(6, 3))(torch.zeros(2, 6))) == ["output"]


class Faulty:
    """An exporter with a fault: it writes another number for one weight of the model."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, source: Any, **options: Any) -> Any:
        program = translate(source, **options)
        weight = next(v for v in program.model.graph.initializers.values() if v.name and v.name.endswith("head.weight"))
        assert weight.const_value is not None
        import onnx_ir

        weight.const_value = onnx_ir.tensor(weight.const_value.numpy() * np.float32(self.factor), name=weight.name)
        return program


@pytest.mark.slow
def test_parity_fails_and_names_the_first_differing_value(
    permit: permits.ExportPermit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with another weight fails, with output, row, the first value of the graph, and the line of the model."""
    for module in ("onnx", "first_difference"):
        monkeypatch.setattr(f"pipeline.export.{module}.translate", Faulty(1.5))
    about = subject("classification", MLP(6, 3), table(X, THREE))

    result = judged(proven(permit, about, tmp_path, "onnx"), "onnx")
    assert result.outcome == "failed"
    assert "in batches of 1003, 'output'[" in result.why and "row" in result.why
    assert "the first value that differs is 'linear_1'" in result.why
    assert "pipeline/models/mlp.py:" in result.why and "self.head" in result.why


@pytest.mark.parametrize("form", ["torchscript", "program"])
def test_parity_fails_for_a_file_of_another_model(form: str, permit: permits.ExportPermit, tmp_path: Path) -> None:
    """A file whose classes differ where the model is sure fails for its outputs, its classes and its metric."""
    data = table(X, LABELS)
    weights = torch.tensor([[-5.0, 0, 0, 0, 0, 0], [5.0, 0, 0, 0, 0, 0]])
    models = [MLP(6, 2, hidden=[]) for _ in range(2)]
    for model, sign in zip(models, (1, -1), strict=True):
        nn.init.zeros_(model.head.bias)
        model.head.weight.data = sign * weights
    about, other = (subject("classification", model, data) for model in models)
    folder = tmp_path / "other"
    folder.mkdir()
    swapped = proven(permit, other, folder, form)[form].exported
    assert swapped is not None
    with pytest.MonkeyPatch.context() as patch:
        load = LOADERS[form]
        patch.setitem(formats.LOADERS, form, lambda path: load(swapped.path))
        result = judged(proven(permit, about, tmp_path, form), form)

    assert result.outcome == "failed"
    assert (
        "another class is predicted" in result.why
        and "validation accuracy 0 (model 1) differs by 100 points" in result.why
    )


def test_parity_fails_for_a_model_whose_outputs_are_nan(permit: permits.ExportPermit, tmp_path: Path) -> None:
    """A file that is NaN where the model is NaN is equal, and still cannot be released."""
    model = MLP(6, 2, hidden=[])
    nn.init.constant_(model.head.weight, float("nan"))
    about = subject("classification", model, table(X, LABELS))
    result = judged(proven(permit, about, tmp_path, "torchscript"), "torchscript")
    assert result.outcome == "failed" and "NaN for 60 validation rows" in result.why
