"""Preprocessing: fitted on train rows, saved with the model; parameter names and target units are the user's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from diagnostics.monitor import Monitor
from pipeline.building import builder
from pipeline.building.probe import probe
from pipeline.checkpoints import generation
from pipeline.checkpoints.weights import tensors_of
from pipeline.data.dataset import Data
from pipeline.data.load import load, seal
from pipeline.data.train_rows import apply_row_changes
from pipeline.engine.fit import prepared as under
from pipeline.engine.replay import replay
from pipeline.errors import UserError
from pipeline.evaluation import evaluate
from pipeline.evaluation.task import build_task, expected_loss, loss_name
from pipeline.export.formats import FORMATS, export_formats
from pipeline.preprocess.modules import InverseTargetScale, OneHot, PreprocessedModel, ScaledLoss, unwrap
from pipeline.run_store import files, permits
from pipeline.run_store.job import Delta, Job
from tests.conftest import examples, go
from tests.ledger_fixtures import baseline_done
from tests.trainings import REGRESSION, config, permitted, train

__all__ = ["permitted"]

ROOT = Path(__file__).resolve().parents[1]
QUICK = settings(max_examples=examples(15))
TABLE: dict[str, Any] = {"impute": "median", "standardize": True, "one_hot": True}


def rows(n: int = 60, kind: str = "classification", seed: int = 0, **others: Any) -> Data:
    """Two value columns with missing values, one of them large, and a column of four codes; train lacks code 3."""
    draw = np.random.default_rng(seed)

    def part(size: int, codes: int) -> tuple[np.ndarray, np.ndarray]:
        X = np.column_stack([draw.normal(5000, 30, size), draw.integers(0, codes, size), draw.normal(0, 0.01, size)])
        y = 300 + 40 * draw.normal(size=size) if kind == "regression" else np.arange(size) % 3
        X[1::7, 0] = X[2::9, 2] = np.nan
        return X, y

    return seal({"train": part(n, 3), "val": part(30, 4), "test": part(30, 4), "categories": {1: 4}, **others}, kind)


def preprocessed(data: Data, body: dict[str, Any] | None = None, **section: Any) -> PreprocessedModel:
    model = builder.build_model({**(body or config(model__in_features=6)), "preprocess": section}, (), 3, data)
    assert isinstance(model, PreprocessedModel)
    return model


def error_message(data: Data, section: dict[str, Any], **body: Any) -> str:
    with pytest.raises(UserError) as caught:
        builder.build_model({**config(**body), "preprocess": section}, (), 3, data)
    return str(caught.value)


# --- fitted statistics ---------------------------------------------------------------------------------------------


@QUICK
@given(st.integers(0, 10**6), st.sampled_from(["mean", "median"]))
def test_wrap_model_fits_on_train_rows_alone(seed: int, kind: str) -> None:
    """Other splits do not affect what is fitted; train values get mean 0 and deviation 1."""
    data, other = rows(seed=seed), rows(seed=seed)
    other.val.X[:] = -9e9
    states = [preprocessed(d, impute=kind, standardize=True, one_hot=True).prepare for d in (data, other)]
    assert states[0] is not None and states[1] is not None
    first, second = (state.state_dict() for state in states)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    raw = data.train.X[:, [0, 2]].double().numpy()
    mean, std = np.nanmean(raw, 0), np.nanstd(raw, 0)
    whole = ~np.isnan(raw).any(1)
    scaled = states[0](data.train.X)[:, :2].numpy()
    np.testing.assert_allclose(scaled[whole], (raw[whole] - mean) / std, atol=1e-4)
    center = np.nanmean(raw, 0) if kind == "mean" else np.nanmedian(raw, 0)
    np.testing.assert_allclose(scaled[1, 0], (center[0] - mean[0]) / std[0], atol=1e-4)
    assert np.isfinite(scaled).all()


def test_wrap_model_centers_a_constant_column() -> None:
    """A constant column becomes 0, not amplified rounding noise."""
    X = np.column_stack([np.full(30, 0.1), np.arange(30)])
    pair = (X, np.arange(30) % 3)
    model = preprocessed(seal({"train": pair, "val": pair, "test": pair}, "classification"), config(), standardize=True)
    assert model.prepare is not None and bool((model.prepare(torch.tensor([[0.1, 3.0]]))[:, 0] == 0).all())


def test_wrap_model_never_scales_by_infinity() -> None:
    """A column whose deviation has no finite inverse in float32 stays finite."""
    X = np.random.default_rng(0).normal(size=(20, 1)) * 1e-42
    data = seal(dict.fromkeys(("train", "val", "test"), (X, np.arange(20) % 2)), "classification")
    model = preprocessed(data, config(model__in_features=1), standardize=True)
    assert torch.isfinite(model(data.train.X)).all()


@QUICK
@given(st.lists(st.floats(width=32) | st.integers(-2, 9).map(float), min_size=2, max_size=30))
def test_one_hot_sets_one_indicator_per_column(cells: list[float]) -> None:
    """One indicator of each column is 1: that of a code in the train rows, or the unknown one."""
    module = OneHot(3, {0: 5, 2: 2}, {0: {1.0, 2.0, 4.0}, 2: {0.0, 1.0}})
    inputs = torch.tensor([[cell, 7.5, cell] for cell in cells])
    out = module(inputs)
    assert (len(cells), 1 + 5 + 2) == tuple(out.shape) and (out[:, 0] == 7.5).all()
    assert (out[:, 1:6].sum(1) == 1).all() and (out[:, 6:].sum(1) == 1).all()
    for cell, row in zip(cells, out.tolist(), strict=True):
        assert 1 + (int(cell) if cell in (1.0, 2.0, 4.0) else 0) == 1 + row[1:6].index(1.0)
        assert (1 if cell == 1.0 else 0) == row[6:].index(1.0)


def test_one_hot_maps_new_codes_to_unknown() -> None:
    """The width is the number of codes that the data declare; codes not in the train rows are unknown."""
    model = preprocessed(rows(), **TABLE)
    assert model.prepare is not None
    out = model.prepare(torch.tensor([[5000.0, code, math.nan] for code in (1.0, 3.0, 4.0, math.nan)]))
    assert [[0, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]] == out[:, 2:].tolist()


def test_wrap_model_scales_images_by_channel_or_by_the_largest_value() -> None:
    """Each channel gets mean 0 and deviation 1, or all values are scaled to 0..1."""
    X = np.random.default_rng(0).integers(0, 17, (40, 3, 4, 4)) * np.array([1.0, 5.0, 9.0])[:, None, None]
    X[0, 2, 0, 0] = 144
    pair = (X, np.arange(40) % 3)
    data = seal({"train": pair, "val": pair, "test": pair}, "classification")
    body = config(model={"_target_": "torch.nn.Flatten"})
    by_channel, by_largest = (preprocessed(data, body, images=kind).prepare for kind in ("channels", "unit"))
    assert by_channel is not None and by_largest is not None
    channels = by_channel(data.train.X).transpose(0, 1).flatten(1)
    torch.testing.assert_close(channels.mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(channels.std(1, correction=0), torch.ones(3))
    assert 0 == by_largest(data.train.X).min() and 1 == by_largest(data.train.X).max()


def test_wrap_model_returns_the_model_if_everything_is_off() -> None:
    """A model without preprocessing is the user's own."""
    body = config(model__in_features=3)
    off = {"impute": "none", "standardize": False, "one_hot": False, "images": "none", "targets": "none"}
    for section in ({}, {"preprocess": off}):
        assert "MLP" == type(builder.build_model({**body, **section}, (), 3, rows())).__name__


def test_fit_fits_preprocessing_on_the_rows_of_the_job(digits_permit: permits.TrainPermit) -> None:
    """A fold is fitted on its own train rows; zeroed inputs use the statistics of the original rows."""
    planned = load(digits_permit.plan.config)

    def mean(**train_rows: Any) -> torch.Tensor:
        delta = Delta({"preprocess.standardize": True, "model.in_features": 64}, train_rows=train_rows)
        with under(digits_permit, Job(digits_permit.plan.digest, "trial", delta), planned) as setup:
            assert isinstance(setup.model, PreprocessedModel) and setup.model.prepare is not None
            mean: torch.Tensor = setup.model.prepare.mean
            return mean

    fold = apply_row_changes(planned.train, {"without_fold": [0, 5]}, 1)
    torch.testing.assert_close(mean(without_fold=[0, 5]), fold.X.mean(0), atol=1e-5, rtol=1e-4)
    assert torch.equal(mean(), mean(inputs="zeroed")) and not torch.equal(mean(), mean(without_fold=[0, 5]))


# --- targets ---------------------------------------------------------------------------------------------------------


@QUICK
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20), st.floats(-1e3, 1e3), st.floats(1e-2, 1e3))
def test_inverse_target_scale_inverts_standardize(values: list[float], mean: float, std: float) -> None:
    """Standardizing and restoring gives the same values, up to rounding."""
    restore, original = InverseTargetScale(torch.tensor(mean), torch.tensor(std)), torch.tensor(values)
    torch.testing.assert_close(restore(restore.standardize(original)), original, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.L1Loss()])
def test_loss_of_the_mean_is_on_the_scale_of_the_loss(loss: nn.Module) -> None:
    """The loss of a constant prediction is computed on standardized targets."""
    data = rows(200, "regression")
    body = config(**REGRESSION, model__in_features=3)
    model = preprocessed(data, body, targets="standardize", standardize=True)
    task = build_task(body, loss, model)
    y, theory = data.train.y, expected_loss(task, data.train.y, None)
    assert isinstance(task.loss, ScaledLoss) and type(loss).__name__ == loss_name(task.loss)
    best = y.mean() if isinstance(loss, nn.MSELoss) else y.median()
    assert float(task.loss(best.expand(len(y)), y)) == pytest.approx(theory, rel=1e-5)
    assert theory == pytest.approx(1.0) if isinstance(loss, nn.MSELoss) else 0.5 < (theory or 0) < 1


def test_wrap_model_scales_each_target() -> None:
    """Each target has its own mean and deviation; a wrong number of outputs is one message."""
    draw = np.random.default_rng(0)
    pair = (draw.normal(size=(50, 4)), draw.normal(size=(50, 2)) * [1, 1000] + [5, 0])
    data = seal({"train": pair, "val": pair, "test": pair}, "regression")
    body = config(**{**REGRESSION, "model__out_features": 2})
    restore = preprocessed(data, body, targets="standardize").restore
    assert restore is not None
    torch.testing.assert_close(restore.standardize(data.train.y).std(0, correction=0), torch.ones(2))
    three = {**config(**{**REGRESSION, "model__out_features": 3}), "preprocess": {"targets": "standardize"}}
    with pytest.raises(UserError, match=r"model: outputs do not fit the targets.*resize_output: \{out_features: 2\}"):
        probe({**three, "preprocess": {"targets": "standardize"}}, data)


def test_training_reports_in_target_units(tmp_path: Path) -> None:
    """Loss and gradients are of unit scale; outputs, metrics and weights are in target units, also after reloading."""
    data = rows(200, "regression")
    body = config(**REGRESSION, model__in_features=6, preprocess={**TABLE, "targets": "standardize"})
    (tmp_path / "weights").mkdir()
    fit = train(body, data, Monitor(), folder=tmp_path / "weights")
    facts, (_, losses) = fit.history.facts, fit.history.series("val/loss")
    assert 0.5 < facts["loss_at_init"] < 3 and facts["loss_expected"] == pytest.approx(1.0)
    assert facts["input_rms"] < 3 and facts["target_rms"] < 3 and "grad_norm/head" in fit.history.names()
    judge = evaluate.score_split(fit.model, data.val, fit.task)
    assert judge.outputs is not None and 200 < float(judge.outputs.mean()) < 400
    assert judge.loss == pytest.approx(losses.min(), rel=1e-5) and fit.score is not None
    assert judge.score.value == pytest.approx(fit.score.value)

    assert fit.checkpoint is not None
    stored, _ = generation.load(fit.checkpoint)
    other = rows(200, "regression", seed=9)  # other statistics, which the stored ones replace
    again = builder.build_model(body, (), 0, other)
    assert not torch.equal(again.state_dict()["restore.mean"], stored["restore.mean"])
    again.load_state_dict(stored)
    assert torch.equal(evaluate.forward(again, data.val.X), evaluate.forward(fit.model, data.val.X))


# --- the user's own names --------------------------------------------------------------------------------------------


def test_patterns_and_weights_use_the_users_names(tmp_path: Path) -> None:
    """Groups, surgery and `init_from` refer to the user's model, also for weights saved with preprocessing."""
    data, body = rows(), config(model__in_features=6)
    body = {**body, "surgery": [{"freeze": {"match": "body.*"}}], "preprocess": TABLE}
    model = builder.build_model(body, (), 3, data)
    grouped = {**body, "optimizer": {**body["optimizer"], "groups": [{"match": "head.bias", "lr": 0.5}]}}
    assert [0.5, 0.02] == [g["lr"] for g in builder.build_optimizer(grouped, model).param_groups]
    for name, weights in (("bare", unwrap(model)), ("whole", model)):
        path = tmp_path / f"{name}.safetensors"
        files.write_bytes(path, save(tensors_of(weights.state_dict())))
        start = {**body, "model": {**body["model"], "init_from": str(path)}}
        loaded = unwrap(builder.build_model(start, (), 8, data)).state_dict()
        assert all(torch.equal(loaded[n], value) for n, value in unwrap(model).state_dict().items())


@pytest.mark.parametrize("format", FORMATS)
def test_export_includes_preprocessing(tmp_path: Path, permit: permits.ExportPermit, format: str) -> None:
    """Every format takes raw rows with missing values and unknown codes, and agrees with the model."""
    data = rows(kind="regression")
    body = config(**REGRESSION, model__in_features=6)
    model = preprocessed(data, body, **TABLE, targets="standardize").eval()
    unusual = torch.tensor([[math.nan, math.nan, math.nan], [1e9, -3.0, 0.0], [0.0, 99.0, 1.0], [5000.0, 3.0, 0.0]])
    proven = export_formats(permit, model, torch.cat([data.val.X, unusual]), tmp_path, formats=[format])[format]
    assert proven.parity is not None, proven.failure
    assert proven.parity["first"] == "" and proven.parity["nan_rows"] == 0, proven.parity


@pytest.fixture(scope="module")
def permit(tmp_path_factory: pytest.TempPathFactory) -> permits.ExportPermit:
    return permits.export(baseline_done(tmp_path_factory.mktemp("runs")))


def test_replay_accepts_missing_values_that_are_imputed(tmp_path: Path) -> None:
    """The replay of a good step with imputed values names no origin of a non-finite value."""
    arguments = [f"data.path={ROOT / 'examples' / 'table' / 'vehicles.csv'}", "trainer.max_epochs=1", "tracking=none"]
    run, gate, _ = go(tmp_path, "phase=planning", "experiment=csv", *arguments)
    assert "open" == gate
    replayed = replay(run, 2)
    assert replayed.origin is None and math.isfinite(replayed.loss)


# --- what cannot be --------------------------------------------------------------------------------------------------

IMAGES = (np.ones((9, 1, 4, 4)) * np.arange(9)[:, None, None, None], np.arange(9) % 3)
CODES = (np.arange(18).reshape(9, 2) % 3, np.arange(9) % 3)
NESTED = ({"a": np.ones((9, 2))}, np.arange(9) % 3)


@pytest.mark.parametrize(
    ("pair", "section", "message"),
    [
        (None, {"images": "channels"}, "preprocess.images: inputs are not images, got 'shape [N, 3]'"),
        (None, {"images": "unit"}, "for rows preprocess.standardize"),
        (None, {"targets": "standardize"}, "preprocess.targets: targets have no scale, got 'task.kind=classification'"),
        (IMAGES, {"one_hot": True}, "preprocess.one_hot: data name no column of categories"),
        (
            IMAGES,
            {"images": "unit", "standardize": True},
            "preprocess.images: scales the same inputs as preprocess.standardize",
        ),
        (
            CODES,
            {"standardize": True},
            "preprocess.standardize: inputs are codes, not values, got 'categories in every",
        ),
        (NESTED, {"impute": "mean"}, "preprocess.impute: inputs are nested, got 'dict'"),
    ],
)
def test_wrap_model_refuses_options_that_do_not_fit(pair: Any, section: dict[str, Any], message: str) -> None:
    """Preprocessing that does not fit the data or the task is one message with its key."""
    categories = {0: 3, 1: 3} if pair is CODES else None
    sides = {"train": pair, "val": pair, "test": pair, "categories": categories}
    data = rows() if pair is None else seal(sides, "classification")
    assert message in error_message(data, section)


def test_wrap_model_names_values_without_statistics() -> None:
    """An infinite value is named by row and column, a column without values by its name."""
    data = rows(feature_names=["km", "fuel", "wear"])
    data.train.X[4, 2] = math.inf
    assert "data.train: row 4, column 'wear': is infinite" in error_message(
        data, {"standardize": True}, model__in_features=3
    )
    data.train.X[:, 2] = math.nan
    message = "preprocess.impute: column 'wear': no train row has a value, so that there is no mean"
    assert message in error_message(data, {"impute": "mean"}, model__in_features=3)
    whole = rows(feature_names=["km", "fuel", "wear"])
    whole.train.X[4, 1] = math.inf  # a code that is none
    assert preprocessed(whole, **TABLE)
