"""Compares live rows with the reference of a release, and decides whether they drifted.

A feature drifted if its difference is significant among all tests (Holm) and at least as large as the bound: in a
million rows any trifle is significant, and in fifty rows large differences occur by chance. Both suppose rows that are
independent of one another. Where stretches of the data differ by themselves, as those of a text or of a year do, nearly
everything is significant, and the bounds are what these stretches differ by (`rehearsal.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from pipeline.drift.features import Observations
from pipeline.drift.reference import Reference
from pipeline.drift.statistics import compare_categories, compare_numbers, separate, stability_index, wasserstein
from pipeline.trials.stats import holm

MAX_CLASSIFIED = 1000  # live rows for the classifier, a random sample: as many as the reference has at most
FEW_ROWS = 100  # of live or reference rows: below, the power is told
DRAWS = 50
REFUSED = "rows that the schema refuses"
CLASSIFIER = "all inputs together"


class FeatureDrift(TypedDict):
    """How one feature differs, and whether it drifted.

    `effect` is a share of rows, for the classifier its area under the ROC curve; `distance` is the Wasserstein distance
    in standard deviations of the reference, None for categories; `adjusted` is the p-value after Holm's correction.
    """

    feature: str
    role: str
    test: str
    distance: float | None
    psi: float | None
    effect: float
    bound: float
    p_value: float
    adjusted: float
    drifted: bool


class Comparison(TypedDict):
    """The result of a comparison: features in the order of the schema, then the classifier."""

    drifted: bool
    alpha: float
    rows: int
    refused: int
    reference_rows: int
    features: list[FeatureDrift]


@dataclass(frozen=True, eq=False)
class Live:
    """Live rows: their inputs, what the model answered to those that it did not refuse, and how many it refused."""

    inputs: Observations
    outputs: Observations | None
    refused: int = 0


def compare(reference: Reference, live: Live, rng: np.random.Generator, distances: bool = True) -> Comparison:
    """Compare live rows with a reference. The draws choose rows and halves for the classifier.

    Without `distances`, which decide nothing, those of the features are None.
    """
    about = reference.about
    rows = _differences(reference.inputs, live.inputs, about["min_effect"], distances)
    if reference.outputs is not None and live.outputs is not None and len(live.outputs):
        rows += _differences(reference.outputs, live.outputs, about["min_effect"], distances)
    is_refused = (np.arange(len(live.inputs)) < live.refused).astype(float)
    refused = compare_categories(np.zeros(len(reference.inputs)), is_refused)
    rows.append(_row(REFUSED, "input", "Fisher", *refused, about["min_effect"]))
    rows.append(_row(CLASSIFIER, "input", "classifier", *_classified(reference, live, rng), about["min_auc"]))
    for row in rows:
        row["bound"] = about["bounds"].get(row["feature"], row["bound"])
    for row, adjusted in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
        row["adjusted"] = adjusted
        row["drifted"] = adjusted <= about["alpha"] and row["effect"] >= row["bound"]
    return {
        "drifted": any(row["drifted"] for row in rows),
        "alpha": about["alpha"],
        "rows": len(live.inputs),
        "refused": live.refused,
        "reference_rows": len(reference.inputs),
        "features": rows,
    }


def _differences(reference: Observations, live: Observations, bound: float, distances: bool) -> list[FeatureDrift]:
    """Return one row for every feature, in their order."""
    numbers = np.array([feature.kind == "number" for feature in reference.features])
    effects, p_values = np.zeros(len(numbers)), np.ones(len(numbers))
    effects[numbers], p_values[numbers] = compare_numbers(reference.values[:, numbers], live.values[:, numbers])
    for at in map(int, np.flatnonzero(~numbers)):
        effects[at], p_values[at] = compare_categories(reference.values[:, at], live.values[:, at])
    rows = []
    for at, feature in enumerate(reference.features):
        test = "Kolmogorov-Smirnov" if numbers[at] else "chi-square"
        row = _row(feature.name, feature.role, test, float(effects[at]), float(p_values[at]), bound)
        if distances:
            first, second = reference.values[:, at], live.values[:, at]
            row["distance"] = wasserstein(first, second) if numbers[at] else None
            row["psi"] = stability_index(first, second, not numbers[at])
        rows.append(row)
    return rows


def _row(name: str, role: str, test: str, effect: float, p_value: float, bound: float) -> FeatureDrift:
    return {
        "feature": name,
        "role": role,
        "test": test,
        "distance": None,
        "psi": None,
        "effect": effect,
        "bound": bound,
        "p_value": p_value,
        "adjusted": 1.0,
        "drifted": False,
    }


def _classified(reference: Reference, live: Live, rng: np.random.Generator) -> tuple[float, float]:
    """Return how well a classifier tells reference and live rows apart: area under the ROC curve, and p-value."""
    rows = live.inputs.values
    if len(rows) > MAX_CLASSIFIED:
        rows = rows[np.sort(rng.choice(len(rows), MAX_CLASSIFIED, replace=False))]
    categories = np.array([feature.kind == "category" for feature in reference.inputs.features])
    separation = separate(reference.inputs.values, rows, categories, rng)
    return separation.auc, separation.p_value


# --- what so few rows can find ----------------------------------------------------------------------------------------


class Power(TypedDict):
    """In how many of `draws` windows of `rows` reference rows the shift was noticed."""

    shift: str
    rows: int
    draws: int
    detected: int


def power(reference: Reference, rows: int, rng: np.random.Generator) -> Power | None:
    """Return the power for one standard deviation more in a quarter of the numbers; None where there are none.

    Windows are drawn with replacement from the reference, and compared with it by the tests of the inputs.
    """
    values = reference.inputs.values
    deviations = np.nanstd(values.astype(np.float64), axis=0) if len(values) else np.zeros(0)
    numbers = [at for at, feature in enumerate(reference.inputs.features) if feature.kind == "number"]
    varying = [at for at in numbers if deviations[at] > 0]
    if not varying:
        return None
    detected = 0
    for _ in range(DRAWS):
        window = values[rng.integers(len(values), size=rows)].copy()
        shifted = rng.choice(varying, -(-len(varying) // 4), replace=False)
        window[:, shifted] += deviations[shifted].astype(np.float32)
        live = Live(Observations(reference.inputs.features, window), None)
        detected += compare(reference, live, rng, distances=False)["drifted"]
    shift = "one standard deviation more in a quarter of the numbers"
    return {"shift": shift, "rows": rows, "draws": DRAWS, "detected": detected}
