"""`schema.json` of a release: what a row consists of, and what the model answers; `predict.py` and others read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.config.build import section_of
from pipeline.data.dataset import Data
from pipeline.data.sources.columns import NA
from pipeline.data.sources.delimited import DELIMITERS
from pipeline.export.exported import named_leaves
from pipeline.serving.schema_file import Column, Output, Schema, TensorSchema

MAX_BYTES = 64 * 2**20  # of a file of rows
MAX_ROWS = 10_000
MAX_NUMBERS = 2**24  # of all rows of one request, 64 MB as float32
CSV_ROLES = ("label", "split", "group", "time")  # options of the readers of tables that name a column
IMAGE_CHANNELS = (1, 3, 4)


def build_schema(data: Data, config: Mapping[str, Any], onnx_file: Path | None = None) -> Schema:
    """Return the schema of rows as the owner's data has them; the outputs are those of the ONNX file.

    Only train rows are read. The kind of a column is `number`, `category`, `integer`, `image`, `tokens` or `array`.
    """
    table = section_of(config, "data")
    imputes = section_of(config, "preprocess").get("impute", "none") not in (None, "none")
    tokens = config["task"]["kind"] == "language_model"
    inputs: list[Column] = []
    tensors: list[TensorSchema] = []
    for name, rows in named_leaves(data.train.X).items():
        assert isinstance(rows, Tensor)
        columns = _columns(name, rows, data, tokens, imputes)
        tensors.append({"name": name, "dtype": _dtype(rows), "whole": rows.ndim == 1 or columns[0]["shape"] != []})
        inputs += columns
    numbers = sum(rows[0].numel() for rows in named_leaves(data.train.X).values() if isinstance(rows, Tensor))
    delimiter = str(table.get("delimiter") or ",")
    delimiters: dict[str, str] = {"\\t": "\t", **DELIMITERS}
    missing: Any = table.get("na") or NA
    return {
        "schema": 1,
        "task": str(config["task"]["kind"]),
        "inputs": inputs,
        "tensors": tensors,
        "outputs": [] if onnx_file is None else graph_outputs(onnx_file),
        "class_names": list(data.class_names or ()),
        "missing": [str(text) for text in missing],
        "delimiter": delimiters.get(delimiter, delimiter),
        "ignored": _ignored(table, [column["name"] for column in inputs]),
        "max_rows": max(1, min(MAX_ROWS, MAX_NUMBERS // max(numbers, 1))),
        "max_bytes": MAX_BYTES,
    }


def _columns(tensor: str, rows: Tensor, data: Data, tokens: bool, imputes: bool) -> list[Column]:
    """Return one column for every number of rows [N, F], else one for the whole array."""
    integer = rows.dtype == torch.int64
    single = tensor == "input"  # the only tensor: not a part of nested features
    named = data.feature_names is not None or bool(data.categories)
    if rows.ndim == 2 and single and not tokens and (named or not integer):
        names = data.feature_names or [f"x{column}" for column in range(rows.shape[1])]
        return [
            _column(names[c], "integer" if integer else "number", tensor, rows[:, c], data, imputes, c)
            for c in range(rows.shape[1])
        ]
    is_image = rows.ndim == 4 and (rows.shape[1] in IMAGE_CHANNELS or rows.shape[-1] in IMAGE_CHANNELS)
    kind = "tokens" if tokens or (integer and rows.ndim == 2) else "image" if is_image else "array"
    name = tensor.removeprefix("input.")
    if rows.ndim == 1:
        return [_column(name, "integer" if integer else "number", tensor, rows, data, False)]
    return [_column(name, kind, tensor, rows, data, imputes and single)]


def _column(
    name: str, kind: str, tensor: str, rows: Tensor, data: Data, imputes: bool, number: int | None = None
) -> Column:
    codes = None if number is None else data.categories.get(number)
    texts = None if number is None else data.category_texts.get(number)
    finite = rows[rows.isfinite()] if rows.is_floating_point() else rows
    return {
        "name": name,
        "kind": "category" if codes is not None else kind,
        "tensor": tensor,
        "dtype": _dtype(rows),
        "shape": list(rows.shape[1:]),
        # Code 0 stands for whatever has no code, so that its own text, if any, needs none.
        "categories": None if texts is None else {text: code for code, text in enumerate(texts)},
        "codes": codes,
        "unknown": None if texts is None else 0,
        "nan_allowed": imputes and rows.is_floating_point(),
        "min": float(finite.min()) if finite.numel() else None,
        "max": float(finite.max()) if finite.numel() else None,
    }


def _dtype(rows: Tensor) -> str:
    return str(rows.dtype).removeprefix("torch.")


def _ignored(table: Mapping[str, Any], used: Sequence[str]) -> list[str]:
    """Return the columns that the reader of the table gave another role: rows may have them."""
    ignore = table.get("ignore") or []
    names = [table.get(role) for role in CSV_ROLES] + (list(ignore) if not isinstance(ignore, str) else [ignore])
    return sorted({name for name in names if isinstance(name, str) and name not in used})


def graph_outputs(onnx_file: Path) -> list[Output]:
    """Return the outputs of an ONNX file, in their order."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(onnx_file), options, providers=["CPUExecutionProvider"])
    return [
        {
            "name": output.name,
            "dtype": output.type.removeprefix("tensor(").removesuffix(")"),
            "shape": [size if isinstance(size, int) else None for size in output.shape],
        }
        for output in session.get_outputs()
    ]
