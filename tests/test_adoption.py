"""The search for a candidate, and what makes one acceptable, without trainings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.adoption.acceptance import (
    Guard,
    declared_effect,
    harms,
    largest_family,
    noninferiority_p,
    remaining_error,
)
from pipeline.adoption.general import general_changes
from pipeline.adoption.pages import RoundSummary, config_difference, incident_with_fix, recommendations
from pipeline.adoption.prevention import prevention_items, regression_trials
from pipeline.adoption.proposals import Experiment, Known, propose
from pipeline.adoption.search import ALLOWED, Search, Tally, Terms, further_step, predicted_trainings
from pipeline.config.arguments import words_of_file
from pipeline.errors import UserError
from pipeline.history import History
from pipeline.results import digest
from pipeline.run_store.job import Delta, Job
from pipeline.search.ablation import turned_off
from pipeline.trials.executor import Trial
from pipeline.trials.study import Arm

CONFIG: dict[str, Any] = {
    "optimizer": {"lr": 1.0}, "scheduler": None, "trainer": {"max_epochs": 10, "max_steps": None},
    "model": {"hidden": [8, 8], "width": None, "depth": None}, "preprocess": {"standardize": False},
}  # fmt: skip
LOWER, NORMAL = Delta({"optimizer.lr": 0.1}), Delta({"preprocess.standardize": True})


def fix(cause: str, cure: str, delta: Delta) -> dict[str, Any]:
    """A recommended fix of a diagnosis."""
    implementation = {"overrides": delta.overrides, "surgery": [], "code": None}
    return {"cause": cause, "cure": cure, "kind": "cure", "implementation": implementation}


def known(*fixes: dict[str, Any], **more: Any) -> Known:
    """What a diagnosis that names the causes of these fixes gives to the candidates."""
    causes = [{"issue": name} for name in dict.fromkeys(f["cause"] for f in fixes)]
    return Known({"root_causes": causes, "recommended_fixes": list(fixes)}, Delta(), CONFIG, **more)  # type: ignore[typeddict-item]


RATE = fix("learning_rate_too_high", "lower_lr", LOWER)
SCALE = fix("inputs_not_normalized", "standardize_inputs", NORMAL)


def test_propose_begins_with_what_an_experiment_confirmed() -> None:
    """Confirmed changes come first, by what they restored; then remedies, then pairs of different causes."""
    tested = [
        Experiment(Delta({"optimizer.lr": 0.01}), ("learning_rate_too_high",), "confirmed", 0.7),
        Experiment(NORMAL, ("inputs_not_normalized",), "confirmed", 0.95),
    ]

    arms = propose(known(RATE, SCALE, tested=tested), set())

    assert [arm.delta.describe() for arm in arms[:3]] == [
        "preprocess.standardize=True", "optimizer.lr=0.01", "optimizer.lr=0.1"
    ]  # fmt: skip
    assert [arm.origin for arm in arms] == ["experiment", "experiment", "cause", "combination"]
    assert len(arms[3].parts) == 2 and arms[3].causes == ("inputs_not_normalized", "learning_rate_too_high")
    assert max(arms, key=lambda arm: arm.order) is arms[3]


def test_propose_leaves_out_what_cannot_help() -> None:
    """Refuted and tried changes, keys that the config lacks, and scaling of integer ids are not tried."""
    lacking = fix("learning_rate_too_high", "lower_lr", Delta({"optimizer.momentum": 0.9}))
    refuted = [Experiment(LOWER, ("learning_rate_too_high",), "refuted", 0.0)]

    assert [a.delta for a in propose(known(RATE, lacking), set())] == [LOWER]
    assert all(a.origin == "general" for a in propose(known(RATE, tested=refuted), set()))
    assert all(a.origin == "general" for a in propose(known(SCALE, inputs_have_a_scale=False), set()))
    assert all(a.origin == "general" for a in propose(known(RATE), {digest(LOWER)}))


def test_propose_tries_general_changes_of_a_near_miss() -> None:
    """Without a believed cause: the measured rate, a wider and a deeper model, and more epochs with a falling rate."""
    arms = propose(known(suggested_rate=0.02), set())
    changes = [arm.delta.overrides for arm in arms]

    assert changes[0] == {"optimizer.lr": 0.02}
    assert {"model.hidden": [32, 32]} in changes and {"model.hidden": [8, 8, 8]} in changes
    assert any(change.get("trainer.max_epochs") == 20 and "scheduler" in change for change in changes)
    assert {arm.origin for arm in arms} == {"general"} and not any(arm.cause for arm in arms)
    assert propose(known(suggested_rate=0.02), {digest(arm.delta) for arm in arms}) == []


def test_general_changes_double_a_width() -> None:
    """A layer of 2 units is tried at 8 and 32 first, not one notch wider a round; a rate near the measured stays."""
    config = {**CONFIG, "model": {"hidden": [2]}}

    widths = [d.overrides["model.hidden"] for _, d in general_changes(config, 0.9) if "model.hidden" in d.overrides]

    assert widths[:2] == [[8], [32]] and [4] in widths and [16] in widths
    assert not any("optimizer.lr" in delta.overrides for _, delta in general_changes(config, 0.9))


# --- the search ------------------------------------------------------------------------------------------------------


def run_search(
    scores: Mapping[str, float], arms: Sequence[Arm], most: int = 3, steps: int = 2000, died: str = ""
) -> tuple[Search, list[Arm]]:
    """A search whose trainings end with the score of their arm; `died` is the arm whose trainings die."""

    def train(jobs: Sequence[tuple[str, Job]]) -> dict[str, Trial]:
        done = {}
        for name, job in jobs:
            arm = name.split("-")[1]
            score = {"score": {"value": scores.get(arm, 0.5)}}
            done[name] = Trial(name, job, Path(), {} if arm == died else score, "exit 2" if arm == died else None)
        return done

    def steps_of(delta: Delta) -> int:
        return steps * int(delta.overrides.get("trainer.max_epochs", 10)) // 10

    def due(control: float) -> float:
        return declared_effect([control], 0.1, 0.95, True)

    terms = Terms("p", steps, 4 * steps, True, 0.95, steps_of, due)
    search = Search(terms, train, lambda text: None, Arm("control", Delta()), [Tally(arm) for arm in arms])
    return search, search.run(most)


def arms_of(*deltas: Delta, **more: Any) -> list[Arm]:
    return [Arm(f"c{i}", delta, "x", order=i, **more) for i, delta in enumerate(deltas, 1)]


RATES = [Delta({"optimizer.lr": rate}) for rate in (0.5, 0.1, 0.01, 0.001, 0.0001)]


def test_search_confirms_only_the_best() -> None:
    """Of five rates the best goes on, and the smallest change that reaches the target as well."""
    search, chosen = run_search({"c1": 0.4, "c2": 0.96, "c3": 0.99, "c4": 0.97, "c5": 0.5}, arms_of(*RATES))

    assert [arm.id for arm in chosen] == ["c3", "c2"] and search.spent <= ALLOWED
    outcomes = {tally.arm.id: tally.outcome for tally in search.tallies}
    assert "after 200 steps" in outcomes["c1"] and "ahead" in outcomes["c4"]


def test_search_stops_what_dies_or_falls_behind() -> None:
    """A candidate that dies costs a quick test; where none is ahead, nothing is confirmed."""
    search, chosen = run_search({"control": 0.5}, arms_of(*RATES), died="c2")

    assert chosen == [] and "died in the quick test" in search.tallies[1].outcome and not search.tallies[1].values


def test_search_takes_a_proven_change_at_its_word() -> None:
    """What an experiment of diagnostics restored is confirmed without a search, one value per setting."""
    proven = arms_of(RATES[2], RATES[1], NORMAL, origin="experiment", restored=1.0)

    search, chosen = run_search({}, proven)

    assert [arm.id for arm in chosen] == ["c1", "c3"] and search.spent == 0
    assert predicted_trainings(search.terms, proven) == 0


def test_search_repeats_a_step_that_helped() -> None:
    """A width that gains and misses the target is doubled again; a step of another kind is not repeated."""
    wider = Arm("c1", Delta({"model.hidden": [32]}), "x", order=1, scaled=4.0)

    search, chosen = run_search({"c1": 0.8, "c1x": 0.96}, [wider])

    assert [(arm.id, arm.delta.overrides) for arm in chosen] == [("c1x", {"model.hidden": [128]})]
    assert further_step(Arm("c1", NORMAL), Delta()) is None and search.spent <= ALLOWED


def test_search_drops_a_part_that_contributes_nothing() -> None:
    """Of a winning pair, each part is taken out once; without an idle one the other part is confirmed alone."""
    pair = Arm("c1", Delta({**LOWER.overrides, **NORMAL.overrides}), "x", order=1, parts=(LOWER, NORMAL))

    search, chosen = run_search({"c1": 0.96, "c1p1": 0.5, "c1p2": 0.96}, [pair])

    assert [arm.delta for arm in chosen] == [LOWER]
    assert [entry["why"] for entry in search.ablation] == ["contributes", "contributes nothing and is dropped"]


@given(
    st.lists(st.floats(0.3, 1.0), min_size=1, max_size=12),
    st.sampled_from([30, 120, 210, 1000, 50_000]),
    st.lists(st.sampled_from([None, 20, 40]), min_size=12, max_size=12),
)
def test_search_never_exceeds_its_allowance(scores: list[float], steps: int, epochs: list[int | None]) -> None:
    """Whatever the candidates score and however long they train, the search costs at most six planned trainings."""
    deltas = [Delta({"optimizer.lr": i, **({"trainer.max_epochs": e} if e else {})}) for i, e in enumerate(epochs)]
    arms = arms_of(*deltas[: len(scores)])

    search, chosen = run_search({arm.id: score for arm, score in zip(arms, scores, strict=True)}, arms, steps=steps)

    assert search.spent <= ALLOWED + 1e-9 and len(chosen) <= 3
    assert search.spent <= predicted_trainings(search.terms, arms) + 1e-9


# --- acceptance ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "target", "greater", "missing"),
    [
        (0.9, 0.95, True, 0.1),
        (2.0, 1.0, False, 2.0),
        (3.0, 5.0, True, 2.0),
        (-4.0, -1.0, True, 4.0),
        (1.0, 0.9, True, 0),
    ],
)
def test_remaining_error_is_the_distance_to_the_best(
    score: float, target: float, greater: bool, missing: float
) -> None:
    """Shares miss their distance to 1, errors their distance to 0, other scores that to the target."""
    assert remaining_error(score, target, greater) == pytest.approx(missing)


def test_declared_effect_of_a_dead_control_is_nothing() -> None:
    """Where the control has no score any score is a gain; else the mean of its scores counts."""
    assert declared_effect([math.nan], 0.1, 0.95, True) == 0
    assert declared_effect([0.5, 0.7, math.nan], 0.1, 0.95, True) == pytest.approx(0.04)


@given(st.lists(st.floats(0, 1), min_size=7, max_size=7), st.floats(0.01, 0.2))
def test_noninferiority_of_equal_scores_is_shown(scores: list[float], margin: float) -> None:
    """Seven pairs without a difference show that nothing is worse by the margin; a loss beyond it is not excused."""
    assert noninferiority_p(scores, scores, margin) == pytest.approx(1 / 2**7)
    assert noninferiority_p(scores, [value - 2 * margin for value in scores], margin) == 1


def guard(before: list[float], after: list[float], margin: float | None = None, limit: float | None = None) -> Guard:
    return {"what": "it", "before": before, "after": after, "margin": margin, "limit": limit}


@pytest.mark.parametrize(
    ("given_guard", "harmful"),
    [
        (guard([1.0], [9.0], limit=5.0), True),
        (guard([1.0], [5.0], limit=5.0), False),
        (guard([0.9] * 7, [0.5] * 7, margin=0.1), True),
        (guard([0.9] * 7, [0.85] * 7, margin=0.1), False),
        (guard([math.nan] * 7, [0.5] * 7, margin=0.1), False),
        (guard([0.9] * 7, [0.1] * 7), False),
    ],
)
def test_harms_respects_margins_and_limits(given_guard: Guard, harmful: bool) -> None:
    """A limit is not exceeded, a margin is kept with significance, and what has neither is not guarded."""
    assert harms([given_guard]) == (["it"] if harmful else [])


def test_largest_family_is_what_the_exact_test_can_show() -> None:
    """Six pairs are enough for one candidate, seven for three, five for none."""
    assert [largest_family(pairs) for pairs in (5, 6, 7)] == [0, 1, 3]


# --- what a round leaves ---------------------------------------------------------------------------------------------


def history_of(**series: list[float]) -> History:
    """A history with these values, step by step."""
    history = History()
    for step in range(len(next(iter(series.values())))):
        history.log_step(step + 1, {name: values[step] for name, values in series.items()})
    return history


DIAGNOSIS: Any = {"symptoms": [{"id": "nan_loss", "severity": "blocking"}, {"id": "slow", "severity": "advisory"}]}


def test_prevention_items_are_held_against_later_trainings() -> None:
    """The blocking symptom stays away, gradients stay under twice their largest norm; what was not measured fails."""
    items = prevention_items(DIAGNOSIS, 1, history_of(grad_norm=[0.5, 2.0]))
    good, bad, unmeasured = history_of(grad_norm=[3.9]), history_of(grad_norm=[math.nan]), history_of(lr=[0.1])

    assert [item["id"] for item in items] == ["round-1-nan_loss", "round-1-grad_norm"] and items[1]["bound"] == 4.0
    assert items[1]["ask"] == "Does the gradient norm stay under 4?"
    assert [t["passed"] for t in regression_trials(items, good, [])] == [True, True]
    assert [t["passed"] for t in regression_trials(items, bad, ["nan_loss"])] == [False, False]
    assert [t["passed"] for t in regression_trials(items, unmeasured, [])] == [True, False]


ROW: Any = {"id": "c1", "change": "optimizer.lr=0.01", "effect": 0.8, "p": 0.0156, "mean": 0.95, "wins": True,
            "values": [0.95] * 7, "guards": [guard([0.1] * 7, [0.8] * 7, margin=0.1)]}  # fmt: skip


def summary_of(adopted: str = "", **more: Any) -> RoundSummary:
    """A round that screened a rate and a width, and confirmed the rate."""
    tallies = [Tally(arm) for arm in arms_of(Delta({"optimizer.lr": 0.01}), Delta({"model.hidden": [16]}))]
    tallies[0].values, tallies[0].outcome = [0.95], "ahead in screening"
    tallies[1].values, tallies[1].outcome = [0.1], "lost in screening: 0.1, the control 0.1"
    more = {"round": 1, "metric": "accuracy", "target": 0.9, "choice": "c1 is the only one", **more}
    return RoundSummary(adopted=adopted, rows=[{**ROW, "id": "control", "wins": False}, ROW], searched=tallies, **more)


def test_recommendations_tell_what_did_not_help_and_what_is_left() -> None:
    """The table has every candidate; without an adoption the page says that the reference stays, and what to decide."""
    page = recommendations(summary_of(untried=["trainer.max_epochs=20"], commands={"train longer": "python -m x"}))

    assert "The reference stays as it is" in page and "`trainer.max_epochs=20`" in page and "python -m x" in page
    assert page.count("`model.hidden=[16]`") == 2 and "lost in screening: 0.1" in page
    scores = {"validation": {"before": {"value": 0.1}, "after": {"value": 0.95, "low": 0.93, "high": 0.97, "n": 360}}}
    adopted = recommendations(summary_of("optimizer.lr=0.01", scores=scores))
    assert "**Adopted: `optimizer.lr=0.01`**" in adopted and "| test | sealed | sealed |" in adopted
    assert "0.93 to 0.97" in adopted


def test_incident_with_fix_replaces_rollback_and_keeps_the_risks() -> None:
    """The page of the diagnosis gets the fix with its proof, what was run again, the way back, and what is left."""
    before = (
        "# NaN\n\nbody\n\n## Rollback\n\nnothing yet\n\n## Remaining risks: what was not checked\n\n- leaks: no time\n"
    )
    summary = summary_of("optimizer.lr=0.01", undo="python -m pipeline rollback x", checks=[("Is it so?", True)])

    page = incident_with_fix(before, summary, ["Does the gradient norm stay under 4?"])

    assert page.startswith(
        "# NaN\n\nbody\n\n## Fix\n\n`optimizer.lr=0.01`: +0.8 accuracy on average over 7 fresh seeds"
    )
    assert "nothing yet" not in page and "python -m pipeline rollback x" in page and "- Is it so?: passed" in page
    assert page.index("## Rollback") < page.index("## Remaining risks") < page.index("- leaks: no time")
    assert "the symptom `nan_loss` is still there" in incident_with_fix(before, summary_of(symptoms=["nan_loss"]), [])


def test_config_difference_names_what_is_the_same() -> None:
    """Only what changed is shown, and a model that prints the same says so."""
    text = config_difference({"a": 1, "b": 2}, {"a": 1, "b": 3}, ("Linear()", "Linear()"))

    assert "-b: 2\n+b: 3" in text and "model: no difference" in text


# --- an ablation on request, and the config of a fix by its path -----------------------------------------------------


def test_turned_off_names_every_wrong_key() -> None:
    """A number becomes 0, a choice none, a section null; keys that are missing or off are all named at once."""
    config = {"model": {"dropout": 0.2, "norm": "batch", "width": None}, "scheduler": {"_target_": "x"}}

    assert turned_off(config, ["model.dropout", "model.norm", "scheduler"]) == {
        "model.dropout": 0.0, "model.norm": "none", "scheduler": None
    }  # fmt: skip
    with pytest.raises(UserError) as raised:
        turned_off(config, ["model.depth", "model.width"])
    assert len(raised.value.faults) == 2 and "is off already" in raised.value.faults[1]


def test_words_of_file_reads_the_command_of_a_fix(tmp_path: Path) -> None:
    """The first line of `fixed.yaml` is run by the file's path; what it would trust has to be granted again."""
    path = tmp_path / "fixed.yaml"
    path.write_text(
        "# python -m pipeline phase=baseline experiment=digits 'trust=[my_lab]' optimizer.lr=0.1\nseed: 1\n"
    )

    assert words_of_file(path) == ["phase=baseline", "experiment=digits", "optimizer.lr=0.1"]
    path.write_text("seed: 1\n")
    with pytest.raises(UserError, match="does not begin with its command; expected a fixed"):
        words_of_file(path)
