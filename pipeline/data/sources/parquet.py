"""Tables in Parquet: `_target_: pipeline.data.sources.parquet.parquet_table`; needs pyarrow to be installed."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.data.sources.columns import Choice, table_data
from pipeline.data.sources.delimited import three_paths
from pipeline.data.sources.table import Table
from pipeline.errors import UserError, fault


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
    side: str | None = None,
    group: str | None = None,
    time: str | None = None,
    val: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    source: str | None = None,
    licence: str | None = None,
) -> dict[str, Any]:
    """As `csv_table` does, from Parquet: null and NaN are missing, truth values are 0 and 1, the first row is row 1.

    Raises UserError where pyarrow is not installed, and naming file, row and column as `csv_table` does.
    """
    chosen = Choice(
        label, features, ignore, categories, label_kind, class_names, side, group, time, val, test, seed,
    )  # fmt: skip
    return table_data(_table(three_paths(path, val_path, test_path)), chosen, source, licence)


def _table(paths: Sequence[str]) -> Table:
    """All files as one table of text, their columns in the order of the first."""
    try:
        reader: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        do = "pip install pyarrow, or write the table as CSV"
        raise UserError(fault("data.path", "pyarrow, which reads Parquet, is not installed", do=do)) from error
    tables = []
    for path in paths:
        try:
            tables.append(reader.read_table(path))
        except (OSError, ValueError) as error:  # pyarrow's own errors are among these
            what = f"cannot be read ({' '.join(str(error).split())})"
            raise UserError(fault("data.path", what, got=str(path), expected="a file in Parquet")) from error
    names = [str(name) for name in tables[0].column_names]
    for path, table in zip(paths, tables, strict=True):
        if sorted(table.column_names) != sorted(names):
            odd = ", ".join(sorted(set(table.column_names) ^ set(names)))
            raise UserError(fault(str(path), f"columns differ from those of {paths[0]}", got=odd))
        if not table.num_rows:
            raise UserError(fault(str(path), "has no row", got=f"{len(names)} columns"))
    cells = tuple([_text(v) for table in tables for v in table.column(name).to_pylist()] for name in names)
    counts = [table.num_rows for table in tables]
    lines = np.concatenate([np.arange(1, count + 1) for count in counts])
    return Table(tuple(map(str, paths)), tuple(names), cells, np.repeat(np.arange(len(paths)), counts), lines)


def _text(value: Any) -> str | None:
    """A value as the cell of a table: numbers so that they read back the same."""
    if value is None or value != value:  # NaN is no number, itself included
        return None
    return str(int(value)) if isinstance(value, bool) else str(value)
