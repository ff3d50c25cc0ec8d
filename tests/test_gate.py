"""Gates decide: what opens one, what leaves it pending, what never satisfies an item."""

from __future__ import annotations

import math
from datetime import date, timedelta
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.results import OUTCOMES, Outcome, Result, Score, compare_with_score, compared
from pipeline.run_store.gate import Item, SignOff, Waiver, branch, branch_conditions, decide

TODAY = date(2030, 5, 5)
OUTCOME = st.sampled_from(get_args(Outcome))


def _item(name: str = "a", outcome: Outcome = "passed", **more: object) -> Item:
    return Item(name, "?", outcome, **more)  # type: ignore[arg-type]


def _waiver(name: str = "a", days: int = 1) -> Waiver:
    return Waiver("planning", name, "Ada", "because it is so", (TODAY + timedelta(days)).isoformat())


def test_gate_without_items_is_closed() -> None:
    """A gate without an evaluated item is closed."""
    assert decide([], today=TODAY) == "closed"


@given(st.lists(OUTCOME, min_size=1, max_size=6))
def test_gate_opens_for_passed_and_not_applicable_only(outcomes: list[Outcome]) -> None:
    """Without people, a gate is open exactly when every item passed or is not applicable."""
    items = [_item(str(i), o) for i, o in enumerate(outcomes)]

    assert (decide(items, today=TODAY) == "open") == all(o in ("passed", "not_applicable") for o in outcomes)


@given(st.lists(OUTCOME, min_size=1, max_size=6))
def test_gate_is_pending_when_only_signatures_are_missing(outcomes: list[Outcome]) -> None:
    """A gate is pending exactly when what is left is pending."""
    items = [_item(str(i), o) for i, o in enumerate(outcomes)]
    left = {o for o in outcomes if o not in ("passed", "not_applicable")}

    assert (decide(items, today=TODAY) == "pending") == (left == {"pending"})


@pytest.mark.parametrize("outcome", [o for o in OUTCOMES if o not in ("passed", "not_applicable")])
def test_waiver_satisfies_any_outcome(outcome: Outcome) -> None:
    """A waiver satisfies an item until its last day, and not the day after; the outcome stays what it was."""
    item = _item(outcome=outcome)

    assert decide([item], [_waiver(days=0)], today=TODAY) == "open"
    assert decide([item], [_waiver(days=-1)], today=TODAY) != "open"
    assert item.outcome == outcome


def test_waiver_of_unwaivable_item_has_no_effect() -> None:
    """A waiver over an item that is not waivable counts for nothing."""
    assert decide([_item(outcome="failed", waivable=False)], [_waiver()], today=TODAY) == "closed"


def test_sign_off_is_bound_to_its_subject() -> None:
    """A sign-off under another digest, or without one, does not count."""
    item = _item("approval", "pending", sign_off="owner", waivable=False)
    signed = SignOff("finalization", "approval", "Ada", "abc")  # `decide` gets those that have not lapsed

    assert decide([item], signed=[signed], subject="abc", today=TODAY) == "open"
    assert decide([item], signed=[signed], subject="abd", today=TODAY) == "pending"
    assert decide([item], signed=[signed], subject=None, today=TODAY) == "pending"


@given(st.booleans(), st.booleans(), st.lists(st.just("nan_loss"), max_size=2))
def test_branch_needs_target_trivial_and_no_symptom(target: bool, trivial: bool, symptoms: list[str]) -> None:
    """Sufficient is: target reached, better than trivial, no blocking symptom; nothing else."""
    expected = "sufficient" if target and trivial and not symptoms else "insufficient"

    assert branch(target, trivial, symptoms) == expected


def test_score_refuses_train_split() -> None:
    """A figure measured on train rows cannot take the type that targets accept."""
    with pytest.raises(ValueError, match="measured on val or test, got 'train'"):
        Score("train", "accuracy", 1.0, 1.0, 1.0, 10)  # type: ignore[arg-type]


def test_score_nan_reaches_and_beats_nothing() -> None:
    """A NaN score is below every target and better than no bar, whatever the direction."""
    for greater in (True, False):
        score = Score("val", "m", float("nan"), 0.0, 1.0, 5, greater)
        assert not score.reaches(0.0) and not score.beats(0.0)


@pytest.mark.parametrize(
    ("greater", "low", "high", "trivial", "better"),
    [
        (True, 0.45, 0.65, 0.5, False),
        (True, 0.5, 0.65, 0.5, False),
        (True, 0.51, 0.65, 0.5, True),
        (False, 0.45, 0.65, 0.6, False),
        (False, 0.45, 0.59, 0.6, True),
        (True, float("nan"), float("nan"), 0.5, True),
        (True, float("nan"), float("nan"), 0.55, False),
        (True, 0.51, 0.65, float("nan"), False),
    ],
)
def test_score_beats_only_what_lies_outside_its_interval(
    greater: bool, low: float, high: float, trivial: float, better: bool
) -> None:
    """0.55 is shown to be better than another value if its 95 % interval does not contain it; the value decides
    where there is no interval."""
    assert Score("val", "m", 0.55, low, high, 100, greater).beats(trivial) is better


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_compare_with_score_is_symmetric_in_direction(value: float, low: float, high: float, greater: bool) -> None:
    """A value outside the interval is better in one direction and worse in the other; inside it is as good in both."""
    low, high = sorted((low, high))
    score = {"value": (low + high) / 2, "low": low, "high": high, "greater_is_better": greater}
    opposite = {"better": "worse", "worse": "better", "as good": "as good"}
    rank = compare_with_score(value, score)

    assert rank and compare_with_score(value, {**score, "greater_is_better": not greater}) == opposite[rank]
    assert (rank == "as good") == (low <= value <= high)


def test_compare_with_score_reads_json() -> None:
    """In JSON NaN is a string: an interval that is missing leaves the value to decide, a missing score nothing."""
    score = {"value": 0.5, "low": "nan", "high": "nan", "greater_is_better": True}

    assert [compare_with_score(value, score) for value in (0.4, 0.5, 0.6)] == ["worse", "as good", "better"]
    assert compare_with_score(0.4, {**score, "value": "nan"}) is None and compare_with_score("nan", score) is None


def test_branch_conditions_do_not_claim_what_was_not_shown() -> None:
    """Each fact of a branch has its words; a score whose interval contains the trivial one is not called worse."""
    missed = {"target": False, "trivial": False, "symptoms": ["nan_loss"]}
    good = {"target": True, "trivial": True, "symptoms": []}

    assert branch_conditions(missed) == [
        "target missed",
        "not shown to be better than the trivial baseline",
        "blocking symptom: nan_loss",
    ]
    assert branch_conditions(good) == ["target reached", "better than the trivial baseline", "no blocking symptom"]


@pytest.mark.parametrize(
    ("value", "greater", "words"),
    [
        (0.9833, True, "target reached (accuracy 0.9833 >= 0.95)"),
        (0.2806, True, "target missed (accuracy 0.2806 < 0.95)"),
        (0.94999, True, "target missed (accuracy 0.94999 < 0.95)"),  # with four digits both would read 0.95
        (1.2, False, "target missed (accuracy 1.2 > 0.95)"),
        (math.nan, True, "target missed (accuracy nan, which cannot be compared with 0.95)"),
    ],
)
def test_branch_conditions_compare_score_with_target(value: float, greater: bool, words: str) -> None:
    """The first fact has the score and the target, in the direction of the metric, told apart by enough digits."""
    score = {"metric": "accuracy", "value": value, "greater_is_better": greater}
    reached = words.startswith("target reached")
    decision = {"target": reached, "trivial": True, "symptoms": [], "score": score, "target_value": 0.95}

    assert branch_conditions(decision)[0] == words


@given(
    st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False), st.booleans()
)
def test_compared_never_contradicts_itself(value: float, limit: float, at_least: bool) -> None:
    """The two numbers as written are in the relation that stands between them."""
    left, sign, right = compared(value, limit, at_least).split()
    within = value >= limit if at_least else value <= limit

    assert within == (sign in (">=", "<="))
    assert {">=": float.__ge__, "<": float.__lt__, "<=": float.__le__, ">": float.__gt__}[sign](
        float(left), float(right)
    )


def test_result_not_applicable_needs_reason() -> None:
    """An item is only not applicable for a reason."""
    with pytest.raises(ValueError, match="must say why"):
        Result("not_applicable")
