"""Tables: CSV of Lightning, Keras, ultralytics and others, tables of fastai in text, and Markdown tables.

The delimiter is a comma, a semicolon, a tab, a bar or white space. A row of another width is set aside.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections import deque
from collections.abc import Iterator

from diagnostics.logs.header import settings_in
from diagnostics.logs.names import canonical_name
from diagnostics.logs.row import Notes, Row, number
from diagnostics.logs.source import Source
from pipeline.errors import UserError, fault

NAME = "table"
PRIORITY = 40
DELIMITERS = (",", ";", "\t", "|", " ")
MAX_COLUMNS = 10_000  # a table of more is a wide one
MAX_PREAMBLE = 200  # lines before the names of the columns
MAX_CELL_LINES = 20
RUN_NAMES = ("name", "run", "run_id", "run_name", "trial", "trial_id", "experiment", "model", "id", "config")
_DECIMAL_COMMA = re.compile(r"^(-?\d+),(\d+(?:[eE][-+]?\d+)?)$")
_VALUE = re.compile(r":$|[=:]\s*\[?[-+.]?\d")  # a name with a value, as in `step=3` or `loss:`
_RULE_STARTS = " \t|:+=-"
_RULE = re.compile(r"[\s|:+=-]+$")  # the line below the names of a Markdown table
_PANEL = re.compile(r"^(?P<run>.+) - (?P<name>.+?)(?P<bound>__(?:MIN|MAX))?$")  # a panel that W&B exported


def matches(source: Source) -> bool:
    return _find_header(source.head) is not None


def rows(source: Source, notes: Notes) -> Iterator[Row]:
    header = _find_header(source.head)
    assert header is not None, "matches() was asked first"
    first, delimiter, names = header
    columns = [_column(name) for name in names]
    if runs := {run for run, name in columns if run and name}:
        notes.remarks.append(f"the panel of Weights & Biases holds {len(runs)} runs")
    if not any(canonical_name(name) in ("step", "epoch") for _, name in columns):
        _refuse_table_of_runs(source, names)
    for line, text, cells in _cells_of(_below(source, first, notes), delimiter):
        if not text or (text[0] in _RULE_STARTS and _RULE.match(text)):
            continue
        if cells == names:
            notes.skip(line, "repeats the names of the columns")
            continue
        if cells is None or len(cells) != len(names):
            if delimiter == " ":
                notes.header.update(settings_in(text))
            else:
                width = "a quote that is not closed" if cells is None else f"{len(cells)} cells and not {len(names)}"
                notes.skip(line, f"has {width}")
            continue
        if delimiter == ";":
            cells = [_DECIMAL_COMMA.sub(r"\1.\2", cell) for cell in cells]
        if any(number(cell) is not None for cell in cells):
            if runs:
                yield from _rows_of(line, columns, cells)
            else:
                yield Row(line, {name: cell for name, cell in zip(names, cells, strict=True) if cell and name})
        else:
            notes.skip(line, "holds no number")


def _refuse_table_of_runs(source: Source, names: list[str]) -> None:
    """Raise UserError for a table of results with a row for each run: it has no curve."""
    if any(name.lower() in RUN_NAMES for name in names):
        what = "has a row for each run and none for a step or an epoch"
        raise UserError(
            fault(str(source.path), what, got=", ".join(names[:6]), expected="the log of a run, or a folder")
        )


def _cells_of(lines: Iterator[tuple[int, str]], delimiter: str) -> Iterator[tuple[int, str, list[str] | None]]:
    """Yield each line with its cells. A quoted cell may go on over several lines, up to `MAX_CELL_LINES`."""
    waiting: deque[tuple[int, str]] = deque()
    following = iter(lambda: waiting.popleft() if waiting else next(lines, None), None)
    for line, text in following:
        cells = split_cells(text, delimiter)
        joined = text
        if cells is None:
            ahead = [*waiting, *itertools.islice(lines, MAX_CELL_LINES - len(waiting))]
            for count, (_, more) in enumerate(ahead, 1):
                joined = f"{joined}\n{more}"
                if (cells := split_cells(joined, delimiter)) is not None:
                    ahead = ahead[count:]
                    break
            waiting = deque(ahead)
        yield line, text, cells


def _rows_of(line: int, columns: list[tuple[str, str]], cells: list[str]) -> Iterator[Row]:
    """Yield a row for each run of a panel. An empty cell was not measured."""
    values: dict[str, dict[str, object]] = {}
    for (run, name), cell in zip(columns, cells, strict=True):
        if cell and name:
            values.setdefault(run, {})[name] = cell
    shared = values.pop("", {})
    for run in sorted(values):
        yield Row(line, {**shared, **values[run]}, run)


def _column(name: str) -> tuple[str, str]:
    """Return run and name of a column; the name is empty for the bounds that W&B adds to each curve."""
    match = _PANEL.match(name)
    if not match:
        return "", name
    return match["run"], "" if match["bound"] else match["name"]


def _find_header(lines: list[str]) -> tuple[int, str, list[str]] | None:
    """Return place, delimiter and cells of the line that names the columns: names in it, numbers below it."""
    numbered = [(place, line) for place, line in enumerate(lines) if line.strip() and not _RULE.match(line)]
    for at, (place, line) in enumerate(numbered[:MAX_PREAMBLE]):
        for delimiter in DELIMITERS:
            names = split_cells(line, delimiter)
            if names is None or (len(names) < 2 and not any(canonical_name(name) for name in names)):
                continue
            below = [split_cells(other, delimiter) for _, other in numbered[at + 1 : at + 4]]
            names = _as_wide_as(below, names) if delimiter == " " else names
            rows = [cells for cells in below if cells is not None and len(cells) == len(names) and any(cells)]
            share = max(
                (
                    sum(number(_DECIMAL_COMMA.sub(r"\1.\2", c)) is not None for c in cells) / len(cells)
                    for cells in rows
                ),
                default=0.0,
            )
            # Names that mean nothing here make a table of what separates cells and nothing else.
            strict = delimiter in ",;\t" and len(names) > 1 and share >= 0.5
            if share > 0 and are_names(names, known=not strict):
                return place, delimiter, names
    return None


def are_names(cells: list[str], *, known: bool) -> bool:
    """Whether a line names columns: text, no sentence; with `known`, a measurement or two names with a meaning."""
    texts = [cell for cell in cells if cell and number(cell) is None and not _VALUE.search(cell)]
    if len(texts) < sum(map(bool, cells)) or any(len(cell.split()) > 4 and " - " not in cell for cell in cells):
        return False
    meanings = [name for cell in texts if (name := canonical_name(_PANEL.sub(r"\g<name>", cell)))]
    return bool(texts) and (not known or len(meanings) > 1 or any(name not in ("step", "epoch") for name in meanings))


def _as_wide_as(rows: list[list[str] | None], names: list[str]) -> list[str]:
    """Return names that fit the rows: pandas prints an index without a name, and a copied name may be two words."""
    widths = {len(cells) for cells in rows if cells}
    if len(widths) == 1 and len(names) > 1:
        width = widths.pop()
        if width == len(names) + 1 and all(cells and cells[0].isdigit() for cells in rows):
            return ["", *names]
        if width < len(names):
            joined = re.sub(
                r"\b(train(?:ing)?|val(?:id(?:ation)?)?|eval|test) (?=\w)", r"\1_", " ".join(names), flags=re.I
            )
            return joined.split() if len(joined.split()) == width else names
    return names


def split_cells(line: str, delimiter: str) -> list[str] | None:
    """Return the cells of a line without the space around them; None if a quote is not closed."""
    if delimiter == " ":
        cells = re.split(r"\s{2,}|\t", line.strip()) if re.search(r"\S\s{2,}\S", line) else line.split()
    elif delimiter == "|":
        if "|" not in line:
            return [line]
        cells = line.strip().strip("|").split("|")
    elif '"' not in line:
        cells = line.split(delimiter)
    else:
        try:
            cells = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True, strict=True), [])
        except csv.Error:
            return None
    return [cell.strip() for cell in cells]


def _below(source: Source, first: int, notes: Notes) -> Iterator[tuple[int, str]]:
    """Yield the lines below the names; settings that the lines above state go to the header."""
    for place, (line, text) in enumerate(source.lines()):
        if place > first:
            yield line, text
        elif place < first:
            notes.header.update(settings_in(text))
