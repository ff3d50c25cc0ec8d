"""Arrays in NPZ: `_target_: pipeline.data.sources.npz.npz`; never with pickle, so reading a file cannot run code."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.data.source_data import SPLITS, Array, Pair, SourceData, SplitPairs
from pipeline.data.sources.labels import check_class_counts
from pipeline.data.splits import split_rows
from pipeline.errors import UserError, fault
from pipeline.foreign_files import BROKEN, MAX_BYTES

Arrays = dict[str, Array]
MAX_RATIO = 100  # of the arrays to their file where they are larger than `MAX_BYTES`; measured values pack tenfold
MAX_CLASSES = 1 << 20  # a larger label without class names is taken for a mistake


def npz(
    path: str | None,
    *,
    X: str = "X",
    y: str = "y",
    label_kind: str = "classes",
    class_names: Sequence[str] | None = None,
    val: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    source: str | None = None,
    licence: str | None = None,
) -> SourceData:
    """Arrays `X` [N, ...] and `y` [N], divided by `seed`; or `X_train`, `y_train`, `X_val` ..., which are the splits.

    `X` and `y` are the names of the arrays. NaN in X is kept. Raises UserError naming file, array and row (from 0) for
    objects, for labels that are NaN, fractions or out of range, for a single class, and for a class with one row.
    """
    if path is None:
        raise UserError(fault("data.path", "is not given", expected="the file to read"))
    arrays = _read(path)
    if f"{X}_train" in arrays:
        pairs = {split: (f"{X}_{split}", f"{y}_{split}") for split in SPLITS}
    else:
        pairs = {"all": (X, y)}
    absent = [name for pair in pairs.values() for name in pair if name not in arrays]
    if absent:
        raise UserError(*(fault(path, "has no such array", got=name, among=arrays) for name in absent))
    labels = {split: _labels(path, arrays, pair, label_kind, class_names) for split, pair in pairs.items()}
    if label_kind == "classes":
        _check_classes(path, pairs, labels, class_names)
    if len(pairs) == 1:
        divided = split_rows(arrays[X], labels["all"], val=val, test=test, seed=seed)
    else:
        train, val_pair, test_pair = ((arrays[pairs[split][0]], labels[split]) for split in SPLITS)
        divided = SplitPairs(train=train, val=val_pair, test=test_pair)
    if label_kind == "classes" and arrays[next(iter(pairs.values()))[1]].ndim > 1:  # a column of labels stays one
        parts: list[Pair] = [divided["train"], divided["val"], divided["test"]]
        train, val_pair, test_pair = ((features, ids[:, None]) for features, ids in parts)
        divided = SplitPairs(train=train, val=val_pair, test=test_pair)
    names = None if class_names is None else [str(name) for name in class_names]
    return {**divided, "class_names": names, "feature_names": None, "source": source or str(path), "licence": licence}


def _read(path: str) -> Arrays:
    """Every array of the file by its name."""
    try:
        with Path(path).open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise UserError(fault("data.path", "is a single array", got=path, expected="an NPZ file with X and y"))
            assert loaded.zip is not None  # it was just opened
            _refuse_bomb(path, loaded.zip)
            return {name: _array(path, loaded, name) for name in loaded.files}
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        raise UserError(fault("data.path", what, got=path, expected=f"a file, relative to {Path.cwd()}")) from error
    except UserError:
        raise
    except BROKEN as error:  # a pickle is a ValueError here
        raise UserError(
            fault("data.path", "is not an NPZ file", got=path, expected="a file written by numpy.savez")
        ) from error


def _refuse_bomb(path: str, archive: zipfile.ZipFile) -> None:
    """Raises UserError for a small file that unpacks to arrays that fill the memory, before any of it is unpacked.

    No member gives more bytes than the archive claims.
    """
    size, packed = sum(member.file_size for member in archive.infolist()), os.path.getsize(path)
    limit = max(MAX_BYTES, MAX_RATIO * packed)
    if size > limit:
        what = f"{path} has arrays that are far larger than the file, which fills the memory"
        expected = f"at most {limit:,} bytes: {MAX_BYTES:,}, or {MAX_RATIO} times the file"
        do = "write the arrays with numpy.savez, which does not compress, if they are meant to be as large"
        raise UserError(
            fault("data.path", what, got=f"{size:,} bytes in a file of {packed:,}", expected=expected, do=do)
        )


def _array(path: str, loaded: Mapping[str, Array], name: str) -> Array:
    try:
        return np.asarray(loaded[name])
    except BROKEN as error:  # NumPy refuses to unpickle objects
        what = "contains objects, which are never unpickled" if "bject" in str(error) else f"is damaged ({error})"
        raise UserError(fault(f"{path}: row 0, array '{name}'", what, expected="an array of numbers")) from error


def _labels(
    path: str, arrays: Arrays, pair: tuple[str, str], label_kind: str, class_names: Sequence[str] | None
) -> Array:
    """Targets of one pair, ids int64 or values, checked row by row."""
    X, y = arrays[pair[0]], arrays[pair[1]]
    where = f"array '{pair[1]}'"
    if X.ndim == 0 or y.ndim == 0 or len(X) != len(y) or not len(y):
        got = f"shapes {X.shape} and {y.shape}"
        what = "does not have one row for each row of features"
        raise UserError(fault(f"{path}: {where}", what, got=got, expected="[N, ...] and [N]"))
    if y.dtype.kind not in "biuf":
        raise UserError(fault(f"{path}: row 0, {where}", "is not a number", got=f"dtype {y.dtype}", expected="numbers"))
    rows = y.reshape(len(y), -1)
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise UserError(fault(f"{path}: row {row}, {where}", "label is not finite", got=y[row], expected="a number"))
    if label_kind == "values":
        return y
    if rows.shape[1] != 1:
        raise UserError(fault(f"{path}: {where}", "is not class ids", got=f"shape {y.shape}", expected="[N]"))
    ids = rows[:, 0]  # a column [N, 1] of labels is accepted
    highest = np.inf if class_names is None else len(class_names) - 1
    valid = (ids == np.round(ids)) & (ids >= 0) & (ids <= highest)
    if not valid.all():
        row = int(np.argmin(valid))
        expected = "whole numbers from 0" + ("" if class_names is None else f" to {highest}, one for each class name")
        raise UserError(fault(f"{path}: row {row}, {where}", "label is out of range", got=ids[row], expected=expected))
    return ids.astype(np.int64)


def _check_classes(
    path: str, pairs: dict[str, tuple[str, str]], labels: Arrays, class_names: Sequence[str] | None
) -> None:
    """Raises UserError for a single class, and for a class with one row, in all splits together."""
    y = np.concatenate([labels[split] for split in pairs])
    places = [(pairs[split][1], row) for split in pairs for row in range(len(labels[split]))]
    if y.max() >= MAX_CLASSES:
        name, row = places[int(y.argmax())]
        raise UserError(fault(f"{path}: row {row}, array '{name}'", "label is out of range", got=y.max()))
    names = [str(name) for name in class_names or ()] or [str(i) for i in range(int(y.max()) + 1)]
    check_class_counts(
        y, names, f"{path}: array '{next(iter(pairs.values()))[1]}'",
        lambda row: f"{path}: row {places[row][1]}, array '{places[row][0]}'",
    )  # fmt: skip
