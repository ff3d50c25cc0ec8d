"""A small payload for tests of serving: a linear model of two columns, exported for real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.data.dataset import Data
from pipeline.data.load import seal
from pipeline.serving.golden import build_golden
from pipeline.serving.schema import build_schema
from pipeline.serving.standalone import predict


class Linear(nn.Module):
    """Two scores of two columns."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def rows() -> Data:
    """Rows with a number and a category, in two classes."""
    X = np.array([[0, 1], [1, 2], [2, 1], [3, 2]], np.float32)
    split = (X, np.array([0, 0, 1, 1]))
    val = ((X + np.float32([0.25, 0])).astype(np.float32), split[1])
    test = ((X + np.float32([0.5, 0])).astype(np.float32), split[1])
    return seal(
        {
            "train": split,
            "val": val,
            "test": test,
            "feature_names": ["speed", "colour"],
            "class_names": ["slow", "fast"],
            "categories": {"colour": ["<unknown>", "blue", "red"]},
        },
        "classification",
    )


def config(impute: str = "none") -> dict[str, Any]:
    return {
        "task": {"kind": "classification"},
        "data": {"label": "state", "na": None},
        "preprocess": {"impute": impute},
        "loader": {"batch_size": 4},
    }


def write_payload(folder: Path, model: nn.Module | None = None) -> Path:
    """Export a model with schema, golden requests and `predict.py` to a folder."""
    torch.manual_seed(0)
    model = (model or Linear()).eval()
    data = rows()
    program = torch.onnx.export(
        model,
        (data.val.X[:2],),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        input_names=["input"],
        output_names=["output"],
        external_data=False,
        verbose=False,
    )
    assert program is not None
    (folder / "model.onnx").write_bytes(program.model_proto.SerializeToString())
    schema = build_schema(data, config(), folder / "model.onnx")
    (folder / "schema.json").write_text(json.dumps(schema))
    (folder / "golden.json").write_text(json.dumps(build_golden(model, data, schema)))
    (folder / "predict.py").write_bytes(Path(predict.__file__).read_bytes())
    return folder
