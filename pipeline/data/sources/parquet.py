"""Tables in Parquet: `_target_: pipeline.data.sources.parquet.parquet_table`; needs pyarrow to be installed."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from pipeline.data.source_data import SourceData
from pipeline.data.sources.columns import table_data
from pipeline.data.sources.delimited import split_paths
from pipeline.data.sources.table import Table, TableOptions
from pipeline.errors import UserError, fault

MAX_CELLS = 20_000_000  # of a file of any size; a cell takes about 50 bytes
CELLS_PER_BYTE = 100  # of a larger file: equal cells take next to nothing in Parquet


def parquet_table(
    path: str | None,
    label: str | None,
    *,
    val_path: str | None = None,
    test_path: str | None = None,
    features: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    categories: Sequence[str] = (),
    label_kind: str = "classes",
    class_names: Sequence[str] | None = None,
    split: str | None = None,
    group: str | None = None,
    time: str | None = None,
    val: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    source: str | None = None,
    licence: str | None = None,
) -> SourceData:
    """Like `csv_table`, from Parquet: null and NaN are missing, booleans are 0 and 1, the first row is row 1.

    Raises UserError if pyarrow is not installed, else naming file, row and column like `csv_table`.
    """
    options = TableOptions(
        label, features, ignore, categories, label_kind, class_names, split, group, time, val, test, seed,
    )  # fmt: skip
    return table_data(_read_table(split_paths(path, val_path, test_path)), options, source, licence)


def _read_table(paths: Sequence[str]) -> Table:
    """All files as one table of text, with the columns in the order of the first file."""
    try:
        reader: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        do = "pip install pyarrow, or write the table as CSV"
        raise UserError(fault("data.path", "pyarrow, which reads Parquet, is not installed", do=do)) from error
    tables = []
    for path in paths:
        try:
            _refuse_bomb(path, reader.read_metadata(path))
            tables.append(reader.read_table(path))
        except UserError:
            raise
        except (OSError, ValueError, NotImplementedError) as error:  # the errors of pyarrow are subclasses of these
            what = f"cannot be read ({' '.join(str(error).split())})"
            raise UserError(fault("data.path", what, got=str(path), expected="a Parquet file")) from error
    names = [str(name) for name in tables[0].column_names]
    for path, table in zip(paths, tables, strict=True):
        if sorted(table.column_names) != sorted(names):
            differing = ", ".join(sorted(set(table.column_names) ^ set(names)))
            raise UserError(fault(str(path), f"columns differ from those of {paths[0]}", got=differing))
        if not table.num_rows:
            raise UserError(fault(str(path), "has no rows", got=f"{len(names)} columns"))
    columns = [[v for p, t in zip(paths, tables, strict=True) for v in _values(t, name, p)] for name in names]
    # Text cells give Parquet and CSV one path from here on: the same categories, messages and digests.
    cells = tuple([_cell(value) for value in column] for column in columns)
    counts = [table.num_rows for table in tables]
    lines = np.concatenate([np.arange(1, count + 1) for count in counts])
    return Table(tuple(map(str, paths)), tuple(names), cells, np.repeat(np.arange(len(paths)), counts), lines)


def _values(table: Any, name: str, path: str) -> list[Any]:
    """The values of a column. Raises UserError for text that is not UTF-8, which only reading it tells."""
    try:
        return python_values(table.column(name))
    except (ValueError, NotImplementedError) as error:
        what = f"column {name} cannot be read ({error})"
        raise UserError(fault(str(path), what, expected="texts in UTF-8, numbers or times")) from error


def python_values(column: Any) -> list[Any]:
    """The values of a column of pyarrow's; times in nanoseconds, which Python's own lack, as text."""
    try:
        return list(column.to_pylist())
    except ValueError:
        return list(column.cast("string").to_pylist())


def _refuse_bomb(path: str, metadata: Any) -> None:
    """Raises UserError for a small file with so many cells that they fill the memory, before they are read."""
    cells, packed = metadata.num_rows * metadata.num_columns, os.path.getsize(path)
    limit = max(MAX_CELLS, CELLS_PER_BYTE * packed)
    if cells > limit:
        what = f"{path} has far more cells than its size lets expect, which fill the memory"
        expected = f"at most {limit:,}: {MAX_CELLS:,}, or {CELLS_PER_BYTE} per byte"
        do = "leave out rows or columns, or write the table as CSV, which takes a byte per cell at least"
        raise UserError(fault("data.path", what, got=f"{cells:,} cells in {packed:,} bytes", expected=expected, do=do))


def _cell(value: object) -> str | None:
    """A value as a cell of text, from which numbers are read back exactly."""
    if value is None or (isinstance(value, float | Decimal) and value != value):  # NaN is not equal to itself
        return None
    return str(int(value)) if isinstance(value, bool) else str(value)
