"""Cures: every cure of causes.yaml has a remedy on every config, and an override changes the key that it names."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.compose import compose
from pipeline.models.surgery import OPERATIONS
from pipeline.repair import causes, config_edits
from pipeline.repair.cure_table import CURES
from pipeline.repair.cures import resolve
from pipeline.run_store.job import Delta, Job

PAIRS = [(cure, cause.id) for cause in causes.load().values() for cure in cause.cures]
BUNDLED = (
    ("experiment=digits",),
    ("experiment=digits_hot",),
    ("experiment=breast_cancer",),
    ("experiment=wine",),
    ("experiment=diabetes",),
    ("experiment=csv",),
    ("experiment=digits", "optimizer=sgd", "scheduler=cosine", "loss=mse", "trainer.gradient_clip_val=0.5"),
    ("experiment=digits", "optimizer=adam", "scheduler=plateau", "model=mlp", "model.hidden=[64,32]"),
    ("experiment=digits", "trainer.precision=16-mixed", "trainer.patience=4", "surgery=[{set_dropout: {p: 0.2}}]"),
)


@cache
def bundled(overrides: tuple[str, ...]) -> dict[str, Any]:
    """A resolved config, as a plan freezes it."""
    return compose(list(overrides))


def test_cures_are_those_of_causes_yaml() -> None:
    """The table has every cure that causes.yaml lists, and no other."""
    assert sorted(causes.cures()) == sorted(CURES)


def test_load_returns_one_immutable_vocabulary() -> None:
    """The vocabulary is read once and cannot be changed."""
    vocabulary = causes.load()

    assert vocabulary is causes.load()
    assert ("optimization", ("lower_lr", "clip_gradients", "warmup")) == (
        vocabulary["learning_rate_too_high"].group,
        vocabulary["learning_rate_too_high"].cures,
    )
    with pytest.raises(TypeError):
        vocabulary["mine"] = vocabulary["learning_rate_too_high"]  # type: ignore[index]


@pytest.mark.parametrize("overrides", BUNDLED, ids=lambda o: ",".join(o))
def test_resolve_on_bundled_configs(overrides: tuple[str, ...]) -> None:
    """Each cure has at least one remedy; an override names an existing key and changes its value."""
    config = bundled(overrides)
    before = copy.deepcopy(config)
    for cure, cause in PAIRS:
        remedies = resolve(cure, cause, config)
        assert remedies
        for remedy in remedies:
            assert 1 == bool(remedy.overrides) + bool(remedy.surgery) + bool(remedy.code)
            assert remedy.description
            for key, value in remedy.overrides.items():
                assert "+" not in key and config_edits.get(config, key) != value
                changed = Job("x", "trial", Delta({key: value})).config(config)
                assert value == config_edits.get(changed, key)
            assert all(next(iter(step)) in OPERATIONS for step in remedy.surgery)
    assert before == config


@pytest.mark.parametrize(
    "config", [None, {}, {"optimizer": None}, {"optimizer": {"lr": "auto"}, "model": {"hidden": []}}]
)
def test_resolve_on_any_config(config: dict[str, Any] | None) -> None:
    """If the config lacks the keys that it could change, a cure is a line of code."""
    for cure, cause in PAIRS:
        assert all(remedy.code for remedy in resolve(cure, cause, config))


def test_resolve_lower_lr_offers_three_rates() -> None:
    """The rate is divided by ten, a hundred and a thousand, so that trials can compare them."""
    remedies = resolve("lower_lr", "learning_rate_too_high", bundled(("experiment=digits_hot",)))

    assert [{"optimizer.lr": 0.1}, {"optimizer.lr": 0.01}, {"optimizer.lr": 0.001}] == [r.overrides for r in remedies]
    assert "Lower the learning rate: optimizer.lr 1 → 0.1" == remedies[0].description


@pytest.mark.parametrize(
    ("cure", "cause", "config", "expected"),
    [
        (
            "clip_gradients",
            "learning_rate_too_high",
            {"trainer": {"gradient_clip_val": None}},
            [{"trainer.gradient_clip_val": 1.0}],
        ),
        (
            "clip_gradients",
            "learning_rate_too_high",
            {"trainer": {"gradient_clip_val": 2.0}},
            [{"trainer.gradient_clip_val": 0.2}],
        ),
        (
            "dropout",
            "regularization_missing",
            {"model": {"dropout": 0.0}},
            [{"model.dropout": 0.2}, {"model.dropout": 0.5}],
        ),
        ("dropout", "regularization_missing", {"model": {"dropout": 0.4}}, []),
        (
            "enlarge_model",
            "model_too_small",
            {"model": {"hidden": [8, 4]}},
            [{"model.hidden": [16, 8]}, {"model.hidden": [32, 16]}],
        ),
        ("shrink_depth", "model_too_deep", {"model": {"hidden": [8, 4]}}, [{"model.hidden": [8]}]),
        ("smaller_batch", "batch_size_too_large", {"loader": {"batch_size": 2}}, [{"loader.batch_size": 1}]),
        ("swap_activation", "dead_relu", {"model": {"activation": "ReLU"}}, [{"model.activation": "LeakyReLU"}]),
        (
            "swap_activation",
            "hidden_activation_saturating",
            {"model": {"activation": "Tanh"}},
            [{"model.activation": "ReLU"}],
        ),
        (
            "mend_scheduler",
            "scheduler_decays_too_early",
            {"scheduler": {"T_max": 5}, "trainer": {"max_epochs": 20}},
            [{"scheduler.T_max": 20}, {"scheduler": None}],
        ),
        ("mend_scheduler", "scheduler_decays_too_early", {"scheduler": None}, []),
        (
            "standardize_inputs",
            "inputs_not_normalized",
            {"preprocess": {"standardize": False, "images": "none"}},
            [{"preprocess.standardize": True}],
        ),
        ("standardize_inputs", "inputs_not_normalized", {"preprocess": {"standardize": False, "images": "unit"}}, []),
        (
            "standardize_inputs",
            "inputs_not_normalized",
            {"preprocess": {"standardize": False, "images": "none"}, "data": {"_target_": "a.text_windows"}},
            [],
        ),
        (
            "drop_or_impute_rows",
            "nonfinite_inputs",
            {"preprocess": {"impute": "none"}},
            [{"preprocess.impute": "median"}],
        ),
        ("drop_or_impute_rows", "nonfinite_inputs", {"preprocess": {"impute": "mean"}}, []),
        (
            "standardize_targets",
            "targets_not_scaled",
            {"preprocess": {"targets": "none"}, "task": {"kind": "regression", "step": None}},
            [{"preprocess.targets": "standardize"}],
        ),
        (
            "standardize_targets",
            "targets_not_scaled",
            {"preprocess": {"targets": "none"}, "task": {"kind": "binary"}},
            [],
        ),
        (
            "robust_loss",
            "outliers",
            {"loss": {"_target_": "torch.nn.MSELoss"}},
            [{"loss": {"_target_": "torch.nn.HuberLoss", "delta": 1.0}}],
        ),
        (
            "match_loss",
            "loss_mismatch",
            {"loss": {"_target_": "torch.nn.MSELoss"}, "task": {"kind": "classification"}},
            [{"loss": {"_target_": "torch.nn.CrossEntropyLoss"}}],
        ),
        (
            "bf16_or_loss_scaling",
            "precision_overflow",
            {"trainer": {"precision": "16-mixed"}},
            [{"trainer.precision": "bf16-mixed"}],
        ),
        (
            "less_regularization",
            "regularization_too_strong",
            {"model": {"dropout": 0.5}},
            [{"model.dropout": 0.25}, {"model.dropout": 0.0}],
        ),
    ],
)
def test_resolve_returns_overrides(
    cure: str, cause: str, config: dict[str, Any], expected: list[dict[str, Any]]
) -> None:
    """The smallest change comes first; an empty list means that only code remains."""
    assert expected == [r.overrides for r in resolve(cure, cause, config) if not r.code]


def test_resolve_uses_surgery_if_the_config_has_no_key() -> None:
    """A user's own model is changed by surgery, once."""
    config = {"model": {"_target_": "mine.Net"}, "surgery": []}
    (remedy,) = resolve("insert_normalization", "dead_relu", config)

    assert ({"insert_normalization": {"kind": "layer"}},) == remedy.surgery
    again = resolve("insert_normalization", "dead_relu", {**config, "surgery": list(remedy.surgery)})
    assert again[0].code
    ours = {"model": {"normalization": "layer"}, "surgery": []}
    assert resolve("insert_normalization", "dead_relu", ours)[0].code


@pytest.mark.parametrize(
    ("cure", "cause"), [("lower_lrr", "learning_rate_too_high"), ("lower_lr", "dead_relu"), ("x", "y")]
)
def test_resolve_refuses_unknown_names(cure: str, cause: str) -> None:
    """A cure that does not belong to the cause is a ValueError that suggests the closest one."""
    with pytest.raises(ValueError, match=f"{cure} is not a cure of {cause}"):
        resolve(cure, cause, {})


@given(st.integers(1, 10**6), st.sampled_from([0.5, 2.0, 4.0]))
def test_scale_keeps_integers(n: int, factor: float) -> None:
    """A scaled batch size or epoch count is an integer of at least 1."""
    for change in config_edits.scale("n", factor)({"n": n}):
        assert isinstance(change["n"], int) and change["n"] >= 1 and change["n"] != n
