"""Values of the config that follow from the data: widths of the model, and whether integer features stay integers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.building import builder, probe
from pipeline.building.auto_values import auto_integers, auto_widths, model_node
from pipeline.data.analysis.identifiers import identifier_columns
from pipeline.data.load import load, seal
from pipeline.data.sources.delimited import csv_table
from pipeline.data.sources.npz import npz
from pipeline.errors import UserError
from pipeline.run_store import plan as plans
from tests.trainings import config

AUTO = {"in_features": "auto", "out_features": "auto"}
MLP = {"_target_": "pipeline.models.mlp.MLP", "hidden": [4], **AUTO}
LINEAR = {"_target_": "torch.nn.Linear", **AUTO}
draw = np.random.default_rng(0)


def splits(X: Any, y: Any) -> dict[str, Any]:
    return dict.fromkeys(("train", "val", "test"), (X, y))


# --- widths ----------------------------------------------------------------------------------------------------------

IMAGES, ROWS, SERIES = draw.normal(size=(30, 1, 4, 4)), draw.normal(size=(30, 7)), draw.normal(size=(30, 5, 3))
THREE, TWO, VALUES = np.arange(30) % 3, np.arange(30) % 2, draw.normal(size=30)
BCE, CE = {"_target_": "torch.nn.BCEWithLogitsLoss"}, {"_target_": "torch.nn.CrossEntropyLoss"}


@pytest.mark.parametrize(
    ("kind", "X", "y", "model", "loss", "widths"),
    [
        ("classification", ROWS, THREE, MLP, CE, (7, 3)),
        ("classification", IMAGES, THREE, MLP, CE, (16, 3)),
        ("binary", ROWS, TWO, LINEAR, BCE, (7, 1)),
        ("binary", ROWS, TWO[:, None], LINEAR, CE, (7, 2)),
        ("multilabel", ROWS, np.eye(4)[THREE], LINEAR, BCE, (7, 4)),
        ("regression", ROWS, VALUES, LINEAR, BCE, (7, 1)),
        ("regression", ROWS, ROWS[:, :2], LINEAR, BCE, (7, 2)),
        ("regression", SERIES, SERIES[:, :, :2], LINEAR, BCE, (3, 10)),
        ("autoencoder", ROWS, None, LINEAR, BCE, (7, 7)),
        ("language_model", THREE.reshape(6, 5), THREE.reshape(6, 5), LINEAR, CE, (5, 3)),
        ("custom", ROWS, THREE, LINEAR, CE, (7, 3)),
    ],
)
def test_auto_widths_follow_from_data_and_task(
    kind: str, X: Any, y: Any, model: dict[str, Any], loss: dict[str, Any], widths: tuple[int, int]
) -> None:
    """Numbers per row in, and one output per class, label, token or value; torch's own layers see the last axis."""
    data = seal(splits(X, y), kind)
    body = config(task={"kind": kind, "metric": "accuracy"}, model=model, loss=loss)
    assert auto_widths(body, data) == {"model.in_features": widths[0], "model.out_features": widths[1]}
    assert auto_widths(config(), data) == {}


def test_auto_widths_count_prepared_columns() -> None:
    """After one-hot encoding a category has one column per code."""
    X = np.stack([draw.normal(size=30), THREE + 1], 1)
    data = seal({**splits(X, THREE), "categories": {1: 4}}, "classification")
    body = {**config(model=MLP), "preprocess": {"one_hot": True, "standardize": True}}
    assert auto_widths(body, data)["model.in_features"] == 5
    model = builder.build_model(body, (), 3, data)
    assert model.eval()(data.train.X[:2]).shape == (2, 3)


def test_auto_widths_of_parts_of_a_model() -> None:
    """A width is found wherever it stands in the section, also in a list, and the model is built with it."""
    own, layer = {"_target_": "pipeline.models.mlp.MLP", **AUTO}, {"_target_": "torch.nn.Linear", "out_features": 4}
    parts = {"encoder": {**layer, "in_features": "auto"}, "heads": [own, {**LINEAR, "in_features": 4}]}
    data = seal(splits(SERIES, THREE), "classification")
    body = config(model={"_target_": "my_pkg.Net", **parts})
    widths = auto_widths(body, data)

    assert widths == {
        "model.encoder.in_features": 3,
        "model.heads.0.in_features": 15,
        "model.heads.0.out_features": 3,
        "model.heads.1.out_features": 3,
    }
    assert model_node(body, data)["encoder"] == {**layer, "in_features": 3}
    assert model_node(body, data)["heads"] == [
        {**own, "in_features": 15, "out_features": 3},
        {**LINEAR, "in_features": 4, "out_features": 3},
    ]
    assert body["model"]["encoder"]["in_features"] == "auto"
    wrapped = config(model={"_target_": "torch.nn.Flatten"})
    assert model_node(wrapped, data) == {"_target_": "torch.nn.Flatten"}


def test_auto_widths_refuse_what_data_do_not_determine() -> None:
    """Nested features have no width: the message names the key."""
    data = seal(splits({"a": ROWS}, THREE), "classification")
    with pytest.raises(UserError, match=r"model\.in_features: auto is not known for nested features"):
        auto_widths(config(model=LINEAR), data)


def test_with_resolved_replaces_auto_alone() -> None:
    """Only keys that are `auto` get the value that planning found; a number that the user sets stays."""
    facts = {"resolved": {"model.in_features": 7, "model.out_features": 3, "preprocess.integers": "keep"}}
    body = {"model": {"in_features": "auto", "out_features": 5}, "loss": None}
    assert plans.with_resolved(body, facts) == {"model": {"in_features": 7, "out_features": 5}, "loss": None}
    assert body["model"] == {"in_features": "auto", "out_features": 5}


# --- integers --------------------------------------------------------------------------------------------------------


class Bag(nn.Module):
    """A model of token ids."""

    def __init__(self, words: int = 50) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(words, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x).mean(1))


class Mixed(nn.Module):
    """A model of a table with one column of codes, which it converts."""

    def __init__(self, convert: bool) -> None:
        super().__init__()
        self.convert, self.embed, self.head = convert, nn.Embedding(9, 4), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        codes = x[:, 0].long() if self.convert else x[:, 0]
        return self.head(torch.cat([self.embed(codes), x[:, 1:]], 1))


class Items:
    """A map-style Dataset of ids."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(IDS[index]), int(THREE[index])


IDS = draw.integers(0, 50, (30, 6))
BAG = {"_target_": "tests.test_auto_values.Bag"}
GIVEN = {
    "arrays": lambda: splits(IDS, THREE),
    "int32": lambda: splits(IDS.astype(np.int32), THREE),
    "tensors": lambda: splits(torch.from_numpy(IDS), torch.from_numpy(THREE)),
    "dataset": lambda: dict.fromkeys(("train", "val", "test"), Items()),
}


def given(source: Any) -> Any:
    return GIVEN[source]()


def planned(body: dict[str, Any]) -> tuple[Any, Any]:
    """The data and `preprocess.integers` of a plan."""
    data = load(body, ("tests",))
    resolved = auto_integers(body, data, ("tests",))
    return load(plans.with_resolved(body, {"resolved": resolved}), ("tests",)), resolved["preprocess.integers"]


@pytest.mark.parametrize("source", GIVEN)
def test_integer_features_stay_integers_for_embedding(source: str) -> None:
    """Ids of arrays, tensors and Datasets reach an embedding as they were given, and the model trains."""
    body = config(model=BAG, data={"_target_": "tests.test_auto_values.given", "source": source})
    data, integers = planned({**body, "preprocess": {"integers": "auto"}})
    assert integers == "keep" and data.train.X.dtype == data.val.X.dtype == torch.int64
    assert (data.train.X.numpy() == IDS).all()
    probe.probe(body, data, ("tests",))


@pytest.mark.parametrize("model", [LINEAR, MLP, {"_target_": "tests.test_auto_values.Mixed", "convert": True}])
def test_integer_features_become_floats_for_other_models(model: dict[str, Any]) -> None:
    """A model that takes float32 gets float32, also from integers."""
    columns = IDS[:, :2] % 9
    GIVEN["small"] = lambda: splits(columns, THREE)
    body = config(model=model, data={"_target_": "tests.test_auto_values.given", "source": "small"})
    if "convert" in model:
        body["data"]["source"] = "codes"
        GIVEN["codes"] = lambda: splits(columns, THREE)
    data, integers = planned({**body, "preprocess": {"integers": "auto"}})
    assert integers == "float32" and data.train.X.dtype == torch.float32 and data.integer_features


def test_integers_are_named_when_ids_are_out_of_range() -> None:
    """An embedding that is too small still gets integers, so that the message is about its size."""
    body = config(model={**BAG, "words": 3}, data={"_target_": "tests.test_auto_values.given", "source": "arrays"})
    data, integers = planned({**body, "preprocess": {"integers": "auto"}})
    assert integers == "keep"
    with pytest.raises(UserError, match="index out of range"):
        probe.probe(body, data, ("tests",))


def test_floats_in_an_embedding_are_named() -> None:
    """A table of floats that reaches an embedding: the message has the line, and what to write."""
    data = seal(splits(np.stack([THREE, VALUES], 1), THREE), "classification")
    model = {"_target_": "tests.test_auto_values.Mixed", "convert": False}
    with pytest.raises(
        UserError, match=rf"model: fails at {__file__}:\d+ .*Do: the ids are floats.*\.long\(\) in forward"
    ):
        probe.probe(config(model=model), data, ("tests",))
    nested = seal(splits((IDS, ROWS), THREE), "classification")
    with pytest.raises(UserError, match=r"Do: the inputs are integers: write x\.float\(\) in forward"):
        model = builder.build_model(config(model={**LINEAR, "in_features": 6}), (), 3, nested)
        probe.probe_rows(
            nn.Sequential(First(), model), _task(), nested.train.take(torch.arange(2)).X, torch.arange(2), 2
        )


class First(nn.Module):
    """The first part of nested features."""

    def forward(self, parts: tuple[Tensor, ...]) -> Tensor:
        return parts[0]


def _task() -> Any:
    return builder.build_task(config(), nn.CrossEntropyLoss())


def test_npz_and_tables_of_codes_keep_integers(tmp_path: Path) -> None:
    """An NPZ file keeps integers; a table of categories alone is ids, and with one column of numbers it is floats."""
    np.savez(tmp_path / "ids.npz", X=IDS, y=THREE)
    lines = [f"{'abc'[i % 3]}{i % 5},{'xyz'[i // 3 % 3]},{i * 0.5 % 7},{'no' if i % 2 else 'yes'}" for i in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["one,two,size,label", *lines]))
    codes = csv_table(str(tmp_path / "t.csv"), "label", ignore=["size"])
    mixed = csv_table(str(tmp_path / "t.csv"), "label")
    assert codes["train"][0].dtype == np.int64 and mixed["train"][0].dtype == np.float32
    for source, integers in ((npz(str(tmp_path / "ids.npz")), True), (codes, True), (mixed, False)):
        assert seal(source, "classification").integer_features is integers
        assert seal(source, "classification").train.X.dtype == torch.float32
        assert (seal(source, "classification", keep_integers=True).train.X.dtype == torch.int64) is integers


# --- columns that look like identifiers ------------------------------------------------------------------------------

N = 60
SHUFFLED = np.random.default_rng(1).permutation(N)


@pytest.mark.parametrize(
    ("name", "values", "found"),
    [
        ("id", SHUFFLED, True),
        ("patientId", 1000 + 7 * SHUFFLED, True),
        ("customer_id", 2_024_000 + SHUFFLED, True),
        ("Unnamed: 0", np.arange(N), True),
        ("nr", np.arange(1, N + 1), True),
        ("nr", np.arange(N)[::-1], True),
        ("id", SHUFFLED + 0.5, False),
        ("id", SHUFFLED % 7, False),
        ("population", 13 * SHUFFLED, False),
        ("sorted_income", np.sort(900 * SHUFFLED), False),
        ("width", np.random.default_rng(2).normal(size=N), False),
        ("humidity", 13 * SHUFFLED, False),
        ("year", 1990 + np.arange(N) // 2, False),
        ("id", np.where(SHUFFLED > 3, SHUFFLED, np.nan), False),
    ],
)
def test_identifier_columns_of_numbers(name: str, values: np.ndarray, found: bool) -> None:
    """Ids and row numbers are named with the reason; measurements, however unique, are not."""
    X = np.stack([np.random.default_rng(3).normal(size=N), values], 1)
    data = seal({**splits(X, np.arange(N) % 2), "feature_names": ["size", name]}, "classification")
    assert [column["column"] for column in identifier_columns(data)] == ([name] if found else [])


def test_identifier_columns_of_text(tmp_path: Path) -> None:
    """Text that differs from row to row is an identifier, whatever its name; few categories are not."""
    lines = [f"P-{i:04d},{'abc'[i % 3]},{i * 0.37 % 5},{i % 2}" for i in range(N)]
    (tmp_path / "t.csv").write_text("\n".join(["patient,ward,size,label", *lines]))
    data = seal(csv_table(str(tmp_path / "t.csv"), "label"), "classification")
    assert identifier_columns(data) == [{"column": "patient", "why": "36 different texts in 36 rows"}]
    images = seal(splits(IMAGES, THREE), "classification")
    assert identifier_columns(images) == []
