"""Preprocessing: fitted on train rows, a part of the model, in the user's names and the targets' units."""

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
from pipeline.data.train_rows import changed
from pipeline.engine.fit import prepared as under
from pipeline.engine.replay import replay
from pipeline.errors import UserError
from pipeline.evaluation import evaluate
from pipeline.evaluation.task import build_task, expected_loss, loss_name
from pipeline.preprocess.modules import InverseTargetScale, OneHot, PreprocessedModel, ScaledLoss, unwrap
from pipeline.release.formats import FORMATS, export_formats
from pipeline.run_store import files, permits
from pipeline.run_store.job import Delta, Job
from tests.conftest import go
from tests.ledger_fixtures import baseline_done
from tests.trainings import REGRESSION, config, permitted, train

__all__ = ["permitted"]

ROOT = Path(__file__).resolve().parents[1]
QUICK = settings(max_examples=15, deadline=None)
TABLE: dict[str, Any] = {"impute": "median", "standardize": True, "one_hot": True}


def rows(n: int = 60, kind: str = "classification", seed: int = 0, **more: Any) -> Data:
    """Two values with holes, one of them large; a column of four codes in the middle, of which train lacks 3."""
    draw = np.random.default_rng(seed)

    def part(size: int, codes: int) -> tuple[np.ndarray, np.ndarray]:
        X = np.column_stack([draw.normal(5000, 30, size), draw.integers(0, codes, size), draw.normal(0, 0.01, size)])
        y = 300 + 40 * draw.normal(size=size) if kind == "regression" else np.arange(size) % 3
        X[1::7, 0] = X[2::9, 2] = np.nan
        return X, y

    return seal({"train": part(n, 3), "val": part(30, 4), "test": part(30, 4), "categories": {1: 4}, **more}, kind)


def prepared(data: Data, body: dict[str, Any] | None = None, **asked: Any) -> PreprocessedModel:
    model = builder.build_model({**(body or config(model__in_features=6)), "preprocess": asked}, (), 3, data)
    assert isinstance(model, PreprocessedModel)
    return model


def told(data: Data, asked: dict[str, Any], **body: Any) -> str:
    with pytest.raises(UserError) as caught:
        builder.build_model({**config(**body), "preprocess": asked}, (), 3, data)
    return str(caught.value)


# --- what is fitted --------------------------------------------------------------------------------------------------


@QUICK
@given(st.integers(0, 10**6), st.sampled_from(["mean", "median"]))
def test_fitted_on_train_alone(seed: int, kind: str) -> None:
    """Whatever stands in the other rows, the same is fitted, and values of train have mean 0 and deviation 1."""
    one, other = rows(seed=seed), rows(seed=seed)
    other.val.X[:] = -9e9
    states = [prepared(d, impute=kind, standardize=True, one_hot=True).prepare for d in (one, other)]
    assert states[0] is not None and states[1] is not None
    first, second = (state.state_dict() for state in states)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    raw = one.train.X[:, [0, 2]].double().numpy()
    mean, std = np.nanmean(raw, 0), np.nanstd(raw, 0)
    whole = ~np.isnan(raw).any(1)
    found = states[0](one.train.X)[:, :2].numpy()
    np.testing.assert_allclose(found[whole], (raw[whole] - mean) / std, atol=1e-4)
    center = np.nanmean(raw, 0) if kind == "mean" else np.nanmedian(raw, 0)
    np.testing.assert_allclose(found[1, 0], (center[0] - mean[0]) / std[0], atol=1e-4)
    assert np.isfinite(found).all()


def test_what_does_not_vary_is_centred() -> None:
    """A constant column becomes 0, not noise blown up by its rounding."""
    X = np.column_stack([np.full(30, 0.1), np.arange(30)])
    pair = (X, np.arange(30) % 3)
    model = prepared(seal({"train": pair, "val": pair, "test": pair}, "classification"), config(), standardize=True)
    assert model.prepare is not None and bool((model.prepare(torch.tensor([[0.1, 3.0]]))[:, 0] == 0).all())


def test_no_scale_is_infinite() -> None:
    """A deviation whose inverse float32 cannot hold is none: what is nearly still stays finite."""
    X = np.random.default_rng(0).normal(size=(20, 1)) * 1e-42
    data = seal(dict.fromkeys(("train", "val", "test"), (X, np.arange(20) % 2)), "classification")
    model = prepared(data, config(model__in_features=1), standardize=True)
    assert torch.isfinite(model(data.train.X)).all()


@QUICK
@given(st.lists(st.floats(width=32) | st.integers(-2, 9).map(float), min_size=2, max_size=30))
def test_every_row_has_one_code(cells: list[float]) -> None:
    """One indicator of each column is 1: that of a code that train had, or the unknown, whatever the cell holds."""
    module = OneHot(3, {0: 5, 2: 2}, {0: {1.0, 2.0, 4.0}, 2: {0.0, 1.0}})
    inputs = torch.tensor([[cell, 7.5, cell] for cell in cells])
    out = module(inputs)
    assert (len(cells), 1 + 5 + 2) == tuple(out.shape) and (out[:, 0] == 7.5).all()
    assert (out[:, 1:6].sum(1) == 1).all() and (out[:, 6:].sum(1) == 1).all()
    for cell, row in zip(cells, out.tolist(), strict=True):
        assert 1 + (int(cell) if cell in (1.0, 2.0, 4.0) else 0) == 1 + row[1:6].index(1.0)
        assert (1 if cell == 1.0 else 0) == row[6:].index(1.0)


def test_a_code_that_train_did_not_have_is_unknown() -> None:
    """The width is that of the codes that the data name; what no train row had falls to the unknown."""
    model = prepared(rows(), **TABLE)
    assert model.prepare is not None
    out = model.prepare(torch.tensor([[5000.0, code, math.nan] for code in (1.0, 3.0, 4.0, math.nan)]))
    assert [[0, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]] == out[:, 2:].tolist()


def test_images_are_scaled_by_channel_or_by_the_largest() -> None:
    """Each channel to mean 0 and deviation 1, or all by one number to 0..1."""
    X = np.random.default_rng(0).integers(0, 17, (40, 3, 4, 4)) * np.array([1.0, 5.0, 9.0])[:, None, None]
    X[0, 2, 0, 0] = 144
    pair = (X, np.arange(40) % 3)
    data = seal({"train": pair, "val": pair, "test": pair}, "classification")
    body = config(model={"_target_": "torch.nn.Flatten"})
    by_channel, by_largest = (prepared(data, body, images=kind).prepare for kind in ("channels", "unit"))
    assert by_channel is not None and by_largest is not None
    seen = by_channel(data.train.X).transpose(0, 1).flatten(1)
    torch.testing.assert_close(seen.mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.std(1, correction=0), torch.ones(3))
    assert 0 == by_largest(data.train.X).min() and 1 == by_largest(data.train.X).max()


def test_nothing_asked_for_nothing_added() -> None:
    """A model without preprocessing is the user's own, and costs nothing."""
    body = config(model__in_features=3)
    off = {"impute": "none", "standardize": False, "one_hot": False, "images": "none", "targets": "none"}
    for section in ({}, {"preprocess": off}):
        assert "MLP" == type(builder.build_model({**body, **section}, (), 3, rows())).__name__


def test_changed_train_rows_are_fitted_on_but_zeros_are_not(digits_permit: permits.TrainPermit) -> None:
    """A fold is prepared by the rows that are trained on; zeroed inputs by what the rows were."""
    planned = load(digits_permit.plan.config)

    def mean(**train_rows: Any) -> torch.Tensor:
        delta = Delta({"preprocess.standardize": True, "model.in_features": 64}, train_rows=train_rows)
        with under(digits_permit, Job(digits_permit.plan.digest, "trial", delta), planned) as setup:
            assert isinstance(setup.model, PreprocessedModel) and setup.model.prepare is not None
            found: torch.Tensor = setup.model.prepare.mean
            return found

    fold = changed(planned.train, {"without_fold": [0, 5]}, 1)
    torch.testing.assert_close(mean(without_fold=[0, 5]), fold.X.mean(0), atol=1e-5, rtol=1e-4)
    assert torch.equal(mean(), mean(inputs="zeroed")) and not torch.equal(mean(), mean(without_fold=[0, 5]))


# --- targets ---------------------------------------------------------------------------------------------------------


@QUICK
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20), st.floats(-1e3, 1e3), st.floats(1e-2, 1e3))
def test_targets_come_back(values: list[float], mean: float, std: float) -> None:
    """What is restored and scaled again is what it was, to rounding."""
    restore, given = InverseTargetScale(torch.tensor(mean), torch.tensor(std)), torch.tensor(values)
    torch.testing.assert_close(restore(restore.standardize(given)), given, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.L1Loss()])
def test_the_loss_of_the_mean_is_theory(loss: nn.Module) -> None:
    """What a model that knows nothing costs is told on the scale on which the loss is computed."""
    data = rows(200, "regression")
    body = config(**REGRESSION, model__in_features=3)
    model = prepared(data, body, targets="standardize", standardize=True)
    task = build_task(body, loss, model)
    y, theory = data.train.y, expected_loss(task, data.train.y, None)
    assert isinstance(task.loss, ScaledLoss) and type(loss).__name__ == loss_name(task.loss)
    best = y.mean() if isinstance(loss, nn.MSELoss) else y.median()
    assert float(task.loss(best.expand(len(y)), y)) == pytest.approx(theory, rel=1e-5)
    assert theory == pytest.approx(1.0) if isinstance(loss, nn.MSELoss) else 0.5 < (theory or 0) < 1


def test_several_targets_are_scaled_one_by_one() -> None:
    """Each target has its own mean and deviation; outputs that are not as many are told."""
    draw = np.random.default_rng(0)
    pair = (draw.normal(size=(50, 4)), draw.normal(size=(50, 2)) * [1, 1000] + [5, 0])
    data = seal({"train": pair, "val": pair, "test": pair}, "regression")
    body = config(**{**REGRESSION, "model__out_features": 2})
    restore = prepared(data, body, targets="standardize").restore
    assert restore is not None
    torch.testing.assert_close(restore.standardize(data.train.y).std(0, correction=0), torch.ones(2))
    three = {**config(**{**REGRESSION, "model__out_features": 3}), "preprocess": {"targets": "standardize"}}
    with pytest.raises(UserError, match=r"model: outputs do not fit the targets.*resize_output: \{out_features: 2\}"):
        probe({**three, "preprocess": {"targets": "standardize"}}, data)


def test_a_training_speaks_in_the_targets_units(tmp_path: Path) -> None:
    """Loss and gradients are of unit scale; outputs, metric and kept weights are not; a reload is the same."""
    data = rows(200, "regression")
    body = config(**REGRESSION, model__in_features=6, preprocess={**TABLE, "targets": "standardize"})
    (tmp_path / "kept").mkdir()
    fit = train(body, data, Monitor(), folder=tmp_path / "kept")
    facts, (_, losses) = fit.history.facts, fit.history.series("val/loss")
    assert 0.5 < facts["loss_at_init"] < 3 and facts["loss_expected"] == pytest.approx(1.0)
    assert facts["input_rms"] < 3 and facts["target_rms"] < 3 and "grad_norm/head" in fit.history.names()
    judged = evaluate.score_split(fit.model, data.val, fit.task)
    assert judged.outputs is not None and 200 < float(judged.outputs.mean()) < 400
    assert judged.loss == pytest.approx(losses.min(), rel=1e-5) and fit.score is not None
    assert judged.score.value == pytest.approx(fit.score.value)

    assert fit.checkpoint is not None
    stored, _ = generation.load(fit.checkpoint)
    other = rows(200, "regression", seed=9)  # other statistics, which the stored ones replace
    again = builder.build_model(body, (), 0, other)
    assert not torch.equal(again.state_dict()["restore.mean"], stored["restore.mean"])
    again.load_state_dict(stored)
    assert torch.equal(evaluate.forward(again, data.val.X), evaluate.forward(fit.model, data.val.X))


# --- the user's own names --------------------------------------------------------------------------------------------


def test_patterns_and_weights_have_the_users_names(tmp_path: Path) -> None:
    """Groups, surgery and weights to start from mean the model inside; weights kept with preprocessing do as well."""
    data, body = rows(), config(model__in_features=6)
    body = {**body, "surgery": [{"freeze": {"match": "body.*"}}], "preprocess": TABLE}
    model = builder.build_model(body, (), 3, data)
    grouped = {**body, "optimizer": {**body["optimizer"], "groups": [{"match": "head.bias", "lr": 0.5}]}}
    assert [0.5, 0.02] == [g["lr"] for g in builder.build_optimizer(grouped, model).param_groups]
    for name, weights in (("bare", unwrap(model)), ("whole", model)):
        path = tmp_path / f"{name}.safetensors"
        files.write_bytes(path, save(tensors_of(weights.state_dict())))
        start = {**body, "model": {**body["model"], "init_from": str(path)}}
        found = unwrap(builder.build_model(start, (), 8, data)).state_dict()
        assert all(torch.equal(found[n], value) for n, value in unwrap(model).state_dict().items())


@pytest.mark.parametrize("format", FORMATS)
def test_an_exported_model_fills_holes_by_itself(tmp_path: Path, permit: permits.ExportPermit, format: str) -> None:
    """Every format takes raw rows, holes and unknown codes among them, and answers as the model does."""
    data = rows(kind="regression")
    body = config(**REGRESSION, model__in_features=6)
    model = prepared(data, body, **TABLE, targets="standardize").eval()
    odd = torch.tensor([[math.nan, math.nan, math.nan], [1e9, -3.0, 0.0], [0.0, 99.0, 1.0], [5000.0, 3.0, 0.0]])
    proven = export_formats(permit, model, torch.cat([data.val.X, odd]), tmp_path, formats=[format])[format]
    assert proven.parity is not None, proven.failure
    assert proven.parity["close"], proven.parity


@pytest.fixture(scope="module")
def permit(tmp_path_factory: pytest.TempPathFactory) -> permits.ExportPermit:
    return permits.export(baseline_done(tmp_path_factory.mktemp("runs")))


def test_a_step_of_holed_rows_is_made_again_and_nothing_is_blamed(tmp_path: Path) -> None:
    """Holes that are filled are no fault of the inputs: the replay of a good step names nothing that broke."""
    words = [f"data.path={ROOT / 'examples' / 'table' / 'vehicles.csv'}", "trainer.max_epochs=1", "tracking=none"]
    run, gate, _ = go(tmp_path, "phase=planning", "experiment=csv", *words)
    assert "open" == gate
    seen = replay(run, 2)
    assert seen.origin is None and math.isfinite(seen.loss)


# --- what cannot be --------------------------------------------------------------------------------------------------

IMAGES = (np.ones((9, 1, 4, 4)) * np.arange(9)[:, None, None, None], np.arange(9) % 3)
CODES = (np.arange(18).reshape(9, 2) % 3, np.arange(9) % 3)
NESTED = ({"a": np.ones((9, 2))}, np.arange(9) % 3)


@pytest.mark.parametrize(
    ("pair", "asked", "message"),
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
def test_what_does_not_fit_names_its_key(pair: Any, asked: dict[str, Any], message: str) -> None:
    """Preprocessing that data or task cannot have is one message with the key."""
    categories = {0: 3, 1: 3} if pair is CODES else None
    sides = {"train": pair, "val": pair, "test": pair, "categories": categories}
    data = rows() if pair is None else seal(sides, "classification")
    assert message in told(data, asked)


def test_what_has_no_statistics_is_told_by_its_place() -> None:
    """An infinite value by row and column; a column that is nothing but holes by its name."""
    data = rows(feature_names=["km", "fuel", "wear"])
    data.train.X[4, 2] = math.inf
    assert "data.train: row 4, column 'wear': is infinite" in told(data, {"standardize": True}, model__in_features=3)
    data.train.X[:, 2] = math.nan
    message = "preprocess.impute: column 'wear': no train row has a value, so that there is no mean"
    assert message in told(data, {"impute": "mean"}, model__in_features=3)
    whole = rows(feature_names=["km", "fuel", "wear"])
    whole.train.X[4, 1] = math.inf  # a code that is none
    assert prepared(whole, **TABLE)
