"""Arrays in NPZ: `_target_: pipeline.data.sources.npz.npz`; never with pickle, so that reading a file runs no code."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.sources.labels import require_classes
from pipeline.data.splits import split_rows
from pipeline.errors import UserError, fault

Arrays = dict[str, NDArray[Any]]
SIDES = ("train", "val", "test")


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
) -> dict[str, Any]:
    """Arrays `X` [N, ...] and `y` [N], divided by `seed`; or `X_train`, `y_train`, `X_val` ... as they were divided.

    `X` and `y` name the arrays. NaN in X is kept. Raises UserError naming file, array and row (from 0) for objects,
    labels that are NaN, no whole numbers or out of range, one class only, and a class with one row.
    """
    if path is None:
        raise UserError(fault("data.path", "is not given", expected="the file to read"))
    arrays = _read(path)
    if f"{X}_train" in arrays:
        pairs = {side: (f"{X}_{side}", f"{y}_{side}") for side in SIDES}
    else:
        pairs = {"all": (X, y)}
    _require_names(path, arrays, [name for pair in pairs.values() for name in pair])
    labels = {side: _labels(path, arrays, pair, label_kind, class_names) for side, pair in pairs.items()}
    if label_kind == "classes":
        _require_both(path, pairs, labels, class_names)
    if len(pairs) == 1:
        divided: dict[str, Any] = dict(split_rows(arrays[X], labels["all"], val=val, test=test, seed=seed))
    else:
        divided = {side: (arrays[pair[0]], labels[side]) for side, pair in pairs.items()}
    names = None if class_names is None else [str(name) for name in class_names]
    return {**divided, "class_names": names, "feature_names": None, "source": source or str(path), "licence": licence}


def _read(path: str) -> Arrays:
    """Every array of the file by its name."""
    try:
        with Path(path).open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise UserError(fault("data.path", "holds a single array", got=path, expected="an NPZ file of X and y"))
            return {name: _array(path, loaded, name) for name in loaded.files}
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        raise UserError(fault("data.path", what, got=path, expected=f"a file, seen from {Path.cwd()}")) from error
    except UserError:
        raise
    except (ValueError, EOFError, zipfile.BadZipFile) as error:  # a pickle is a ValueError here
        raise UserError(fault("data.path", "is no NPZ file", got=path, expected="what numpy.savez writes")) from error


def _array(path: str, loaded: Any, name: str) -> NDArray[Any]:
    try:
        return np.asarray(loaded[name])
    except ValueError as error:  # numpy unpickles no objects
        what = "holds objects, which are never unpickled" if "bject" in str(error) else f"is damaged ({error})"
        raise UserError(fault(f"{path}: row 0, array '{name}'", what, expected="an array of numbers")) from error


def _require_names(path: str, arrays: Arrays, names: Sequence[str]) -> None:
    faults = [fault(path, "has no such array", got=name, among=arrays) for name in names if name not in arrays]
    if faults:
        raise UserError(*faults)


def _labels(
    path: str, arrays: Arrays, pair: tuple[str, str], label_kind: str, class_names: Sequence[str] | None
) -> NDArray[Any]:
    """Targets of one pair, ids int64 or values, checked row by row."""
    X, y = arrays[pair[0]], arrays[pair[1]]
    where = f"array '{pair[1]}'"
    if X.ndim == 0 or y.ndim == 0 or len(X) != len(y) or not len(y):
        got = f"shapes {X.shape} and {y.shape}"
        raise UserError(fault(f"{path}: {where}", "and its features are no rows", got=got, expected="[N, ...] and [N]"))
    if y.dtype.kind not in "biuf":
        raise UserError(fault(f"{path}: row 0, {where}", "is no number", got=f"dtype {y.dtype}", expected="numbers"))
    rows = y.reshape(len(y), -1)
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise UserError(fault(f"{path}: row {row}, {where}", "label is not finite", got=y[row], expected="a number"))
    if label_kind == "values":
        return y
    if rows.shape[1] != 1:
        raise UserError(fault(f"{path}: {where}", "holds no class ids", got=f"shape {y.shape}", expected="[N]"))
    ids = rows[:, 0]
    top = np.inf if class_names is None else len(class_names) - 1
    fits = (ids == np.round(ids)) & (ids >= 0) & (ids <= top)
    if not fits.all():
        row = int(np.argmin(fits))
        expected = "whole numbers from 0" + ("" if class_names is None else f" to {top}, one for each class name")
        raise UserError(fault(f"{path}: row {row}, {where}", "label is out of range", got=ids[row], expected=expected))
    return ids.astype(np.int64)


def _require_both(
    path: str, pairs: dict[str, tuple[str, str]], labels: Arrays, class_names: Sequence[str] | None
) -> None:
    """Raises UserError for one class only, and for a class with one row, over all sides together."""
    together = np.concatenate([labels[side] for side in pairs])
    places = [(pairs[side][1], row) for side in pairs for row in range(len(labels[side]))]
    given = [] if class_names is None else [str(name) for name in class_names]
    names = given or [str(i) for i in range(int(together.max()) + 1)] if together.max() < 1 << 20 else []
    if not names:
        name, row = places[int(together.argmax())]
        raise UserError(fault(f"{path}: row {row}, array '{name}'", "label is out of range", got=together.max()))
    require_classes(
        together, names, f"{path}: array '{next(iter(pairs.values()))[1]}'",
        lambda row: f"{path}: row {places[row][1]}, array '{places[row][0]}'",
    )  # fmt: skip
