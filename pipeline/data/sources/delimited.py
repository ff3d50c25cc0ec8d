"""Tables of delimited text: `_target_: pipeline.data.sources.delimited.csv_table`; the header is row 1."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.data.source_data import SourceData
from pipeline.data.sources.columns import NA, table_data
from pipeline.data.sources.table import Table, TableOptions
from pipeline.errors import UserError, fault

DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}  # as words, which need no quoting in a shell
_MAX_CELL = 1 << 24  # characters of one cell; the default of csv, 131,072, is too small for texts in a column
_BYTE_ORDER_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
NumberedRow = tuple[int, list[str]]  # line number and cells


def csv_table(
    path: str | None,
    label: str | None,
    *,
    val_path: str | None = None,
    test_path: str | None = None,
    delimiter: str = ",",
    encoding: str = "utf-8",
    na: Sequence[str] = NA,
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
    """A table with a header: X float32 [N, F], text as codes of categories; y ids int64 or values float32 [N].

    `na` are the cells that mean missing, without surrounding spaces. With `val_path` and `test_path` the three files
    are the three splits; otherwise see `assign_splits`. The returned `categories` are those of the train rows, for each
    categorical column. Raises UserError naming file, row and column.
    """
    options = TableOptions(
        label, features, ignore, categories, label_kind, class_names, split, group, time, val, test, seed,
    )  # fmt: skip
    paths = split_paths(path, val_path, test_path)
    return table_data(_read_table(paths, _delimiter(delimiter), encoding, frozenset(na)), options, source, licence)


def split_paths(path: str | None, val_path: str | None, test_path: str | None) -> list[str]:
    """The path of one file, or of three. Raises UserError without `path`, or with only one of the other two."""
    if path is None:
        raise UserError(fault("data.path", "is not given", expected="the file to read"))
    if (val_path is None) != (test_path is None):
        absent = "val_path" if val_path is None else "test_path"
        expected = "both data.val_path and data.test_path, or neither"
        raise UserError(fault(f"data.{absent}", "is not given", expected=expected))
    return [path, *(p for p in (val_path, test_path) if p is not None)]


def read_bytes(path: str, key: str = "data.path") -> bytes:
    """The bytes of a file. Raises UserError, naming the config key, if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        raise UserError(fault(key, what, got=str(path), expected=f"a file, relative to {Path.cwd()}")) from error


def decode_text(path: str, raw: bytes, encoding: str, delimiter: str | None = None) -> str:
    """Text without a byte order mark. Raises UserError naming the first invalid byte with its row and column.

    The column is named only for a table, whose `delimiter` is given.
    """
    try:
        text = raw.decode(encoding)
    except LookupError as error:
        what = "there is no such encoding"
        raise UserError(fault("data.encoding", what, got=encoding, expected="utf-8, ...")) from error
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        row, line = before.count(b"\n") + 1, before.rpartition(b"\n")[2].decode("latin-1")
        column = _format_column(raw, line, row, delimiter) if delimiter else ""
        likely = _BYTE_ORDER_MARKS.get(raw[:2], "cp1252")  # what spreadsheets on Windows write
        what = f"byte {error.start} (0x{raw[error.start]:02x}) is not valid {encoding}"
        do = f"python -m pipeline ... data.encoding={likely}"
        raise UserError(fault(f"{path}: row {row}{column}", what, expected=f"text in {encoding}", do=do)) from error
    return text.removeprefix("\ufeff")


def _format_column(raw: bytes, line: str, row: int, delimiter: str) -> str:
    """`, column 'age'`: the column that the line ends in; empty if the file is not a table at all."""
    try:
        header = next(csv.reader([raw.partition(b"\n")[0].decode("latin-1")], delimiter=delimiter), [])
        cell = max(len(next(csv.reader([line], delimiter=delimiter), [])), 1)
    except csv.Error:  # not text: a program, an image
        return ""
    return f", column '{header[cell - 1]}'" if cell <= len(header) and row > 1 else f", column {cell}"


def _delimiter(name: str) -> str:
    delimiter = {"\\t": "\t", **DELIMITERS}.get(name, name)
    if not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '"\r\n':
        expected = "one character, or tab, comma, semicolon, pipe"
        raise UserError(fault("data.delimiter", "is not a delimiter", got=name, expected=expected))
    return delimiter


def _read_table(paths: Sequence[str], delimiter: str, encoding: str, na: frozenset[str]) -> Table:
    """All files as one table, with the columns in the order of the first file."""
    names: list[str] = []
    lines: list[int] = []
    file_of: list[int] = []
    rows: list[list[str]] = []
    for number, path in enumerate(paths):
        header, body = _read_rows(path, delimiter, encoding)
        if number and sorted(header) != sorted(names):
            differing = ", ".join(sorted(set(header) ^ set(names)))
            raise UserError(fault(f"{path}: row 1", f"columns differ from those of {paths[0]}", got=differing))
        names = names or header
        place = {name: i for i, name in enumerate(header)}
        order = [place[name] for name in names]
        rows += (row if header == names else [row[i] for i in order] for _, row in body)
        lines += (line for line, _ in body)
        file_of += [number] * len(body)
    cells = tuple(_cells(column, na) for column in zip(*rows, strict=True))
    return Table(tuple(map(str, paths)), tuple(names), cells, np.array(file_of, np.intp), np.array(lines, np.int64))


def _cells(column: Sequence[str], na: frozenset[str]) -> Sequence[str | None]:
    """The cells of a column without surrounding spaces, None for those that mean missing."""
    cells = list(map(str.strip, column))
    return cells if na.isdisjoint(cells) else [None if cell in na else cell for cell in cells]


def _read_rows(path: str, delimiter: str, encoding: str) -> tuple[list[str], list[NumberedRow]]:
    """Header and rows of one file. Raises UserError if a row does not have as many cells as the header."""
    # A wrong delimiter or encoding is the most frequent mistake: both are reported before ragged rows are.
    text = decode_text(path, read_bytes(path), encoding, delimiter)
    rows = _parse_rows(path, text, delimiter)
    if not rows:
        raise UserError(fault(path, "is empty", expected="a header and rows"))
    header = [name.strip() for name in rows[0][1]]
    _check_header(path, header, delimiter)
    body = rows[1:]
    if not body:
        raise UserError(fault(path, "has a header and no rows", got=f"{len(header)} columns"))
    ragged = [(line, row) for line, row in body if len(row) != len(header)]
    if ragged:
        line, row = ragged[0]
        column = f"column '{header[len(row)]}'" if len(row) < len(header) else f"column {len(header) + 1}"
        what = f"has {len(row)} cells"
        what += f", and {len(ragged) - 1} more rows do not fit the header" if len(ragged) > 1 else ""
        raise UserError(fault(f"{path}: row {line}, {column}", what, expected=f"{len(header)}, as in the header"))
    return header, body


def _parse_rows(path: str, text: str, delimiter: str) -> list[NumberedRow]:
    """Every row that is not blank, with the number of its first line."""
    previous_limit = csv.field_size_limit(_MAX_CELL)
    # newline="" leaves line breaks inside quotes unchanged; strict refuses quotes that are not closed.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows, line = list[NumberedRow](), 1
    try:
        for row in reader:
            if row:
                rows.append((line, row))
            line = reader.line_num + 1
    except csv.Error as error:
        what = f"cannot be read ({error})"
        raise UserError(fault(f"{path}: row {line}, column 1", what, expected="quotes that are closed")) from error
    finally:
        csv.field_size_limit(previous_limit)
    return rows


def _check_header(path: str, header: list[str], delimiter: str) -> None:
    """Raises UserError for one column that another delimiter would divide, and for a missing or repeated name."""
    if len(header) == 1:
        widths = {name: len(next(csv.reader([header[0]], delimiter=d), [])) for name, d in DELIMITERS.items()}
        best = max(widths, key=lambda name: widths[name])
        if widths[best] > 1:
            do = f"python -m pipeline ... data.delimiter={best}"
            what = f"delimiter {delimiter!r} gives one column, {best} would give {widths[best]}"
            raise UserError(fault(f"{path}: row 1, column 1", what, do=do))
    for number, name in enumerate(header, start=1):
        if not name:
            expected = "a name for every column, also for an index, which is not a feature"
            raise UserError(fault(f"{path}: row 1, column {number}", "has no name", expected=expected))
    previous: set[str] = set()
    for name in header:
        if name in previous:
            expected = "different names"
            raise UserError(fault(f"{path}: row 1, column '{name}'", "name occurs twice", expected=expected))
        previous.add(name)
