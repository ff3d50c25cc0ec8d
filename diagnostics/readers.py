"""Readers: histories from history.npz, from a run directory, and from CSV or JSONL logs of any training."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import math
import os
import re
import shlex
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from diagnostics.advice import shortened, with_advice
from pipeline.errors import UserError, fault
from pipeline.foreign_files import parse_json, read_bytes
from pipeline.history import Column, History

SPLITS = {
    **dict.fromkeys(("train", "training", "tr"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "eval", "dev"), "val"),
}
METRICS = {"acc": "accuracy", "err": "error", "ppl": "perplexity"}
COLUMNS = {
    **dict.fromkeys(("lr", "learning_rate", "learningrate"), "lr"),
    **dict.fromkeys(("grad_norm", "gradient_norm", "grad_norm_total", "total_norm"), "grad_norm"),
    **dict.fromkeys(("step", "steps", "global_step", "iteration", "iter", "batch"), "step"),
    **dict.fromkeys(("epoch", "epochs"), "epoch"),
}
EXPECTED = "history.npz, a run directory, .csv, .tsv, .jsonl or .ndjson"
MAX_FAULTS = 12  # printed for one file; a longer list would push the first one off the screen
# Limits for a file of somebody else: with all of them used up, reading takes less than one gigabyte of memory.
MAX_BYTES = 256 * 2**20  # of a log
MAX_HISTORY_BYTES = 128 * 2**20  # of the arrays of a history
MAX_LINE_CHARS = 2**20
MAX_COLUMNS = 10_000
MAX_CELLS = 10_000_000  # of a log
MAX_SHOWN = 80  # characters of a cell in a message
MAX_LEVELS = 20  # of nested objects in a line of JSONL

Row = tuple[int, Mapping[str, object]]  # line number in the file, values by the file's own column names


class Cells:
    """The numbers of one column, each with its line, and the first cells that are not numbers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines, self.numbers = array("q"), array("d")
        self.others: list[tuple[int, object]] = []
        self.other_count = 0

    def add(self, line: int, value: object) -> None:
        """Add the cell of a line."""
        number = _number(value)
        if number is not None:
            self.lines.append(line)
            self.numbers.append(number)
            return
        self.other_count += 1
        if len(self.others) < MAX_FAULTS:
            self.others.append((line, value))


class Faults:
    """The first faults of a file, and the number of all."""

    def __init__(self) -> None:
        self.first: list[str] = []
        self.count = 0

    def add(self, message: str) -> None:
        """Count a fault, and keep its message where there is room for it."""
        self.count += 1
        if len(self.first) < MAX_FAULTS:
            self.first.append(message)


def read(path: str | Path) -> History:
    """Return the history in a file or run directory.

    Raises UserError with every fault (file, line and column), and at the end with what helps.
    """
    try:
        return _read(Path(path))
    except UserError as error:
        raise with_advice(error, Path(path)) from None


def _read(path: Path) -> History:
    if os.path.isdir(path):
        return History.load(_find_history(path), MAX_HISTORY_BYTES)
    if path.suffix == ".npz":
        return History.load(path, MAX_HISTORY_BYTES)
    content = _content(path)
    if path.suffix not in FORMATS:
        raise UserError(fault(str(path), "unknown format", got=path.suffix, expected=EXPECTED))
    faults = Faults()
    try:
        # Decoded line by line: the whole text can take four times the memory of its bytes.
        text = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline="")
        history = _build_history(path, FORMATS[path.suffix](path, text, faults), faults)
    except UnicodeDecodeError as error:
        encoding = "utf-16" if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "cp1252"
        do = shlex.join(["iconv", "-f", encoding, "-t", "utf-8", str(path)]) + f" > utf8{path.suffix}"
        what = f"is not text in UTF-8 ({error.reason}, byte 0x{error.object[error.start]:02x})"
        raise UserError(fault(str(path), what, expected="text in UTF-8", do=do)) from None
    if faults.count:
        rest = [f"{path}: and {faults.count - MAX_FAULTS} more faults"] if faults.count > MAX_FAULTS else []
        raise UserError(*faults.first, *rest)
    return history


def _content(path: Path) -> bytes:
    """Return the bytes of a log; one that is too large is refused with the command that takes its beginning."""
    try:
        return read_bytes(path, EXPECTED, MAX_BYTES)
    except UserError as error:
        if path.is_file() and path.stat().st_size > MAX_BYTES:
            do = shortened(path, f"head -c {MAX_BYTES} {shlex.quote(str(path))} | sed '$d'")
            raise UserError(f"{error}  Do: {do}") from None
        raise


def _find_history(path: Path) -> Path:
    """Return the history of a run: the one in the folder itself, the baseline's, or the only one below the folder."""
    preferred = [path / "history.npz", path / "baseline" / "history.npz"]
    histories = [p for p in preferred if p.is_file()] or sorted(path.rglob("history.npz"))
    if len(histories) == 1 or (histories and histories[0] in preferred):
        return histories[0]
    what = f"holds {len(histories)} histories" if histories else "holds no history.npz"
    raise UserError(fault(str(path), what, expected="a run directory whose baseline was trained, or one history.npz"))


def canonical_name(name: str) -> str:
    """Return Fivegate's name of a log column: `eval_loss` is `val/loss`, `acc` is `train/accuracy`.

    Unknown names are returned as they are.
    """
    normalized_name = re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_")
    if normalized_name in COLUMNS:
        return COLUMNS[normalized_name]
    normalized_name = re.sub(r"_(step|epoch)$", "", normalized_name)
    if normalized_name.startswith("lr_"):
        return "lr"  # Lightning's LearningRateMonitor writes lr-AdamW, lr-SGD/pg1 and so on
    split, _, metric = normalized_name.partition("_")
    if split in SPLITS and metric:
        return f"{SPLITS[split]}/{METRICS.get(metric, metric)}"
    if normalized_name in ("loss", "acc", "accuracy"):
        return f"train/{METRICS.get(normalized_name, normalized_name)}"
    return name.strip()


def _read_csv(path: Path, text: TextIO, faults: Faults) -> Iterator[Row]:
    """Yield the rows of a table whose first line names the columns, separated by commas, semicolons or tabs."""
    lines = _lines(path, text, faults)
    head = next(lines, "")
    delimiter = max(",;\t", key=head.count)
    reader = csv.reader(itertools.chain([head], lines), delimiter=delimiter, strict=True)  # refuses an open quote
    try:
        names = [name.strip() for name in next(reader, [])]
        if len(names) > MAX_COLUMNS:
            faults.add(fault(str(path), f"has {len(names):,} columns", expected=f"at most {MAX_COLUMNS:,}"))
            return
        repeated = [name for name, count in Counter(filter(None, names)).items() if count > 1]
        for name in sorted(repeated):
            faults.add(fault(str(path), f"column '{name}' appears twice"))
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(names):
                where, expected = f"{path}, line {reader.line_num}", f"{len(names)} columns"
                faults.add(fault(where, "has the wrong number of columns", got=len(cells), expected=expected))
                continue
            yield reader.line_num, {n: c.strip() for n, c in zip(names, cells, strict=True) if n and c.strip()}
    except csv.Error as error:
        where = f"{path}, line {reader.line_num}"
        expected = f"cells of at most {csv.field_size_limit():,} characters, and quotes that are closed"
        faults.add(fault(where, f"cannot be read as a table ({error})", expected=expected))


def _lines(path: Path, text: TextIO, faults: Faults) -> Iterator[str]:
    """Yield the lines of a log; after one that is too long, a fault and no more."""
    for number in itertools.count(1):
        line = text.readline(MAX_LINE_CHARS + 1)
        if len(line) > MAX_LINE_CHARS:
            expected = f"at most {MAX_LINE_CHARS:,} characters"
            faults.add(fault(f"{path}, line {number}", "is too long", expected=expected))
            return
        if not line:
            return
        yield line


def _read_jsonl(path: Path, text: TextIO, faults: Faults) -> Iterator[Row]:
    """Yield one JSON object per line. Nested objects become `outer/inner`; null means not measured."""
    for line, content in enumerate(_lines(path, text, faults), 1):
        if not content.strip():
            continue
        where = f"{path}, line {line}"
        try:
            entry = parse_json(content, where)
        except UserError as error:
            faults.add(error.faults[0])
            continue
        if not isinstance(entry, dict):
            faults.add(fault(where, "is not a JSON object", got=type(entry).__name__))
            continue
        yield line, dict(_flatten(entry))


def _flatten(entry: Mapping[str, object], prefix: str = "", level: int = 1) -> Iterator[tuple[str, object]]:
    """Yield the values with their joined names; an object below `MAX_LEVELS` levels is a value, and not a number."""
    for name, value in entry.items():
        if isinstance(value, Mapping) and level < MAX_LEVELS:
            yield from _flatten(value, f"{prefix}{name}/", level + 1)
        elif value is not None:
            yield f"{prefix}{name}", value


FORMATS = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl, ".ndjson": _read_jsonl}


def _build_history(path: Path, rows: Iterable[Row], faults: Faults) -> History:
    """Return a history of every numeric column, indexed by epoch for validation and by step for the rest.

    Where the preferred index is missing or does not increase, the other one is used, and last the row number.
    """
    history = History()
    columns, row_lines = _read_columns(path, rows, history, faults)
    if not columns and not faults.count:
        faults.add(fault(str(path), "holds no measurement", expected="a column such as loss, val_loss or accuracy"))
    indices: dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]] = {
        name: (np.array(columns[name].lines), np.array(columns.pop(name).numbers))
        for name in ("step", "epoch")
        if name in columns
    }
    # Several rows per epoch are counted by row, but only if the epochs never fall: else two runs are in one file.
    if "step" not in indices and ("epoch" not in indices or _never_falls(indices["epoch"][1])):
        indices["row"] = np.array(row_lines), np.arange(len(row_lines), dtype=np.float64)
    for name in list(columns):
        cells = columns.pop(name)
        preference = ("epoch", "step", "row") if name.startswith("val/") else ("step", "epoch", "row")
        candidates = {table: _index_of(cells, *indices[table]) for table in preference if table in indices}
        usable = next((table for table, index in candidates.items() if _increases(index).all()), None)
        if usable is None:
            table, index = next(iter(candidates.items()))
            where = f"{path}, line {cells.lines[int(np.argmin(_increases(index)))]}, column '{cells.name}'"
            faults.add(fault(where, f"its {table} does not increase", expected="whole numbers of one run"))
            continue
        column = (history.epoch if usable == "epoch" else history.step).setdefault(name, Column())
        column.index.frombytes(candidates[usable].astype(np.int64).tobytes())
        with np.errstate(over="ignore"):
            column.values.frombytes(np.array(cells.numbers).astype(np.float32).tobytes())
    history.event("imported", 0, file=path.name, rows=len(row_lines))
    return history


def _read_columns(
    path: Path, rows: Iterable[Row], history: History, faults: Faults
) -> tuple[dict[str, Cells], array[int]]:
    """Return the numeric columns by canonical name, and the lines of the rows.

    A column of text is skipped; text among numbers is a fault.
    """
    raw: dict[str, Cells] = {}
    row_lines, count = array("q"), 0
    for line, values in rows:
        row_lines.append(line)
        count += len(values)
        for name, value in values.items():
            if name not in raw:
                raw[name] = Cells(name)
            raw[name].add(line, value)
        if len(raw) > MAX_COLUMNS or count > MAX_CELLS:
            expected = f"at most {MAX_COLUMNS:,} columns and {MAX_CELLS:,} cells"
            do = shortened(path, f"head -n {line - 1} {shlex.quote(str(path))}") if line > 2 else None
            faults.add(fault(f"{path}, line {line}", "makes the log too large", expected=expected, do=do))
            break
    columns: dict[str, Cells] = {}
    for name, cells in raw.items():
        column = canonical_name(name)
        if not cells.numbers and column == name.strip():
            history.event("column_skipped", 0, column=name)
            continue
        for line, value in cells.others:
            faults.add(fault(f"{path}, line {line}, column '{name}'", "is not a number", got=_short(value)))
        faults.count += cells.other_count - len(cells.others)
        # loss_step and loss_epoch are both `train/loss`: the first gets the name, the second keeps its own.
        columns[name if column in columns else column] = cells
    return columns, row_lines


def _short(value: object) -> object:
    """Return a value as a message has room for it."""
    shown = value if isinstance(value, str) else str(value)
    return value if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}…"


def _number(value: object) -> float | None:
    """Return the number in a cell, NaN and infinity included; None if it is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and "_" in value:  # Python reads "1_000" as a number, logs do not
        return None
    try:
        return float(value)
    except ValueError:
        return None
    except OverflowError:  # an integer with hundreds of digits
        return math.inf if isinstance(value, int) and value > 0 else -math.inf


def _index_of(cells: Cells, lines: NDArray[np.int64], index: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the index of each cell by its line, NaN where its line has none."""
    own = np.array(cells.lines)
    if not len(lines):
        return np.full(len(own), np.nan)
    places = np.minimum(np.searchsorted(lines, own), len(lines) - 1)
    return np.where(lines[places] == own, index[places], np.nan)


def _increases(index: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return for each value whether it is a whole number above the one before it."""
    increases = (np.abs(index) < 2**53) & (index == np.floor(index))
    increases[1:] &= index[1:] > index[:-1]
    return increases


def _never_falls(index: NDArray[np.float64]) -> bool:
    return bool((index[1:] >= index[:-1]).all())
