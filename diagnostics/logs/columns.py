"""From the rows of a log to the histories of its runs: what orders the rows, restarts, duplicates, sums of losses."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diagnostics.logs.header import facts_of
from diagnostics.logs.names import canonical_name, splits_in
from diagnostics.logs.order import (
    Numbers,
    Restart,
    epochs_as_steps,
    filled,
    order_of,
    over_epochs,
    rows_per_epoch,
    segments,
)
from diagnostics.logs.row import Cells, Notes, Row, Table
from pipeline.history import Column, History
from pipeline.inspection.finding import Finding

MAX_CELLS = 4_000_000  # kept of a log; of a longer one every second row is kept, then every fourth, ...
STANDARD_ERRORS = 3.0  # by which the loss of repeated steps must differ
NAN_AS_ZERO = "nan_printed_as_0"  # the fact that says how many losses were printed as 0
BREAKS = 100.0  # times its first value, at least times 1
ADVERSARIAL = frozenset(
    ("d", "g", "disc", "discriminator", "gen", "generator", "actor", "critic", "policy", "value", "adv", "adversarial")
)


@dataclass
class LogRun:
    """One run of a log: its history, and what its columns were taken for."""

    name: str
    history: History
    taken: dict[str, list[str]]  # column of the history -> columns of the log
    unused: list[str]
    restarts: list[Restart]
    row_count: int
    remarks: list[str]
    header: dict[str, str] = field(default_factory=dict)  # settings that its log states
    accidents: list[Finding] = field(default_factory=list)  # errors and warnings that the log holds
    modules: Mapping[str, int] = field(default_factory=dict)  # how often a printed model has each kind of module
    adversaries: list[str] = field(default_factory=list)  # losses that work against each other, read one by one

    def add_settings(self, settings: Mapping[str, str]) -> None:
        """Add settings that a file beside the log states, where the log itself does not state them."""
        self.header = {**settings, **self.header}
        for name, value in facts_of(self.header).items():
            self.history.facts.setdefault(name, value)
        _add_header_rate(self.history, self.header)

    def views(self) -> Iterator[tuple[str, History]]:
        """Yield the history, and for adversaries one history for each of their losses that breaks.

        That such a loss does not fall says nothing: what the one gains the other loses.
        """
        broken = [loss for loss in self.adversaries if _breaks(self.history.series(loss)[1])]
        if not broken:
            yield self.name, self.history
        for loss in broken:
            view = self.history.copy()
            table = view.step if loss in view.step else view.epoch
            table[f"{loss.partition('/')[0]}/loss"] = table[loss].copy()
            yield " ".join(filter(None, (self.name, loss))), view


def _breaks(losses: NDArray[np.float32]) -> bool:
    """Whether a loss is not finite, or ends far above where it began."""
    finite = losses[np.isfinite(losses)]
    return len(finite) < len(losses) or bool(len(finite) and np.abs(finite[-1]) > BREAKS * max(1.0, np.abs(finite[0])))


def runs_of(
    rows: Iterable[Row], notes: Notes, names: Mapping[str, str], read_one_in: Callable[[int], object] | None = None
) -> list[LogRun]:
    """Return the runs of a log in the order in which they begin; a run without a measurement has an empty history.

    If the log is too long to be kept, `read_one_in` leaves lines of its file out; without it, rows are left out here.
    """
    tables: dict[str, Table] = {}
    count, every = 0, 1
    for row in rows:
        table = tables.get(row.run) or tables.setdefault(row.run, Table())
        if read_one_in is None and every > 1 and table.seen % every and not _has_nonfinite(row.values):
            table.seen += 1
            continue
        count += table.add(row, names)
        if count > MAX_CELLS:
            every *= 2
            whole = MAX_CELLS // 4 // sum(len(known.cells) for known in tables.values())
            count = sum(known.thin(whole) for known in tables.values())
            if read_one_in is not None:
                read_one_in(every)
    return [_run_of(name, table, notes, names) for name, table in tables.items()]


def _has_nonfinite(values: Mapping[str, object]) -> bool:
    return any(isinstance(v, str) and v.lstrip("+-").lower() in ("nan", "inf", "infinity") for v in values.values())


def _run_of(name: str, table: Table, notes: Notes, names: Mapping[str, str]) -> LogRun:
    lines, steps, epochs = np.array(table.lines), np.array(table.steps), np.array(table.epochs)
    if epochs_as_steps(steps, epochs, np.array(table.validation, bool)):
        notes.remarks.append("rows of validation count epochs as steps: their step is taken for the epoch")
    if np.isfinite(steps).sum() >= 3 and np.nanmin(steps) == np.nanmax(steps):
        steps[:] = np.nan  # as at the end of each bar: it orders nothing
    steps, steps_per_epoch = over_epochs(steps, epochs)
    steps_per_epoch = steps_per_epoch or rows_per_epoch(steps, epochs)
    order, index = order_of(steps, epochs, len(lines))
    kept, restarts = segments(order, lines, index, notes)
    run = LogRun(name, History(), {}, [], restarts, table.seen, [], notes.header, modules=notes.modules)
    if table.every > 1:
        run.remarks.append(f"the log is long: of rows that differ in numbers alone, one in {table.every} was kept")
    meanings = _meanings(table, names, run)
    rows = filled(steps, kept), filled(epochs, kept), np.arange(len(lines), dtype=np.float64)
    for column, sources in meanings.items():
        for source in sources:
            _add_column(run.history, column, source, table.cells[source], kept, rows)
    _restore_nan(run)
    _add_sums(run)
    run.history.facts.update(facts_of(notes.header))
    if steps_per_epoch:
        run.history.facts["steps_per_epoch"] = steps_per_epoch
    _add_header_rate(run.history, notes.header)
    run.history.event("imported", 0, rows=table.seen)
    for restart in restarts:
        run.history.event("restart", int(max(0, restart.after)), line=restart.line, before=restart.before)
    _add_resume_facts(run.history, table, order, kept, names)
    return run


def _restore_nan(run: LogRun) -> None:
    """Replace losses of 0 beside a gradient norm of NaN by NaN: the Trainer of Hugging Face prints 0 for such a loss.

    Its option `logging_nan_inf_filter` leaves NaN out of the mean that it logs.
    """
    losses, norms = run.history.step.get("train/loss"), run.history.step.get("grad_norm")
    if losses is None or norms is None:
        return
    broken = {step for step, norm in zip(norms.index, norms.values, strict=True) if math.isnan(norm)}
    hidden = [place for place, step in enumerate(losses.index) if losses.values[place] == 0 and step in broken]
    for place in hidden:
        losses.values[place] = math.nan
    if hidden:
        run.history.facts[NAN_AS_ZERO] = len(hidden)
        run.remarks.append(f"{len(hidden)} losses of 0 beside a gradient norm of NaN were read as NaN")


def _meanings(table: Table, names: Mapping[str, str], run: LogRun) -> dict[str, list[str]]:
    """Return the columns of the history with the columns of the log that give them; the rest is unused."""
    meanings: dict[str, list[str]] = {}
    for source, cells in table.cells.items():
        meaning = names.get(source) or canonical_name(source)
        if meaning is None or not len(cells.numbers):
            run.unused.append(source)
        else:
            meanings.setdefault(meaning, []).append(source)
    if not any(name.startswith("val/") for name in meanings) and any(name.startswith("test/") for name in meanings):
        run.remarks.append("there is no validation column: those of test are taken for it")
        meanings = {f"val/{n[5:]}" if n.startswith("test/") else n: sources for n, sources in meanings.items()}
    _give_scores_to_validation(meanings, run)
    for name, sources in meanings.items():
        # Lightning logs train_loss_step and train_loss_epoch: one goes into each table.
        main = max(sources, key=lambda source: (not _is_per_epoch(source), len(table.cells[source].numbers)))
        per_epoch = [source for source in sources if source != main and _is_per_epoch(source)][:1]
        merged = [source for source in sources if source not in (main, *per_epoch) and _merge(table, main, source)]
        run.unused += [source for source in sources if source not in (main, *per_epoch, *merged)]
        meanings[name] = [main, *per_epoch]
    run.taken = {name: list(sources) for name, sources in sorted(meanings.items())}
    return meanings


def _give_scores_to_validation(meanings: dict[str, list[str]], run: LogRun) -> None:
    """Take a score without a split for one of validation, where a table tells its two losses apart by name.

    So do fastai and the notebook's table of the Hugging Face Trainer: `epoch train_loss valid_loss accuracy time`.
    """
    train = meanings.get("train/loss", [])
    if "val/loss" not in meanings or not any(splits_in(source) for source in train):
        return
    for name in [name for name in meanings if name.startswith("train/") and not name.endswith("loss")]:
        other = f"val/{name[6:]}"
        if other not in meanings and not any(splits_in(source) for source in meanings[name]):
            meanings[other] = meanings.pop(name)
            run.remarks.append(f"{meanings[other][0]} is next to a validation loss and is read as {other}")


def _is_per_epoch(source: str) -> bool:
    return source.lower().endswith("_epoch")


def _merge(table: Table, main: str, other: str) -> bool:
    """Add a column of the same meaning to the main one if they share no row, as `loss` and `train loss` of nanoGPT."""
    ours, others = table.cells[main], table.cells[other]
    if set(ours.places) & set(others.places):
        return False
    places, numbers = np.array([*ours.places, *others.places]), np.array([*ours.numbers, *others.numbers])
    by_place = np.argsort(places, kind="stable")
    ours.places, ours.numbers = array("q", places[by_place].tolist()), array("d", numbers[by_place].tolist())
    return True


def _add_column(
    history: History, column: str, source: str, cells: Cells, kept: NDArray[np.bool_], rows: tuple[Numbers, ...]
) -> None:
    """Add a column with the index that suits it: the epoch for validation, else the step, else the row."""
    steps, epochs, places = rows
    own = np.array(cells.places)
    counted = kept[own]
    own, values = own[counted], np.array(cells.numbers)[counted]
    per_epoch = (not column.startswith("train/") and column not in ("lr", "grad_norm")) or _is_per_epoch(source)
    candidates = [("epoch", epochs), ("step", steps)] if per_epoch else [("step", steps), ("epoch", epochs)]
    for table, index in [*candidates, ("step", places)]:
        at = index[own]
        if not len(at) or not np.isfinite(at).all() or (at != np.floor(at)).any() or (np.abs(at) >= 2**53).any():
            continue
        # Of values that are logged twice for an index the last one counts; several rows per epoch are counted by row.
        last = np.append(np.diff(at) > 0, True) if len(at) else np.zeros(0, bool)
        if (np.diff(at) < 0).any() or (table == "epoch" and last.sum() < 0.9 * len(at)):
            continue
        if column.startswith("val/"):
            values, last = _without_scheduled_nan(values, last)
        target = (history.epoch if table == "epoch" else history.step).setdefault(column, Column())
        if len(target.index):
            return
        target.index.frombytes(at[last].astype(np.int64).tobytes())
        with np.errstate(over="ignore"):
            target.values.frombytes(values[last].astype(np.float32).tobytes())
        return


def _without_scheduled_nan(values: Numbers, kept: NDArray[np.bool_]) -> tuple[Numbers, NDArray[np.bool_]]:
    """Leave out the NaN between numbers that come at equal distances: there nothing was measured.

    NaN behind the last number is kept where it goes on for longer than that distance.
    """
    finite = np.flatnonzero(np.isfinite(values))
    gaps = np.diff(finite)
    if len(finite) < 2 or gaps.min() < 2 or gaps.max() != gaps.min():
        return values, kept
    missing = np.isnan(values)
    missing[finite[-1] + int(gaps[0]) :] = False
    return values, kept & ~missing


def _add_sums(run: LogRun) -> None:
    """Add `train/loss` and `val/loss` as the sum of their parts, where a log has only parts.

    Losses of adversaries work against each other and are not summed.
    """
    history = run.history
    parts: dict[str, list[str]] = {}
    for name in history.names():
        split, _, rest = name.partition("/")
        if split in ("train", "val") and rest.endswith("_loss"):
            parts.setdefault(split, []).append(name)
    words = {word for names in parts.values() for name in names for word in name.partition("/")[2].split("_")}
    if words & ADVERSARIAL:
        names = sorted(name for names in parts.values() for name in names)
        run.remarks.append(f"{', '.join(names)} are losses of adversaries: they are not summed, each is read by itself")
        run.adversaries = names
        return
    for split, names in parts.items():
        total = f"{split}/loss"
        if total in history.names():
            continue
        tables = [(t, [n for n in names if n in t]) for t in (history.step, history.epoch)]
        table, present = max(tables, key=lambda entry: len(entry[1]))
        columns = [table[name] for name in present]
        shared = sorted(set.intersection(*(set(c.index) for c in columns)))
        values = [dict(zip(c.index, c.values, strict=True)) for c in columns]
        table[total] = Column()
        for at in shared:
            table[total].append(at, sum(column[at] for column in values))
        run.taken[total] = [source for name in present for source in run.taken[name]]
        run.remarks.append(
            f"{total} is the sum of {', '.join(present)}" if len(present) > 1 else f"{total} is {present[0]}"
        )


def _add_resume_facts(
    history: History, table: Table, order: Numbers, kept: NDArray[np.bool_], names: Mapping[str, str]
) -> None:
    """Add how the loss of repeated steps compares with that of the first time, as `resume_loss_ratio`.

    A training that is resumed rightly repeats its losses: the geometric mean of the ratios is 1, and it counts as 1
    within their noise. Rows that were seen before have a lower loss, and a lost state of the optimizer makes it higher.
    """
    losses = [source for source in table.cells if (names.get(source) or canonical_name(source)) == "train/loss"]
    if not losses or kept.all():
        return
    cells = table.cells[max(losses, key=lambda source: len(table.cells[source].numbers))]
    places, values = np.array(cells.places), np.array(cells.numbers)
    first = dict(zip(order[places[~kept[places]]].tolist(), values[~kept[places]].tolist(), strict=True))
    again = dict(zip(order[places[kept[places]]].tolist(), values[kept[places]].tolist(), strict=True))
    shared = [at for at in first if at in again]
    pairs = [(first[at], again[at]) for at in shared if first[at] > 0 and again[at] > 0]
    logs = np.log([after / before for before, after in pairs if math.isfinite(before) and math.isfinite(after)])
    if len(logs) >= 3:
        mean, error = float(logs.mean()), float(logs.std(ddof=1)) / math.sqrt(len(logs))
        ratio = math.exp(mean) if abs(mean) > STANDARD_ERRORS * error else 1.0
        history.facts |= {"resume_loss_ratio": ratio, "resume_repeat_change": max(ratio, 1 / ratio)}


def _add_header_rate(history: History, header: Mapping[str, str]) -> None:
    """Add the rate that the header states as a constant column, where the log has none by row."""
    if "lr" in history.names() or "lr" not in header:
        return
    try:
        rate = float(header["lr"])
    except ValueError:
        return
    history.log_step(0, {"lr": rate})
