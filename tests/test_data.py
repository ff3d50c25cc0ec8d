"""Data: honest splits, a test set that stays sealed, and every fault of a user's data told at once."""

from __future__ import annotations

import copy
import pickle
import random
import re
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
def test_splits_are_a_partition_with_identical_rows_on_one_side(n: int, classes: int, seed: int, twins: bool) -> None:
    """Every row is on exactly one side, equal rows on the same, and no side is empty."""
    draw = np.random.default_rng(seed)
    X = draw.integers(0, 12 if twins else 10**6, (n, 2)).astype(float)
    y = draw.integers(0, classes, n)
    sides = split_indices(X, y, seed=seed)
    assert list(range(n)) == sorted(np.concatenate(list(sides.values())).tolist())
    seen = [set(row_digests(X[rows])) for rows in sides.values()]
    assert all(seen) and not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


def test_rows_that_float32_makes_equal_stay_on_one_side() -> None:
    """What differs beyond float32, as instants in seconds do, is trained on as equal and counts as equal."""
    X = (1.7e9 + 16 * np.arange(200.0)).reshape(-1, 1)
    sides = split_indices(X, np.arange(200) % 2)
    seen = [set(row_digests(X[rows].astype(np.float32))) for rows in sides.values()]
    assert all(seen) and not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


def test_splits_are_pure_and_seeded() -> None:
    """The same rows and seed give the same split; another seed another one."""
    X, y = pair(300)
    first, again, other = (split_indices(X, y, seed=s) for s in (1, 1, 2))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["val"], other["val"])


def test_splits_are_stratified_and_keep_rare_classes_trainable() -> None:
    """Class shares are alike on all sides; every class of three rows or more is in train."""
    y = np.repeat([0, 1, 2], [600, 300, 3])
    sides = split_indices(RANDOM.normal(size=(903, 2)), y, val=0.2, test=0.2)
    shares = {name: np.bincount(y[rows], minlength=3)[:2] for name, rows in sides.items()}
    assert all(abs(c[0] / c[1] - 2) < 0.05 for c in shares.values()) and 2 in y[sides["train"]]


def test_values_are_split_by_chance() -> None:
    """Targets that are all different have no strata, and the shares are met exactly."""
    sides = split_indices(RANDOM.normal(size=(100, 2)), np.arange(100), val=0.1, test=0.3)
    assert (60, 10, 30) == (len(sides["train"]), len(sides["val"]), len(sides["test"]))


@pytest.mark.parametrize(("X", "shares"), [(np.zeros((9, 2)), {}), (np.eye(9), {"val": 0.6, "test": 0.4})])
def test_impossible_splits_are_refused(X: np.ndarray, shares: dict[str, float]) -> None:
    """Rows that are all equal, or shares that leave nothing to train, are one message."""
    with pytest.raises(UserError, match="data: "):
        split_rows(X, np.zeros(9, int), **shares)


def test_negative_zero_is_zero_in_a_row() -> None:
    """Rows that compare equal have equal digests."""
    assert row_digests(np.array([[0.0]])) == row_digests(np.array([[-0.0]]))


def test_digits_are_1797_real_rows() -> None:
    """Features in 0..1, ten classes, 360 rows each for validation and test."""
    data = seal(digits(), "classification")
    assert (1077, 360, 360) == (len(data.train), len(data.val), data.test.rows)
    assert 10 == data.classes and 0 == data.train.X.min() and 1 == data.train.X.max()
    assert {str(c) for c in range(10)} == set(data.test.counts)


# --- the seal --------------------------------------------------------------------------------------------------------


@pytest.fixture
def sealed() -> SealedTest:
    return seal(parts(), "classification").test


def test_a_sealed_test_says_what_it_is(sealed: SealedTest) -> None:
    """Rows, digests, schema and counts are open to everybody."""
    assert 8 == sealed.rows == len(sealed) == len(sealed.row_digests) == sum(sealed.counts.values())
    assert {"shape": [4], "dtype": "float32"} == sealed.schema["X"]
    assert 64 == len(sealed.digest) and sealed.digest[:12] in repr(sealed)


def test_no_attribute_of_a_sealed_test_holds_its_rows(sealed: SealedTest) -> None:
    """Whatever `dir` lists is small and plain: no tensor, no array, no dictionary of attributes."""
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
def test_no_way_around_the_seal(sealed: SealedTest, attempt: Any) -> None:
    """Copying, pickling, iterating, indexing and changing fail instead of giving rows."""
    with pytest.raises((TypeError, AttributeError)):
        attempt(sealed)


@pytest.mark.parametrize("key", [None, "key", object(), True])
def test_only_a_real_key_reads_the_test_rows(sealed: SealedTest, key: Any) -> None:
    """Anything but a TestKey is refused."""
    with pytest.raises(Refused, match="TestKey"):
        sealed.read(key)


def test_a_train_permit_is_no_test_key(sealed: SealedTest, digits_permit: Any) -> None:
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
    """Splits as attributes, with more said about the data."""

    train, val, test = pair(20), pair(8), pair(8)
    groups = np.arange(20), np.arange(20, 28), np.arange(8)
    licence = "CC0"


def test_what_data_may_be() -> None:
    """Mapping or object, arrays, tensors, TensorDataset or a map-style Dataset; dtypes become the house's."""
    mixed = seal(
        {"train": Rows(6), "val": TensorDataset(*map(torch.as_tensor, next(_images()))), "test": Rows(3)}, "binary"
    )
    assert torch.float32 == mixed.train.X.dtype and torch.int64 == mixed.train.y.dtype
    assert (6, 1, 4, 4) == tuple(mixed.train.X.shape)
    held = seal(Holder(), "classification")
    assert "CC0" == held.licence and ["20", "21"] == held.val.row_metadata.groups[:2].tolist()
    assert 8 == len(held.test.groups) and not {"0", "1"} & set(held.test.groups)


def _images() -> Any:
    yield np.zeros((4, 1, 4, 4), np.uint8), np.array([0, 1, 0, 1], np.uint8)


def test_targets_follow_the_task() -> None:
    """Whole floats and columns are class ids for classes; integers are values for regression."""
    column = (RANDOM.normal(size=(6, 2)), np.array([[0.0], [1.0]] * 3))
    data = seal({"train": column, "val": column, "test": column}, "classification")
    assert torch.int64 == data.train.y.dtype and (6,) == tuple(data.train.y.shape) and 2 == data.classes
    values = seal({"train": column, "val": column, "test": column}, "regression")
    assert torch.float32 == values.train.y.dtype and values.classes is None and {} == values.test.counts


def test_nan_is_kept_for_the_diagnosis() -> None:
    """NaN and infinite features are not the loader's business."""
    X, y = pair(20)
    X[3, 1], X[4, 1] = np.nan, np.inf
    assert 1 == int(seal(parts(train=(X, y)), "classification").train.X.isnan().sum())


def test_splits_do_not_follow_later_changes_of_the_users_arrays() -> None:
    """A split is a copy of its own."""
    X, y = pair(20)
    data = seal(parts(train=(X.astype(np.float32), y)), "classification")
    digest = data.train.digest
    X[:] = 0
    assert digest == data.train.digest


def test_all_faults_are_told_at_once() -> None:
    """Every split is looked at before anything is refused."""
    X, y = pair(20)
    told = faults({"train": (X, y[:5]), "valid": (X, y), "test": (X.astype(object), y), "class_names": ["a"]})
    assert "data: split 'val' is missing" in told and "data.train: X and y differ" in told
    assert "data.test.X: contains objects" in told


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
def test_each_fault_names_its_place(changed: dict[str, Any], message: str) -> None:
    """A fault names the key, what was got and what would be right."""
    assert message in faults(parts(**changed))


def test_categories_are_columns_with_a_number_of_codes() -> None:
    """Named by feature or by number, counted or listed, they come in the order of columns."""
    given = {"d": 3, "b": ["<unknown>", "x"], 0: 4}
    assert {0: 4, 1: 2, 3: 3} == seal(parts(categories=given, feature_names=list("abcd")), "classification").categories
    assert {} == seal(parts(), "classification").categories


def test_binary_labels_are_zero_and_one() -> None:
    """A third label is out of range."""
    assert "expected 0 and 1" in faults(parts(), "binary")


class Ragged(Rows):
    """Items that differ in shape, or are no pairs."""

    def __init__(self, broken: Any) -> None:
        super().__init__(3)
        self.broken = broken

    def __getitem__(self, i: int) -> Any:
        return self.broken if i == 2 else super().__getitem__(i)


@pytest.mark.parametrize(
    ("item", "message"),
    [((torch.zeros(9), 1), "items differ in shape"), (torch.zeros(9), "is not a pair, got 'one Tensor")],
)
def test_odd_items_of_a_dataset_are_named(item: Any, message: str) -> None:
    """The message names the item's number."""
    told = faults({"train": Ragged(item), "val": Rows(2), "test": Rows(2)})
    assert "data.train[2]: " in told and message in told


class Bad(Rows):
    """The row 17 of a file is broken."""

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        if i == 17:
            raise ValueError("bad row")
        return super().__getitem__(i)


def test_an_item_that_cannot_be_read_is_one_message() -> None:
    """The message names the row, the error and the user's line; the other splits are read all the same."""
    told = faults({"train": Bad(20), "val": Bad(18), "test": Rows(2)}).splitlines()
    line = Bad.__getitem__.__code__.co_firstlineno + 2
    assert [
        f"data.{split}[17]: cannot be read (ValueError: bad row) at {__file__}:{line}" for split in ("train", "val")
    ] == told


class Noisy(Rows):
    """Every reading of a row is another one."""

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.images[i] + random.random() + torch.rand(1, 4, 4) + np.random.rand(), i % 2


def test_a_random_dataset_is_read_once_and_the_same_way_every_time() -> None:
    """Rows that are measured on are equal in every process, and reading them draws from nobody's generator."""
    source = {name: Noisy(5) for name in ("train", "val", "test")}
    before = random.getstate(), torch.get_rng_state()
    first, again = seal(source, "binary"), seal(source, "binary")
    assert first.facts() == again.facts() and not torch.equal(first.train.X[0], first.train.X[1])
    assert before[0] == random.getstate() and torch.equal(before[1], torch.get_rng_state())
    assert first.train.dataset is source["train"] and first.val.dataset is None
    assert first.train.take(torch.tensor([1])).dataset is None


def test_what_a_tensor_dataset_holds_is_taken_out() -> None:
    """A TensorDataset, or a part of one, needs no reading row by row."""
    whole = TensorDataset(torch.arange(12.0)[:, None], torch.arange(12) % 2)
    part = torch.utils.data.Subset(whole, [3, 1])
    data = seal({"train": whole, "val": part, "test": part}, "binary")
    assert data.train.dataset is None and [[3.0], [1.0]] == data.val.X.tolist()


class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    """Rows without numbers."""

    def __iter__(self) -> Any:
        return iter([(0.0, 1)])


def test_a_stream_is_refused() -> None:
    """Rows that have no numbers cannot be ordered by us."""
    assert "data.train: is an IterableDataset, got 'Stream'; expected a map-style" in faults(parts(train=Stream()))


# --- nested features -------------------------------------------------------------------------------------------------


class Sentences(Dataset):  # type: ignore[type-arg]
    """A user's Dataset of nested inputs."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Any:
        return {"ids": [i, i + 1, 7], "more": (torch.tensor(i / 2, dtype=torch.float64), np.array([True]))}, i % 2


def test_features_may_be_nested() -> None:
    """Floats become float32, integers int64, truth values stay; a Dataset of such rows is stacked."""
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


def test_a_digest_is_of_names_and_content_and_not_of_the_order_of_names() -> None:
    """Equal tensors under other names are other data; a lone tensor's digest is what it always was."""
    a, b, y = torch.ones(2, 1), torch.zeros(2, 1), torch.tensor([0, 1])
    one, same, other = (
        Split("val", {"a": a, "b": b}, y),
        Split("val", {"b": b, "a": a}, y),
        Split("val", {"a": b, "b": a}, y),
    )
    assert one.digest == same.digest != other.digest
    assert row_digests(one.X) == row_digests(same.X) != row_digests(other.X)
    assert "70b7558d48d8" == Split("val", a, y).digest[:12]
    assert "708f55fe96ad903a4ad13565abb7bd13" == row_digests(a)[0]


def test_a_tree_comes_back_from_its_leaves() -> None:
    """What is cut, chosen or changed keeps its structure."""
    nested = {"a": torch.arange(5), "b": (torch.arange(5.0), {"c": torch.zeros(5, 2)})}
    cut = tree.chunks(nested, 2)
    assert [2, 2, 1] == list(map(tree.count_rows, cut)) and [4] == cut[2]["a"].tolist()
    assert [4.0, 0.0] == tree.take_rows(nested, torch.tensor([4, 0]))["b"][0].tolist()
    assert ["a", "b.0", "b.1.c"] == list(tree.named_leaves(nested))
    assert torch.equal(nested["b"][1]["c"], tree.to_device(nested, torch.device("cpu"))["b"][1]["c"])


def test_an_items_parts_must_agree() -> None:
    """A row with another part or shape is named."""

    class Odd(Sentences):
        def __getitem__(self, i: int) -> Any:
            return super().__getitem__(i) if i < 2 else ({"ids": [1]}, 1)

    told = faults({"train": Odd(), "val": Sentences(), "test": Sentences()})
    assert "data.train[2]: items differ in shape, got 'ids (1,) and ()'; expected ids (3,), more.0 ()" in told


def test_something_that_is_no_data_at_all() -> None:
    """A plain value lacks every split."""
    assert 3 == faults(7).count("is missing, got 'int'")


def test_load_builds_what_the_config_says() -> None:
    """`load` builds the target and seals its test rows."""
    config = {"data": {"_target_": "pipeline.data.digits.digits"}, "task": {"kind": "classification"}}
    assert 360 == load(config).test.rows


# --- several labels, tokens, and rows that are their own targets -----------------------------------------------------


def alike(X: Any, y: Any, kind: str, **more: Any) -> Data:
    return seal({**dict.fromkeys(("train", "val", "test"), (X, y)), **more}, kind)


def test_rows_of_an_autoencoder_are_their_own_targets() -> None:
    """Whatever stands beside them; a nested row is none."""
    X = np.arange(12.0).reshape(4, 3)
    data = alike(X, ["no", "number", "at", "all"], "autoencoder")
    assert torch.equal(data.train.y, data.train.X) and data.classes is None
    assert ["X", "y"] == list(data.test.schema) and data.test.counts == {}
    with pytest.raises(UserError, match=r"data\.train\.X: an autoencoder takes no nested features"):
        alike({"a": X}, X, "autoencoder")


def test_several_labels_are_zeros_and_ones() -> None:
    """float32 [N, labels]; anything else is named by row and label."""
    X, y = np.zeros((3, 2)), np.array([[0, 1], [1, 1], [0, 0]])
    assert torch.float32 == alike(X, y, "multilabel").train.y.dtype
    with pytest.raises(UserError, match=r"data\.train\.y: a label .* neither 0 nor 1 \(row 1, label 0\), got 2"):
        alike(X, y + np.array([[0, 0], [1, 0], [0, 0]]), "multilabel")
    with pytest.raises(UserError, match=r"is not multilabel targets, got 'shape \(3,\)'"):
        alike(X, y[:, 0], "multilabel")


def test_tokens_stay_whole_numbers() -> None:
    """int64 [N, T] in and out, as many ids as there are names; no id, or another shape, is one message."""
    X = np.arange(6).reshape(2, 3)
    data = alike(X.astype(np.float32), X + 1, "language_model")
    assert data.train.X.dtype == data.train.y.dtype == torch.int64
    assert data.classes is None and 7 == data.ids("language_model")
    assert 9 == alike(X, X, "language_model", class_names=list("abcdefghi")).ids("language_model")
    with pytest.raises(UserError, match=r"data\.train\.y: a token .* is not an id \(row 0, position 0\), got -1"):
        alike(X, X - 1, "language_model")
    with pytest.raises(UserError, match=r"data\.val: has no target per token, got 'X \(2, 3\) and y \(2, 2\)'"):
        alike(X, X[:, :2], "language_model")
    with pytest.raises(UserError, match=r"data\.train\.y: is not rows of token ids, got 'shape \(2,\)'"):
        alike(X, X[:, 0], "language_model")


# --- what is said of rows beside features and targets ----------------------------------------------------------------


def said_of(**parts: Any) -> Any:
    """Splits of 20, 8 and 8 rows with more said about them."""
    return seal({"train": pair(20), "val": pair(8), "test": pair(8), **parts}, "classification")


def by_split(of: Any) -> dict[str, Any]:
    return {"train": of(20), "val": of(8), "test": of(8)}


MARKED: list[tuple[dict[str, Any], str]] = [
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


@pytest.mark.parametrize(("parts", "message"), MARKED)
def test_what_is_said_of_rows_must_fit_them(parts: dict[str, Any], message: str) -> None:
    """A group, a time, a slice, the field or an earlier task that does not fit is one message with its place."""
    with pytest.raises(UserError, match=re.escape(message)):
        said_of(**parts)


def test_marks_go_with_their_rows() -> None:
    """Groups, times and slices of some rows are those of these rows; of test no more than digests and counts show."""
    dates = {name: [f"20{20 + y}-03-01"] * n for y, (name, n) in enumerate((("train", 20), ("val", 8), ("test", 8)))}
    data = said_of(
        groups=by_split(lambda n: np.arange(n) * 1.0),
        times=dates,
        slices={"odd": by_split(lambda n: np.arange(n) % 2 == 1), "hand": by_split(lambda n: np.arange(n) % 3)},
        previous_tasks={"old": pair(6)},
        production=torch.zeros(5, *pair(1)[0].shape[1:]),
        representative=False,
    )
    some = data.train.take(torch.tensor([3, 4])).row_metadata

    assert some.groups.tolist() == ["3", "4"] and some.slices["odd"].tolist() == [True, False]
    assert some.times[0] < data.val.row_metadata.times[0] < data.test.times[0] == data.test.times[1]
    assert data.test.slices == {"odd": 4, "hand=0": 3, "hand=1": 3, "hand=2": 2}
    assert "3" not in data.test.groups and len(data.test.groups) == 8
    assert len(data.previous_tasks["old"]) == 6 and sorted(data.additional_facts()) == [
        "previous_tasks.old",
        "production",
    ]
    assert (
        data.unrepresentative_reason == "no reason given"
        and said_of(representative=True).unrepresentative_reason is None
    )


def test_a_group_is_the_same_whatever_else_stands_in_its_split() -> None:
    """7 and 7.0 are one group beside 7.5, and beside text; what is missing in a slice is no group."""
    row = {"train": [7, 8], "val": [7.0, 7.5], "test": np.array([7.0, "b"], dtype=object)}
    X, y = np.arange(4.0).reshape(2, 2), np.array([0, 1])
    found = shared_groups(alike(X, y, "classification", groups=row))
    assert found is not None and found["shared"] == ["7"] and found["groups"] == 4
    with pytest.raises(UserError, match=r"data\.slices\.sex\.train\[1\]: value is missing"):
        alike(X, y, "classification", slices={"sex": by_split(lambda n: [1.0, np.nan])})
