"""Histories from files: our own history.npz, a run directory, and CSV or JSONL logs of any training, by usual names."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, fault
from pipeline.history import History

SPLITS = {
    **dict.fromkeys(("train", "training", "tr"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "eval", "dev"), "val"),
}
METRICS = {"acc": "accuracy", "err": "error", "ppl": "perplexity"}
WHOLE = {
    **dict.fromkeys(("lr", "learning_rate", "learningrate"), "lr"),
    **dict.fromkeys(("grad_norm", "gradient_norm", "grad_norm_total", "total_norm"), "grad_norm"),
    **dict.fromkeys(("step", "steps", "global_step", "iteration", "iter", "batch"), "step"),
    **dict.fromkeys(("epoch", "epochs"), "epoch"),
}
MAX_FAULTS = 12  # told of one file; more would hide the first

Row = tuple[int, Mapping[str, Any]]  # line number in the file, values by the file's own names


@dataclass(frozen=True)
class Cell:
    """A number and where it stands, by the file's own name of the column."""

    line: int
    column: str
    value: float


def read(path: str | Path) -> History:
    """The history in a file or run directory. Raises UserError with every fault of it: file, line, column."""
    path = Path(path)
    if path.is_dir():
        return History.load(_of_run(path))
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
    history = _history(path, list(FORMATS[path.suffix](path, text, faults)), faults)
    if faults:
        more = [f"{path}: and {len(faults) - MAX_FAULTS} more faults"] if len(faults) > MAX_FAULTS else []
        raise UserError(*faults[:MAX_FAULTS], *more)
    return history


def _of_run(path: Path) -> Path:
    """The history of a run: the folder's own, the baseline's, or the only one there is."""
    usual = [path / "history.npz", path / "baseline" / "history.npz"]
    found = [p for p in usual if p.is_file()] or sorted(path.rglob("history.npz"))
    if len(found) == 1 or (found and found[0] in usual):
        return found[0]
    what = f"holds {len(found)} histories" if found else "holds no history.npz"
    raise UserError(fault(str(path), what, expected="a run directory whose baseline was trained, or one history.npz"))


def canonical(name: str) -> str:
    """The house's name of a column: `eval_loss` is `val/loss`, `acc` is `train/accuracy`; unknown ones are kept."""
    words = re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_")
    if words in WHOLE:
        return WHOLE[words]
    words = re.sub(r"_(step|epoch)$", "", words)
    if words.startswith("lr_"):
        return "lr"  # lr-AdamW and its like
    split, _, metric = words.partition("_")
    if split in SPLITS and metric:
        return f"{SPLITS[split]}/{METRICS.get(metric, metric)}"
    if words in ("loss", "acc", "accuracy"):
        return f"train/{METRICS.get(words, words)}"
    return name.strip()


def _rows_csv(path: Path, text: str, faults: list[str]) -> Iterator[Row]:
    """Rows of a table whose first line names the columns; comma, semicolon or tab."""
    head = text.splitlines()[0] if text.strip() else ""
    mark = max(",;\t", key=head.count)
    reader = csv.reader(text.splitlines(), delimiter=mark)
    names = [name.strip() for name in next(reader, [])]
    for name in sorted({n for n in names if n and names.count(n) > 1}):
        faults.append(fault(str(path), f"column '{name}' stands twice"))
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(names):
            where, expected = f"{path}, line {reader.line_num}", f"{len(names)} columns"
            faults.append(fault(where, "has the wrong width", got=len(cells), expected=expected))
            continue
        yield reader.line_num, {n: c.strip() for n, c in zip(names, cells, strict=True) if n and c.strip()}


def _rows_jsonl(path: Path, text: str, faults: list[str]) -> Iterator[Row]:
    """One JSON object per line; nested objects become `outer/inner`, null is not measured."""
    for line, content in enumerate(text.splitlines(), 1):
        if not content.strip():
            continue
        try:
            entry = json.loads(content)
        except ValueError as error:
            faults.append(fault(f"{path}, line {line}", f"is no JSON ({error})"))
            continue
        if not isinstance(entry, dict):
            faults.append(fault(f"{path}, line {line}", "is no object", got=type(entry).__name__))
            continue
        yield line, dict(_flat(entry))


def _flat(entry: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in entry.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}/")
        elif value is not None:
            yield f"{above}{name}", value


FORMATS = {".csv": _rows_csv, ".tsv": _rows_csv, ".jsonl": _rows_jsonl, ".ndjson": _rows_jsonl}


def _history(path: Path, rows: list[Row], faults: list[str]) -> History:
    """Every numeric column in the table whose index it follows: epochs for validation, steps for the rest."""
    history = History()
    columns = _columns(path, rows, history, faults)
    if not columns and not faults:
        faults.append(fault(str(path), "holds no measurement", expected="a column such as loss, val_loss or accuracy"))
    at = {table: {c.line: c.value for c in columns.pop(table, [])} for table in ("step", "epoch")}
    if not at["step"] and all(a <= b for a, b in pairwise(at["epoch"].values())):
        at["row"] = {line: float(i) for i, (line, _) in enumerate(rows)}  # rows count where nothing else does
    for name, cells in columns.items():
        order = ("epoch", "step", "row") if name.startswith("val/") else ("step", "epoch", "row")
        usable = [t for t in order if at.get(t) and _forward([at[t].get(c.line) for c in cells])]
        if usable:
            log = history.log_epoch if usable[0] == "epoch" else history.log_step
            for cell in cells:
                log(int(at[usable[0]][cell.line]), {name: cell.value})
        else:
            table = next(t for t in order if at.get(t))
            where = f"{path}, line {_first_back(cells, at[table])}, column '{cells[0].column}'"
            faults.append(fault(where, f"its {table} does not go forward", expected="whole numbers of one run"))
    history.event("imported", 0, file=path.name, rows=len(rows))
    return history


def _columns(path: Path, rows: list[Row], history: History, faults: list[str]) -> dict[str, list[Cell]]:
    """Numeric columns by canonical name; a column of words is left out, a word among numbers is a fault."""
    raw: dict[str, list[tuple[int, Any]]] = {}
    for line, values in rows:
        for name, value in values.items():
            raw.setdefault(name, []).append((line, value))
    columns: dict[str, list[Cell]] = {}
    for name, cells in raw.items():
        numbers = [(line, value, _number(value)) for line, value in cells]
        known = canonical(name)
        if all(number is None for _, _, number in numbers) and known == name.strip():
            history.event("left_out", 0, column=name)
            continue
        for line, value, number in numbers:
            if number is None:
                faults.append(fault(f"{path}, line {line}, column '{name}'", "is no number", got=value))
        known = name if known in columns else known  # loss_step and loss_epoch: the first takes the name
        columns[known] = [Cell(line, name, number) for line, _, number in numbers if number is not None]
    return columns


def _number(value: Any) -> float | None:
    """The number a cell holds, NaN and infinity included; None where it holds none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _forward(index: list[float | None]) -> bool:
    """Whether the index is whole numbers that strictly increase."""
    known = [i for i in index if i is not None and i == i and abs(i) < 2**53 and i == int(i)]
    return len(known) == len(index) and all(a < b for a, b in pairwise(known))


def _first_back(cells: list[Cell], index: Mapping[int, float]) -> int:
    """The line at which an index stops going forward."""
    known = [index.get(c.line) for c in cells]
    return next(c.line for k, c in enumerate(cells, 1) if not _forward(known[:k]))
