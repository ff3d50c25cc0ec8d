"""From what a config asks for to the modules around a model, fitted on the train rows alone.

preprocess: {impute: none|mean|median, standardize: bool, one_hot: bool, images: none|unit|channels,
             targets: none|standardize}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.dataset import Data
from pipeline.errors import UserError, fault
from pipeline.preprocess.modules import Columns, InverseTargetScale, OneHot, Prepared
from pipeline.preprocess.statistics import Floats, centers, column_name, float32, require_finite, spread

OFF = (None, "none", False)
OF_INPUTS = ("impute", "standardize", "one_hot", "images")
VALUES = ("regression", "autoencoder")  # kinds of task whose targets have a scale


def wrapped(model: nn.Module, config: Mapping[str, Any], data: Data) -> nn.Module:
    """The model between what its config asks for; the model itself where nothing is asked for.

    Fitted on `data.train`. Raises UserError naming `preprocess.<key>` for what does not fit the data or the task, and
    the row and column of a value that is infinite.
    """
    section = config.get("preprocess") or {}
    asked = {key: value for key, value in section.items() if value not in OFF}
    if not asked:
        return model
    if faults := [*_input_faults(asked, data), *_target_faults(asked, config["task"], data)]:
        raise UserError(*faults)
    prepare = _prepare(asked, data) if any(key in asked for key in OF_INPUTS) else None
    return Prepared(prepare, model, _restore(data.train.y) if "targets" in asked else None)


def _input_faults(asked: Mapping[str, Any], data: Data) -> list[str]:
    """Where inputs are asked for what they cannot have done to them."""
    keys = [f"preprocess.{key}" for key in OF_INPUTS if key in asked]
    X = data.train.X
    if not isinstance(X, Tensor):
        return [fault(key, "inputs are nested", got=type(X).__name__, expected="one array of numbers") for key in keys]
    got = _shape(X)
    if not X.is_floating_point():
        got = f"dtype {str(X.dtype).removeprefix('torch.')}"
        return [fault(key, "inputs are codes and no values", got=got, expected="numbers with a scale") for key in keys]
    if len(data.categories) == X.shape[-1]:
        got, expected = "categories in every column", "columns of values"
        scaled = [key for key in keys if key != "preprocess.one_hot"]
        return [fault(key, "inputs are codes and no values", got=got, expected=expected) for key in scaled]
    found = []
    if "one_hot" in asked and not data.categories:
        do = "data.categories: {column: number of codes}, as the readers of tables give them"
        found.append(fault("preprocess.one_hot", "data name no column of categories", expected=do))
    least = {"channels": 4, "unit": 3}.get(str(asked.get("images")), 0)
    if X.ndim < least or (least == 4 and X.ndim > 4):
        expected = "[N, channels, H, W]" + (" or [N, H, W]" if least == 3 else "") + "; for rows preprocess.standardize"
        found.append(fault("preprocess.images", "inputs are no images", got=got, expected=expected))
    if "images" in asked and "standardize" in asked:
        found.append(
            fault("preprocess.images", "scales what preprocess.standardize scales, too", expected="one of the two")
        )
    return found


def _shape(X: Tensor) -> str:
    return f"shape [{', '.join(['N', *map(str, X.shape[1:])])}]"


def _target_faults(asked: Mapping[str, Any], task: Mapping[str, Any], data: Data) -> list[str]:
    """Where targets have no scale, or nobody but a step knows what is compared with them."""
    if "targets" not in asked:
        return []
    if task["kind"] not in VALUES or not data.train.y.is_floating_point():
        expected = f"a task of values: {' or '.join(VALUES)}"
        return [
            fault("preprocess.targets", "targets have no scale", got=f"task.kind={task['kind']}", expected=expected)
        ]
    if task.get("step"):
        return [fault("preprocess.targets", "the loss is that of task.step", expected="scale the targets in the step")]
    return []


def _prepare(asked: Mapping[str, Any], data: Data) -> nn.Module:
    """The module in front of the model."""
    X, shape = data.train.X, tuple(data.train.X.shape[1:])
    codes = list(data.categories)
    fill = mean = inverse = None
    if {"impute", "standardize", "images"} & asked.keys():
        kept = [c for c in range(X.shape[1]) if c not in data.categories] if codes else []
        require_finite(X[:, kept] if codes else X, "data.train", lambda c: column_name(data, kept[c] if codes else c))
    if "impute" in asked:
        fill = float32(_fill(X, str(asked["impute"]), data), shape)
    if "standardize" in asked:
        center, std = spread(X)
        center[codes], std[codes] = 0.0, 1.0
        mean, inverse = float32(center, shape), float32(1 / std, shape)
    elif "images" in asked:
        mean, inverse = _image_scale(X, str(asked["images"]))
    columns = Columns(fill, mean, inverse) if fill is not None or inverse is not None else None
    if "one_hot" not in asked:
        assert columns is not None
        return columns
    hot = OneHot(X.shape[1], dict(data.categories), {c: set(X[:, c].unique().tolist()) for c in codes})
    return hot if columns is None else nn.Sequential(columns, hot)


def _fill(X: Tensor, kind: str, data: Data) -> Floats:
    """What stands for a missing value in each place; for codes the unknown. Raises UserError for a place without."""
    fill = centers(X, kind)
    fill[list(data.categories)] = 0.0
    empty = np.flatnonzero(np.isnan(fill)).tolist()
    if empty:
        do = "leave the column out (data.ignore)"
        what = f"no train row has a value, so that there is no {kind}"
        raise UserError(*(fault("preprocess.impute", f"{column_name(data, c)}: {what}", do=do) for c in empty))
    return fill


def _image_scale(X: Tensor, kind: str) -> tuple[Tensor | None, Tensor]:
    """Mean and inverse deviation of each channel [C, 1, 1]; for `unit` no mean, but the largest value's inverse."""
    if kind == "unit":
        largest = float(X.nan_to_num(0.0).abs().max()) or 1.0
        return None, torch.tensor(1 / largest, dtype=torch.float32)
    mean, std = spread(X.transpose(0, 1).flatten(1).T)
    shape = (X.shape[1], 1, 1)
    return float32(mean, shape), float32(1 / std, shape)


def _restore(y: Tensor) -> InverseTargetScale:
    """Mean and deviation of each target of rows [N, D]; one number for all targets of any other shape."""
    require_finite(y.reshape(len(y), -1), "data.train", lambda c: f"target {c}")
    many = y.ndim == 2 and y.shape[1] > 1
    mean, std = spread(y if many else y.reshape(-1, 1))
    shape = (y.shape[1],) if many else ()
    return InverseTargetScale(float32(mean, shape), float32(std, shape))
