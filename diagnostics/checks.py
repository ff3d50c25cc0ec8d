"""Single questions to the curves of one training, for use in a notebook or a test: did it diverge, overfit, converge?

    from diagnostics import check_overfitting
    check_overfitting({"loss": [...], "val_loss": [...]})

A history is a `History`, a mapping of lists, a data frame, or what Keras' `fit` returns. Column names are those that
logs usually have (`loss`, `val_loss`, `train/loss`, `grad_norm`, ...).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from diagnostics import signals
from diagnostics.logs.names import canonical_name
from pipeline.errors import UserError, fault
from pipeline.history import History

Values = Sequence[float | None] | NDArray[np.floating]


class Frame(Protocol):
    """A table with named columns, as a pandas data frame."""

    @property
    def columns(self) -> Iterable[str]: ...

    def __getitem__(self, name: str) -> Values: ...


class KerasHistory(Protocol):
    """What Keras' `fit` returns: the lists of its epochs are in `history`."""

    @property
    def history(self) -> Mapping[str, Values]: ...


Source = History | Mapping[str, Values] | Frame | KerasHistory


@dataclass(frozen=True)
class Check:
    """The answer to one question: whether it fired, the value that decided, its bound, and both in a sentence.

    `value` is NaN where the history does not have what the question needs; then the check has not fired, and `why`
    says what is missing. A check is true if it has fired.
    """

    fired: bool
    value: float
    bound: float
    why: str

    def __bool__(self) -> bool:
        return self.fired


def check_loss_divergence(history: Source) -> Check:
    """Has the training loss become NaN or risen far above the lowest level that it had reached?

    The value is the final level divided by the lowest one, or infinity for a loss that is not finite. It fires above 2
    if at least a fifth of the improvement is lost as well. The comparison is with the minimum and not with the first
    value: a loss that fell from 9 to 0.2 and rose to 2 has diverged.
    """
    loss = _curve(_columns(history), "train/loss")
    n_nonfinite = int(np.count_nonzero(~np.isfinite(loss)))
    if n_nonfinite:
        return Check(True, math.inf, 2.0, f"{n_nonfinite} of {len(loss)} training losses are NaN or infinite")
    lost = signals.rise_from_best(loss)
    return _answer(
        signals.over_lowest(loss), 2.0, "the final training loss, divided by its lowest level,", also=lost > 0.2
    )


def check_overfitting(history: Source) -> Check:
    """Is the model much better on its training rows than on validation?

    No target is needed. If both splits have a metric such as accuracy, the value is the gap of their final values, and
    it fires above 0.1. Else it is the share of its improvement that the validation loss has lost again while the
    training loss still fell, and it fires above 0.1; with two or three points, it is the validation loss divided by the
    training loss, and it fires above 2.
    """
    columns = _columns(history)
    train, val = _curve(columns, "train/loss"), _curve(columns, "val/loss", on_schedule=True)
    for name in ("accuracy", "balanced_accuracy", "f1", "auc"):
        if f"train/{name}" in columns and f"val/{name}" in columns:
            gap = signals.level(columns[f"train/{name}"]) - signals.level(_without_gaps(columns[f"val/{name}"]))
            if gap > 0.1:
                return Check(True, gap, 0.1, f"the {name} of the train rows is {gap:.3g} above that of validation")
    if len(val) < 4:
        return _answer(signals.ratio(val, train), 2.0, "the validation loss, divided by the training loss,")
    falls = signals.slope(train[len(train) // 2 :]) < 0
    lost = signals.rise_from_best(val, train)
    return _answer(lost, 0.1, "the share of its improvement that the validation loss has lost", also=falls)


def check_convergence_rate(history: Source) -> Check:
    """Does the training loss fall fast enough: has it moved at all, and is it nearly done?

    The value is the share by which it fell in the last third, relative to its mean there. It fires above 0.1, when the
    training ended before it was done. A loss that ends within 5 % of its first value has not moved, and fires too.
    """
    loss = _curve(_columns(history), "train/loss")
    remaining = signals.remaining(loss)
    fall = -signals.slope(loss[-max(4, math.ceil(0.3 * len(loss))) :])
    if remaining > 0.95:
        return Check(True, fall, 0.1, f"the training loss ends at {remaining:.2f} times its first value")
    return _answer(fall, 0.1, "the relative fall of the training loss in the last third")


def check_gradient_health(history: Source) -> Check:
    """Is a gradient norm NaN, many times its usual size, zero, or much smaller in one layer than in all?

    The value is the largest norm divided by the median, which fires above 100 (exploding). For `grad_norm/<module>`
    columns, a module with less than a thousandth of the whole gradient fires too (vanishing): then the value is that
    share and the bound 0.001.
    """
    columns = _columns(history)
    norm = _curve(columns, "grad_norm")
    n_nonfinite = int(np.count_nonzero(~np.isfinite(norm)))
    if n_nonfinite:
        return Check(True, math.inf, 100.0, f"{n_nonfinite} of {len(norm)} gradient norms are NaN or infinite")
    if not norm.any():
        return Check(True, 0.0, 0.0, "every gradient norm is zero: nothing can be learned")
    for name, values in columns.items():
        share = signals.ratio(values, norm) if name.startswith("grad_norm/") else math.nan
        if share < 1e-3:
            return Check(True, share, 1e-3, f"{name} is {share:.2g} of the whole gradient norm")
    return _answer(signals.max_over_median(norm), 100.0, "the largest gradient norm, divided by the median,")


def _answer(value: float, bound: float, what: str, also: bool = True) -> Check:
    if math.isnan(value):
        why = value.why if isinstance(value, signals.NotMeasurable) else "the curves do not define it"
        return Check(False, math.nan, bound, f"not measurable: {why.format('the curve', 'the other curve')}")
    fired = value > bound and also
    return Check(fired, float(value), bound, f"{what} is {value:.3g} ({'above' if fired else 'within'} {bound:g})")


def _columns(source: Source) -> dict[str, signals.Curve]:
    """Return the curves by canonical name. Raises UserError for anything that has no columns of numbers."""
    if isinstance(source, History):
        return {name: source.series(name)[1].astype(np.float64) for name in source.names()}
    inner = getattr(source, "history", source)  # of Keras
    if isinstance(inner, History):
        return _columns(inner)  # of Monitor
    curves: dict[str, signals.Curve] = {}
    for name, values in _named_values(inner):
        column = name if name.startswith("grad_norm/") else canonical_name(name) or name
        try:
            curves.setdefault(column, np.asarray(values, np.float64).reshape(-1))
        except (TypeError, ValueError):
            continue  # a column of text
    if not curves:
        expected = "a History, a mapping of lists of numbers, a data frame, or a Keras history"
        raise UserError(fault("history", "has no columns of numbers", got=type(source).__name__, expected=expected))
    return curves


def _named_values(source: object) -> Iterator[tuple[str, object]]:
    """Yield the columns of a mapping or of a data frame."""
    if isinstance(source, Mapping):
        yield from ((str(name), values) for name, values in source.items())
    elif hasattr(source, "columns") and hasattr(source, "__getitem__"):
        yield from ((str(name), source[name]) for name in source.columns)


def _curve(columns: Mapping[str, signals.Curve], name: str, on_schedule: bool = False) -> signals.Curve:
    """Return a column, without the gaps of a schedule if `on_schedule`. Raises UserError where it is missing."""
    if name not in columns or not len(columns[name]):
        raise UserError(fault("history", f"has no {name}", got=", ".join(columns), expected=f"a column such as {name}"))
    return _without_gaps(columns[name]) if on_schedule else columns[name]


def _without_gaps(values: signals.Curve) -> signals.Curve:
    """Return the values without regular gaps: a column that is measured in every n-th row has NaN in all others."""
    known = np.flatnonzero(~np.isnan(values))
    gaps = np.diff(known)
    return values[known] if len(known) > 1 and gaps.min() == gaps.max() > 1 else values
