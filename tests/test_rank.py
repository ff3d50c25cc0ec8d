"""Ranking of causes: definitions first, experiments decide, an abnormality without a symptom accuses nobody."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diagnostics.candidates import Candidate
from diagnostics.diagnose import diagnose
from diagnostics.playbook import example_history
from diagnostics.rank import FEATURES, WITH, WITHOUT, Ranker, features, load_ranker, rank
from pipeline.experiments.result import ArmResult
from pipeline.inspection.finding import Finding
from pipeline.results import CEILINGS

NARROW = Finding("model_too_small", "width", "abnormality", 0.99, 1.0, 4.0, "units", "a layer has one unit")
WIDTH = Finding("output_width_mismatch", "outputs", "definition", 1.0, 8.0, 10.0, "outputs", "8 outputs for 10 classes")
LOWER = ArmResult(
    "rate", ("learning_rate_too_high",), "optimizer.lr 1 → 0.1", "accuracy rises",
    0.1, 0.95, 0.98, "confirmed", 3, 300, "98 % of the shortfall is restored on 3 of 3 seeds",
)  # fmt: skip
REFUTED = replace(
    LOWER, id="width", causes=("model_too_small",), change="width 1 → 8", observed=0.1, restored=0.0,
    verdict="refuted", why="nothing is restored",
)  # fmt: skip
RANKER = Ranker(-3.0, (4.0, 3.0, 6.0, 3.0, -1.0, -1.0), 0.5)
STALLED = {
    "train/loss": "2.3 2.3 2.3 2.3 2.3 2.3",
    "val/accuracy": "0.1 0.1 0.1",
    "train/accuracy": "0.1 0.1 0.1",
    "facts": {"loss_expected": 2.303, "target": 0.95, "trivial": 0.1},
}
HEALTHY = {
    "train/loss": "2.3 1.2 0.6 0.3 0.2 0.15 0.12 0.1 0.1 0.09",
    "val/loss": "1.0 0.4 0.2 0.15 0.14",
    "val/accuracy": "0.7 0.9 0.95 0.96 0.96",
    "train/accuracy": "0.7 0.92 0.97 0.99 0.99",
    "facts": {"loss_expected": 2.303, "target": 0.95, "trivial": 0.1},
}


def test_rank_puts_contradiction_first() -> None:
    """A contradiction in terms comes before a confirmed cause, at the ceiling of its kind."""
    candidates = [
        Candidate("learning_rate_too_high", experiments=(LOWER,)),
        Candidate("output_width_mismatch", findings=(WIDTH,)),
    ]
    first, second = rank(candidates, True, RANKER)

    assert ("output_width_mismatch", 0.95, "definition") == (
        first.candidate.cause,
        first.confidence.value,
        first.confidence.basis,
    )
    assert ("learning_rate_too_high", "", "observation") == (
        second.candidate.cause,
        second.why_not,
        second.confidence.basis,
    )


def test_rank_does_not_name_refuted_cause() -> None:
    """A cause whose removal restores nothing is considered, with the experiment as the reason."""
    [only] = rank([Candidate("model_too_small", findings=(NARROW,), experiments=(REFUTED,))], True, RANKER)

    assert "an experiment speaks against it (width 1 → 8): nothing is restored" == only.why_not


def test_rank_names_the_likeliest_alone_where_none_reaches_the_threshold() -> None:
    """A refuted cause is passed over; from the lower threshold on, the likeliest of the others is named, it alone."""
    probable, possible = Candidate("outliers", findings=(NARROW,)), Candidate("dead_relu", findings=(NARROW,))
    refuted = Candidate("model_too_small", findings=(NARROW,), experiments=(REFUTED,))
    even = Ranker(0.0, (0.0,) * 6, 0.9, 0.4)

    named = [entry.candidate.cause for entry in rank([refuted, probable, possible], True, even) if not entry.why_not]
    none = [entry for entry in rank([refuted, probable], True, replace(even, least=0.6)) if not entry.why_not]

    assert named == ["outliers"] and not none


def test_rank_does_not_name_what_is_already_explained() -> None:
    """Where removing one cause restores the run, an abnormality that no experiment confirms is not accused as well."""
    candidates = [
        Candidate("learning_rate_too_high", experiments=(LOWER,)), Candidate("model_too_small", findings=(NARROW,)),
    ]  # fmt: skip
    first, second = rank(candidates, True, Ranker(9.0, (0.0,) * 6, 0.5))

    assert ("learning_rate_too_high", "") == (first.candidate.cause, first.why_not)
    assert "learning_rate_too_high explains the run: its removal restores 98% of what is missing" == second.why_not


def test_rank_says_of_a_confirmed_cause_why_it_is_not_named() -> None:
    """What an experiment has confirmed is never said to be undecided."""
    louder = Candidate("model_too_small", findings=(replace(NARROW, abnormality=0.999),))
    confirmed = Candidate("learning_rate_too_high", experiments=(replace(LOWER, restored=0.3),))
    ranked = {
        entry.candidate: entry for entry in rank([louder, confirmed], True, Ranker(-6.0, RANKER.coefficients, 0.9))
    }
    assert "an experiment confirms it, and little else speaks for it" in ranked[confirmed].why_not
    assert "no experiment has tested it" in ranked[louder].why_not


def test_rank_names_one_of_two_changes_that_each_restore_the_run() -> None:
    """What restores the run as well as the first cause does is another way around it, unless it adds to its removal."""
    smaller = replace(LOWER, id="clip", causes=("gradient_clip_missing",), change="gradient_clip_val null → 1")
    on_top = replace(smaller, id="rate+clip", restored=0.6)
    certain = Ranker(9.0, (0.0,) * 6, 0.5)
    rate = Candidate("learning_rate_too_high", experiments=(LOWER,))

    _, alternative = rank([rate, Candidate("gradient_clip_missing", experiments=(smaller,))], True, certain)
    _, second_fault = rank([rate, Candidate("gradient_clip_missing", experiments=(on_top,))], True, certain)

    assert "learning_rate_too_high explains the run: its removal restores 98% of what is missing" == alternative.why_not
    assert "" == second_fault.why_not


def test_rank_mends_a_contradiction_before_it_accuses_on_evidence() -> None:
    """Beside a contradiction in terms, what no experiment confirms is considered only."""
    candidates = [
        Candidate("output_width_mismatch", findings=(WIDTH,)), Candidate("model_too_small", findings=(NARROW,)),
    ]  # fmt: skip
    _, second = rank(candidates, True, Ranker(9.0, (0.0,) * 6, 0.5))

    assert "output_width_mismatch is a fault by definition: mend it first, then diagnose what remains" == second.why_not


def test_evidence_begins_with_the_experiment_that_decides() -> None:
    """The arm that mended the run comes before one that was tried first and restored less."""
    half = replace(LOWER, change="optimizer.lr 1 → 0.5", restored=0.2, verdict="inconclusive", why="20 % is restored")
    evidence = tuple(Candidate("learning_rate_too_high", experiments=(half, LOWER)).evidence())

    assert [LOWER.change in evidence[0], half.change in evidence[1]] == [True, True]


def test_rank_accuses_nobody_without_symptom() -> None:
    """In a run without a symptom an abnormality is harmless; a contradiction in terms is not."""
    unusual, contradiction = Candidate("model_too_small", findings=(NARROW,)), Candidate("x", findings=(WIDTH,))
    ranked = rank([unusual, contradiction], False, Ranker(9.0, (0.0,) * 6, 0.5))

    reasons = [
        "",
        "nothing is missing that its removal could restore: the run reaches its target, or shows no blocking symptom",
    ]
    assert [entry.why_not for entry in ranked] == reasons


@pytest.mark.parametrize("kind", [WITH, WITHOUT])
@given(st.tuples(*[st.floats(0, 1)] * len(FEATURES)), st.sampled_from(["supports", "abnormality", "restored"]))
def test_ranker_rises_with_evidence(kind: str, values: tuple[float, ...], name: str) -> None:
    """More evidence of any kind never lowers the probability of a cause under the fitted tables."""
    more = tuple(1.0 if feature == name else value for feature, value in zip(FEATURES, values, strict=True))

    assert load_ranker(kind).probability(values) <= load_ranker(kind).probability(more)


def test_features_lie_between_0_and_1() -> None:
    """Evidence is counted per kind; an experiment on a group of causes speaks for each of them in part."""
    group = replace(LOWER, causes=("learning_rate_too_high", "loss_reduction_or_sign"))
    evidence = ({"findings": (NARROW,)}, {"experiments": (group,)}, {"experiments": (REFUTED,)})
    candidates = [Candidate(cause, **known) for cause, known in zip("abc", evidence, strict=True)]
    rows = [dict(zip(FEATURES, features(candidate, candidates), strict=True)) for candidate in candidates]

    assert all(0 <= value <= 1 for row in rows for value in row.values())
    assert rows[0]["abnormality"] == pytest.approx(2 / 3)
    assert (rows[1]["restored"], rows[1]["mends"], candidates[1].verdict) == (0.49, 0.0, "inconclusive")
    assert (rows[2]["restored"], candidates[2].verdict) == (0.0, "refuted")


def test_diagnose_names_confirmed_cause() -> None:
    """An experiment that restores the shortfall names its cause, and is in diagnosis.json and on the page."""
    diagnosis = diagnose(example_history(STALLED), None, experiments=[LOWER, REFUTED])
    body = diagnosis.to_json()

    assert ("learning_rate_too_high", "confirmed", "observation") == tuple(
        body["root_causes"][0][key] for key in ("issue", "status", "basis")
    )
    assert ["confirmed", "refuted"] == [result["verdict"] for result in body["experiments"]]
    assert "decided" == body["decision"] and not body["would_decide"]
    refuted = next(entry for entry in body["considered"] if entry["issue"] == "model_too_small")
    assert "refuted" == refuted["status"] and "speaks against it" in refuted["why_not"]
    assert "98 % of the shortfall is restored on 3 of 3 seeds. **confirmed**" in diagnosis.incident()


def test_diagnose_proposes_the_tested_change_first() -> None:
    """The rate that an experiment confirmed is tried before a smaller change that one refuted."""
    config = {"optimizer": {"lr": 1.0}, "task": {"target": 0.95, "metric": "accuracy"}, "surgery": []}
    tenth = replace(LOWER, restored=0.0, verdict="refuted", why="nothing is restored")
    hundredth = replace(LOWER, id="rate 2", change="learning rate 1 → 0.01")
    diagnosis = diagnose(example_history(STALLED), config, experiments=[tenth, hundredth])

    assert {"optimizer.lr": 0.01} == diagnosis.fixes[0].remedy.overrides
    assert diagnosis.root_causes[0].fix.endswith("1 → 0.01")


def test_diagnose_without_decision_says_what_would_decide() -> None:
    """A stalled run without other evidence names nothing; the experiments that would decide are listed."""
    diagnosis = diagnose(example_history({**STALLED, "update_ratio": "0.5 0.5"}))

    assert "not_decided" == diagnosis.decision and not diagnosis.root_causes and diagnosis.considered
    assert any("the same training with this change alone" in text for text in diagnosis.would_decide)
    assert len(diagnosis.fixes) >= 3 and "Not decided: no cause is named." in diagnosis.incident()


def test_diagnose_considers_abnormality_of_healthy_run() -> None:
    """A run that reaches its target is not accused of an unusual setting, but of a contradiction in terms."""
    unusual = diagnose(example_history(HEALTHY), None, [NARROW])
    contradiction = diagnose(example_history(HEALTHY), None, [WIDTH])

    assert not unusual.root_causes and ["model_too_small"] == [entry.issue for entry in unusual.considered]
    assert ["output_width_mismatch"] == [cause.issue for cause in contradiction.root_causes]
    assert len(contradiction.fixes) >= 1 and "8 outputs for 10 classes" in contradiction.incident()


def test_confidence_stays_below_ceiling() -> None:
    """However strong the evidence, the confidence is at most that of its kind of evidence."""
    strong = Ranker(20.0, (0.0,) * 6, 0.5)
    candidates = [Candidate("a", findings=(NARROW,)), Candidate("b", experiments=(LOWER,)), Candidate("c")]

    assert {entry.candidate.cause: entry.confidence.value for entry in rank(candidates, True, strong)} == {
        "a": CEILINGS["research"], "b": CEILINGS["inference"], "c": CEILINGS["inference"],
    }  # fmt: skip
