"""The content of `schema.json`, and its reader, which does not need torch and does not trust the payload."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

from pipeline.errors import UserError, fault
from pipeline.foreign_files import parse_json, read_bytes
from pipeline.json_types import mismatch

SCHEMA = "schema.json"
KINDS = ("number", "category", "integer", "image", "tokens", "array")
DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")


class Column(TypedDict):
    """An input of a row: one number or code, or a whole array; `shape` is that of one row.

    `categories` maps the text of a category to its code, None where the data gave only the number of codes; `unknown`
    is the code of all other texts. `min` and `max` are over the train rows, None without a finite value.
    """

    name: str
    kind: str
    tensor: str
    dtype: str
    shape: list[int]
    categories: dict[str, int] | None
    codes: int | None
    unknown: int | None
    nan_allowed: bool
    min: float | None
    max: float | None


class TensorSchema(TypedDict):
    """An input of the graph; `whole` where one column is the tensor, else every column is one element of a row."""

    name: str
    dtype: str
    whole: bool


class Output(TypedDict):
    """An output of the graph; the first axis of `shape` is the rows, None where it depends on the rows."""

    name: str
    dtype: str
    shape: list[int | None]


class Schema(TypedDict):
    """The content of `schema.json`. `ignored` are columns of the user's table that the model does not use."""

    schema: int
    task: str
    inputs: list[Column]
    tensors: list[TensorSchema]
    outputs: list[Output]
    class_names: list[str]
    missing: list[str]
    delimiter: str
    ignored: list[str]
    max_rows: int
    max_bytes: int


def read_schema(payload: Path) -> Schema:
    """Return the schema of a payload. Raises UserError for a file that no release wrote."""
    path = payload / SCHEMA
    schema: Schema = parse_json(read_bytes(path, "the schema of a release"), str(path))
    if wrong := mismatch(schema, Schema, "schema") or next(_contradictions(schema), None):
        raise UserError(fault(str(path), f"is not a schema ({wrong})", expected="the file that the release wrote"))
    return schema


def _contradictions(schema: Schema) -> Iterator[str]:
    """Yield what cannot be read although every part has its type."""
    columns, tensors = schema["inputs"], schema["tensors"]
    if not tensors:
        yield "schema.tensors is empty"
    for part, named in (("inputs", columns), ("tensors", tensors)):
        twice = [name for name, count in Counter(entry["name"] for entry in named).items() if count > 1]
        yield from (f"schema.{part} has {name!r:.60} twice" for name in twice)
    for column in columns:
        if column["kind"] not in KINDS or column["dtype"] not in DTYPES or min(column["shape"], default=0) < 0:
            yield f"the kind, dtype or shape of the input {column['name']!r:.60} does not exist"
        if column["kind"] == "category" and column["categories"] is None and column["codes"] is None:
            yield f"the input {column['name']!r:.60} has no categories"
    for tensor in tensors:
        own = [column for column in columns if column["tensor"] == tensor["name"]]
        if not own or (tensor["whole"] and len(own) > 1) or tensor["dtype"] not in DTYPES:
            yield f"the tensor {tensor['name']!r:.60} has {len(own)} inputs and the dtype {tensor['dtype']!r:.60}"
        if not tensor["whole"] and any(column["shape"] for column in own):
            yield f"an element of the tensor {tensor['name']!r:.60} has a shape"
    known = {tensor["name"] for tensor in tensors}
    yield from (f"the input {c['name']!r:.60} is of no tensor" for c in columns if c["tensor"] not in known)
