"""Tables of delimited text: `_target_: pipeline.data.sources.delimited.csv_table`; the header is row 1."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.sources.columns import NA, Choice, table_data
from pipeline.data.sources.table import Table
from pipeline.errors import UserError, fault

DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}  # by words that no shell reads otherwise
_LONGEST = 1 << 24  # characters of one cell; csv's own limit of 131,072 is meant for hostile text
_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # byte order marks that tell the encoding
Row = tuple[int, list[str]]


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
    side: str | None = None,
    group: str | None = None,
    time: str | None = None,
    val: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    source: str | None = None,
    licence: str | None = None,
) -> dict[str, Any]:
    """A table with a header: X float32 [N, F], text as codes of categories; y ids int64 or values float32 [N].

    `na` are the cells that mean missing, spaces around them apart. With `val_path` and `test_path` three files are the
    three sides; otherwise see `table_sides`. `categories` of what is returned are the words of each column of codes, as
    the train rows have them. Raises UserError naming file, row, column.
    """
    chosen = Choice(
        label, features, ignore, categories, label_kind, class_names, side, group, time, val, test, seed,
    )  # fmt: skip
    paths = three_paths(path, val_path, test_path)
    return table_data(_table(paths, _delimiter(delimiter), encoding, frozenset(na)), chosen, source, licence)


def three_paths(path: str | None, val_path: str | None, test_path: str | None) -> list[str]:
    """One file, or three. Raises UserError where one is not given, or only one of the other two."""
    if path is None:
        raise UserError(fault("data.path", "is not given", expected="the file to read"))
    if (val_path is None) != (test_path is None):
        absent = "val_path" if val_path is None else "test_path"
        raise UserError(
            fault(f"data.{absent}", "is not given", expected="both data.val_path and data.test_path, or none")
        )
    return [path, *(p for p in (val_path, test_path) if p is not None)]


def read_bytes(path: str, key: str = "data.path") -> bytes:
    """The bytes of a file. Raises UserError for one that cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        raise UserError(fault(key, what, got=str(path), expected=f"a file, seen from {Path.cwd()}")) from error


def decoded(path: str, raw: bytes, encoding: str, delimiter: str | None = None) -> str:
    """Text without a byte order mark. Raises UserError naming the first byte, its row and column that are not so."""
    try:
        text = raw.decode(encoding)
    except LookupError as error:
        raise UserError(
            fault("data.encoding", "there is no such encoding", got=encoding, expected="utf-8, ...")
        ) from error
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        row, line = before.count(b"\n") + 1, before.rpartition(b"\n")[2].decode("latin-1")
        column = _column(raw, line, row, delimiter) if delimiter else ""
        likely = _MARKS.get(raw[:2], "cp1252")
        what = f"byte {error.start} (0x{raw[error.start]:02x}) is no {encoding}"
        do = f"python -m pipeline ... data.encoding={likely}"
        raise UserError(fault(f"{path}: row {row}{column}", what, expected=f"text in {encoding}", do=do)) from error
    return text.removeprefix("\ufeff")


def _column(raw: bytes, line: str, row: int, delimiter: str) -> str:
    """`, column 'age'`: the column that the line breaks off in; nothing where it is no row of cells at all."""
    try:
        header = next(csv.reader([raw.partition(b"\n")[0].decode("latin-1")], delimiter=delimiter), [])
        cell = max(len(next(csv.reader([line], delimiter=delimiter), [])), 1)
    except csv.Error:  # a program, a picture
        return ""
    return f", column '{header[cell - 1]}'" if cell <= len(header) and row > 1 else f", column {cell}"


def _delimiter(given: str) -> str:
    delimiter = {"\\t": "\t", **DELIMITERS}.get(given, given)
    if not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '"\r\n':
        raise UserError(
            fault(
                "data.delimiter", "is no delimiter", got=given, expected="one character, or tab, comma, semicolon, pipe"
            )
        )
    return delimiter


def _table(paths: Sequence[str], delimiter: str, encoding: str, na: frozenset[str]) -> Table:
    """All files as one table, their columns in the order of the first."""
    names: list[str] = []
    lines: list[int] = []
    file_of: list[int] = []
    rows: list[list[str]] = []
    for number, path in enumerate(paths):
        header, body = _read(path, delimiter, encoding)
        if number and sorted(header) != sorted(names):
            odd = ", ".join(sorted(set(header) ^ set(names)))
            raise UserError(fault(f"{path}: row 1", f"columns differ from those of {paths[0]}", got=odd))
        order = [header.index(name) for name in names] if number else range(len(header))
        names = names or header
        rows += (row if list(order) == list(range(len(header))) else [row[i] for i in order] for _, row in body)
        lines += (line for line, _ in body)
        file_of += [number] * len(body)
    cells = tuple(_cells(column, na) for column in zip(*rows, strict=True))
    return Table(tuple(map(str, paths)), tuple(names), cells, np.array(file_of, np.intp), np.array(lines, np.int64))


def _cells(column: Sequence[str], na: frozenset[str]) -> Sequence[str | None]:
    """A column's cells without the spaces around them, None for those that mean missing."""
    cells = list(map(str.strip, column))
    return cells if na.isdisjoint(cells) else [None if cell in na else cell for cell in cells]


def _read(path: str, delimiter: str, encoding: str) -> tuple[list[str], list[Row]]:
    """Header and rows of one file, checked: every row has as many cells as the header."""
    text = decoded(path, read_bytes(path), encoding, delimiter)
    rows = _rows(path, text, delimiter)
    if not rows:
        raise UserError(fault(path, "is empty", expected="a header and rows"))
    header = [name.strip() for name in rows[0][1]]
    _require_header(path, header, delimiter)
    body = rows[1:]
    if not body:
        raise UserError(fault(path, "has a header and no row", got=f"{len(header)} columns"))
    ragged = [(line, row) for line, row in body if len(row) != len(header)]
    if ragged:
        line, row = ragged[0]
        missed = f"column '{header[len(row)]}'" if len(row) < len(header) else f"column {len(header) + 1}"
        what = f"has {len(row)} cells" + (f", and {len(ragged) - 1} more rows are ragged" if len(ragged) > 1 else "")
        raise UserError(fault(f"{path}: row {line}, {missed}", what, expected=f"{len(header)}, as in the header"))
    return header, body


def _rows(path: str, text: str, delimiter: str) -> list[Row]:
    """Every row that is not blank, with the line it begins on."""
    former = csv.field_size_limit(_LONGEST)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows, line = list[Row](), 1
    try:
        for row in reader:
            if row:
                rows.append((line, row))
            line = reader.line_num + 1
    except csv.Error as error:
        what = f"cannot be read ({error})"
        raise UserError(fault(f"{path}: row {line}, column 1", what, expected="quotes that are closed")) from error
    finally:
        csv.field_size_limit(former)
    return rows


def _require_header(path: str, header: list[str], delimiter: str) -> None:
    """Raises UserError for a header with one column only, and a name that is missing or given twice."""
    if len(header) == 1:
        widths = {word: len(next(csv.reader([header[0]], delimiter=d), [])) for word, d in DELIMITERS.items()}
        best = max(widths, key=lambda word: widths[word])
        if widths[best] > 1:
            do = f"python -m pipeline ... data.delimiter={best}"
            what = f"delimiter {delimiter!r} gives one column, {best} would give {widths[best]}"
            raise UserError(fault(f"{path}: row 1, column 1", what, do=do))
    for number, name in enumerate(header, start=1):
        if not name:
            expected = "a name of every column; an index without a name is no feature"
            raise UserError(fault(f"{path}: row 1, column {number}", "has no name", expected=expected))
    seen: set[str] = set()
    for name in header:
        if name in seen:
            expected = "names that differ"
            raise UserError(fault(f"{path}: row 1, column '{name}'", "name is given twice", expected=expected))
        seen.add(name)
