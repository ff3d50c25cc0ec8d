"""Reads live rows as `predict.py` takes them, from CSV, JSON, NPZ or Parquet: a million rows in seconds.

Every fault of a file is one UserError with its row, from 1, and its column. A missing value is no fault here, whatever
the schema allows: that values are missing is what a monitor has to notice.
"""

from __future__ import annotations

import csv
import importlib
import math
import os
import stat
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.drift.features import Array, columns_of
from pipeline.errors import UserError, fault
from pipeline.foreign_files import BROKEN, MAX_BYTES, read_bytes
from pipeline.serving.standalone import predict

if TYPE_CHECKING:
    from pipeline.serving.schema_file import Column, Schema

SUFFIXES = (".csv", ".json", ".npz", ".parquet")
CHUNK = 50_000  # rows whose cells are text at the same time
MAX_FAULTS = 20  # of one file that are listed
EXPECTED = "rows as predict.py takes them: a .csv, .json, .npz or .parquet file"

Cells = dict[str, Sequence[Any]]  # values by column


@dataclass(frozen=True, eq=False)
class LiveRows:
    """Rows as the tensors of the schema, with NaN where a value is missing, and their labels as they were written."""

    tensors: dict[str, Array]
    labels: Sequence[Any] | Array | None

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))


class _Faults(list[str]):
    """Faults of a file; raised together as soon as there are many, else at the end."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def add(self, place: str, what: str, **details: Any) -> None:
        self.append(fault(f"{self.where}: {place}" if place else self.where, what, **details))
        if len(self) >= MAX_FAULTS:
            raise UserError(*self)

    def raise_any(self) -> None:
        if self:
            raise UserError(*self)


def read_rows(path: Path, schema: Schema, label: str | None = None) -> LiveRows:
    """Return the rows of a file; `label` is the column of the targets, which rows may have besides the inputs.

    Raises UserError for a file that cannot be read, without rows, with other columns or with values of another type.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(fault(str(path), "is no file of rows", got=suffix or "no suffix", expected=EXPECTED))
    faults = _Faults(str(path))
    if suffix == ".npz":
        rows = _from_arrays(_read_npz(path), schema, label, faults)
    else:
        chunks = {".csv": _csv_chunks, ".json": _json_chunks, ".parquet": _parquet_chunks}[suffix]
        rows = _from_chunks(chunks(path, schema, label), schema, label, suffix == ".csv", faults)
    faults.raise_any()
    if not len(rows):
        raise UserError(fault(str(path), "has no rows", expected=EXPECTED))
    return rows


def _from_chunks(chunks: Iterator[Cells], schema: Schema, label: str | None, text: bool, faults: _Faults) -> LiveRows:
    """Return columns of values as tensors, a chunk at a time, so that few of them are Python objects at once."""
    parts: dict[str, list[Array]] = {tensor["name"]: [] for tensor in schema["tensors"]}
    labels: list[Any] = []
    labelled, first = False, 1
    for cells in chunks:
        for tensor in schema["tensors"]:
            own = columns_of(schema, tensor["name"])
            values = [_values(cells[column["name"]], column, schema, text, first, faults) for column in own]
            whole = tensor["whole"]
            parts[tensor["name"]].append(values[0] if whole else np.stack(values, 1).astype(_dtype(own[0])))
        if label is not None and label in cells:
            labelled = True
            labels += cells[label]
        first += len(next(iter(cells.values())))
    if not all(parts.values()):
        raise UserError(fault(faults.where, "has no rows", expected=EXPECTED))
    tensors = {name: np.concatenate(of) for name, of in parts.items()}
    return LiveRows(tensors, labels if labelled else None)


def _dtype(column: Column) -> type[np.floating[Any]]:
    """Integers need a type that holds NaN beside them."""
    return np.float32 if column["dtype"] == "float32" else np.float64


def _values(cells: Sequence[Any], column: Column, schema: Schema, text: bool, first: int, faults: _Faults) -> Array:
    if column["shape"]:
        return _arrays(cells, column, text, first, faults)
    if text:
        cells = _known(cells, schema["missing"])
    if column["kind"] == "category":
        return _codes(cells, column, first, faults)
    try:
        if text or not any(isinstance(cell, str | bool) for cell in cells):
            numbers = np.array([math.nan if cell is None else float(cell) for cell in cells])
            if column["kind"] != "integer" or not (numbers % 1 > 0).any():
                return numbers
    except (TypeError, ValueError, OverflowError):
        pass
    for row, cell in enumerate(cells, first):
        if not _is_number(cell, column, text):
            expected = "a whole number" if column["kind"] == "integer" else "a number"
            faults.add(
                f"row {row}, column '{column['name']}'", "is another type", got=str(cell)[:60], expected=expected
            )
            break  # one fault per column and chunk: the others are of the same kind
    return np.full(len(cells), np.nan)


def _known(cells: Sequence[str], missing: Sequence[str]) -> Sequence[str | None]:
    """Return cells without surrounding spaces, None for those that mean missing."""
    absent = frozenset(missing)
    stripped = list(map(str.strip, cells))
    return stripped if absent.isdisjoint(stripped) else [None if cell in absent else cell for cell in stripped]


def _is_number(cell: Any, column: Column, text: bool) -> bool:
    if cell is None:
        return True
    if not text and isinstance(cell, str | bool):
        return False
    try:
        number = float(cell)
    except (TypeError, ValueError, OverflowError):
        return False
    return column["kind"] != "integer" or not math.isfinite(number) or number == int(number)


def _codes(cells: Sequence[Any], column: Column, first: int, faults: _Faults) -> Array:
    """Return the codes of categories; a text that has none is the code for unknown ones, as in `predict.py`."""
    codes, unknown = column["categories"], column["unknown"]
    if codes is not None and unknown is not None:
        return np.array([codes.get(str(cell), unknown) if cell is not None else unknown for cell in cells], float)
    highest = (column["codes"] or 1) - 1
    try:
        numbers = np.array([math.nan if cell is None else float(cell) for cell in cells])
        wrong = np.flatnonzero((numbers % 1 > 0) | (numbers < 0) | (numbers > highest))
    except (TypeError, ValueError, OverflowError):
        numbers = np.full(len(cells), np.nan)
        wrong = np.array([next(at for at, cell in enumerate(cells) if not _is_number(cell, column, True))])
    if len(wrong):
        place = f"row {first + int(wrong[0])}, column '{column['name']}'"
        faults.add(place, "is not a code", got=str(cells[int(wrong[0])])[:60], expected=f"0 to {highest}")
    return numbers


def _arrays(cells: Sequence[Any], column: Column, text: bool, first: int, faults: _Faults) -> Array:
    shape = (len(cells), *column["shape"])
    place = f"column '{column['name']}'"
    if text:
        faults.add(place, f"is an array of shape {column['shape']}, which a CSV cannot hold", expected="JSON or NPZ")
        return np.zeros(shape)
    try:
        array = np.asarray(cells, dtype=np.float64 if column["dtype"] != "float32" else np.float32)
    except (TypeError, ValueError, OverflowError):
        array = np.zeros((0,))
    if array.shape == shape:
        return array
    for row, cell in enumerate(cells, first):
        try:
            cell_shape = list(np.asarray(cell, np.float64).shape)
        except (TypeError, ValueError, OverflowError):
            cell_shape = []
        if cell_shape != list(column["shape"]):
            faults.add(f"row {row}, {place}", "has another shape", got=str(cell_shape), expected=str(column["shape"]))
            break
    return np.zeros(shape)


# --- files -----------------------------------------------------------------------------------------------------------


def _require_file(path: Path) -> None:
    """Raise UserError for what is no plain file: a pipe or a device may have no end."""
    try:
        plain = stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        what = "does not exist" if missing else f"cannot be read ({error})"
        raise UserError(fault(str(path), what, expected=EXPECTED)) from None
    if not plain:
        raise UserError(fault(str(path), "is not a file", expected=EXPECTED))


def _check_columns(names: Sequence[str], schema: Schema, label: str | None, path: Path, row: int | None = None) -> None:
    """Raise UserError with every column that is missing, unknown or there twice, and the name that was meant."""
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    faults = [fault(f"{path}: column '{name}'", "occurs twice in the header") for name in twice]
    try:
        predict.check_columns([name for name in names if name != label], dict(schema), row)
    except predict.PredictError as error:
        faults += [fault(str(path), str(each)) for each in error.errors]
    if faults:
        raise UserError(*faults)


def _csv_chunks(path: Path, schema: Schema, label: str | None) -> Iterator[Cells]:
    _require_file(path)
    previous = csv.field_size_limit(predict.MAX_CELL)
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter=schema["delimiter"], strict=True)
            header = [name.strip() for name in next(reader, [])]
            if not header:
                raise UserError(fault(str(path), "is empty", expected="a header and rows"))
            _check_columns(header, schema, label, path)
            rows: list[list[str]] = []
            for cells in reader:
                if cells:
                    rows.append(cells)
                if len(rows) == CHUNK:
                    yield _columns(rows, header, line, path)
                    line, rows = line + CHUNK, []
            if rows:
                yield _columns(rows, header, line, path)
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        reason = "a byte is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise UserError(fault(str(path), f"cannot be read as CSV ({reason})", expected=EXPECTED)) from None
    finally:
        csv.field_size_limit(previous)


def _columns(rows: list[list[str]], header: list[str], first: int, path: Path) -> Cells:
    ragged = [at for at, row in enumerate(rows) if len(row) != len(header)]
    if ragged:
        what = f"has {len(rows[ragged[0]])} cells"
        raise UserError(fault(f"{path}: row {first + ragged[0]}", what, expected=f"{len(header)}, as in the header"))
    return dict(zip(header, zip(*rows, strict=True), strict=True))


def _json_chunks(path: Path, schema: Schema, label: str | None) -> Iterator[Cells]:
    content = read_bytes(path, EXPECTED, MAX_BYTES)
    try:
        rows = predict.read_json(content.decode("utf-8-sig"))
    except (predict.PredictError, UnicodeDecodeError) as error:
        raise UserError(fault(str(path), str(error), expected=EXPECTED)) from None
    if not isinstance(rows, list):
        raise UserError(fault(str(path), "is no list of rows", got=type(rows).__name__, expected=EXPECTED))
    names = [column["name"] for column in schema["inputs"]]
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        for number, row in enumerate(chunk, start + 1):
            if isinstance(row, dict):
                _check_columns(list(row), schema, label, path, number)
            elif not isinstance(row, list) or len(row) != len(names):
                got = f"{len(row)} values" if isinstance(row, list) else type(row).__name__
                expected = f"an object by column, or a list of {len(names)} values"
                raise UserError(fault(f"{path}: row {number}", "is not a row", got=got, expected=expected))
        objects = [row if isinstance(row, dict) else dict(zip(names, row, strict=True)) for row in chunk]
        cells: Cells = {name: [row[name] for row in objects] for name in names}
        if label is not None and label in objects[0]:
            cells[label] = [row.get(label) for row in objects]
        yield cells


def _parquet_chunks(path: Path, schema: Schema, label: str | None) -> Iterator[Cells]:
    _require_file(path)
    try:
        reader: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        do = "pip install pyarrow, or write the rows as CSV"
        raise UserError(fault(str(path), "pyarrow, which reads Parquet, is not installed", do=do)) from None
    from pipeline.data.sources.parquet import python_values  # loads torch, which no other rows need

    try:
        file = reader.ParquetFile(path)
        header = [str(name) for name in file.schema_arrow.names]
        _check_columns(header, schema, label, path)
        for batch in file.iter_batches(batch_size=CHUNK):
            yield {name: python_values(batch.column(at)) for at, name in enumerate(header)}
    except UserError:
        raise
    except (OSError, ValueError, NotImplementedError) as error:  # the errors of pyarrow are subclasses of these
        raise UserError(fault(str(path), f"cannot be read ({error})", expected=EXPECTED)) from None


def _read_npz(path: Path) -> dict[str, Array]:
    _require_file(path)
    try:
        with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_BYTES:
            raise UserError(fault(str(path), "is too large", got=f"{size:,} bytes", expected=f"at most {MAX_BYTES:,}"))
        with np.load(path, allow_pickle=False) as loaded:
            return {name: np.asarray(loaded[name]) for name in loaded.files}
    except UserError:
        raise
    except BROKEN as error:  # a pickle is a ValueError here
        raise UserError(fault(str(path), f"is not an NPZ file of numbers ({error})", expected=EXPECTED)) from None


def _from_arrays(arrays: dict[str, Array], schema: Schema, label: str | None, faults: _Faults) -> LiveRows:
    """Return arrays that are named like the tensors, or `X` for a single one; `y` are the labels."""
    tensors: dict[str, Array] = {}
    single = len(schema["tensors"]) == 1
    for tensor in schema["tensors"]:
        name, own = tensor["name"], columns_of(schema, tensor["name"])
        short = name.removeprefix("input.")
        key = next((n for n in (name, short, *(["X"] if single else [])) if n in arrays), None)
        shape = list(own[0]["shape"]) if tensor["whole"] else [len(own)]
        if key is None:
            faults.add("", "has no array of the inputs", got=", ".join(arrays), expected="X" if single else short)
            continue
        values = arrays[key]
        if values.dtype.kind not in "biuf":
            faults.add(f"array '{key}'", "is another type", got=str(values.dtype), expected=own[0]["dtype"])
        elif list(values.shape[1:]) != shape or not values.ndim:
            expected = f"[rows, {', '.join(map(str, shape))}]" if shape else "[rows]"
            faults.add(f"array '{key}'", "has another shape", got=str(list(values.shape)), expected=expected)
        else:
            tensors[name] = values.astype(np.float32 if own[0]["dtype"] == "float32" else np.float64)
    faults.raise_any()
    lengths = {len(values) for values in tensors.values()}
    labels = arrays.get(label or "y", arrays.get("y"))
    if len(lengths) > 1 or (labels is not None and {len(labels)} != lengths):
        faults.add("", "has arrays of different numbers of rows", got=str(sorted(lengths)), expected="one row each")
    return LiveRows(tensors, labels)
