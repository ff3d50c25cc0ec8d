"""Readers: histories from history.npz, from a run directory, and from CSV or JSONL logs of any training."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pipeline.errors import UserError, fault
from pipeline.history import History

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
MAX_FAULTS = 12  # printed for one file; a longer list would push the first one off the screen

Row = tuple[int, Mapping[str, object]]  # line number in the file, values by the file's own column names


@dataclass(frozen=True)
class Cell:
    """A number in a file: its line and the file's own name of its column."""

    line: int
    column: str
    value: float


def read(path: str | Path) -> History:
    """Return the history in a file or run directory. Raises UserError with every fault: file, line and column."""
    path = Path(path)
    if path.is_dir():
        return History.load(_find_history(path))
    if not path.is_file():
        raise UserError(fault(str(path), "does not exist", expected="history.npz, a run directory, .csv or .jsonl"))
    if path.suffix == ".npz":
        return History.load(path)
    if path.suffix not in FORMATS:
        expected = "history.npz, a run directory, " + ", ".join(FORMATS)
        raise UserError(fault(str(path), "unknown format", got=path.suffix, expected=expected))
    faults: list[str] = []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(fault(str(path), f"cannot be read ({error})", expected="text in UTF-8")) from None
    history = _build_history(path, list(FORMATS[path.suffix](path, text, faults)), faults)
    if faults:
        rest = [f"{path}: and {len(faults) - MAX_FAULTS} more faults"] if len(faults) > MAX_FAULTS else []
        raise UserError(*faults[:MAX_FAULTS], *rest)
    return history


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


def _read_csv(path: Path, text: str, faults: list[str]) -> Iterator[Row]:
    """Yield the rows of a table whose first line names the columns, separated by commas, semicolons or tabs."""
    head = text.splitlines()[0] if text.strip() else ""
    delimiter = max(",;\t", key=head.count)
    reader = csv.reader(text.splitlines(), delimiter=delimiter)
    names = [name.strip() for name in next(reader, [])]
    for name in sorted({n for n in names if n and names.count(n) > 1}):
        faults.append(fault(str(path), f"column '{name}' appears twice"))
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(names):
            where, expected = f"{path}, line {reader.line_num}", f"{len(names)} columns"
            faults.append(fault(where, "has the wrong number of columns", got=len(cells), expected=expected))
            continue
        yield reader.line_num, {n: c.strip() for n, c in zip(names, cells, strict=True) if n and c.strip()}


def _read_jsonl(path: Path, text: str, faults: list[str]) -> Iterator[Row]:
    """Yield one JSON object per line. Nested objects become `outer/inner`; null means not measured."""
    for line, content in enumerate(text.splitlines(), 1):
        if not content.strip():
            continue
        try:
            entry = json.loads(content)
        except ValueError as error:
            faults.append(fault(f"{path}, line {line}", f"is not JSON ({error})"))
            continue
        if not isinstance(entry, dict):
            faults.append(fault(f"{path}, line {line}", "is not a JSON object", got=type(entry).__name__))
            continue
        yield line, dict(_flatten(entry))


def _flatten(entry: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in entry.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}/")
        elif value is not None:
            yield f"{prefix}{name}", value


FORMATS = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl, ".ndjson": _read_jsonl}


def _build_history(path: Path, rows: list[Row], faults: list[str]) -> History:
    """Return a history of every numeric column, indexed by epoch for validation and by step for the rest.

    Where the preferred index is missing or does not increase, the other one is used, and last the row number.
    """
    history = History()
    columns = _numeric_columns(path, rows, history, faults)
    if not columns and not faults:
        faults.append(fault(str(path), "holds no measurement", expected="a column such as loss, val_loss or accuracy"))
    index_by_line = {table: {c.line: c.value for c in columns.pop(table, [])} for table in ("step", "epoch")}
    # Several rows per epoch are counted by row, but only if the epochs never fall: else two runs are in one file.
    if not index_by_line["step"] and all(a <= b for a, b in pairwise(index_by_line["epoch"].values())):
        index_by_line["row"] = {line: float(i) for i, (line, _) in enumerate(rows)}
    for name, cells in columns.items():
        preference = ("epoch", "step", "row") if name.startswith("val/") else ("step", "epoch", "row")
        tables = [table for table in preference if index_by_line.get(table)]
        usable = [t for t in tables if _strictly_increasing([index_by_line[t].get(c.line) for c in cells])]
        if usable:
            log = history.log_epoch if usable[0] == "epoch" else history.log_step
            for cell in cells:
                log(int(index_by_line[usable[0]][cell.line]), {name: cell.value})
        else:
            line = _first_decrease(cells, index_by_line[tables[0]])
            where = f"{path}, line {line}, column '{cells[0].column}'"
            faults.append(fault(where, f"its {tables[0]} does not increase", expected="whole numbers of one run"))
    history.event("imported", 0, file=path.name, rows=len(rows))
    return history


def _numeric_columns(path: Path, rows: list[Row], history: History, faults: list[str]) -> dict[str, list[Cell]]:
    """Return the numeric columns by canonical name. A column of text is skipped; text among numbers is a fault."""
    raw: dict[str, list[tuple[int, object]]] = {}
    for line, values in rows:
        for name, value in values.items():
            raw.setdefault(name, []).append((line, value))
    columns: dict[str, list[Cell]] = {}
    for name, cells in raw.items():
        numbers = [(line, value, _number(value)) for line, value in cells]
        column = canonical_name(name)
        if all(number is None for _, _, number in numbers) and column == name.strip():
            history.event("column_skipped", 0, column=name)
            continue
        for line, value, number in numbers:
            if number is None:
                faults.append(fault(f"{path}, line {line}, column '{name}'", "is not a number", got=value))
        # loss_step and loss_epoch are both `train/loss`: the first gets the name, the second keeps its own.
        column = name if column in columns else column
        columns[column] = [Cell(line, name, number) for line, _, number in numbers if number is not None]
    return columns


def _number(value: object) -> float | None:
    """Return the number in a cell, NaN and infinity included; None if it is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _strictly_increasing(index: list[float | None]) -> bool:
    """Return whether the index consists of whole numbers that strictly increase."""
    whole = [i for i in index if i is not None and i == i and abs(i) < 2**53 and i == int(i)]
    return len(whole) == len(index) and all(a < b for a, b in pairwise(whole))


def _first_decrease(cells: list[Cell], index: Mapping[int, float]) -> int:
    """Return the line at which an index stops increasing."""
    values = [index.get(cell.line) for cell in cells]
    return next(cell.line for k, cell in enumerate(cells, 1) if not _strictly_increasing(values[:k]))
