"""The reference of a release: a sample of its rows with their statistics, and what the model answers to some of them.

`drift_reference.json` describes every feature; `drift_reference.npz` has the sampled values, as plain numbers.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict

import numpy as np

from pipeline.drift.features import Array, Feature, Kind, Observations, Role, Takes
from pipeline.errors import UserError, fault
from pipeline.foreign_files import parse_json, read_bytes, read_npz
from pipeline.json_types import mismatch

if TYPE_CHECKING:
    from pipeline.run_store.records import ScoreRecord

JSON_FILE, NPZ_FILE = "drift_reference.json", "drift_reference.npz"
MAX_ROWS = 1000  # sampled: a difference of a tenth of the rows is significant, among hundreds of features too
MAX_JSON_BYTES = 2**25
ALPHA = 0.01  # of all tests together (Holm): one comparison in a hundred without drift may be significant
MIN_EFFECT = 0.1  # a tenth of the rows have another value
MIN_AUC = 0.6  # of the classifier between reference and live rows
QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
MAX_SHARES = 50  # categories whose shares are listed


class Summary(TypedDict):
    """A feature of the reference; numbers have moments and quantiles of their known values, categories shares."""

    name: str
    kind: Kind
    role: Role
    missing: float
    mean: NotRequired[float]
    deviation: NotRequired[float]
    quantiles: NotRequired[list[float]]
    shares: NotRequired[dict[str, float]]


class About(TypedDict):
    """The content of `drift_reference.json`.

    `takes` says what the output of the graph is; `tokens` are the ids whose frequencies are compared; `model` is the
    digest of the ONNX file that answered; `released` the score on the test rows; `label` the column of the targets in
    the owner's table. `bounds` replace `min_effect` and `min_auc` for features that differ by more between stretches of
    the data itself.
    """

    schema: int
    task: str
    takes: Takes
    model: str | None
    seed: int
    rows: dict[str, int]
    alpha: float
    min_effect: float
    min_auc: float
    bounds: dict[str, float]
    tokens: dict[str, list[int]]
    released: dict[str, float | str | bool | None] | None
    label: str | None
    features: list[Summary]


@dataclass(frozen=True, eq=False)
class Reference:
    """What live rows are compared with. Inputs and outputs are of different rows: the model answered no train row."""

    about: About
    inputs: Observations
    outputs: Observations | None

    def of_rows(self, inputs: Array, outputs: Array) -> Reference:
        """Return the reference of only these rows, given as masks."""
        taken_outputs = None if self.outputs is None else self.outputs.take(outputs)
        return replace(self, inputs=self.inputs.take(inputs), outputs=taken_outputs)


def summaries(observations: Observations) -> list[Summary]:
    """Return the statistics of every feature."""
    return [_summary(feature, observations.values[:, at]) for at, feature in enumerate(observations.features)]


def _summary(feature: Feature, values: Array) -> Summary:
    known = values[~np.isnan(values)]
    missing = 1 - len(known) / max(1, len(values))
    summary: Summary = {"name": feature.name, "kind": feature.kind, "role": feature.role, "missing": missing}
    if feature.kind == "category":
        codes, counts = np.unique(known, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:MAX_SHARES]
        summary["shares"] = {f"{codes[at]:.0f}": float(counts[at] / len(values)) for at in order}
    elif len(known):
        exact = known.astype(np.float64)
        summary |= {"mean": float(exact.mean()), "deviation": float(exact.std())}
        summary["quantiles"] = [float(q) for q in np.quantile(exact, QUANTILES)]
    return summary


def released_score(score: ScoreRecord) -> dict[str, float | str | bool | None]:
    """Return what live scores are compared with."""
    keys = ("metric", "value", "low", "high", "n", "greater_is_better")
    figures: Mapping[str, float | str | bool | None] = score  # type: ignore[assignment]
    return {key: figures.get(key) for key in keys}


def to_files(reference: Reference) -> dict[str, bytes]:
    """Return the two files of a reference by name; equal references have equal bytes."""
    buffer, none = io.BytesIO(), np.zeros(0, np.float32)
    outputs = none if reference.outputs is None else reference.outputs.values.reshape(-1)
    np.savez_compressed(buffer, inputs=reference.inputs.values.reshape(-1), outputs=outputs)
    text = json.dumps(reference.about, indent=1, allow_nan=False)
    return {JSON_FILE: (text + "\n").encode(), NPZ_FILE: buffer.getvalue()}


def load(payload: Path) -> Reference:
    """Return the reference of a payload. Raises UserError where it has none that can be read."""
    path = payload / JSON_FILE
    about: About = parse_json(read_bytes(path, "the reference of a release", MAX_JSON_BYTES), str(path))
    if wrong := mismatch(about, About, "reference"):
        raise UserError(fault(str(path), f"is not a reference ({wrong})", expected="the file that the release wrote"))
    content = read_bytes(payload / NPZ_FILE, "the reference of a release")
    arrays = read_npz(
        content, str(payload / NPZ_FILE), {"inputs": np.float32, "outputs": np.float32}, "the sample of a reference"
    )
    features = [Feature(s["name"], s["kind"], s["role"]) for s in about["features"]]
    parts = []
    for name, own in (
        ("inputs", [feature for feature in features if feature.role == "input"]),
        ("outputs", [feature for feature in features if feature.role != "input"]),
    ):
        if len(arrays[name]) % max(1, len(own)) or (len(arrays[name]) > 0) != bool(own):
            what = f"has {len(arrays[name])} values of {name} for {len(own)} features"
            raise UserError(fault(str(payload / NPZ_FILE), what, expected="the file that the release wrote"))
        parts.append(Observations(tuple(own), arrays[name].reshape(-1, len(own)) if own else np.zeros((0, 0), "f4")))
    return Reference(about, parts[0], parts[1] if parts[1].features else None)
