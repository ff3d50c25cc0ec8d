"""Loading: from whatever the user's `data` returns to checked splits; the test rows are sealed at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.data.dataset import Data
from pipeline.data.reading.arrays import convert_targets, read_features, read_targets, to_float32, to_leaf, token_ids
from pipeline.data.reading.categories import category_texts, read_categories
from pipeline.data.reading.items import (
    PAIR,
    check_same_shapes,
    describe,
    is_augmented,
    isolated_reading,
    leaf_shapes,
    read_item,
    slow_rows_told,
    stack_rows,
)
from pipeline.data.reading.rounding import float32_faults
from pipeline.data.reading.row_metadata import read_row_metadata, read_unrepresentative_reason
from pipeline.data.sealed import SealedTest
from pipeline.data.source_data import SPLITS, Array, MapDataset
from pipeline.data.splits import Split
from pipeline.data.tree import Tree, count_rows, map_leaves, named_leaves
from pipeline.error_attribution import attributed_to
from pipeline.errors import UserCodeExit, UserError, fault
from pipeline.runtime.seeds import derive

OPTIONAL = (
    "class_names", "feature_names", "source", "licence", "groups", "times", "slices", "production", "previous_tasks",
    "representative", "categories",
)  # fmt: skip


class LoadedPair(NamedTuple):
    """Features, targets, the map-style Dataset they were read from, if any, and whether it augments its rows."""

    X: Tree
    y: Tensor
    dataset: MapDataset | None = None
    column_targets: bool = False  # the class ids were [N, 1]
    integers: Array | None = None  # X as it was given, where it was one array of integers and is float32 now
    augmented: bool = False
    raw: Mapping[str, Array] = {}  # the floats and integers that are float32 now, as they were given, by their part

    def with_integers(self) -> LoadedPair:
        """The pair with X as int64 or bool, where it was given as such."""
        return self if self.integers is None else self._replace(X=to_leaf(self.integers))


def load(config: Mapping[str, Any], trust: Sequence[str] = ()) -> Data:
    """The data of a config, checked, with the test rows sealed.

    X becomes float32, or with `preprocess.integers: keep` int64 or bool where all splits have integers; parts of nested
    X float32, int64 or bool; class labels int64, values float32. Map-style Datasets are read into memory once; the
    Dataset of train is also kept, since training reads it again in every epoch.
    NaN and infinities are kept: the planning gate and diagnostics find them. Raises UserError with all faults at once.
    """
    from pipeline.config.build import build, section_of

    keep = section_of(config, "preprocess").get("integers") == "keep"
    return seal(build(config["data"], trust=trust, where="data"), config["task"]["kind"], keep)


def seal(source: object, kind: str, keep_integers: bool = False) -> Data:
    """Checked data of a mapping or object with train, val and test. Raises UserError with all faults at once.

    The targets of an autoencoder are its features; whatever else is given as targets is ignored.
    """
    # Faults are collected and raised together, so that the user corrects the data once.
    members = dict(source) if isinstance(source, Mapping) else vars(source) if hasattr(source, "__dict__") else {}
    values = {name: members.get(name, getattr(source, name, None)) for name in (*SPLITS, *OPTIONAL)}
    got = ", ".join(map(str, members)) or type(source).__name__
    faults = [
        fault("data", f"split '{name}' is missing", got=got, expected="train, val and test")
        for name in SPLITS
        if values[name] is None
    ]
    present = [name for name in SPLITS if values[name] is not None]
    loaded = {name: _load_pair(values[name], f"data.{name}", kind, faults) for name in present}
    names = {name: _read_names(values[name], f"data.{name}", faults) for name in ("class_names", "feature_names")}
    pairs = {name: pair for name, pair in loaded.items() if pair is not None}
    integers = all(pair.integers is not None for pair in pairs.values())
    keep_integers = keep_integers and integers
    if keep_integers:
        pairs = {name: pair.with_integers() for name, pair in pairs.items()}
    faults += _rounding_faults(pairs, keep_integers, names["feature_names"])
    faults += _disagreements(pairs, names["class_names"], names["feature_names"])
    X = pairs["train"].X if "train" in pairs else None
    # Only rows [N, F] have columns that can be categorical.
    width = X.shape[1] if isinstance(X, Tensor) and X.ndim == 2 else None
    categories = read_categories(values["categories"], width, names["feature_names"], faults)
    production = _load_production(values["production"], X, keep_integers, faults)
    previous_tasks = _load_previous_tasks(values["previous_tasks"], X, kind, keep_integers, faults)
    if faults:
        raise UserError(*faults)
    rows = {name: len(pairs[name].y) for name in SPLITS}
    metadata = read_row_metadata(values["groups"], values["times"], values["slices"], rows)
    train, val, test = (pairs[name] for name in SPLITS)
    return Data(
        train=Split("train", train.X, train.y, train.dataset, metadata["train"], augmented=train.augmented),
        val=Split("val", val.X, val.y, row_metadata=metadata["val"]),
        test=SealedTest(test.X, test.y, metadata["test"]),
        class_names=names["class_names"],
        feature_names=names["feature_names"],
        source=None if values["source"] is None else str(values["source"]),
        licence=None if values["licence"] is None else str(values["licence"]),
        production=production,
        previous_tasks=previous_tasks,
        unrepresentative_reason=read_unrepresentative_reason(values["representative"]),
        categories=categories,
        category_texts=category_texts(values["categories"], categories, names["feature_names"]),
        column_targets=train.column_targets,
        integer_features=integers,
    )


def _load_production(value: object, train_X: Tree | None, keep_integers: bool, faults: list[str]) -> Tree | None:
    """Unlabelled rows from production, with features shaped as those of train."""
    raw_X = None if value is None else read_features(value, "data.production", faults)
    if raw_X is None:
        return None
    X = map_leaves(to_leaf, raw_X) if keep_integers or isinstance(raw_X, dict | tuple) else to_float32(raw_X)
    if not count_rows(X):
        faults.append(fault("data.production", "has no rows"))
    if train_X is not None:
        faults += _shape_faults("data.production", named_leaves(X, "X"), named_leaves(train_X, "X"), "train")
    return X


def _load_previous_tasks(
    value: object, train_X: Tree | None, kind: str, keep_integers: bool, faults: list[str]
) -> dict[str, Split]:
    """Rows of earlier tasks by their names, with features shaped as those of train."""
    tasks = value or {}
    if not isinstance(tasks, Mapping):
        expected = "a mapping of names to pairs (X, y)"
        faults.append(fault("data.previous_tasks", "has no names", got=type(tasks).__name__, expected=expected))
        return {}
    splits: dict[str, Split] = {}
    for name, raw in tasks.items():
        where = f"data.previous_tasks.{name}"
        pair = _load_pair(raw, where, kind, faults)
        if pair is not None:
            pair = pair.with_integers() if keep_integers else pair
            splits[str(name)] = Split(str(name), pair.X, pair.y)
            if train_X is not None:
                faults += _shape_faults(where, named_leaves(pair.X, "X"), named_leaves(train_X, "X"), "train")
    return splits


def _read_names(value: Any, where: str, faults: list[str]) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        faults.append(fault(where, "is not a list of names", got=value))
        return None
    return tuple(str(name) for name in value)


def _load_pair(raw: object, where: str, kind: str, faults: list[str]) -> LoadedPair | None:
    """Features, targets and the Dataset they were read from; None with the reasons added to `faults`."""
    unpacked = _unpack(raw, where, faults)
    if unpacked is None:
        return None
    raw_X = read_features(unpacked[0], f"{where}.X", faults)
    nested = isinstance(raw_X, dict | tuple)
    if kind == "autoencoder":
        if raw_X is None or not _same_length(raw_X, np.zeros(count_rows(raw_X)), where, faults):
            return None
        if nested:
            got, expected = type(raw_X).__name__, "one array, which the model reconstructs"
            faults.append(fault(f"{where}.X", "an autoencoder takes no nested features", got=got, expected=expected))
            return None
        features = to_float32(raw_X)
        return LoadedPair(features, features, raw={"X": raw_X})
    raw_y = read_targets(unpacked[1], f"{where}.y", faults)
    if raw_X is None or raw_y is None or not _same_length(raw_X, raw_y, where, faults):
        return None
    y = convert_targets(raw_y, f"{where}.y", kind, faults)
    X: Tree | None
    if nested or kind != "language_model":
        X = map_leaves(to_leaf, raw_X) if nested else to_float32(raw_X)
    else:
        X = token_ids(raw_X, f"{where}.X", faults)
        if X is not None and y is not None and X.shape != y.shape:
            got = f"X {tuple(X.shape)} and y {tuple(y.shape)}"
            faults.append(fault(where, "has no target per token", got=got, expected="X and y of one shape, [N, T]"))
            return None
    if y is None or X is None:
        return None
    cast = not nested and kind != "language_model" and raw_X.dtype.kind in "biu"
    dataset = unpacked[2]
    augmented = where == "data.train" and dataset is not None and is_augmented(dataset, where, derive(0, where))
    raw = {name: leaf for name, leaf in named_leaves(raw_X, "X").items() if kind != "language_model"}
    raw = {name: leaf for name, leaf in raw.items() if not nested or leaf.dtype.kind == "f"}
    if y.dtype == torch.float32:
        raw["y"] = raw_y
    return LoadedPair(X, y, dataset, y.ndim < raw_y.ndim, raw_X if cast else None, augmented, raw)


def _rounding_faults(
    pairs: Mapping[str, LoadedPair], keep_integers: bool, feature_names: Sequence[str] | None
) -> list[str]:
    """What float32 cannot hold of the splits, one fault for each part of the rows."""
    faults = []
    train = pairs.get("train")
    for part in train.raw if train is not None else ():
        arrays = {f"data.{name}.{part}": pair.raw[part] for name, pair in pairs.items() if part in pair.raw}
        if (keep_integers and part == "X") or len({array.shape[1:] for array in arrays.values()}) > 1:
            continue  # integers are kept, or another fault is reported

        def column_name(number: int, named: bool = part == "X") -> str:
            known = named and feature_names is not None and number < len(feature_names)
            return f"column '{feature_names[number]}'" if known and feature_names else f"column {number}"

        faults += float32_faults(arrays, column_name)
    return faults


def _same_length(X: Tree, y: Sized, where: str, faults: list[str]) -> bool:
    """Whether there are rows, and equally many in every part; else the reason is added to `faults`."""
    lengths = {name: len(leaf) for name, leaf in named_leaves(X).items()}
    rows = next(iter(lengths.values()))
    if len(set(lengths.values())) > 1:
        got = ", ".join(f"{rows} of {name}" for name, rows in lengths.items())
        faults.append(fault(f"{where}.X", "parts differ in length", got=got, expected="equally many rows of each"))
    elif rows == 0 or len(y) == 0:
        faults.append(fault(where, "is empty", got=f"{rows} rows of X and {len(y)} of y"))
    elif rows != len(y):
        faults.append(fault(where, "X and y differ in length", got=f"{rows} rows of X and {len(y)} of y"))
    else:
        return True
    return False


def _unpack(raw: Any, where: str, faults: list[str]) -> tuple[Any, Any, MapDataset | None] | None:
    """X, y, and the Dataset that training reads again in every epoch, if it is one."""
    if isinstance(raw, tuple | list) and len(raw) == 2:
        return raw[0], raw[1], None
    if isinstance(raw, torch.utils.data.IterableDataset):
        expected = "a map-style Dataset, with __getitem__ and __len__"
        faults.append(fault(where, "is an IterableDataset", got=type(raw).__name__, expected=expected))
        return None
    if tensors := _dataset_tensors(raw):
        return *tensors, None
    is_container = isinstance(raw, Tensor | np.ndarray | str | bytes | Mapping | tuple | list)
    if not is_container and hasattr(raw, "__getitem__") and hasattr(raw, "__len__"):
        arrays = _read_dataset(raw, where, faults)
        return None if arrays is None else (*arrays, raw)
    faults.append(fault(where, "is not a split", got=describe(raw), expected=PAIR))
    return None


def _dataset_tensors(dataset: object) -> tuple[Tensor, Tensor] | None:
    """The two tensors of a TensorDataset, or of a Subset of one as from `random_split`; None for other datasets."""
    data = torch.utils.data
    if type(dataset) is data.Subset and (whole := _dataset_tensors(dataset.dataset)):
        rows = torch.as_tensor(dataset.indices, dtype=torch.int64)
        return whole[0][rows], whole[1][rows]
    # A subclass with its own __getitem__ may return something else than its tensors.
    if isinstance(dataset, data.TensorDataset) and type(dataset).__getitem__ is data.TensorDataset.__getitem__:
        return (dataset.tensors[0], dataset.tensors[1]) if len(dataset.tensors) == 2 else None
    return None


def _read_dataset(dataset: MapDataset, where: str, faults: list[str]) -> tuple[Tree, Array] | None:
    """All items of a map-style Dataset as arrays: the same ones whenever they are read."""
    rows, shapes = list[tuple[Tree, Array]](), list[dict[str, tuple[int, ...]]]()
    seed = derive(0, where)  # not the seed of the run: what is measured on these rows is compared between runs
    try:
        with isolated_reading(), slow_rows_told():
            with attributed_to(where, "__len__ fails"):
                count = len(dataset)
            for i in range(count):
                rows.append(read_item(dataset, i, where, seed=seed, epoch=0))
                shapes = shapes if i else leaf_shapes(rows[0])
                check_same_shapes(rows[-1], shapes, f"{where}[{i}]")
    except UserCodeExit:
        raise
    except UserError as error:
        faults += error.faults
        return None
    if not rows:
        return np.zeros((0, 1)), np.zeros(0)
    return stack_rows([x for x, _ in rows]), stack_rows([y for _, y in rows])


def _disagreements(
    pairs: Mapping[str, LoadedPair], class_names: Sequence[str] | None, feature_names: Sequence[str] | None
) -> list[str]:
    """How the splits differ from each other in shape, or from the names in number."""
    faults: list[str] = []
    if not pairs:
        return faults
    reference, first = next(iter(pairs.items()))
    usual = {**named_leaves(first.X, "X"), "y": first.y}
    for name, pair in pairs.items():
        y = pair.y
        faults += _shape_faults(f"data.{name}", {**named_leaves(pair.X, "X"), "y": y}, usual, reference)
        if class_names and not y.is_floating_point() and int(y.max()) >= len(class_names):
            row = int((y == y.max()).nonzero()[0][0])
            what, got = f"has no name for class {int(y.max())} of data.{name} (row {row})", f"{len(class_names)} names"
            faults.append(fault("data.class_names", what, got=got))
    if feature_names and isinstance(first.X, Tensor) and first.X[0].numel() != len(feature_names):
        expected = f"{first.X[0].numel()}, one per feature"
        faults.append(fault("data.feature_names", "number of names", got=len(feature_names), expected=expected))
    return faults


def _shape_faults(where: str, leaves: Mapping[str, Tensor], usual: Mapping[str, Tensor], reference: str) -> list[str]:
    """How the rows of one split differ in their parts or shapes from the usual ones, those of split `reference`."""
    if leaves.keys() != usual.keys():
        expected = f"{', '.join(usual)} as in data.{reference}"
        return [fault(where, "rows differ in their parts", got=", ".join(leaves), expected=expected)]
    faults = []
    for name, tensor in leaves.items():
        shape, usual_shape = tuple(tensor.shape[1:]), tuple(usual[name].shape[1:])
        if shape != usual_shape:
            expected = f"{usual_shape} as in data.{reference}"
            faults.append(fault(f"{where}.{name}", "rows differ in shape", got=shape, expected=expected))
    return faults
