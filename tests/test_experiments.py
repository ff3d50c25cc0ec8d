"""Controlled experiments: which arms a run gets, what their results say, and what they may cost."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline.errors import UserError
from pipeline.experiments.allowance import SHORT, Allowance, slice_steps
from pipeline.experiments.arms.arm import Arm, Subject, combined
from pipeline.experiments.arms.choice import chosen_arms, more_epochs
from pipeline.experiments.arms.training import without_randomness
from pipeline.experiments.explain import Training
from pipeline.experiments.result import FIRST_SPLIT, ArmResult
from pipeline.experiments.validity import Comparison, judge_figures
from pipeline.experiments.verdict import Shortfall, judge
from pipeline.experiments.worker_process import Outcome
from pipeline.history import History
from pipeline.models.surgery import apply_surgery
from pipeline.run_store.job import Delta, Job
from tests.check_helpers import judge as judge_item

JOB = Job("plan", "diagnostics.arm", seed_index=1)
MISSED = Shortfall((0.5, 0.5, 0.5), goal=0.9, trivial=0.1, greater_is_better=True)

ABOUT: dict[str, Any] = {  # of a healthy multilayer perceptron on standardized rows
    "modules": {"Linear": 2, "ReLU": 1}, "activations": ["ReLU"], "layers": [32, 3], "parameters": 400, "frozen": 0,
    "unusual_weights": [], "dropout": False, "batch_norm": False, "normalized": False, "transforms_output": False,
    "repeats_output": True, "output_shape": [3], "loss": "CrossEntropyLoss", "kind": "classification", "classes": 3,
    "class_counts": {"0": 50, "1": 50, "2": 50}, "input_scale": 1.0, "column_scale_ratio": 1.5, "input_extreme": 4.0,
    "target_extreme": None, "target_scale": None, "image": False, "from_dataset": False, "augmented": False,
    "train_rows": 640, "val_rows": 100, "shared_rows": 0,
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "task": {"kind": "classification", "target": 0.9},
    "loader": {"batch_size": 32, "shuffle": True, "sampler": "none", "augment": []},
    "trainer": {"max_epochs": 10, "max_steps": None, "precision": 32, "gradient_clip_val": None,
                "accumulate_grad_batches": 1},
    "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.001, "weight_decay": 0.01},
    "loss": {"_target_": "torch.nn.CrossEntropyLoss"},
    "model": {"_target_": "my.Net"}, "scheduler": None, "surgery": [],
    "preprocess": {"standardize": False, "images": "none", "targets": "none"},
}  # fmt: skip


def subject(about: dict[str, Any] | None = None, config: dict[str, Any] | None = None, **others: Any) -> Subject:
    """A run of 200 steps that misses its target, with some values changed."""
    description: Any = {**ABOUT, **(about or {})}
    values = {"max_steps": 200, "target": 0.9, "trivial": 0.3, "greater_is_better": True, "control": 0.5, **others}
    return Subject("plan", {**CONFIG, **(config or {})}, description, **values)


def ids(about: dict[str, Any] | None = None, suspects: tuple[str, ...] = (), **config: Any) -> list[str]:
    """The arms of a run, in their order."""
    return [arm.id for arm in chosen_arms(subject(about, config), suspects)]


def outcome(value: float, **result: Any) -> Outcome:
    """A training that ended with this score; NaN is a training without one."""
    score = None if math.isnan(value) else {"value": value, "low": value - 0.05, "high": value + 0.05}
    return Outcome(
        "arm", JOB, {"score": score, "steps": 50, "stopped": "nonfinite" if score is None else "done", **result}
    )


ARM = Arm("no_dropout", ("regularization_too_strong",), "without dropout", Delta({"model.dropout": 0.0}))


# --- which arms ------------------------------------------------------------------------------------------------------

UNUSUAL: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("no_clipping", {}, {"trainer": {**CONFIG["trainer"], "gradient_clip_val": 1e-5}}),
    ("constant_rate", {}, {"scheduler": {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 1}}),
    ("optimizer_defaults", {}, {"optimizer": {**CONFIG["optimizer"], "_target_": "torch.optim.AdamW", "eps": 1.0}}),
    ("no_augmentation", {}, {"loader": {**CONFIG["loader"], "augment": [{"_target_": "Noise"}]}}),
    ("shuffled", {}, {"loader": {**CONFIG["loader"], "shuffle": False}}),
    ("smaller_batch", {}, {"loader": {**CONFIG["loader"], "batch_size": 640}}),
    ("larger_batch", {}, {"loader": {**CONFIG["loader"], "batch_size": 1}}),
    ("precision_32", {}, {"trainer": {**CONFIG["trainer"], "precision": "16-mixed"}}),
    ("no_regularization", {"dropout": True}, {}),
    ("eval_without_dropout", {"repeats_output": False}, {}),
    ("raw_output", {"transforms_output": True}, {}),
    ("reference_loss", {"loss": "MSELoss"}, {}),
    ("output_per_class", {"output_shape": [2]}, {}),
    ("standardized_inputs", {"input_scale": 700.0}, {}),
    ("standardized_inputs", {"column_scale_ratio": 900.0}, {}),
    ("clipped_inputs", {"input_extreme": 1000.0}, {}),
    ("balanced_classes", {"class_counts": {"0": 140, "1": 5, "2": 5}}, {}),
    ("fresh_weights", {"unusual_weights": ["0"]}, {}),
    ("activations_inserted", {"activations": [], "modules": {"Linear": 2}}, {}),
    ("group_norm", {"batch_norm": True, "normalized": True}, {}),
    ("all_trained", {"frozen": 2}, {}),
    ("shallower", {"layers": [16] * 19 + [3], "modules": {"Linear": 20, "ReLU": 19}}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "about", "config"), UNUSUAL)
def test_chosen_arms_undo_unusual_settings(name: str, about: dict[str, Any], config: dict[str, Any]) -> None:
    """An unusual setting, model or row has an arm that undoes it, which a usual run does not have."""
    assert name in ids(about, **config)
    assert name not in ids()


def test_chosen_arms_begin_with_first_split_and_suspects() -> None:
    """The first split comes first, then the arms of the suspects in their order, then what every run can have."""
    names = ids(suspects=("dead_relu", "learning_rate_too_high"))
    assert names[0] == FIRST_SPLIT
    assert names[1:3] == ["leaky_relu", "rate_divided_by_10"]
    assert "leaky_relu" not in ids() and "rate_times_10" in ids()


def test_chosen_arms_leave_out_a_telling_feature() -> None:
    """A feature that alone tells the target is left out once, and nothing is left out where there is none."""
    names = [arm.id for arm in chosen_arms(subject(telling_feature=3), ())]
    assert "without_feature" in names and "without_feature" not in ids()


def test_chosen_arms_do_not_standardize_token_ids() -> None:
    """Ids that an encoder takes as floats are not numbers to scale."""
    model = {"_target_": "pipeline.models.encoder.Encoder", "vocabulary": 60}
    assert "standardized_inputs" not in ids({"input_scale": 32.0}, model=model)


def test_chosen_arms_follow_the_size_of_updates() -> None:
    """Updates that are far too small for the weights leave out lower rates, and far too large ones higher rates."""
    small = [arm.id for arm in chosen_arms(subject(update_ratio=1e-6), ())]
    large = [arm.id for arm in chosen_arms(subject(update_ratio=0.5), ())]
    assert {"rate_times_10", "rate_times_100"} <= set(small) and "rate_divided_by_10" not in small
    assert {"rate_divided_by_10", "rate_divided_by_100"} <= set(large) and "rate_times_10" not in large


@pytest.mark.parametrize(
    ("about", "loader", "names"),
    [
        ({}, {}, ["fixed_order"]),
        ({"dropout": True, "augmented": True}, {}, ["fixed_order", "fixed_rows", "fixed_units"]),
        ({"dropout": True}, {"shuffle": False}, ["fixed_units"]),
        ({}, {"shuffle": False, "augment": [{"_target_": "Noise"}]}, ["fixed_rows"]),
        ({}, {"shuffle": False}, []),
    ],
)
def test_without_randomness_leaves_off_one_source_after_the_other(
    about: dict[str, Any], loader: dict[str, Any], names: list[str]
) -> None:
    """Each arm leaves off what the one before it left off; a source that the run does not have has no arm."""
    arms = list(without_randomness(subject(about, {"loader": {**CONFIG["loader"], **loader}})))
    assert [arm.id for arm in arms] == names
    for fewer, more in pairwise(arms):
        assert fewer.delta.overrides.items() <= more.delta.overrides.items()
        assert set(map(str, fewer.delta.surgery)) <= set(map(str, more.delta.surgery))


def test_combined_replaces_keys_of_a_replaced_section() -> None:
    """A second change that replaces a section takes back what the first one had set inside it."""
    change = combined(Delta({"optimizer.lr": 0.1, "seed": 2}), Delta({"optimizer": {"lr": 0.5}}))
    assert change.overrides == {"seed": 2, "optimizer": {"lr": 0.5}}


def test_steps_of_follow_the_batch_size() -> None:
    """An arm with smaller batches has more steps per epoch, and costs by its rows and steps."""
    run = subject(config={"loader": {**CONFIG["loader"], "batch_size": 640}}, max_steps=10)
    arm = next(arm for arm in chosen_arms(run, ()) if arm.id == "smaller_batch")
    assert run.steps_of(arm, 1.0) == 200 and run.steps_of(arm, SHORT) == 50
    assert run.cost(arm, 200) == pytest.approx(1.0)
    assert run.steps_of(more_epochs(run), 1.0) == 20
    assert replace(run, slice=0.5).steps_of(more_epochs(run), 1.0) == 10


@pytest.mark.parametrize(("epochs", "times"), [(1, 4), (2, 3), (3, 2), (50, 2)])
def test_more_epochs_of_a_short_training_are_more_than_twice(epochs: int, times: int) -> None:
    """Twice one epoch is still too few to say that more would not help."""
    arm = more_epochs(subject(config={"trainer": {**CONFIG["trainer"], "max_epochs": epochs}}))
    assert (arm.length, arm.delta.overrides["trainer.max_epochs"]) == (times, times * epochs)


# --- verdicts --------------------------------------------------------------------------------------------------------

VERDICTS: list[tuple[tuple[float, ...], str]] = [
    ((0.8, 0.85, 0.75), "confirmed"),
    ((0.8, 0.85), "inconclusive"),  # two seeds are not three
    ((0.8, 0.85, 0.6), "inconclusive"),  # a quarter of the shortfall on one of them
    ((0.5,), "refuted"),
    ((0.2,), "refuted"),  # worse than the control
    ((math.nan,), "refuted"),  # a divergence is an outcome
    ((0.6,), "inconclusive"),
]


@pytest.mark.parametrize(("values", "verdict"), VERDICTS)
def test_judge_confirms_half_on_three_seeds(values: tuple[float, ...], verdict: str) -> None:
    """At least half of the shortfall on 3 of 3 seeds confirms, less than a tenth refutes, the rest is inconclusive."""
    result = judge(ARM, [outcome(value) for value in values], MISSED, whole=True)
    assert result.verdict == verdict, result.why
    assert result.causes == ARM.causes and result.seeds == len(values)


def test_judge_does_not_refute_what_cannot_be_trained() -> None:
    """A change that does not fit the model says nothing of its cause."""
    broken = Outcome("arm", JOB, {"error": "surgery.swap_activation.from: the model has no such module"})
    result = judge(ARM, [broken], MISSED, whole=False)
    assert (result.verdict, result.restored) == ("inconclusive", None) and "no such module" in result.why


def test_judge_names_no_cause_for_a_replaced_group() -> None:
    """A reference for a whole group restores everything, and confirms none of the causes in it."""
    arm = Arm("reference_model", ("model_too_small",), "another model", Delta({"model": {}}), kind="context")
    result = judge(arm, [outcome(0.9)] * 3, MISSED, whole=True)
    assert (result.verdict, result.causes) == ("inconclusive", ()) and result.restored == pytest.approx(1.0)


def test_judge_needs_more_than_every_control() -> None:
    """A gain within the spread of the controls is not a confirmation, however large its share."""
    spread = Shortfall((0.85, 0.95, 0.87), goal=0.9, trivial=0.1, greater_is_better=True)
    assert judge(ARM, [outcome(0.9)] * 3, spread, whole=True).verdict == "inconclusive"


@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.booleans())
def test_restored_is_a_share(control: float, goal: float, greater: bool) -> None:
    """The goal restores everything and the control nothing, in either direction; a divergence restores nothing."""
    missed = Shortfall((control,), goal, -1e9 if greater else 1e9, greater)
    if abs(goal - control) > 1e-6:
        assert missed.exists == ((goal > control) == greater)
        assert missed.restored(goal) == pytest.approx(1.0) and missed.restored(control) == pytest.approx(0.0)
        assert missed.restored(math.nan) == 0.0


def test_shortfall_counts_from_the_trivial_baseline() -> None:
    """A control that diverged, or is worse than the trivial baseline, is worth that baseline."""
    assert Shortfall((math.nan, 0.5), 0.9, 0.1, True).control == 0.1
    assert Shortfall((1e6,), 1.0, 4.0, False).control == 4.0


def test_judge_figures_compares_figures_of_one_training() -> None:
    """An honest figure that closes the gap on three seeds confirms the cause, one that changes nothing refutes it."""
    usual = Comparison("usual_metric", "metric_wrong", "accuracy", lambda outcome: outcome.result["honest"])
    for honest, seeds, verdict in ((0.9, 3, "confirmed"), (0.9, 2, "inconclusive"), (0.1, 3, "refuted")):
        result = judge_figures(usual, [outcome(0.1, honest=honest)] * seeds, lambda outcome: 0.95)
        assert result.verdict == verdict and result.causes == ("metric_wrong",)


def test_arm_result_survives_json() -> None:
    """A result is read back as it was, a divergence included."""
    result = ArmResult("a", ("dead_relu",), "c", "e", math.inf, 0.5, None, "refuted", 3, 10, "why")
    assert ArmResult.from_json(result.to_json()) == result


def test_allowance_is_eight_slices_that_take_five_minutes() -> None:
    """The slice of a short training is the whole, that of a long one so short that eight take five minutes."""
    assert Allowance.of_run(100, slice_steps(100, 0.001)) == Allowance(slice=1.0, trainings=8)
    assert slice_steps(60_000, 0.01) == 3750
    assert Allowance.of_run(60_000, 3750) == Allowance(slice=1 / 16, trainings=8)
    allowance = Allowance(trainings=1.0)
    allowance.spend(0.75)
    assert allowance.affords(0.25) and not allowance.affords(0.5) and allowance.left == 0.25


def test_stated_slice_counts_whatever_the_time_of_a_step() -> None:
    """A slice that the ledger has is kept; without one, as in runs of earlier versions, the time of a step decides."""
    history = History()
    history.log_epoch(1, {"time/step": 0.01})
    training = Training("", {}, Delta(), history, max_steps=60_000)
    assert training.slice_steps == 3750
    assert replace(training, stated_slice=5000).slice_steps == 5000


# --- changes of the model --------------------------------------------------------------------------------------------


class Functional(nn.Module):
    """A model that drops, detaches and normalizes by functions, which no module shows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.dropout(self.norm(self.a(x)), 0.5, training=True)
        return self.b(hidden.detach()).softmax(0)


def test_surgery_reaches_functional_calls() -> None:
    """Dropout, detach and softmax inside `forward` are left out, and parameters keep their names."""
    rows, model = torch.randn(6, 4), Functional().eval()
    assert not torch.equal(model(rows), model(rows))
    changed = apply_surgery(model, [{"skip_dropout": {}}, {"keep_gradients": {}}, {"raw_output": {}}])
    assert torch.equal(changed(rows), changed(rows))
    assert torch.equal(changed(rows), changed.b(changed.norm(changed.a(rows))))
    changed(rows).sum().backward()
    assert (
        changed.a.weight.grad is not None
        and dict(changed.named_parameters()).keys() == dict(model.named_parameters()).keys()
    )


def test_mask_features_hides_them_in_both_modes() -> None:
    """A masked feature changes no output, in training and in evaluation."""
    rows = torch.randn(6, 4)
    others = rows.clone()
    others[:, 2] += 5
    changed = apply_surgery(nn.Sequential(nn.Linear(4, 3)), [{"mask_features": {"features": [2]}}])
    assert torch.equal(changed(rows), changed(others))
    assert torch.equal(changed.eval()(rows), changed(others))


def test_skip_dropout_in_evaluation_alone() -> None:
    """With `eval_only` training still drops."""
    rows = torch.randn(6, 4)
    changed = apply_surgery(Functional(), [{"skip_dropout": {"eval_only": True}}])
    assert not torch.equal(changed.train()(rows), changed(rows))
    assert torch.equal(changed.eval()(rows), changed(rows))


def test_surgery_of_layers() -> None:
    """Activations are inserted where none follows, batch norm is replaced, and square layers are left out."""
    linear = nn.Sequential(
        nn.Linear(4, 8), nn.Dropout(0.1), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3)
    )
    inserted = apply_surgery(linear, [{"insert_activations": {}}])
    assert sum(isinstance(m, nn.ReLU) for m in inserted.modules()) == 3
    shallow = apply_surgery(linear, [{"shrink_depth": {}}])
    assert sum(isinstance(m, nn.Linear) for m in shallow.modules()) == 3 and shallow(torch.randn(2, 4)).shape == (2, 3)
    for kind, expected in (("group", nn.GroupNorm), ("default", nn.BatchNorm1d)):
        assert isinstance(apply_surgery(Functional(), [{"replace_normalization": {"kind": kind}}]).norm, expected)


@pytest.mark.parametrize("step", [{"insert_activations": {}}, {"shrink_depth": {}}, {"replace_normalization": {}}])
def test_surgery_refuses_what_changes_nothing(step: dict[str, Any]) -> None:
    """A model without the place of a change is refused, so that no arm is the control once more."""
    with pytest.raises(UserError, match=next(iter(step))):
        apply_surgery(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), [step])


# --- the gate --------------------------------------------------------------------------------------------------------

EXPERIMENT = {"id": "no_dropout", "causes": ["regularization_too_strong"], "verdict": "confirmed", "seeds": 3,
              "restored": 0.9}  # fmt: skip
CAUSE = {"issue": "regularization_too_strong", "status": "confirmed", "confidence": 0.9, "basis": "observation"}
GOOD: dict[str, Any] = {
    "history": "baseline/history.npz",
    "experiments": [EXPERIMENT],
    "hypotheses": ["no_dropout"],
    "reproduction": {"reproduced": True, "seeds": 2, "slice_steps": 40, "why": "misses 0.9"},
    "trainings_spent": {"spent": 5.0, "allowed": 8.0},
    "metrics_per_split": {"train": ["train/loss"], "val": ["val/loss"]},
    "diagnosis": {"root_causes": [CAUSE], "not_checked": [{"what": "controlled experiments", "why": "no seed"}]},
}
GONE = {"reproduction": {**GOOD["reproduction"], "reproduced": False}}
ITEMS: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("reproduced_on_slice", {"min_seeds": 2}, GONE, "failed"),
    ("reproduced_on_slice", {"min_seeds": 3}, {}, "failed"),
    ("reproduced_on_slice", {"min_seeds": 2}, {"reproduction": None}, "not_applicable"),
    ("hypotheses_documented", {}, {"hypotheses": []}, "failed"),
    ("hypotheses_documented", {}, {"experiments": []}, "not_applicable"),
    ("experiments_controlled", {"min_seeds": 4}, {}, "failed"),
    ("experiments_controlled", {"min_seeds": 3}, {"trainings_spent": {"spent": 9.0, "allowed": 8.0}}, "failed"),
    ("experiments_controlled", {"min_seeds": 3}, {"experiments": []}, "not_applicable"),
    ("metrics_per_split", {"splits": ["train", "val"]}, {"metrics_per_split": {"train": ["train/loss"]}}, "failed"),
    ("metrics_per_split", {"splits": ["train", "val"]}, {"history": None}, "not_applicable"),
    ("confidence_ceiling_stated", {}, {"experiments": []}, "failed"),
    ("confidence_ceiling_stated", {}, {"diagnosis": {"root_causes": [{**CAUSE, "confidence": 0.99}]}}, "failed"),
    ("confidence_ceiling_stated", {}, {"diagnosis": {"root_causes": [{**CAUSE, "basis": "rumour"}]}}, "failed"),
    ("confidence_ceiling_stated", {}, {"diagnosis": {"root_causes": []}}, "not_applicable"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "bounds", "wrong", "expected"), ITEMS)
def test_check_of_experiments(check: str, bounds: dict[str, Any], wrong: dict[str, Any], expected: str) -> None:
    """Each item of the gate passes on a sound record, and does not with one value changed."""
    sound = {**bounds, "min_seeds": min(2, bounds["min_seeds"])} if "min_seeds" in bounds else bounds
    assert judge_item(f"diagnosis.{check}", GOOD, **sound).outcome == "passed"
    item = judge_item(f"diagnosis.{check}", {**GOOD, **wrong}, **bounds)
    assert item.outcome == expected, item.why
