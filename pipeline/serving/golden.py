"""`golden.json` of a release: validation rows as a user writes them, with the outputs of the trained model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.dataset import Data
from pipeline.data.tree import take_rows
from pipeline.export.exported import named_leaves, serving
from pipeline.serving.schema_file import Column, Schema

ROWS = 16
TOLERANCE = 1e-4  # of an output, times its size where that is above 1

Values = list[Any]


class GoldenRequest(TypedDict):
    """Rows by column, and the outputs that the trained model gives for them, by name."""

    rows: list[dict[str, Any]]
    outputs: dict[str, Values]


class Golden(TypedDict):
    """The content of `golden.json`. An output may differ by `tolerance`, times its size where that is above 1."""

    schema: int
    tolerance: float
    requests: list[GoldenRequest]


def build_golden(model: nn.Module, data: Data, schema: Schema) -> Golden:
    """Return up to 16 rows spread over validation, once together and the first one alone, with the model's outputs.

    `model` returns one tensor [B, ...], which is called `output`, or a mapping or tuple of tensors, which get the names
    of the schema's outputs in their order. Outputs of text, such as a class name, have no counterpart in torch.
    """
    rows = torch.linspace(0, len(data.val) - 1, min(ROWS, len(data.val))).round().long()
    requests = [_request(model, data, rows, schema), _request(model, data, rows[:1], schema)]
    return {"schema": 1, "tolerance": TOLERANCE, "requests": requests}


def _request(model: nn.Module, data: Data, rows: Tensor, schema: Schema) -> GoldenRequest:
    X = take_rows(data.val.X, rows)
    with serving(model) as frozen:
        outputs = named_outputs(frozen(X), schema)
    return {"rows": raw_rows(X, schema), "outputs": {name: values.tolist() for name, values in outputs.items()}}


def named_outputs(outputs: object, schema: Schema) -> dict[str, Tensor]:
    """Return the tensors of a model's outputs by their names in the graph."""
    if isinstance(outputs, Tensor):
        return {"output": outputs}
    names = [output["name"] for output in schema["outputs"]]
    if isinstance(outputs, Mapping):
        return {str(name): values for name, values in outputs.items() if isinstance(values, Tensor)}
    if isinstance(outputs, tuple | list):
        return {name: values for name, values in zip(names, outputs, strict=False) if isinstance(values, Tensor)}
    return {}


def raw_rows(X: object, schema: Schema) -> list[dict[str, Any]]:
    """Return rows as a user writes them: numbers, None where missing, texts of categories, nested lists of arrays."""
    leaves = {name: np.asarray(leaf) for name, leaf in named_leaves(X).items()}  # type: ignore[arg-type]
    columns: dict[str, Values] = {}
    for tensor in schema["tensors"]:
        own = [column for column in schema["inputs"] if column["tensor"] == tensor["name"]]
        for number, column in enumerate(own):
            values = leaves[tensor["name"]]
            one_array = column["shape"] or values.ndim == 1
            columns[column["name"]] = (values if one_array else values[:, number]).tolist()
            if column["shape"] == []:
                columns[column["name"]] = [_raw(value, column) for value in columns[column["name"]]]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _raw(value: float, column: Column) -> object:
    if column["kind"] == "category":
        texts = {code: text for text, code in (column["categories"] or {}).items()}
        return texts.get(int(value), int(value)) if texts else int(value)
    return None if value != value else value
