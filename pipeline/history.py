"""The history of a training: two sparse tables (`step`, `epoch`), facts and events. Loads without torch.

NaN means that NaN was measured; a missing value was not measured. Every column has its own index.
"""

from __future__ import annotations

import hashlib
import io
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError, fault
from pipeline.foreign_files import MAX_BYTES, parse_json, read_bytes, read_npz
from pipeline.results import canonical, plain

SCHEMA = 1
WARNING = "warning"  # the kind of event that records a warning: `category`, `message`, `where`, `count`
DTYPES = {"index": np.int64, "values": np.float32, "meta": np.uint8}
EXPECTED = "the .npz that a run wrote"


class Column:
    """One measured quantity: a strictly increasing int64 index and float32 values."""

    __slots__ = ("index", "values")

    def __init__(self) -> None:
        self.index = array("q")
        self.values = array("f")

    def append(self, at: int, value: float) -> None:
        """Log one value; logging the last index again replaces its value. Raises ValueError if the index decreases."""
        at = int(at)
        if self.index and at <= self.index[-1]:
            if at < self.index[-1]:
                raise ValueError(f"a column goes forward: got index {at} after {self.index[-1]}")
            self.values[-1] = value
            return
        self.values.append(value)  # values first: a value that is not a number raises and leaves the column unchanged
        self.index.append(at)

    def copy(self) -> Column:
        """Return a copy of the column."""
        other = Column()
        other.index, other.values = self.index[:], self.values[:]
        return other


class History:
    """The measurements of one training, by name: `train/loss`, `val/accuracy`, `lr`, `grad_norm`, ...

    `facts` are numbers measured once (`loss_at_init`, `target`); `events` are dicts with `kind` and `step`.
    """

    def __init__(self) -> None:
        self.step: dict[str, Column] = {}
        self.epoch: dict[str, Column] = {}
        self.facts: dict[str, float] = {}
        self.events: list[dict[str, Any]] = []

    def log_step(self, step: int, values: Mapping[str, float]) -> None:
        """Append to the step table. A step may log any subset of the names."""
        for name, value in values.items():
            column = self.step.get(name)
            if column is None:
                column = self.step[name] = Column()
            column.append(step, value)

    def log_steps(self, first: int, values: Mapping[str, Sequence[float]]) -> None:
        """Append consecutive steps, one value each, to the step table. Raises ValueError if an index decreases."""
        for name, measured in values.items():
            column = self.step.setdefault(name, Column())
            if measured and column.index and first <= column.index[-1]:
                raise ValueError(f"a column goes forward: got index {first} after {column.index[-1]}")
            column.values.extend(measured)
            column.index.extend(range(first, first + len(measured)))

    def cut(self, step: int) -> None:
        """Remove everything after this step from the step table."""
        for column in self.step.values():
            while column.index and column.index[-1] > step:
                column.index.pop()
                column.values.pop()

    def log_epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        """Append to the epoch table."""
        for name, value in values.items():
            self.epoch.setdefault(name, Column()).append(epoch, value)

    def event(self, kind: str, step: int, **data: Any) -> None:
        """Record an event. Raises TypeError for data without a JSON form."""
        self.events.append({"kind": kind, "step": int(step), **plain(data)})

    def names(self) -> list[str]:
        """Return every measured name once, sorted."""
        return sorted({*self.step, *self.epoch})

    def table(self, name: str) -> str | None:
        """Return the table in which `series` finds the name (`step` or `epoch`), None if it was not measured."""
        return "step" if name in self.step else "epoch" if name in self.epoch else None

    def series(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return index and values of a name, from the step table if possible; both are empty if it was not measured."""
        column = self.step.get(name) or self.epoch.get(name) or Column()
        return np.array(column.index, np.int64), np.array(column.values, np.float32)

    def digest(self) -> str:
        """Return the SHA-256 (hex) of all measurements: equal trainings have equal digests.

        `time/*` and warnings are omitted, since many libraries warn only once per process.
        """
        sha = hashlib.sha256()
        for table, name, column in self._columns():
            if name.startswith("time/"):
                continue
            values = np.array(column.values, "<f4")
            values[np.isnan(values)] = np.nan  # a NaN has many bit patterns and one meaning
            sha.update(canonical([table, name, len(values)]).encode())
            sha.update(np.array(column.index, "<i8").tobytes())
            sha.update(values.tobytes())
        sha.update(canonical({n: float(v) for n, v in _timeless(self.facts).items()}).encode())  # 2 is 2.0
        sha.update(canonical([_timeless(e) for e in self.events if e["kind"] != WARNING]).encode())
        return sha.hexdigest()

    def copy(self) -> History:
        """Return a copy of the history."""
        other = History()
        other.step = {name: column.copy() for name, column in self.step.items()}
        other.epoch = {name: column.copy() for name, column in self.epoch.items()}
        other.facts, other.events = dict(self.facts), [dict(event) for event in self.events]
        return other

    def to_bytes(self, *, compressed: bool = True) -> bytes:
        """Return the history as npz: the concatenated `index` and `values` of all columns, and `meta` (UTF-8 JSON).

        Only pipeline.run_store.files writes files.
        """
        columns = list(self._columns())
        meta = {
            "schema": SCHEMA,
            "columns": [[table, name, len(column.index)] for table, name, column in columns],
            "facts": self.facts,
            "events": self.events,
        }
        buffer = io.BytesIO()
        save = np.savez_compressed if compressed else np.savez
        save(
            buffer,
            index=np.concatenate([np.zeros(0, np.int64), *(np.frombuffer(c.index, np.int64) for _, _, c in columns)]),
            values=np.concatenate(
                [np.zeros(0, np.float32), *(np.frombuffer(c.values, np.float32) for _, _, c in columns)]
            ),
            meta=np.frombuffer(canonical(meta).encode(), np.uint8),
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, where: str = "history", limit: int = MAX_BYTES) -> History:
        """Return the history that `to_bytes` wrote, of at most `limit` bytes in memory.

        Raises UserError for anything else; pickles are never loaded.
        """
        arrays = read_npz(data, where, DTYPES, "a history", limit)
        meta = parse_json(arrays["meta"].tobytes(), f"{where}, meta", "the columns, facts and events of a history")
        try:
            return cls._from_arrays(arrays["index"], arrays["values"], meta)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            reason = f"its meta has no {error}" if isinstance(error, KeyError) else error
            raise UserError(fault(where, f"is not a history ({reason})", expected=EXPECTED)) from None

    @classmethod
    def _from_arrays(cls, index: NDArray[Any], values: NDArray[Any], meta: dict[str, Any]) -> History:
        if meta["schema"] != SCHEMA:
            raise ValueError(f"schema {meta['schema']}, this version reads {SCHEMA}")
        if len(index) != len(values):
            raise ValueError("index and values do not fit each other")
        history, start = cls(), 0
        for table, name, size in meta["columns"]:
            columns = {"step": history.step, "epoch": history.epoch}[table]
            if not isinstance(name, str) or type(size) is not int or size < 0 or name in columns:
                raise ValueError(f"{[table, name, size]} is not a table, a new name and a number of values")
            own = index[start : start + size]
            if len(own) != size or (own[1:] <= own[:-1]).any():  # a difference could overflow
                raise ValueError(f"column {name!r} does not go forward")
            column = columns[name] = Column()
            column.index.frombytes(own.tobytes())
            column.values.frombytes(values[start : start + size].tobytes())
            start += size
        if start != len(index):
            raise ValueError("the columns do not add up to the table")
        history.facts = {name: float(value) for name, value in meta["facts"].items()}
        history.events = [_event(event) for event in meta["events"]]
        return history

    @classmethod
    def load(cls, path: str | Path, limit: int = MAX_BYTES) -> History:
        """Return the history in a file. Raises UserError if the file is missing or not a history."""
        return cls.from_bytes(read_bytes(Path(path), EXPECTED, limit), str(path), limit)

    def _columns(self) -> Iterator[tuple[str, str, Column]]:
        """Yield all columns in a canonical order that does not depend on the order of logging."""
        for table, columns in (("epoch", self.epoch), ("step", self.step)):
            for name in sorted(columns):
                yield table, name, columns[name]

    def __repr__(self) -> str:
        longest = max((len(c.index) for _, _, c in self._columns()), default=0)
        return f"History({len(self.step)} step and {len(self.epoch)} epoch columns, up to {longest} rows)"


def _event(event: Any) -> dict[str, Any]:
    """Return an event as it was read, if it has a kind and a step."""
    if not isinstance(event["kind"], str) or type(event["step"]) is not int:
        raise ValueError(f"an event has the kind {event['kind']!r} and the step {event['step']!r}")
    return dict(event)


def _timeless(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if not name.startswith("time/")}
