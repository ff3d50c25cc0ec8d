"""Loading: from whatever the user's `data` returns to checked splits, the test rows sealed at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.dataset import Data
from pipeline.data.reading.arrays import aims, nested, nested_part, targets_of, token_ids, values
from pipeline.data.reading.categories import categories_of
from pipeline.data.reading.items import PAIR, describe, read_item, reading, require_alike, shapes_of, stack
from pipeline.data.reading.row_metadata import marks, unrepresentative
from pipeline.data.sealed import SealedTest
from pipeline.data.splits import Split
from pipeline.data.tree import Tree, each, named, rows_of
from pipeline.errors import UserError, fault
from pipeline.runtime.seeds import derive

SPLITS = ("train", "val", "test")
NAMED = ("class_names", "feature_names", "source", "licence")
MORE = ("groups", "times", "slices", "production", "previous_tasks", "representative", "categories")


def load(config: Mapping[str, Any], trust: Sequence[str] = ()) -> Data:
    """The data of a config, checked, with the test rows sealed.

    X becomes float32, parts of nested X float32, int64 or bool; class labels int64, values float32. Map-style Datasets
    are stacked into memory once; that of train is also kept, since training reads it anew in every epoch.
    NaN and infinities are kept: finding them is the diagnosis' work. Raises UserError with all faults at once.
    """
    from pipeline.config.build import build

    return seal(build(config["data"], trust=trust, where="data"), config["task"]["kind"])


def seal(source: Any, kind: str) -> Data:
    """Checked data of a mapping or object with train, val and test. Raises UserError with all faults at once.

    An autoencoder's targets are its features, whatever stands beside them, and whole rows as they were read once.
    """
    parts = dict(source) if isinstance(source, Mapping) else vars(source) if hasattr(source, "__dict__") else {}
    given = {name: parts.get(name, getattr(source, name, None)) for name in (*SPLITS, *NAMED, *MORE)}
    there = ", ".join(map(str, parts)) or type(source).__name__
    faults = [
        fault("data", f"split '{name}' is missing", got=there, expected="train, val and test")
        for name in SPLITS
        if given[name] is None
    ]
    pairs = {name: _pair(given[name], f"data.{name}", kind, faults) for name in SPLITS if given[name] is not None}
    names = {name: _names(given[name], f"data.{name}", faults) for name in ("class_names", "feature_names")}
    whole = {name: pair for name, pair in pairs.items() if pair is not None}
    faults += _disagreements(whole, names)
    X = whole["train"][0] if "train" in whole else None
    width = X.shape[1] if isinstance(X, Tensor) and X.ndim == 2 else None
    categories = categories_of(given["categories"], width, names["feature_names"], faults)
    others = _others(given, whole.get("train"), kind, faults)
    if faults:
        raise UserError(*faults)
    said = marks(given, {name: len(whole[name][1]) for name in SPLITS})
    return Data(
        train=Split("train", *whole["train"], marks=said["train"]),
        val=Split("val", *whole["val"][:2], marks=said["val"]),
        test=SealedTest(*whole["test"][:2], said["test"]),
        class_names=names["class_names"],
        feature_names=names["feature_names"],
        source=_text(given["source"]),
        licence=_text(given["licence"]),
        **others,
        unrepresentative=unrepresentative(given["representative"]),
        categories=categories,
    )


def _others(given: Mapping[str, Any], train: Any, kind: str, faults: list[str]) -> dict[str, Any]:
    """Rows of the field and of earlier tasks, whose features are shaped as those of train."""
    raw = None if given["production"] is None else nested(given["production"], "data.production", faults)
    field = None if raw is None else each(nested_part, raw) if isinstance(raw, dict | tuple) else values(raw)
    tasks = given["previous_tasks"] or {}
    if not isinstance(tasks, Mapping):
        expected = "a mapping of names to pairs (X, y)"
        faults.append(fault("data.previous_tasks", "has no names", got=type(tasks).__name__, expected=expected))
        tasks = {}
    found = {str(n): _pair(part, f"data.previous_tasks.{n}", kind, faults) for n, part in tasks.items()}
    pairs = {name: pair for name, pair in found.items() if pair is not None}
    features = {f"data.previous_tasks.{name}": pair[0] for name, pair in pairs.items()}
    if field is not None and not rows_of(field):
        faults.append(fault("data.production", "has no rows"))
    features |= {} if field is None else {"data.production": field}
    for where, X in features.items() if train is not None else ():
        faults += _shape_faults(where, named(X, "X"), named(train[0], "X"), "train")
    return {"production": field, "previous": {n: Split(n, X, y) for n, (X, y, _) in pairs.items()}}


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _names(value: Any, where: str, faults: list[str]) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        faults.append(fault(where, "is no list of names", got=value))
        return None
    return tuple(str(name) for name in value)


def _pair(part: Any, where: str, kind: str, faults: list[str]) -> tuple[Tree, Tensor, Any] | None:
    """Features, targets and the Dataset they were read from, if any; or None with the reasons added to `faults`."""
    unpacked = _unpack(part, where, faults)
    if unpacked is None:
        return None
    raw_X = nested(unpacked[0], f"{where}.X", faults)
    if kind == "autoencoder":
        return _itself(raw_X, f"{where}.X", faults)
    raw_y = targets_of(unpacked[1], f"{where}.y", faults)
    if raw_X is None or raw_y is None or not _one_length(raw_X, raw_y, where, faults):
        return None
    y = aims(raw_y, f"{where}.y", kind, faults)
    lone = not isinstance(raw_X, dict | tuple)
    if lone and kind == "language_model":
        X = token_ids(raw_X, f"{where}.X", faults)
        if X is not None and y is not None and X.shape != y.shape:
            got = f"X {tuple(X.shape)} and y {tuple(y.shape)}"
            faults.append(fault(where, "has no target per token", got=got, expected="X and y of one shape, [N, T]"))
            return None
    else:
        X = values(raw_X) if lone else each(nested_part, raw_X)
    return None if y is None or X is None else (X, y, unpacked[2])


def _itself(raw_X: Tree | None, where: str, faults: list[str]) -> tuple[Tensor, Tensor, None] | None:
    """Features that are their own targets."""
    if raw_X is None or not _one_length(raw_X, np.zeros(rows_of(raw_X)), where.removesuffix(".X"), faults):
        return None
    if isinstance(raw_X, dict | tuple):
        got, expected = type(raw_X).__name__, "one array, which the model gives back"
        faults.append(fault(where, "an autoencoder takes no nested features", got=got, expected=expected))
        return None
    X = values(raw_X)
    return X, X, None


def _one_length(X: Tree, y: NDArray[Any], where: str, faults: list[str]) -> bool:
    """Whether there are rows, and as many of each part."""
    parts = {name: len(part) for name, part in named(X).items()}
    rows = next(iter(parts.values()))
    if len(set(parts.values())) > 1:
        got = ", ".join(f"{rows} of {name}" for name, rows in parts.items())
        faults.append(fault(f"{where}.X", "parts differ in length", got=got, expected="as many rows of each"))
    elif rows == 0 or len(y) == 0:
        faults.append(fault(where, "is empty", got=f"{rows} rows of X and {len(y)} of y"))
    elif rows != len(y):
        faults.append(fault(where, "X and y differ in length", got=f"{rows} rows of X and {len(y)} of y"))
    else:
        return True
    return False


def _unpack(part: Any, where: str, faults: list[str]) -> tuple[Any, Any, Any] | None:
    """X, y and the Dataset that has to be read anew in every epoch, if it is one."""
    if isinstance(part, tuple | list) and len(part) == 2:
        return part[0], part[1], None
    if isinstance(part, torch.utils.data.IterableDataset):
        expected = "a map-style Dataset, with __getitem__ and __len__"
        faults.append(fault(where, "is an IterableDataset", got=type(part).__name__, expected=expected))
        return None
    if tensors := _tensors(part):
        return *tensors, None
    items = not isinstance(part, Tensor | np.ndarray | str | bytes | Mapping | tuple | list)
    if items and hasattr(part, "__getitem__") and hasattr(part, "__len__"):
        read = _read(part, where, faults)
        return None if read is None else (*read, part)
    faults.append(fault(where, "is no split", got=describe(part), expected=PAIR))
    return None


def _tensors(part: Any) -> tuple[Tensor, Tensor] | None:
    """The pair inside a TensorDataset, or inside a part of one as `random_split` gives it; else None."""
    data = torch.utils.data
    if type(part) is data.Subset and (whole := _tensors(part.dataset)):
        rows = torch.as_tensor(part.indices, dtype=torch.int64)
        return whole[0][rows], whole[1][rows]
    plain = isinstance(part, data.TensorDataset) and type(part).__getitem__ is data.TensorDataset.__getitem__
    return (part.tensors[0], part.tensors[1]) if plain and len(part.tensors) == 2 else None


def _read(dataset: Any, where: str, faults: list[str]) -> tuple[Any, Any] | None:
    """All items of a map-style Dataset, side by side in memory: the same ones whenever they are read."""
    rows, shapes = list[tuple[Tree, NDArray[Any]]](), list[dict[str, tuple[int, ...]]]()
    seed = derive(0, where)  # not the run's: what is measured on these rows is compared between runs
    try:
        with reading():
            for i in range(len(dataset)):
                rows.append(read_item(dataset, i, where, seed=seed, epoch=0))
                shapes = shapes if i else shapes_of(rows[0])
                require_alike(rows[-1], shapes, f"{where}[{i}]")
    except UserError as error:
        faults += error.faults
        return None
    return (stack([x for x, _ in rows]), stack([y for _, y in rows])) if rows else (np.zeros((0, 1)), np.zeros(0))


def _disagreements(
    pairs: Mapping[str, tuple[Tree, Tensor, Any]], names: Mapping[str, tuple[str, ...] | None]
) -> list[str]:
    """What the splits say differently from each other or from the names."""
    found = []
    reference = next(iter(pairs), None)
    for name, (X, y, _) in pairs.items():
        first = pairs[reference or name]
        found += _shape_faults(f"data.{name}", {**named(X, "X"), "y": y}, {**named(first[0], "X"), "y": first[1]},
                               reference)  # fmt: skip
        classes = names["class_names"]
        if classes and not y.is_floating_point() and int(y.max()) >= len(classes):
            found.append(
                fault("data.class_names", f"names no class {int(y.max())} of data.{name}", got=f"{len(classes)} names")
            )
    features = names["feature_names"]
    if features and reference and isinstance(X := pairs[reference][0], Tensor) and X[0].numel() != len(features):
        expected = f"{X[0].numel()}, one per feature"
        found.append(fault("data.feature_names", "number of names", got=len(features), expected=expected))
    return found


def _shape_faults(where: str, parts: Mapping[str, Tensor], first: Mapping[str, Tensor], reference: Any) -> list[str]:
    """Where the rows of one split have other parts or shapes than those of the first."""
    if parts.keys() != first.keys():
        expected = f"{', '.join(first)} as in data.{reference}"
        return [fault(where, "rows differ in their parts", got=", ".join(parts), expected=expected)]
    found = []
    for name, tensor in parts.items():
        got, usual = tuple(tensor.shape[1:]), tuple(first[name].shape[1:])
        if got != usual:
            expected = f"{usual} as in data.{reference}"
            found.append(fault(f"{where}.{name}", "rows differ in shape", got=got, expected=expected))
    return found
