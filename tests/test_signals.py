"""Signals: one float from curves, free of scale, NaN where nothing can be said; and conditions over them."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diagnostics import signals
from diagnostics.conditions import Condition, View, observe
from pipeline.history import History

positive = st.lists(st.floats(1e-3, 1e3), min_size=5, max_size=40).map(np.array)
anything = st.lists(st.floats(width=32), min_size=1, max_size=30).map(np.array)
SCALE_FREE = ("max_over_first", "median_over_max", "remaining", "slope", "rise_from_best", "since_best")


def call(name: str, y: np.ndarray) -> float:
    """The signal of the same curve at every place."""
    least, _ = signals.curves_wanted(name)
    with np.errstate(all="ignore"):
        return signals.SIGNALS[name](*[y] * max(1, least))


@pytest.mark.parametrize("name", signals.SIGNALS)
def test_documented(name: str) -> None:
    """Every signal says what it is, its range or unit, and when it is not measurable."""
    text = inspect.getdoc(signals.SIGNALS[name]) or ""

    assert 3 <= len(text.splitlines()) and text.splitlines()[1] == ""
    assert "NaN" in text or "easurable" in text


@given(st.sampled_from(list(signals.SIGNALS)), anything)
def test_any_curve_gives_a_float(name: str, y: np.ndarray) -> None:
    """No curve, however short or broken, makes a signal raise."""
    assert isinstance(call(name, y), float)


@given(st.sampled_from(SCALE_FREE), positive, st.sampled_from([0.25, 8.0, 1024.0]))
def test_scale_free(name: str, y: np.ndarray, factor: float) -> None:
    """The unit of a loss does not matter."""
    a, b = call(name, y), call(name, y * factor)

    assert (math.isnan(a) and math.isnan(b)) or a == pytest.approx(b, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "curves", "expected"),
    [
        ("nonfinite", ["1 nan inf 2", "nan"], 3),
        ("first", ["3 2 1"], 3),
        ("level", ["9 8 1 1"], 1),
        ("level", ["1 nan"], math.nan),
        ("maximum", ["1 nan 7"], 7),
        ("maximum", ["nan"], math.nan),
        ("max_over_first", ["2 8 nan 4"], 4),
        ("max_over_first", ["2 inf 1"], math.inf),
        ("max_over_first", ["2 8"], math.nan),
        ("median_over_max", ["1 1 1"], 1),
        ("median_over_max", ["1 0.5 0"], 0.5),
        ("ratio", ["6", "3"], 2),
        ("ratio", ["6", "0"], math.nan),
        ("remaining", ["4 2 1"], 0.25),
        ("remaining", ["4 2 1", "2"], 0.5),
        ("remaining", ["4 2 1", "nan"], 0.25),
        ("remaining", ["4 2"], math.nan),
        ("slope", ["1 1 1 1"], 0),
        ("slope", ["1 2 3 nan"], math.nan),
        ("rise_from_best", ["3 1 1 2"], 0.5),
        ("rise_from_best", ["3 1 1 2", "5 1"], 0.25),
        ("rise_from_best", ["1 2 3 4"], math.nan),
        ("since_best", ["3 1 2 2 2"], 0.75),
        ("gap", ["2 1 0.2 0.2", "1 0.4"], 0.1),
        ("shortfall", ["0.3 0.5 0.4", "0.9", "0.1"], 0.5),
        ("shortfall", ["0.8 0.6", "0.2", "1"], 0.5),
        ("shortfall", ["0.5", "0.9", "0.9"], math.nan),
    ],
)
def test_values(name: str, curves: list[str], expected: float) -> None:
    """The figure on a curve small enough to check by hand."""
    got = signals.SIGNALS[name](*[np.array(c.split(), float) for c in curves])

    assert got == pytest.approx(expected, nan_ok=True)


def test_slope_tells_direction_and_size() -> None:
    """A line from 2 to 1 changes by about two thirds of its mean."""
    assert -2 / 3 == pytest.approx(signals.slope(np.linspace(2, 1, 200)), rel=0.01)


def view(facts: dict[str, float] | None = None, metric: str | None = None, **columns: list[float]) -> View:
    """A view of step columns and, where the name begins with val, epoch columns; `__` stands for `/`."""
    history = History()
    for name, values in columns.items():
        log = history.log_epoch if name.startswith("val") else history.log_step
        for i, value in enumerate(values):
            log(i, {name.replace("__", "/"): value})
    return View(history, facts or {}, metric)


def test_since_is_where_it_began_to_hold_for_good() -> None:
    """A condition that held, failed and held again counts from the second time on."""
    losses = [1.0] * 10 + [5.0] * 10 + [1.0] * 10 + [5.0] * 70
    seen = observe(Condition("level", ("train/loss",), above=3), view({"steps_per_epoch": 10}, train__loss=losses))

    assert seen.holds
    assert {"step": 31, "epoch": 3} == seen.since  # two of the last three points have jumped


def test_since_of_an_epoch_column_and_of_a_fact() -> None:
    """An epoch column gives the epoch, and the step where it can be known; a fact has no time."""
    seen = view({"input_rms": 99.0}, val__loss=[1.0, 1.0, 9.0])

    assert {"step": None, "epoch": 2} == observe(Condition("maximum", ("val/loss",), above=3), seen).since
    assert {"step": None, "epoch": None} == observe(Condition("maximum", ("input_rms",), above=10), seen).since


def test_not_measured_is_not_false() -> None:
    """A missing curve, a short one and a missing wildcard each say why, and no bound holds."""
    seen = view(train__loss=[1.0])
    for condition, why in [
        (Condition("level", ("val/loss",), below=9), "val/loss not recorded"),
        (Condition("slope", ("train/loss",), below=9), "train/loss is too short or not finite"),
        (Condition("level", ("dead/*",), above=0), "no column dead/* was recorded"),
        (Condition("gap", ("train/loss", "val/loss"), above=0), "val/loss not recorded"),
    ]:
        o = observe(condition, seen)
        assert (False, False, why) == (o.holds, o.measured, o.why)


def test_optional_curves_are_left_out() -> None:
    """A signal that takes any number of curves uses those that there are."""
    o = observe(Condition("nonfinite", ("train/loss", "val/loss"), above=0), view(val__loss=[math.nan]))

    assert o.holds and ("val/loss",) == o.of


def test_wildcard_takes_the_worst() -> None:
    """`*` observes the column furthest in the bound's direction, and names it."""
    seen = view(dead__a=[0.1], dead__b=[0.9])

    assert ("dead/b",) == observe(Condition("level", ("dead/*",), above=0.5), seen).of
    assert ("dead/a",) == observe(Condition("level", ("dead/*",), below=0.5), seen).of


def test_metric_is_the_tasks_own() -> None:
    """`val/metric` is the configured metric, else the only score that was recorded."""
    seen = view(metric="f1", val__f1=[0.5], val__accuracy=[0.9], val__loss=[1.0])

    assert "val/f1" == seen.resolve("val/metric")
    assert "train/accuracy" == view(val__accuracy=[0.9], val__loss=[1.0]).resolve("train/metric")
    assert "val/metric" == view(val__f1=[0.5], val__accuracy=[0.9]).resolve("val/metric")


def test_sentence_has_value_bound_and_time() -> None:
    """People read what was seen with its figures."""
    o = observe(Condition("max_over_first", ("train/loss",), above=3), view(train__loss=[1.0, 2.0, 8.0, 8.0]))

    assert "train/loss: largest value over the first is 8 (above 3, since step 2)" == o.sentence()
