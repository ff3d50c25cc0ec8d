"""What a monitor compares: the columns of a table, summaries of images and tokens, and what the model answers.

No torch: live rows are compared where only numpy, scipy, scikit-learn and onnxruntime are installed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pipeline.serving.schema_file import Column, Schema

MAX_ELEMENTS = 64  # of an array whose elements are compared one by one; a larger one is summarized
GRID = 4  # an image is summarized by the means of so many times so many parts of it
MAX_TOKENS = 20  # whose frequencies are compared, the most frequent ones
MAX_VALUES = 16  # of an output of one row that are compared one by one

Array = NDArray[Any]
Floats = NDArray[np.float32]
Kind = Literal["number", "category"]
Role = Literal["input", "prediction", "confidence"]
Takes = Literal["logits", "log_probabilities", "probabilities"]  # what the model's outputs are


class Feature(NamedTuple):
    """One thing that is compared: a number or the code of a category in every row."""

    name: str
    kind: Kind
    role: Role


@dataclass(frozen=True, eq=False)
class Observations:
    """The values of features, float32 [N, F], NaN where missing; `names` are the texts of codes, by feature."""

    features: tuple[Feature, ...]
    values: Floats

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: Array) -> Observations:
        """Return these rows, given as numbers or as a mask."""
        return Observations(self.features, self.values[rows])


Named = dict[str, tuple[Kind, Array]]


def _observed(columns: Named, role: Role, rows: int) -> Observations:
    features = tuple(Feature(name, kind, role) for name, (kind, _) in columns.items())
    values = np.empty((rows, len(columns)), np.float32)
    for place, (_, column) in enumerate(columns.values()):
        with np.errstate(over="ignore"):
            values[:, place] = column
    values[~np.isfinite(values)] = np.nan
    return Observations(features, values)


# --- inputs ----------------------------------------------------------------------------------------------------------


def input_observations(
    schema: Schema, tensors: Mapping[str, Array], tokens: Mapping[str, Sequence[int]]
) -> Observations:
    """Return the features of rows [N, ...] that are given as the tensors of the schema, by name.

    `tokens` are the ids whose frequencies are compared, by column of tokens.
    """
    columns: Named = {}
    for tensor in schema["tensors"]:
        values = tensors[tensor["name"]]
        for number, column in enumerate(columns_of(schema, tensor["name"])):
            of_column = values if tensor["whole"] else values[:, number]
            columns |= _input_columns(column, of_column, tokens.get(column["name"], ()))
    return _observed(columns, "input", len(next(iter(tensors.values()))))


def columns_by_feature(
    schema: Schema, tensors: Mapping[str, Array], tokens: Mapping[str, Sequence[int]]
) -> dict[str, str]:
    """Return the column that each feature of the inputs is of, by the name of the feature."""
    owners: dict[str, str] = {}
    for tensor in schema["tensors"]:
        values = tensors[tensor["name"]][:1]
        for number, column in enumerate(columns_of(schema, tensor["name"])):
            of_column = values if tensor["whole"] else values[:, number]
            features = _input_columns(column, of_column, tokens.get(column["name"], ()))
            owners |= dict.fromkeys(features, column["name"])
    return owners


def columns_of(schema: Schema, tensor: str) -> list[Column]:
    """Return the columns of a tensor, in their order."""
    return [column for column in schema["inputs"] if column["tensor"] == tensor]


def frequent_tokens(schema: Schema, tensors: Mapping[str, Array]) -> dict[str, list[int]]:
    """Return the most frequent ids of every column of tokens, in rows that represent the population."""
    frequent = {}
    for column in schema["inputs"]:
        if column["kind"] == "tokens":
            ids, counts = np.unique(tensors[column["tensor"]], return_counts=True)
            frequent[column["name"]] = sorted(ids[np.argsort(-counts, kind="stable")[:MAX_TOKENS]].tolist())
    return frequent


def _input_columns(column: Column, values: Array, tokens: Sequence[int]) -> Named:
    name, kind = column["name"], column["kind"]
    if values.ndim == 1:
        return {name: ("category" if kind == "category" else "number", values)}
    if kind == "image":
        return _image(name, values)
    if kind == "tokens":
        return _tokens(name, values, tokens)
    size = math.prod(values.shape[1:])
    if size <= MAX_ELEMENTS:
        flat, places = values.reshape(len(values), -1), list(np.ndindex(values.shape[1:]))
        return {f"{name}{list(place)}": ("number", flat[:, at]) for at, place in enumerate(places)}
    return _array(name, values)


def _image(name: str, images: Array) -> Named:
    """Mean and standard deviation of all pixels, the mean of each channel, and the means of the parts of a grid."""
    pixels = images.reshape(len(images), -1)
    features: Named = {f"{name} mean": ("number", pixels.mean(1)), f"{name} deviation": ("number", pixels.std(1))}
    channels_first = images.ndim == 4 and images.shape[1] <= 4
    planes = images if channels_first else np.moveaxis(images, -1, 1) if images.ndim == 4 else images[:, None]
    if planes.shape[1] > 1:
        features |= {f"{name} channel {c}": ("number", planes[:, c].mean((1, 2))) for c in range(planes.shape[1])}
    plane = planes.mean(1)
    for row, rows in enumerate(np.array_split(np.arange(plane.shape[1]), min(GRID, plane.shape[1]))):
        for column, columns in enumerate(np.array_split(np.arange(plane.shape[2]), min(GRID, plane.shape[2]))):
            part = plane[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            features[f"{name} part {row},{column}"] = ("number", part.mean((1, 2)))
    return features


def _tokens(name: str, ids: Array, frequent: Sequence[int]) -> Named:
    """The length up to trailing zeros, the share of different tokens, and the frequencies of frequent ones."""
    rows = ids.reshape(len(ids), -1)
    length = np.where(rows.any(1), rows.shape[1] - (rows[:, ::-1] != 0).argmax(1), 0)
    ordered = np.sort(rows, axis=1)
    different = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(1)
    features: Named = {f"{name} length": ("number", length), f"{name} different": ("number", different / rows.shape[1])}
    return features | {f"{name} token {token}": ("number", (rows == token).mean(1)) for token in frequent}


def _array(name: str, values: Array) -> Named:
    """Mean, deviation and extremes of all elements, and the mean of each of the first elements of the last axis."""
    flat = values.reshape(len(values), -1).astype(np.float32)
    features: Named = {f"{name} mean": ("number", flat.mean(1)), f"{name} deviation": ("number", flat.std(1))}
    features |= {f"{name} lowest": ("number", flat.min(1)), f"{name} highest": ("number", flat.max(1))}
    last = flat.reshape(len(values), -1, values.shape[-1])
    if last.shape[1] > 1 and last.shape[2] <= MAX_ELEMENTS:
        features |= {f"{name} mean of {at}": ("number", last[:, :, at].mean(1)) for at in range(last.shape[2])}
    return features


# --- what the model answers ------------------------------------------------------------------------------------------


def output_observations(
    outputs: Mapping[str, Array], task: str, takes: Takes, tensors: Mapping[str, Array]
) -> Observations | None:
    """Return predictions and confidence of rows from the outputs of the graph; None where it has no numbers.

    `takes` says what `output` is where the graph has no `probabilities`; `tensors` are the inputs of the same rows.
    """
    numbers = {name: values for name, values in outputs.items() if values.dtype.kind in "fiub"}
    if not numbers:
        return None
    main = numbers.get("output", next(iter(numbers.values())))
    rows = len(main)
    scores = numbers.get("probabilities")
    if task == "regression":
        return _observed(_values("prediction", main), "prediction", rows)
    if task == "autoencoder":
        return _observed(_reconstruction(main, tensors), "confidence", rows)
    if task == "custom":
        return _observed(_values("output", main), "prediction", rows)
    if scores is None:
        scores = probabilities(main, takes, several=task == "multilabel")
    classes, confidence = _of_probabilities(scores, task)
    return joined([_observed(classes, "prediction", rows), _observed(confidence, "confidence", rows)])


def joined(parts: Sequence[Observations]) -> Observations:
    """Return the features of all parts, which have the same rows."""
    features = tuple(feature for part in parts for feature in part.features)
    return Observations(features, np.concatenate([part.values for part in parts], axis=1))


def probabilities(outputs: Array, takes: Takes, several: bool = False) -> Array:
    """Return outputs as probabilities; the classes are the last axis of [N, C], and axis 1 of [N, C, ...].

    `several`: every output is a label of its own. One output per row is the class 1 of two.
    """
    if takes == "probabilities":
        return outputs
    if takes == "log_probabilities":
        return np.exp(outputs)
    if several or outputs.ndim == 1 or outputs.shape[1] == 1:
        with np.errstate(over="ignore"):
            return np.asarray(1 / (1 + np.exp(-outputs.astype(np.float64))))
    return _softmax(outputs, 1 if outputs.ndim != 3 else -1)


def _softmax(logits: Array, axis: int) -> Array:
    exponents = np.exp(logits - logits.max(axis, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis, keepdims=True))


def _of_probabilities(scores: Array, task: str) -> tuple[Named, Named]:
    if task == "multilabel":
        count = {"predicted labels": ("number", (scores > 0.5).sum(1))}
        labels = _values("label", scores.reshape(len(scores), -1))
        return count | {f"probability of {name}": column for name, column in labels.items()}, {}  # type: ignore[return-value]
    if scores.ndim > 2:  # a class per token or pixel
        of_place = scores.max(1 if scores.ndim != 3 else -1)
        return {}, {"confidence": ("number", of_place.reshape(len(scores), -1).mean(1))}
    if scores.ndim == 1 or scores.shape[1] == 1:
        positive = scores.reshape(-1)
        scores = np.stack([1 - positive, positive], 1)
    unanswered = np.isnan(scores).any(1)
    classes = np.where(unanswered, np.nan, scores.argmax(1))
    return {"predicted class": ("category", classes)}, {"confidence": ("number", scores.max(1))}


def _values(name: str, values: Array) -> Named:
    flat = values.reshape(len(values), -1)
    if flat.shape[1] == 1:
        return {name: ("number", flat[:, 0])}
    if flat.shape[1] <= MAX_VALUES:
        return {f"{name} {place}": ("number", flat[:, place]) for place in range(flat.shape[1])}
    return {f"{name} mean": ("number", flat.mean(1)), f"{name} deviation": ("number", flat.std(1))}


def _reconstruction(outputs: Array, tensors: Mapping[str, Array]) -> Named:
    """The root of the mean squared difference of every row from its reconstruction."""
    flat = outputs.reshape(len(outputs), -1)
    inputs = [values.reshape(len(values), -1) for values in tensors.values()]
    if len(inputs) != 1 or inputs[0].shape != flat.shape:
        return _values("output", outputs)
    return {"reconstruction error": ("number", np.sqrt(((flat - inputs[0]) ** 2).mean(1)))}
