"""Data: splits without leakage, a sealed test set, and one message for all faults of the user's data."""

from __future__ import annotations

import copy
import pickle
import random
import re
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset, TensorDataset

from pipeline.data import tree
from pipeline.data.analysis.leakage import shared_fractions, shared_groups
from pipeline.data.dataset import Data
from pipeline.data.digits import digits
from pipeline.data.load import load, seal
from pipeline.data.sealed import SealedTest
from pipeline.data.splits import Split, row_digests, split_indices, split_rows
from pipeline.errors import Refused, UserError
from tests.conftest import examples

RANDOM = np.random.default_rng(3)


def pair(rows: int, classes: int = 3, features: int = 4) -> tuple[np.ndarray, np.ndarray]:
    return RANDOM.normal(size=(rows, features)), RANDOM.integers(0, classes, rows)


def parts(**changed: Any) -> dict[str, Any]:
    return {"train": pair(20), "val": pair(8), "test": pair(8), **changed}


def faults(source: Any, kind: str = "classification") -> str:
    with pytest.raises(UserError) as caught:
        seal(source, kind)
    return str(caught.value)


# --- splitting -------------------------------------------------------------------------------------------------------


@settings(max_examples=examples(40))
@given(st.integers(30, 200), st.integers(1, 6), st.integers(0, 5), st.booleans())
def test_split_indices_is_a_partition(n: int, classes: int, seed: int, duplicates: bool) -> None:
    """Every row is in exactly one split, equal rows are in the same, and no split is empty."""
    rng = np.random.default_rng(seed)
    X = rng.integers(0, 12 if duplicates else 10**6, (n, 2)).astype(float)
    y = rng.integers(0, classes, n)
    indices = split_indices(X, y, seed=seed)
    assert list(range(n)) == sorted(np.concatenate(list(indices.values())).tolist())
    digests = [set(row_digests(X[rows])) for rows in indices.values()]
    assert all(digests) and not any(a & b for a, b in combinations(digests, 2))


def test_split_indices_compares_rows_as_float32() -> None:
    """Values that differ beyond float32, such as times in seconds, are equal in training and count as equal."""
    X = (1.7e9 + 16 * np.arange(200.0)).reshape(-1, 1)
    indices = split_indices(X, np.arange(200) % 2)
    digests = [set(row_digests(X[rows].astype(np.float32))) for rows in indices.values()]
    assert all(digests) and not any(a & b for a, b in combinations(digests, 2))


def test_split_indices_depends_on_rows_and_seed() -> None:
    """The same rows and seed give the same split; another seed gives another."""
    X, y = pair(300)
    first, again, other = (split_indices(X, y, seed=s) for s in (1, 1, 2))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["val"], other["val"])


def test_split_indices_stratifies_and_keeps_rare_classes_in_train() -> None:
    """Class shares are similar in all splits; every class of three rows or more is in train."""
    y = np.repeat([0, 1, 2], [600, 300, 3])
    indices = split_indices(RANDOM.normal(size=(903, 2)), y, val=0.2, test=0.2)
    shares = {name: np.bincount(y[rows], minlength=3)[:2] for name, rows in indices.items()}
    assert all(abs(c[0] / c[1] - 2) < 0.05 for c in shares.values()) and 2 in y[indices["train"]]


def test_split_indices_of_values_meets_the_shares() -> None:
    """Targets that are all different have no strata, and the shares are met exactly."""
    indices = split_indices(RANDOM.normal(size=(100, 2)), np.arange(100), val=0.1, test=0.3)
    assert (60, 10, 30) == (len(indices["train"]), len(indices["val"]), len(indices["test"]))


@pytest.mark.parametrize(("X", "shares"), [(np.zeros((9, 2)), {}), (np.eye(9), {"val": 0.6, "test": 0.4})])
def test_split_rows_refuses_impossible_splits(X: np.ndarray, shares: dict[str, float]) -> None:
    """Rows that are all equal, or shares that leave no train rows, raise one message."""
    with pytest.raises(UserError, match="data: "):
        split_rows(X, np.zeros(9, int), **shares)


def test_row_digests_of_negative_zero() -> None:
    """Rows that compare equal have equal digests."""
    assert row_digests(np.array([[0.0]])) == row_digests(np.array([[-0.0]]))


def test_digits_has_1797_rows() -> None:
    """Features are in 0..1, there are ten classes, and 360 rows each for validation and test."""
    data = seal(digits(), "classification")
    assert (1077, 360, 360) == (len(data.train), len(data.val), data.test.rows)
    assert 10 == data.classes and 0 == data.train.X.min() and 1 == data.train.X.max()
    assert {str(c) for c in range(10)} == set(data.test.counts)


# --- the sealed test set ---------------------------------------------------------------------------------------------


@pytest.fixture
def sealed() -> SealedTest:
    return seal(parts(), "classification").test


def test_sealed_test_shows_counts_and_digests(sealed: SealedTest) -> None:
    """Rows, digests, schema and counts can be read without a key."""
    assert 8 == sealed.rows == len(sealed) == len(sealed.row_digests) == sum(sealed.counts.values())
    assert {"shape": [4], "dtype": "float32"} == sealed.schema["X"]
    assert 64 == len(sealed.digest) and sealed.digest[:12] in repr(sealed)


def test_sealed_test_has_no_attribute_with_rows(sealed: SealedTest) -> None:
    """Every attribute that `dir` lists is plain: no tensor, no array, no dictionary of attributes."""
    assert not hasattr(sealed, "__dict__")
    for name in dir(sealed):
        if not name.startswith("__"):
            value = getattr(sealed, name)
            assert callable(value) or isinstance(value, int | str | tuple | dict), name


@pytest.mark.parametrize(
    "attempt",
    [
        pickle.dumps,
        copy.copy,
        copy.deepcopy,
        list,
        iter,
        np.asarray,
        lambda s: s[0],
        lambda s: s.X,
        lambda s: s._split,
        lambda s: vars(s),
        lambda s: setattr(s, "rows", 3),
        lambda s: delattr(s, "rows"),
    ],
)
def test_sealed_test_cannot_be_bypassed(sealed: SealedTest, attempt: Any) -> None:
    """Copying, pickling, iterating, indexing and changing fail instead of giving rows."""
    with pytest.raises((TypeError, AttributeError)):
        attempt(sealed)


@pytest.mark.parametrize("key", [None, "key", object(), True])
def test_sealed_test_refuses_other_keys(sealed: SealedTest, key: Any) -> None:
    """Anything but a TestKey is refused."""
    with pytest.raises(Refused, match="TestKey"):
        sealed.read(key)


def test_sealed_test_refuses_a_train_permit(sealed: SealedTest, digits_permit: Any) -> None:
    """The permit to train does not open the test rows."""
    with pytest.raises(Refused, match="TestKey"):
        sealed.read(digits_permit)


# --- loading ---------------------------------------------------------------------------------------------------------


class Rows(Dataset):  # type: ignore[type-arg]
    """A user's map-style Dataset of small images."""

    def __init__(self, rows: int) -> None:
        self.images = torch.rand(rows, 1, 4, 4)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.images[i], i % 2


class Holder:
    """Splits as attributes, with groups and a licence."""

    train, val, test = pair(20), pair(8), pair(8)
    groups = np.arange(20), np.arange(20, 28), np.arange(8)
    licence = "CC0"


def test_seal_accepts_mappings_objects_and_datasets() -> None:
    """A mapping or object of arrays, tensors, TensorDatasets or map-style Datasets is converted to our dtypes."""
    mixed = seal(
        {"train": Rows(6), "val": TensorDataset(*map(torch.as_tensor, next(_images()))), "test": Rows(3)}, "binary"
    )
    assert torch.float32 == mixed.train.X.dtype and torch.int64 == mixed.train.y.dtype
    assert (6, 1, 4, 4) == tuple(mixed.train.X.shape)
    data = seal(Holder(), "classification")
    assert "CC0" == data.licence and ["20", "21"] == data.val.row_metadata.groups[:2].tolist()
    assert 8 == len(data.test.groups) and not {"0", "1"} & set(data.test.groups)


def _images() -> Any:
    yield np.zeros((4, 1, 4, 4), np.uint8), np.array([0, 1, 0, 1], np.uint8)


def test_seal_converts_targets_by_task() -> None:
    """Whole floats and columns [N, 1] are class ids for classification; integers are values for regression."""
    column = (RANDOM.normal(size=(6, 2)), np.array([[0.0], [1.0]] * 3))
    data = seal({"train": column, "val": column, "test": column}, "classification")
    assert torch.int64 == data.train.y.dtype and (6,) == tuple(data.train.y.shape) and 2 == data.classes
    values = seal({"train": column, "val": column, "test": column}, "regression")
    assert torch.float32 == values.train.y.dtype and values.classes is None and {} == values.test.counts


def test_seal_keeps_nan() -> None:
    """Missing and infinite features are judged by the planning gate, not by the loader."""
    X, y = pair(20)
    X[3, 1], X[4, 1] = np.nan, np.inf
    assert 1 == int(seal(parts(train=(X, y)), "classification").train.X.isnan().sum())


def test_seal_copies_the_users_arrays() -> None:
    """A later change of the user's array does not change a split."""
    X, y = pair(20)
    data = seal(parts(train=(X.astype(np.float32), y)), "classification")
    digest = data.train.digest
    X[:] = 0
    assert digest == data.train.digest


def test_seal_reports_all_faults_at_once() -> None:
    """Every split is checked before an error is raised."""
    X, y = pair(20)
    message = faults({"train": (X, y[:5]), "valid": (X, y), "test": (X.astype(object), y), "class_names": ["a"]})
    assert "data: split 'val' is missing" in message and "data.train: X and y differ" in message
    assert "data.test.X: contains objects" in message


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"val": (np.zeros((0, 4)), np.zeros(0, int))}, "data.val: is empty"),
        ({"train": np.zeros((3, 4))}, "data.train: is not a split, got 'one ndarray of shape (3, 4)'"),
        ({"train": "rows.csv"}, "data.train: is not a split, got 'str'"),
        ({"train": (np.array([["a"]]), [1])}, "data.train.X: contains text"),
        ({"train": (np.zeros((2, 2), complex), [1, 0])}, "data.train.X: contains complex"),
        ({"train": ([[1.0], [1.0, 2.0]], [1, 0])}, "data.train.X: is not an array"),
        ({"train": (3.0, [1])}, "data.train.X: has no rows"),
        ({"train": (np.zeros((1, 4)), {"ids": [1]})}, "data.train.y: nested targets are not supported"),
        ({"train": ({}, [1])}, "data.train.X: is empty, got 'dict'"),
        (
            {"train": ({"ids": [1, 2], "more": [1]}, [1, 0])},
            "data.train.X: parts differ in length, got '2 of ids, 1 of more",
        ),
        ({"train": ({"ids": [1], "more": ["a"]}, [1])}, "data.train.X.more: contains text"),
        (
            {"val": ({"ids": np.zeros((8, 4))}, [1] * 8)},
            "data.val: rows differ in their parts, got 'X.ids, y'; expected X, y",
        ),
        ({"train": (np.zeros((2, 4)), [0.5, 1])}, "is not a class id, got 0.5"),
        ({"train": (np.zeros((2, 4)), [np.nan, 1])}, "is not a class id, got nan"),
        ({"train": (np.zeros((2, 4)), [-1, 1])}, "out of range, got -1"),
        ({"train": (np.zeros((2, 4)), np.eye(2))}, "is not class ids, got 'shape (2, 2)'"),
        ({"val": pair(8, features=5)}, "data.val.X: rows differ in shape, got (5,); expected (4,) as in data.train"),
        ({"class_names": ["a", "b"]}, "data.class_names: has no name for class 2"),
        ({"class_names": "abc"}, "data.class_names: is not a list of names"),
        ({"feature_names": ["a"]}, "data.feature_names: number of names, got 1; expected 4"),
        ({"categories": [1]}, "data.categories: is not a mapping, got 'list'"),
        ({"categories": {4: 3}}, "data.categories: there is no such column, got 4; expected 0 to 3"),
        (
            {"categories": {"a": 3}, "feature_names": list("bcde")},
            "there is no such column, got 'a'; expected one of b,",
        ),
        ({"categories": {1: "ab"}}, "data.categories.1: is not a number of codes, got 'ab'"),
    ],
)
def test_seal_names_the_place_of_a_fault(changed: dict[str, Any], message: str) -> None:
    """A fault names the key, the value and what is expected."""
    assert message in faults(parts(**changed))


def test_seal_reads_categories() -> None:
    """Categories named by feature or column, counted or listed, are sorted by column."""
    given = {"d": 3, "b": ["<unknown>", "x"], 0: 4}
    assert {0: 4, 1: 2, 3: 3} == seal(parts(categories=given, feature_names=list("abcd")), "classification").categories
    assert {} == seal(parts(), "classification").categories


def test_seal_refuses_a_third_binary_label() -> None:
    """The labels of a binary task are 0 and 1."""
    assert "expected 0 and 1" in faults(parts(), "binary")


class Ragged(Rows):
    """Items that differ in shape, or are not pairs."""

    def __init__(self, broken: Any) -> None:
        super().__init__(3)
        self.broken = broken

    def __getitem__(self, i: int) -> Any:
        return self.broken if i == 2 else super().__getitem__(i)


@pytest.mark.parametrize(
    ("item", "message"),
    [((torch.zeros(9), 1), "items differ in shape"), (torch.zeros(9), "is not a pair, got 'one Tensor")],
)
def test_seal_names_a_bad_item(item: Any, message: str) -> None:
    """The message names the number of the item."""
    reported = faults({"train": Ragged(item), "val": Rows(2), "test": Rows(2)})
    assert "data.train[2]: " in reported and message in reported


class Bad(Rows):
    """Row 17 cannot be read."""

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        if i == 17:
            raise ValueError("bad row")
        return super().__getitem__(i)


def test_seal_names_an_item_that_cannot_be_read() -> None:
    """The message names the row, the error and the user's line; the other splits are still read."""
    message = faults({"train": Bad(20), "val": Bad(18), "test": Rows(2)}).splitlines()
    line = Bad.__getitem__.__code__.co_firstlineno + 2
    assert [
        f"data.{split}[17]: cannot be read at {__file__}:{line} (ValueError: bad row)" for split in ("train", "val")
    ] == message


class Noisy(Rows):
    """Every reading of a row gives other values."""

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.images[i] + random.random() + torch.rand(1, 4, 4) + np.random.rand(), i % 2


def test_seal_reads_a_random_dataset_reproducibly() -> None:
    """Rows that are measured are equal in every process, and reading them does not change the generators."""
    source = {name: Noisy(5) for name in ("train", "val", "test")}
    before = random.getstate(), torch.get_rng_state()
    first, again = seal(source, "binary"), seal(source, "binary")
    assert first.facts() == again.facts() and not torch.equal(first.train.X[0], first.train.X[1])
    assert before[0] == random.getstate() and torch.equal(before[1], torch.get_rng_state())
    assert first.train.dataset is source["train"] and first.val.dataset is None
    assert first.train.take(torch.tensor([1])).dataset is None


def test_seal_takes_the_tensors_of_a_tensor_dataset() -> None:
    """A TensorDataset, or a Subset of one, is not read row by row."""
    whole = TensorDataset(torch.arange(12.0)[:, None], torch.arange(12) % 2)
    part = torch.utils.data.Subset(whole, [3, 1])
    data = seal({"train": whole, "val": part, "test": part}, "binary")
    assert data.train.dataset is None and [[3.0], [1.0]] == data.val.X.tolist()


class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    """Rows without numbers."""

    def __iter__(self) -> Any:
        return iter([(0.0, 1)])


def test_seal_refuses_an_iterable_dataset() -> None:
    """Rows without numbers cannot be put in a reproducible order."""
    assert "data.train: is an IterableDataset, got 'Stream'; expected a map-style" in faults(parts(train=Stream()))


# --- nested features -------------------------------------------------------------------------------------------------


class Sentences(Dataset):  # type: ignore[type-arg]
    """A user's Dataset of nested inputs."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Any:
        return {"ids": [i, i + 1, 7], "more": (torch.tensor(i / 2, dtype=torch.float64), np.array([True]))}, i % 2


def test_seal_accepts_nested_features() -> None:
    """Floats become float32, integers int64, booleans stay; a Dataset of such rows is stacked."""
    pair = {"ids": np.array([[1, 2, 7]], np.int32), "more": (np.zeros(1), np.array([[True]]))}, [1]
    data = seal({"train": Sentences(), "val": pair, "test": Sentences()}, "binary")
    for split in (data.train, data.val):
        assert [torch.int64, torch.float32, torch.bool] == [t.dtype for t in tree.leaves(split.X)]
    assert [[0, 1, 7], [1, 2, 7], [2, 3, 7], [3, 4, 7]] == data.train.X["ids"].tolist() and 4 == len(data.train)
    assert {"shape": [3], "dtype": "int64"} == data.test.schema["X.ids"]
    assert ["X.ids", "X.more.0", "X.more.1", "y"] == list(data.test.schema)
    assert [[3, 4, 7], [0, 1, 7]] == data.train.take(torch.tensor([3, 0])).X["ids"].tolist()
    assert "ids (3,), more.0 (), more.1 (1,)" in repr(data.train)
    assert {"val": 0.0, "test": 1.0} == shared_fractions(data)


def test_digest_depends_on_names_and_content() -> None:
    """Equal tensors under other names have another digest; the order of names does not matter."""
    a, b, y = torch.ones(2, 1), torch.zeros(2, 1), torch.tensor([0, 1])
    first, same, other = (
        Split("val", {"a": a, "b": b}, y),
        Split("val", {"b": b, "a": a}, y),
        Split("val", {"a": b, "b": a}, y),
    )
    assert first.digest == same.digest != other.digest
    assert row_digests(first.X) == row_digests(same.X) != row_digests(other.X)
    assert "70b7558d48d8" == Split("val", a, y).digest[:12]
    assert "708f55fe96ad903a4ad13565abb7bd13" == row_digests(a)[0]


def test_tree_functions_keep_the_structure() -> None:
    """A tree that is divided, indexed or moved keeps its structure."""
    nested = {"a": torch.arange(5), "b": (torch.arange(5.0), {"c": torch.zeros(5, 2)})}
    cut = tree.chunks(nested, 2)
    assert [2, 2, 1] == list(map(tree.count_rows, cut)) and [4] == cut[2]["a"].tolist()
    assert [4.0, 0.0] == tree.take_rows(nested, torch.tensor([4, 0]))["b"][0].tolist()
    assert ["a", "b.0", "b.1.c"] == list(tree.named_leaves(nested))
    assert torch.equal(nested["b"][1]["c"], tree.to_device(nested, torch.device("cpu"))["b"][1]["c"])


def test_seal_names_an_item_with_other_parts() -> None:
    """A row with another part or shape is named."""

    class Inconsistent(Sentences):
        def __getitem__(self, i: int) -> Any:
            return super().__getitem__(i) if i < 2 else ({"ids": [1]}, 1)

    message = faults({"train": Inconsistent(), "val": Sentences(), "test": Sentences()})
    assert "data.train[2]: items differ in shape, got 'ids (1,) and ()'; expected ids (3,), more.0 ()" in message


def test_seal_refuses_a_plain_value() -> None:
    """A plain value lacks every split."""
    assert 3 == faults(7).count("is missing, got 'int'")


def test_load_builds_the_target() -> None:
    """`load` builds the `_target_` and seals its test rows."""
    config = {"data": {"_target_": "pipeline.data.digits.digits"}, "task": {"kind": "classification"}}
    assert 360 == load(config).test.rows


# --- autoencoders, multilabel targets and language models ------------------------------------------------------------


def same_splits(X: Any, y: Any, kind: str, **more: Any) -> Data:
    return seal({**dict.fromkeys(("train", "val", "test"), (X, y)), **more}, kind)


def test_seal_of_an_autoencoder() -> None:
    """The features are the targets, other targets are ignored, and nested features are refused."""
    X = np.arange(12.0).reshape(4, 3)
    data = same_splits(X, ["no", "number", "at", "all"], "autoencoder")
    assert torch.equal(data.train.y, data.train.X) and data.classes is None
    assert ["X", "y"] == list(data.test.schema) and data.test.counts == {}
    with pytest.raises(UserError, match=r"data\.train\.X: an autoencoder takes no nested features"):
        same_splits({"a": X}, X, "autoencoder")


def test_seal_of_multilabel_targets() -> None:
    """Targets become float32 [N, labels]; a value other than 0 and 1 is named by row and label."""
    X, y = np.zeros((3, 2)), np.array([[0, 1], [1, 1], [0, 0]])
    assert torch.float32 == same_splits(X, y, "multilabel").train.y.dtype
    with pytest.raises(UserError, match=r"data\.train\.y: a label .* neither 0 nor 1 \(row 1, label 0\), got 2"):
        same_splits(X, y + np.array([[0, 0], [1, 0], [0, 0]]), "multilabel")
    with pytest.raises(UserError, match=r"is not multilabel targets, got 'shape \(3,\)'"):
        same_splits(X, y[:, 0], "multilabel")


def test_seal_of_a_language_model() -> None:
    """Tokens become int64 [N, T]; the number of ids is that of the names; invalid ids and shapes raise one message."""
    X = np.arange(6).reshape(2, 3)
    data = same_splits(X.astype(np.float32), X + 1, "language_model")
    assert data.train.X.dtype == data.train.y.dtype == torch.int64
    assert data.classes is None and 7 == data.ids("language_model")
    assert 9 == same_splits(X, X, "language_model", class_names=list("abcdefghi")).ids("language_model")
    with pytest.raises(UserError, match=r"data\.train\.y: a token .* is not an id \(row 0, position 0\), got -1"):
        same_splits(X, X - 1, "language_model")
    with pytest.raises(UserError, match=r"data\.val: has no target per token, got 'X \(2, 3\) and y \(2, 2\)'"):
        same_splits(X, X[:, :2], "language_model")
    with pytest.raises(UserError, match=r"data\.train\.y: is not rows of token ids, got 'shape \(2,\)'"):
        same_splits(X, X[:, 0], "language_model")


# --- row metadata ----------------------------------------------------------------------------------------------------


def seal_with(**parts: Any) -> Any:
    """Splits of 20, 8 and 8 rows with row metadata."""
    return seal({"train": pair(20), "val": pair(8), "test": pair(8), **parts}, "classification")


def by_split(of: Any) -> dict[str, Any]:
    return {"train": of(20), "val": of(8), "test": of(8)}


METADATA: list[tuple[dict[str, Any], str]] = [
    ({"groups": np.arange(20)}, "data.groups: is not given by split, got 'ndarray'"),
    ({"groups": {"train": np.arange(20)}}, "data.groups.val: is missing"),
    (
        {"groups": by_split(np.arange) | {"val": np.arange(9)}},
        "data.groups.val: does not fit the rows, got 'shape (9,)'",
    ),
    ({"groups": by_split(lambda n: [None] * n)}, "data.groups.train[0]: group is missing"),
    ({"times": by_split(np.arange) | {"val": ["soon"] * 8}}, "data.times.val: is not times"),
    ({"times": by_split(lambda n: np.full(n, np.nan))}, "data.times.train[0]: is not a time, got nan"),
    ({"slices": [1, 2]}, "data.slices: has no names"),
    ({"slices": {"a": by_split(np.arange) | {"test": [True]}}}, "data.slices.a.test: does not fit the rows"),
    ({"production": np.zeros((5, 99))}, "data.production.X: rows differ in shape, got (99,)"),
    ({"production": np.zeros((0, 4))}, "data.production: has no rows"),
    ({"production": [["a"]]}, "data.production: contains text"),
    ({"previous_tasks": [1]}, "data.previous_tasks: has no names"),
    ({"previous_tasks": {"old": pair(6)[0]}}, "data.previous_tasks.old: is not a split"),
    ({"previous_tasks": {"old": (np.zeros((6, 99)), np.zeros(6, int))}}, "data.previous_tasks.old.X: rows differ"),
    ({"representative": 3}, "data.representative: is not a valid answer, got 3"),
]


@pytest.mark.parametrize(("parts", "message"), METADATA)
def test_seal_refuses_row_metadata_that_does_not_fit(parts: dict[str, Any], message: str) -> None:
    """Groups, times, slices, production data or earlier tasks that do not fit are named in one message."""
    with pytest.raises(UserError, match=re.escape(message)):
        seal_with(**parts)


def test_row_metadata_follows_its_rows() -> None:
    """Selected rows keep their groups, times and slices; the sealed test set shows digests, time span and counts."""
    dates = {name: [f"20{20 + y}-03-01"] * n for y, (name, n) in enumerate((("train", 20), ("val", 8), ("test", 8)))}
    data = seal_with(
        groups=by_split(lambda n: np.arange(n) * 1.0),
        times=dates,
        slices={"odd": by_split(lambda n: np.arange(n) % 2 == 1), "hand": by_split(lambda n: np.arange(n) % 3)},
        previous_tasks={"old": pair(6)},
        production=torch.zeros(5, *pair(1)[0].shape[1:]),
        representative=False,
    )
    metadata = data.train.take(torch.tensor([3, 4])).row_metadata

    assert metadata.groups.tolist() == ["3", "4"] and metadata.slices["odd"].tolist() == [True, False]
    assert metadata.times[0] < data.val.row_metadata.times[0] < data.test.times[0] == data.test.times[1]
    assert data.test.slices == {"odd": 4, "hand=0": 3, "hand=1": 3, "hand=2": 2}
    assert "3" not in data.test.groups and len(data.test.groups) == 8
    assert len(data.previous_tasks["old"]) == 6 and sorted(data.additional_facts()) == [
        "previous_tasks.old",
        "production",
    ]
    assert (
        data.unrepresentative_reason == "no reason given"
        and seal_with(representative=True).unrepresentative_reason is None
    )


def test_shared_groups_compares_ids_across_types() -> None:
    """7 and 7.0 are one group, also beside 7.5 or text; a missing value is not a slice."""
    row = {"train": [7, 8], "val": [7.0, 7.5], "test": np.array([7.0, "b"], dtype=object)}
    X, y = np.arange(4.0).reshape(2, 2), np.array([0, 1])
    shared = shared_groups(same_splits(X, y, "classification", groups=row))
    assert shared is not None and shared["shared"] == ["7"] and shared["groups"] == 4
    with pytest.raises(UserError, match=r"data\.slices\.sex\.train\[1\]: value is missing"):
        same_splits(X, y, "classification", slices={"sex": by_split(lambda n: [1.0, np.nan])})
