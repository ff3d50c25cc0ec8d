"""A payload with a drift reference, as a release writes it: three numbers and a category, exported for real."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.dataset import Data
from pipeline.drift import rehearsal
from pipeline.readiness.subject import Subject
from pipeline.release.bundle import MANIFEST, describe
from pipeline.run_store import files
from pipeline.run_store.records import ScoreRecord
from pipeline.serving.schema import build_schema
from tests.readiness_subjects import CLASSES, subject_of, table

NAMES = ("speed", "weight", "height", "colour")
SCORE: Any = {
    "metric": "accuracy", "value": 0.98, "low": 0.96, "high": 0.99, "n": 400, "greater_is_better": True,
}  # fmt: skip


class Threshold(nn.Module):
    """Class `fast` where the speed is above 0, more surely the further it is; NaN for a colour that is unknown."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(4.0))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([-inputs[:, 0], inputs[:, 0]], 1) * self.scale


def live_rows(rows: int, seed: int = 0) -> np.ndarray:
    """Rows of the population: normal numbers and three colours."""
    rng = np.random.default_rng(seed)
    numbers, colours = rng.normal(size=(rows, 3)), rng.choice([1, 2, 3], (rows, 1), p=[0.5, 0.3, 0.2])
    return np.concatenate([numbers, colours], axis=1).astype(np.float32)


def data_of(rows: np.ndarray, labels: Any = None, **more: Any) -> Data:
    """A quarter of the rows is for validation; the labels follow from the speed unless they are given."""
    labels = (rows[:, 0] > 0).astype(int) if labels is None else labels
    more |= {"feature_names": list(NAMES), "class_names": ["slow", "fast"]}
    return table(rows, labels, categories={"colour": ["<unknown>", "blue", "red", "green"]}, **more)


def export(subject: Subject, folder: Path) -> None:
    """Write ONNX file and schema of a model that takes rows of numbers."""
    program = torch.onnx.export(
        subject.model,
        (subject.data.val.X[:2],),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        input_names=["input"],
        output_names=["output"],
        external_data=False,
        verbose=False,
    )
    assert program is not None
    (folder / "model.onnx").write_bytes(program.model_proto.SerializeToString())
    files.write_json(folder / "schema.json", build_schema(subject.data, subject.config, folder / "model.onnx"))


def subject(rows: int = 1600, labels: Any = None) -> Subject:
    """The model on rows of the population; the column of the labels is `state`."""
    of = subject_of(Threshold(), data_of(live_rows(rows), labels), **CLASSES)
    return replace(of, config={**of.config, "data": {"label": "state"}, "preprocess": {}})


def write_payload(folder: Path, score: ScoreRecord | None = SCORE) -> rehearsal.RehearsalEvidence:
    """Write model, schema, reference and manifest to a folder; return what the rehearsal found."""
    of = subject()
    export(of, folder)
    _, evidence = rehearsal.measure(of, folder, score)
    list_files(folder)
    return evidence


def list_files(folder: Path) -> None:
    """Write the manifest of the files that are there."""
    records = {path.name: describe(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    files.write_json(folder / MANIFEST, {"schema": 1, "source": {}, "files": records})


def write_csv(path: Path, rows: np.ndarray, names: Sequence[str] = NAMES, **more: Sequence[Any]) -> Path:
    """Write rows as a user has them, with the names of the colours; NaN is an empty cell."""
    colours = ("brown", "blue", "red", "green")
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([*names, *more])
        for at, row in enumerate(rows):
            numbers = ["" if np.isnan(value) else f"{value:.6g}" for value in row[:3]]
            writer.writerow([*numbers, colours[int(row[3])], *(values[at] for values in more.values())])
    return path
