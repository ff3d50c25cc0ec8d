"""From the `preprocess` section of a config to modules around a model, fitted on the train rows alone.

preprocess: {impute: none|mean|median, standardize: bool, one_hot: bool, images: none|unit|channels,
             targets: none|standardize}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.config.build import section_of
from pipeline.data.dataset import Data
from pipeline.errors import UserError, fault
from pipeline.preprocess.modules import ImputeAndScale, InverseTargetScale, OneHot, PreprocessedModel
from pipeline.preprocess.statistics import Floats, centers, column_name, float32, mean_and_std, require_finite

OFF = (None, "none", False)
INPUT_KEYS = ("impute", "standardize", "one_hot", "images")
TASKS_OF_VALUES = ("regression", "autoencoder")  # kinds of task whose targets have a scale


@dataclass(frozen=True)
class PreprocessOptions:
    """The `preprocess` section; an option that is None is off."""

    impute: str | None = None
    standardize: bool | None = None
    one_hot: bool | None = None
    images: str | None = None
    targets: str | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> PreprocessOptions:
        section = section_of(config, "preprocess")
        names = [field.name for field in fields(cls) if section.get(field.name) not in OFF]
        options: dict[str, Any] = {name: section[name] for name in names}
        return cls(**options)

    @property
    def input_keys(self) -> list[str]:
        """The options for inputs that are on."""
        return [key for key in INPUT_KEYS if getattr(self, key) is not None]


def wrap_model(model: nn.Module, config: Mapping[str, object], data: Data) -> nn.Module:
    """Wrap the model in the preprocessing of its config; return the model itself if there is none.

    The preprocessing is fitted on `data.train`. Raises UserError naming `preprocess.<key>` for options that do not fit
    the data or the task, and the row and column of an infinite value.
    """
    options = PreprocessOptions.from_config(config)
    if options == PreprocessOptions():
        return model
    task = section_of(config, "task")
    if faults := [*_input_faults(options, data), *_target_faults(options, task["kind"], task.get("step"), data)]:
        raise UserError(*faults)
    prepare = _fit_input_modules(options, data) if options.input_keys else None
    return PreprocessedModel(prepare, model, None if options.targets is None else _fit_target_scale(data.train.y))


def _input_faults(options: PreprocessOptions, data: Data) -> list[str]:
    """One fault for every input option that does not fit the inputs."""
    keys = [f"preprocess.{key}" for key in options.input_keys]
    X = data.train.X
    if not isinstance(X, Tensor):
        return [fault(key, "inputs are nested", got=type(X).__name__, expected="one array of numbers") for key in keys]
    got = _format_shape(X)
    what = "inputs are codes, not values"
    if not X.is_floating_point():
        got = f"dtype {str(X.dtype).removeprefix('torch.')}"
        return [fault(key, what, got=got, expected="numbers with a scale") for key in keys]
    if len(data.categories) == X.shape[-1]:
        got, expected = "categories in every column", "columns of values"
        return [fault(key, what, got=got, expected=expected) for key in keys if key != "preprocess.one_hot"]
    faults = []
    if options.one_hot and not data.categories:
        do = "data.categories: {column: number of codes}, as the readers of tables give them"
        faults.append(fault("preprocess.one_hot", "data name no column of categories", expected=do))
    min_dims = {"channels": 4, "unit": 3}.get(str(options.images), 0)
    if X.ndim < min_dims or (min_dims == 4 and X.ndim > 4):
        expected = "[N, channels, H, W]" + (" or [N, H, W]" if min_dims == 3 else "")
        expected += "; for rows preprocess.standardize"
        faults.append(fault("preprocess.images", "inputs are not images", got=got, expected=expected))
    if options.images and options.standardize:
        what = "scales the same inputs as preprocess.standardize"
        faults.append(fault("preprocess.images", what, expected="one of the two"))
    return faults


def _format_shape(X: Tensor) -> str:
    return f"shape [{', '.join(['N', *map(str, X.shape[1:])])}]"


def _target_faults(options: PreprocessOptions, kind: object, step: object, data: Data) -> list[str]:
    """A fault if targets have no scale, or if only the user's `task.step` knows what they are compared with."""
    if options.targets is None:
        return []
    if kind not in TASKS_OF_VALUES or not data.train.y.is_floating_point():
        expected = f"a task of values: {' or '.join(TASKS_OF_VALUES)}"
        return [fault("preprocess.targets", "targets have no scale", got=f"task.kind={kind}", expected=expected)]
    if step:
        what = "task.step computes the loss"
        return [fault("preprocess.targets", what, expected="scale the targets in the step")]
    return []


def _fit_input_modules(options: PreprocessOptions, data: Data) -> nn.Module:
    """Fit the module in front of the model."""
    X, shape = data.train.X, tuple(data.train.X.shape[1:])
    codes = list(data.categories)
    fill = mean = inverse = None
    if options.impute or options.standardize or options.images:
        values = [c for c in range(X.shape[1]) if c not in data.categories] if codes else []
        scaled = X[:, values] if codes else X
        require_finite(scaled, "data.train", lambda c: column_name(data, values[c] if codes else c))
    if options.impute:
        fill = float32(_fill_values(X, options.impute, data), shape)
    if options.standardize:
        center, std = mean_and_std(X)
        center[codes], std[codes] = 0.0, 1.0  # codes are names, not numbers: they stay what they are
        mean, inverse = float32(center, shape), float32(1 / std, shape)
    elif options.images:
        mean, inverse = _image_scale(X, options.images)
    scale = ImputeAndScale(fill, mean, inverse) if fill is not None or inverse is not None else None
    if not options.one_hot:
        assert scale is not None
        return scale
    one_hot = OneHot(X.shape[1], dict(data.categories), {c: set(X[:, c].unique().tolist()) for c in codes})
    return one_hot if scale is None else nn.Sequential(scale, one_hot)


def _fill_values(X: Tensor, kind: str, data: Data) -> Floats:
    """The value that replaces a missing one in each column; for codes it is 0, the unknown category.

    Raises UserError for a column without any value.
    """
    fill = centers(X, kind)
    fill[list(data.categories)] = 0.0
    empty = np.flatnonzero(np.isnan(fill)).tolist()
    if empty:
        do = "leave the column out (data.ignore)"
        what = f"no train row has a value, so that there is no {kind}"
        raise UserError(*(fault("preprocess.impute", f"{column_name(data, c)}: {what}", do=do) for c in empty))
    return fill


def _image_scale(X: Tensor, kind: str) -> tuple[Tensor | None, Tensor]:
    """Mean and inverse deviation of each channel [C, 1, 1]; for `unit` None and the inverse of the largest value."""
    if kind == "unit":
        largest = float(X.nan_to_num(0.0).abs().max()) or 1.0
        return None, torch.tensor(1 / largest, dtype=torch.float32)
    mean, std = mean_and_std(X.transpose(0, 1).flatten(1).T)
    shape = (X.shape[1], 1, 1)
    return float32(mean, shape), float32(1 / std, shape)


def _fit_target_scale(y: Tensor) -> InverseTargetScale:
    """Mean and deviation of each target of rows [N, D]; one of both for all targets of any other shape."""
    require_finite(y.reshape(len(y), -1), "data.train", lambda c: f"target {c}")
    per_target = y.ndim == 2 and y.shape[1] > 1
    mean, std = mean_and_std(y if per_target else y.reshape(-1, 1))
    shape = (y.shape[1],) if per_target else ()
    return InverseTargetScale(float32(mean, shape), float32(std, shape))
