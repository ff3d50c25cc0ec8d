"""Experiments that narrow a fault down: to settings that changed, to rows, and to labels that are not expected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.analysis.label_agreement import label_agreement
from pipeline.data.splits import Split
from pipeline.data.train_rows import apply_row_changes
from pipeline.experiments.allowance import Allowance
from pipeline.experiments.arms.arm import Arm, Subject
from pipeline.experiments.arms.difference import LastGood, cause_of, changes_between, last_good
from pipeline.experiments.arms.minimize import minimize
from pipeline.experiments.campaign import Campaign
from pipeline.experiments.narrowing import explain_difference, explain_rows
from pipeline.experiments.result import FIRST_SPLIT
from pipeline.experiments.validity import compare_labels, compare_shuffled
from pipeline.experiments.verdict import Shortfall
from pipeline.experiments.worker_process import Outcome
from pipeline.run_store import plan as plans
from pipeline.run_store.job import Delta, Job
from pipeline.run_store.run import Run
from tests.conftest import SMALL, go
from tests.test_experiments import CONFIG, subject

MISSED = Shortfall((0.5, 0.5), goal=0.9, trivial=0.1, greater_is_better=True)
Score = Callable[[Delta], float]


class Trainings:
    """A worker whose trainings end with a score that is a function of their change."""

    def __init__(self, score: Score) -> None:
        self.score, self.changes = score, list[Delta]()
        self.left_out = 2  # of 640 rows, where labels are suspected

    def run(self, jobs: Sequence[tuple[str, Job]]) -> list[Outcome]:
        self.changes += [job.delta for _, job in jobs]
        return [Outcome(name, job, self._result(job)) for name, job in jobs]

    def _result(self, job: Job) -> dict[str, Any]:
        value = self.score(job.delta)
        left_out = {"count": self.left_out, "of": 640, "rows": [3, 8], "targets": [1, 0], "expected": [0, 1]}
        score = {"value": value, "low": value - 0.05, "high": value + 0.05}
        return {"score": score, "steps": 50, "stopped": "done", "left_out": left_out}


def campaign(score: Score, about: Subject | None = None, **allowance: float) -> tuple[Campaign, list[str]]:
    """A round of experiments on a run that misses 0.9 with 0.5, and the ids of the hypotheses that it states."""
    stated = list[str]()

    def state_hypotheses(arms: Sequence[tuple[Arm, float]]) -> None:
        stated.extend(arm.id for arm, _ in arms)

    worker: Any = Trainings(score)
    return Campaign(worker, about or subject(), Allowance(**allowance), state_hypotheses, lambda text: None), stated


# --- delta debugging -------------------------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 11), min_size=1), st.sets(st.integers(0, 11)))
def test_minimize_finds_what_is_needed(needed: set[int], others: set[int]) -> None:
    """Of parts that are only together enough, exactly these are left, and nothing is tried twice."""
    tried = list[tuple[int, ...]]()

    def has_effect(parts: tuple[int, ...]) -> bool:
        tried.append(parts)
        return needed <= set(parts)

    assert set(minimize(sorted(needed | others), has_effect)) == needed
    assert len(tried) == len(set(tried))


def test_minimize_ends_where_nothing_can_be_tried() -> None:
    """With a budget of two trials the smallest selection so far is the answer."""
    answers = iter([True, False])
    assert minimize(range(8), lambda parts: next(answers, None)) == (0, 1, 2, 3)


# --- what changed since the last good training -----------------------------------------------------------------------


def changed(**new: Any) -> LastGood:
    """The present config, and an earlier one that differs in these keys, `section__key=old`."""
    old = {section: dict(value) if isinstance(value, dict) else value for section, value in CONFIG.items()}
    for key, value in new.items():
        section, _, name = key.partition("__")
        old[section][name] = value
    return LastGood("revision 1", dict(changes_between(old, CONFIG)))


GOOD = changed(optimizer__lr=1e-4, optimizer__weight_decay=0.02, loader__batch_size=64, trainer__max_epochs=8)


def test_changes_between_lists_what_trains() -> None:
    """Keys of sections that are not one object are compared one by one; another kind of object is one change."""
    assert GOOD.format_changes() == [
        "optimizer.lr 0.0001 → 0.001", "optimizer.weight_decay 0.02 → 0.01", "loader.batch_size 64 → 32",
        "trainer.max_epochs 8 → 10",
    ]  # fmt: skip
    sgd = {"_target_": "torch.optim.SGD", "lr": 1.0}
    assert list(changes_between({"optimizer": sgd}, CONFIG)) == [("optimizer", (sgd, CONFIG["optimizer"]))]
    assert not list(changes_between({**CONFIG, "trainer": {**CONFIG["trainer"], "max_minutes": 9}}, CONFIG))


@pytest.mark.parametrize(
    ("key", "old", "new", "cause"),
    [
        ("optimizer.lr", 0.1, 1.0, "learning_rate_too_high"),
        ("optimizer.lr", 0.1, 0.01, "learning_rate_too_low"),
        ("loader.shuffle", True, False, "data_not_shuffled"),
        ("model.hidden", [64], [2], None),
    ],
)
def test_cause_of_a_change(key: str, old: object, new: object, cause: str | None) -> None:
    """A number that became larger or smaller speaks for a cause, and some other changes do; the rest does not."""
    assert cause_of(key, old, new) == cause


def test_explain_difference_finds_the_guilty_change() -> None:
    """Of four changes the one that must be undone is confirmed on three seeds, each trial stated before."""
    round_, stated = campaign(lambda change: 0.9 if change.overrides.get("optimizer.lr") == 1e-4 else 0.5)
    explain_difference(round_, MISSED, GOOD)
    [result] = round_.results.values()

    assert (result.verdict, result.causes, result.seeds) == ("confirmed", ("learning_rate_too_high",), 3)
    assert result.change == "as in the last good training (revision 1): optimizer.lr 0.001 → 0.0001"
    assert stated[0] == "undo_0_1_2_3" and result.id in stated and len(stated) == len(set(stated)) <= 5


def test_explain_difference_names_no_cause_for_two_changes() -> None:
    """Where only two changes together are guilty, both are named, and no cause of the vocabulary."""
    both = {"optimizer.lr", "loader.batch_size"}
    round_, _ = campaign(lambda change: 0.9 if both <= set(change.overrides) else 0.5)
    explain_difference(round_, MISSED, GOOD)
    [result] = round_.results.values()

    assert (result.id, result.verdict, result.causes) == ("undo_0_2", "confirmed", ())


def test_explain_difference_says_that_changes_are_not_guilty() -> None:
    """Earlier settings that restore nothing, also in full, are refuted; without a good training nothing is tried."""
    round_, _ = campaign(lambda change: 0.5)
    explain_difference(round_, MISSED, GOOD)
    explain_difference(round_, MISSED, None)
    [result] = round_.results.values()

    assert (result.verdict, result.steps) == ("refuted", 50) and round_.allowance.spent == pytest.approx(1.0)


def test_last_good_is_a_run_beside_this_one(finished: Run) -> None:
    """Another run on the same rows that reached its target is found, with what differs in its training."""
    run, _, _ = go(finished.path.parent, "phase=planning", *SMALL, "run.name=hot", "optimizer.lr=9")
    state, plan = run.state(), plans.load(run)
    good = last_good(run, state, plan, plan.config)

    assert good is not None and (good.name, list(good.changes)) == ("run digits", ["optimizer.lr"])
    assert last_good(finished, finished.state(), plans.load(finished), plan.config) is None


# --- rows ------------------------------------------------------------------------------------------------------------


def test_explain_rows_names_guilty_rows() -> None:
    """Of the extreme rows the one that must be left out is named with its target."""
    scales = {"input_scale": 700.0, "input_extreme": 900.0, "extreme_inputs": [(7, 1.0), (40, 2.0), (12, 0.0)]}
    round_, _ = campaign(
        lambda change: 0.9 if 40 in change.train_rows.get("without", ()) or "inputs" in change.train_rows else 0.5,
        subject({**scales, "extreme_targets": []}),
    )
    clipped = Arm("clipped_inputs", ("outliers",), "clipped", Delta(train_rows={"inputs": "clipped"}))
    round_.record(clipped, [round_.train_short(clipped, seed)[f"clipped_inputs-short-{seed}"] for seed in (1, 2, 3)],
                  MISSED, whole=False)  # fmt: skip
    explain_rows(round_, MISSED)
    result = round_.results["without_rows_40"]

    assert (result.verdict, result.causes, result.seeds) == ("confirmed", ("outliers",), 3)
    assert result.change == "without train rows 40 (target 2)"


def noisy(seed: int = 0) -> tuple[Split, np.ndarray]:
    """Three clouds of points, of which every tenth has the label of another one, and the numbers of those rows."""
    draw = np.random.default_rng(seed)
    y = draw.integers(0, 3, 300)
    X = draw.normal(size=(300, 4)) + 4 * np.eye(4)[y]
    wrong = np.arange(0, 300, 10)
    y[wrong] = (y[wrong] + 1) % 3
    return Split("train", torch.tensor(X, dtype=torch.float32), torch.tensor(y)), wrong


def test_label_agreement_finds_wrong_labels() -> None:
    """Rows with a wrong label are not expected, the others are; the two changes of rows keep equally many."""
    train, wrong = noisy()
    unexpected = np.flatnonzero(~label_agreement(train).agrees)
    agreeing, as_many = (apply_row_changes(train, {"labels": how}, 1) for how in ("agreeing", "as_many"))

    assert set(wrong) <= set(unexpected) and len(unexpected) < 1.3 * len(wrong)
    assert len(agreeing) == len(as_many) == 300 - len(unexpected)
    assert len(apply_row_changes(train, {"without": [0, 5, 299]}, 1)) == 297


@pytest.mark.parametrize(("agreeing", "verdict"), [(0.9, "confirmed"), (0.52, "refuted"), (0.6, "inconclusive")])
def test_compare_labels_needs_more_than_fewer_rows(agreeing: float, verdict: str) -> None:
    """Expected labels confirm the noise only beyond a random part of the rows, and the rows left out are named."""
    round_, stated = campaign(lambda change: agreeing if change.train_rows["labels"] == "agreeing" else 0.5)
    compare_labels(round_, MISSED, ["label_noise"])
    result = round_.results["agreeing_labels"]

    assert result.verdict == verdict and stated == ["agreeing_labels", "as_many_rows"]
    assert "2 of 640 train rows were left out: row 3 has 1 where 0 is expected" in result.why


def test_compare_labels_refutes_nothing_where_most_labels_are_unexpected() -> None:
    """A simple model that expects less than half of the labels cannot say that they are right."""
    round_, _ = campaign(lambda change: 0.5)
    round_.worker.left_out = 321  # type: ignore[attr-defined]
    compare_labels(round_, MISSED, ["label_noise"])

    assert round_.results["agreeing_labels"].verdict == "inconclusive"


def test_compare_labels_costs_nothing_where_nothing_is_suspected() -> None:
    """A run whose labels nothing speaks against trains no arm for them."""
    round_, stated = campaign(lambda change: 0.5)
    compare_labels(round_, MISSED, ["learning_rate_too_high"])
    compare_shuffled(round_, MISSED, ["label_noise"])

    assert not stated and not round_.results and round_.allowance.spent == 0


@pytest.mark.parametrize(("own", "verdict", "seeds"), [(0.12, "confirmed", 3), (0.9, "refuted", 1)])
def test_compare_shuffled_tells_whether_labels_belong_to_rows(own: float, verdict: str, seeds: int) -> None:
    """Labels that teach a reference no more than shuffled ones are not those of the rows; others are."""
    round_, _ = campaign(lambda change: 0.1 if "targets" in change.train_rows else own)
    goal = Shortfall((0.5, 0.5), goal=0.9 if verdict == "confirmed" else 1.9, trivial=0.1, greater_is_better=True)
    reference = Arm(FIRST_SPLIT, (), "a reference", Delta(), kind="context")
    round_.trainings[FIRST_SPLIT] = list(round_.train_short(reference, 1).values())
    compare_shuffled(round_, goal, ["labels_misaligned"])
    result = round_.results["shuffled_labels"]

    assert (result.verdict, result.seeds) == (verdict if verdict == "confirmed" else "inconclusive", seeds)
