"""Signals: one scale-free float from curves, NaN where it cannot be computed; and conditions on signals."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diagnostics import signals
from diagnostics.conditions import Condition, HistoryView, evaluate_condition
from pipeline.history import History

positive = st.lists(st.floats(1e-3, 1e3), min_size=5, max_size=40).map(np.array)
anything = st.lists(st.floats(width=32), min_size=1, max_size=30).map(np.array)
SCALE_FREE = ("max_over_first", "median_over_max", "remaining", "slope", "rise_from_best", "since_best")


def call(name: str, y: np.ndarray) -> float:
    """Compute a signal with the same curve for every parameter."""
    required, _ = signals.curve_limits(name)
    with np.errstate(all="ignore"):
        return signals.SIGNALS[name](*[y] * max(1, required))


@pytest.mark.parametrize("name", signals.SIGNALS)
def test_signal_is_documented(name: str) -> None:
    """The docstring of every signal says what it is, its range or unit, and when it is NaN."""
    text = inspect.getdoc(signals.SIGNALS[name]) or ""

    assert 3 <= len(text.splitlines()) and text.splitlines()[1] == ""
    assert "NaN" in text or "easurable" in text


@given(st.sampled_from(list(signals.SIGNALS)), anything)
def test_signal_returns_float_for_any_curve(name: str, y: np.ndarray) -> None:
    """A signal never raises, however short the curve is and whatever values it has."""
    assert isinstance(call(name, y), float)


@given(st.sampled_from(SCALE_FREE), positive, st.sampled_from([0.25, 8.0, 1024.0]))
def test_signal_is_scale_free(name: str, y: np.ndarray, factor: float) -> None:
    """The scale of a loss does not change the signal."""
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
def test_signal_value(name: str, curves: list[str], expected: float) -> None:
    """The value is right on a curve small enough to check by hand."""
    value = signals.SIGNALS[name](*[np.array(c.split(), float) for c in curves])

    assert value == pytest.approx(expected, nan_ok=True)


def test_slope_has_sign_and_size() -> None:
    """A line from 2 to 1 falls by about two thirds of its mean."""
    assert -2 / 3 == pytest.approx(signals.slope(np.linspace(2, 1, 200)), rel=0.01)


def make_view(facts: dict[str, float] | None = None, metric: str | None = None, **columns: list[float]) -> HistoryView:
    """Return a view with epoch columns for names that begin with val, else step columns; `__` stands for `/`."""
    history = History()
    for name, values in columns.items():
        log = history.log_epoch if name.startswith("val") else history.log_step
        for i, value in enumerate(values):
            log(i, {name.replace("__", "/"): value})
    return HistoryView(history, facts or {}, metric)


def test_since_is_start_of_last_uninterrupted_period() -> None:
    """A condition that held, failed and held again counts from the second time on."""
    losses = [1.0] * 10 + [5.0] * 10 + [1.0] * 10 + [5.0] * 70
    observation = evaluate_condition(
        Condition("level", ("train/loss",), above=3), make_view({"steps_per_epoch": 10}, train__loss=losses)
    )

    assert observation.holds
    assert {"step": 31, "epoch": 4} == observation.since  # two of the last three points have jumped


def test_since_of_epoch_column_and_fact() -> None:
    """An epoch column gives the epoch, and the step if it can be computed; a fact has no time."""
    view = make_view({"input_rms": 99.0}, val__loss=[1.0, 1.0, 9.0])

    assert {"step": None, "epoch": 2} == evaluate_condition(Condition("maximum", ("val/loss",), above=3), view).since
    assert {"step": None, "epoch": None} == evaluate_condition(
        Condition("maximum", ("input_rms",), above=10), view
    ).since


NO_GOAL = "the log has no target and no trivial-baseline score"


def test_unmeasured_condition_says_why() -> None:
    """A missing curve, a short one and an unmatched wildcard each say why, and no bound holds."""
    view = make_view(train__loss=[1.0], val__acc=[math.nan, 1.0, 1.0, 1.0])
    for condition, why in [
        (Condition("level", ("val/loss",), below=9), "the log has no val/loss"),
        (Condition("slope", ("train/loss",), below=9), "train/loss has 1 value, at least 4 are needed"),
        (Condition("slope", ("val/acc",), below=9), "1 of 4 values of val/acc is NaN or infinite"),
        (
            Condition("slope", ("val/acc",), last=0.5, below=9),
            "val/acc has 2 values, at least 4 are needed (in the last 50% of the run)",
        ),
        (Condition("shortfall", ("train/loss", "target", "trivial"), above=0), NO_GOAL),
        (Condition("level", ("dead/*",), above=0), "no column dead/* was recorded"),
        (Condition("gap", ("train/loss", "val/loss"), above=0), "the log has no val/loss"),
    ]:
        observation = evaluate_condition(condition, view)
        assert (False, False, why) == (observation.holds, observation.measured, observation.why)


TWENTY = [1 + 0.1 * i for i in range(20)]


@pytest.mark.parametrize(
    ("condition", "facts", "columns", "why"),
    [
        (
            Condition("rise_from_best", ("val/loss", "train/loss"), above=0.1),
            {},
            {"val__loss": TWENTY, "train__loss": [1.0]},
            "val/loss never fell below its first value, so the improvement that could be lost is zero",
        ),
        (
            Condition("gap", ("train/loss", "val/loss"), above=0),
            {},
            {"val__loss": TWENTY, "train__loss": [-2.0] * 4},
            "the first value of train/loss is -2, not above 0",
        ),
        (
            Condition("gap", ("train/loss", "val/loss"), above=0),
            {},
            {"val__loss": [1.0, math.nan], "train__loss": [2.0] * 4},
            "val/loss ends with values that are NaN or infinite",
        ),
        (
            Condition("shortfall", ("val/accuracy", "target", "trivial"), above=0),
            {"target": 0.9, "trivial": 0.9},
            {"val__accuracy": TWENTY},
            "target and trivial-baseline score are both 0.9, so the distance between them is zero",
        ),
        (
            Condition("ratio", ("loss_at_init", "loss_expected"), above=3),
            {"loss_at_init": 2.0, "loss_expected": 0.0},
            {},
            "the final value of loss_expected is 0",
        ),
        (
            Condition("remaining", ("train/loss", "loss_expected"), above=0.9),
            {"loss_expected": -1.0},
            {"train__loss": TWENTY},
            "the first value of loss_expected is -1, not above 0",
        ),
        (
            Condition("remaining", ("train/loss", "loss_expected"), above=0.9),
            {"loss_expected": math.nan},
            {"train__loss": [0.0] * 4},
            "the first value of train/loss is 0, not above 0",
        ),
        (
            Condition("max_over_first", ("train/loss",), above=3),
            {},
            {"train__loss": [math.nan, -1.0, 2.0, 3.0]},
            "the first number of train/loss is -1, not above 0",
        ),
        (
            Condition("median_over_max", ("lr",), above=3),
            {},
            {"lr": [0.0] * 4},
            "the largest value of lr is 0, not above 0",
        ),
    ],
)
def test_unmeasured_condition_blames_what_it_lacks(
    condition: Condition, facts: dict[str, float], columns: dict[str, list[float]], why: str
) -> None:
    """The reason names the curve that lacks something and what it lacks, not the first curve of the condition."""
    assert evaluate_condition(condition, make_view(facts, **columns)).why == why


@given(st.sampled_from(list(signals.SIGNALS)), st.lists(anything, min_size=3, max_size=3))
def test_signal_says_why_it_is_not_measurable(name: str, curves: list[np.ndarray]) -> None:
    """Whatever the curves are, a NaN has a reason in which every curve has a name."""
    required, _ = signals.curve_limits(name)
    with np.errstate(all="ignore"):
        value = signals.SIGNALS[name](*curves[: max(1, required)])

    if math.isnan(value):
        assert isinstance(value, signals.NotMeasurable)
        assert "{" not in value.why.format("a", "b", "c")


def broken_history() -> History:
    """A training of the engine, which counts from 1: epochs of 20 steps, the update of step 81 was withheld."""
    history = History()
    history.facts["steps_per_epoch"] = 20.0
    for epoch in range(1, 5):
        history.log_epoch(epoch, {"val/loss": 1 / epoch})
    for step in range(1, 82):
        history.log_step(step, {"train/loss": math.nan if step == 81 else 1 / step})
    history.event("nonfinite", 81, what="loss")
    return history


@pytest.mark.parametrize("loss", [math.nan, 0.5], ids=["loss", "gradient"])
def test_nonfinite_is_dated_by_the_step_that_was_withheld(loss: float) -> None:
    """The step of a withheld update is one value, not finite since that step, whether or not its loss is finite."""
    history = broken_history()
    history.log_step(81, {"train/loss": loss})
    condition = Condition("nonfinite", ("train/loss", "val/loss", "grad_norm", "broken"), above=0)
    observation = evaluate_condition(condition, HistoryView(history, history.facts))

    assert observation.value == 1
    assert observation.since == {"step": 81, "epoch": 5}
    assert "broken" not in observation.sentence() and "since step 81" in observation.sentence()


def test_epochs_and_steps_are_dated_alike() -> None:
    """The same moment has one step and one epoch, whether an epoch or a step column shows it; no step is invented."""
    history = broken_history()
    history.log_epoch(5, {"val/loss": 9.0})  # the epoch of the withheld step: it ended there, not at step 100
    view = HistoryView(history, history.facts)
    rise = evaluate_condition(Condition("maximum", ("val/loss",), above=3), view)

    assert rise.since == {"step": 81, "epoch": 5}
    assert view.time("val/loss", 2) == {"step": 40, "epoch": 2} == view.time("train/loss", 40)


def test_missing_optional_curves_are_skipped() -> None:
    """A signal that takes any number of curves uses those that were recorded."""
    observation = evaluate_condition(
        Condition("nonfinite", ("train/loss", "val/loss"), above=0), make_view(val__loss=[math.nan])
    )

    assert observation.holds and ("val/loss",) == observation.of


def test_wildcard_observes_furthest_column() -> None:
    """`*` observes the column furthest in the direction of the bound, and names it."""
    view = make_view(dead__a=[0.1], dead__b=[0.9])

    assert ("dead/b",) == evaluate_condition(Condition("level", ("dead/*",), above=0.5), view).of
    assert ("dead/a",) == evaluate_condition(Condition("level", ("dead/*",), below=0.5), view).of


def test_view_resolves_metric() -> None:
    """`val/metric` is the configured metric, else the only recorded metric."""
    view = make_view(metric="f1", val__f1=[0.5], val__accuracy=[0.9], val__loss=[1.0])

    assert "val/f1" == view.resolve("val/metric")
    assert "train/accuracy" == make_view(val__accuracy=[0.9], val__loss=[1.0]).resolve("train/metric")
    assert "val/metric" == make_view(val__f1=[0.5], val__accuracy=[0.9]).resolve("val/metric")


def test_description_names_measurements_in_words() -> None:
    """Names that only Fivegate uses are spelled out; those that users log stay as they are."""
    assert signals.description("remaining", ["train/loss", "loss_expected"]) == (
        "final value of train/loss divided by the loss of random guessing"
    )
    assert signals.description("level", ["dead/body.0"]).startswith("final value of the share of dead units of body.0")
    assert "dead units of a module" in signals.description("level", ["dead/*"])


def test_observation_sentence_has_value_bound_and_time() -> None:
    """The sentence of an observation contains the value, the bound and the time."""
    observation = evaluate_condition(
        Condition("max_over_first", ("train/loss",), above=3), make_view(train__loss=[1.0, 2.0, 8.0, 8.0])
    )

    assert (
        "largest value of train/loss divided by its first value is 8 (above 3, since step 2)" == observation.sentence()
    )
