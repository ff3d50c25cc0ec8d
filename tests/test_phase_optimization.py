"""Optimization: a cure is adopted because it was tested on the same seeds as no change at all, and not otherwise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from phases.optimization import Arm, choose, compare
from pipeline.job import Delta, Job
from pipeline.record import ledger
from pipeline.record import plan as plans
from pipeline.record.run import Run
from pipeline.record.verify import faults
from pipeline.trials.executor import Trial
from tests.conftest import go
from tests.judged import changed, judged, measured


def test_what_a_study_leaves(mended: Run) -> None:
    """The winner lowers the learning rate; `fixed.yaml` is the whole config with just that changed."""
    values = measured(mended, "optimization", 1)
    fixed = mended.inside("optimization", 1, "fixed.yaml").read_text()
    before = plans.load(mended).config

    assert values["winner"]["change"] == "optimizer.lr=0.1"
    assert values["winner"]["p"] == pytest.approx(2 / 2**6)
    assert values["arms"][0]["cause"] == "learning_rate_too_high"
    assert fixed.startswith("# python -m pipeline phase=baseline experiment=digits_hot ")
    assert fixed.splitlines()[0].endswith(" run.name=digits_hot-fixed optimizer.lr=0.1")
    assert plans.differences(before, yaml.safe_load(fixed)) == {"optimizer.lr": (1.0, 0.1)}
    assert faults(mended)[1] == []


def test_what_the_repair_says_of_itself(mended: Run) -> None:
    """`implementation.json`: what was changed, what it was held against, and figures before and after."""
    said = json.loads(mended.inside("optimization", 1, "implementation.json").read_text())

    assert said["code_changes"] == [
        {"file": "fixed.yaml", "change": "optimizer.lr: 1.0 -> 0.1", "description": "set optimizer.lr to 0.1"}
    ]
    assert said["tests"] == "5/5 passing" and said["verification"]["p_after_holm"] < 0.05
    assert set(said["performance"]) == {"params", "step_ms", "memory_mb", "inference_ms"}
    assert all(side["before"] > 0 and side["after"] > 0 for side in said["performance"].values())
    assert said["performance"]["params"]["before"] == said["performance"]["params"]["after"]


def test_every_trial_is_a_process_with_a_record(mended: Run) -> None:
    """Thirteen jobs were started and ended: six pairs, and the winner once more on the master seed."""
    entries = [e["data"] for e in ledger.read(mended.ledger_path) if e["kind"] == "job.finished"]
    named = [f"{arm}-{i}" for i in range(1, 7) for arm in ("control", "c1")]

    assert [e["id"] for e in entries] == [*named, "fixed"]
    assert not any(e["died"] for e in entries)
    for e in entries:
        folder = mended.inside("optimization", 1, "trials", e["id"])
        assert json.loads((folder / "result.json").read_text())["weights"] == e["weights"]
    assert json.loads((mended.inside("optimization", 1, "trials", "fixed", "job.json")).read_text())["seed_index"] == 0


def test_the_mended_run_goes_on(mended: Run) -> None:
    """The gate is open, the branch sufficient, and the candidate is the fixed training."""
    state = mended.state()
    trial = json.loads(mended.inside("optimization", 1, "trials", "fixed", "result.json").read_text())

    assert state.gate("optimization") == "open"
    assert {i.outcome for i in state.gates["optimization"].items} == {"passed"}
    assert state.sufficient() and state.candidate and state.candidate["weights"] == trial["weights"]


def test_a_study_needs_a_diagnosis(trained: Run) -> None:
    """Behind a baseline alone, optimization is refused with the command that diagnoses."""
    from pipeline.errors import Refused

    with pytest.raises(Refused, match=r"the diagnostics gate is not evaluated .*Do: .* phase=diagnostics"):
        go(trained.path.parent, "phase=optimization", "run.name=digits")


def test_a_sufficient_run_is_not_mended(finished: Run) -> None:
    """Where the branch is sufficient there is nothing to mend."""
    from pipeline.errors import Refused

    with pytest.raises(Refused, match="there is nothing to mend"):
        go(finished.path.parent, "phase=optimization", "run.name=digits")


# --- the choice, on figures written by hand --------------------------------------------------------------------------


def _trials(values: dict[str, Sequence[float]]) -> dict[str, Trial]:
    found = {}
    for arm, row in values.items():
        for i, value in enumerate(row, 1):
            job = Job("", "trial", seed_index=i, max_steps=9)
            score = {} if value != value else {"score": {"value": value}}
            found[f"{arm}-{i}"] = Trial(f"{arm}-{i}", job, Path(), score, died=None if score else "signal 9")
    return found


def _study(greater: bool = True, **values: Sequence[float]) -> list[dict[str, Any]]:
    arms = [Arm(name, Delta(), order=order) for order, name in enumerate(values)]
    return compare(arms, _trials(values), len(next(iter(values.values()))), greater)


BAD, GOOD, BEST = [0.50, 0.51, 0.52, 0.53, 0.54, 0.55, 0.56], [0.9] * 7, [0.99] * 7


def test_the_smallest_change_that_suffices_wins() -> None:
    """Of two candidates that win and reach the target, the smaller is chosen, not the better."""
    rows = _study(control=BAD, c1=GOOD, c2=BEST)

    assert choose(rows[1:], 0.8, True)["id"] == "c1"
    assert choose(rows[1:], 0.95, True)["id"] == "c2"
    assert choose(rows[1:], 0.999, True)["id"] == "c2"


def test_no_winner_without_significance() -> None:
    """Five pairs cannot prove anything in a two-sided test; a mean difference alone adopts nothing."""
    rows = _study(control=BAD[:5], c1=GOOD[:5])

    assert rows[1]["effect"] > 0.3 and rows[1]["p"] == pytest.approx(2 / 2**5)
    assert choose(rows[1:], 0.5, True) is None


def test_worse_never_wins_and_less_can_be_more() -> None:
    """A significant loss is no win; where less is better, the signs turn."""
    assert choose(_study(control=GOOD, c1=BAD)[1:], 0.1, True) is None
    assert choose(_study(greater=False, control=GOOD, c1=BAD)[1:], 0.6, False)["id"] == "c1"


def test_the_dead_count_as_the_worst() -> None:
    """A control that died in every trial loses to one that lived, and its values stay on record as they were."""
    nan = [float("nan")] * 7
    rows = _study(control=nan, c1=[0.5, *GOOD[1:]])

    assert rows[0]["mean"] == 0.5 and all(v != v for v in rows[0]["values"])
    assert rows[1]["p"] == pytest.approx(2 / 2**6)  # one pair is a tie


def test_a_worker_that_dies_is_an_outcome(trained: Run) -> None:
    """A job that cannot run ends as a trial that says what of, and the others go on."""
    from pipeline.trials.executor import run_jobs

    digest = plans.load(trained).digest
    jobs = [("good", Job(digest, "trial", max_steps=2)), ("bad", Job("0" * 64, "trial"))]
    told: list[str] = []

    good, bad = run_jobs(jobs, trained.path / "x", parallel=2, threads=1, told=lambda t: told.append(t.id))

    assert told == ["good", "bad"]
    assert good.died is None and good.result["steps"] == 2
    assert bad.died and bad.died.startswith("exit 3: job: is of another plan") and bad.value != bad.value


def arm(**new: Any) -> dict[str, Any]:
    base = {"id": "c1", "cause": "learning_rate_too_high", "cure": "lower_lr", "order": 1, "change": "lr=0.1"}
    return {**base, "seed_indices": [1], "max_steps": 9, "threads": 1, "wins": True, "p": 0.01, "effect": 0.5, **new}


WRONG: list[tuple[str, dict[str, Any], dict[str, Any], str, str]] = [
    ("study.candidates_from_causes", {"causes": ["dead_relu"]}, {}, "failed", "no cure of a named cause"),
    ("study.candidates_from_causes", {"arms": [arm(cure="more_layers")]}, {}, "failed", "more_layers"),
    ("study.candidates_from_causes", {"arms": ...}, {}, "errored", "'arms' was not measured"),
    ("study.arms_compared_fairly", {"control__threads": 2}, {}, "failed", "the arms differ in threads"),
    ("study.arms_compared_fairly", {"control__seed_indices": [1]}, {}, "failed", "differ in seed_indices"),
    ("study.enough_pairs", {"pairs": 5}, {"alpha": 0.05}, "failed", "5 pairs"),
    ("study.enough_pairs", {"arms": []}, {"alpha": 0.05}, "not_applicable", "no candidate"),
    ("study.every_trial_recorded", {"trials_recorded": 12}, {}, "failed", "0 died"),
    ("study.chosen_on_validation", {"score_splits": ["val", "test"]}, {}, "failed", "another split"),
    ("study.chosen_on_validation", {"test_opened": 1}, {}, "failed", "another split"),
    ("study.choice_justified", {"winner": None}, {"alpha": 0.05}, "passed", "nothing was adopted"),
    ("study.choice_justified", {"winner__p": 0.05}, {"alpha": 0.05}, "failed", "not the smallest"),
    ("study.choice_justified", {"winner__effect": -0.1}, {"alpha": 0.05}, "failed", "not the smallest"),
    ("study.choice_justified", {"winner__order": 2}, {"alpha": 0.05}, "failed", "not the smallest"),
]


@pytest.mark.parametrize(("check", "wrong", "bounds", "outcome", "why"), WRONG)
def test_each_check_answers_no(
    mended: Run, check: str, wrong: dict[str, Any], bounds: dict[str, Any], outcome: str, why: str
) -> None:
    """On the real evidence with one value wrong, the check that asks for it says so."""
    item = judged(check, changed(measured(mended, "optimization", 1), **wrong), **bounds)

    assert item.outcome == outcome
    assert why in item.why
