"""The rehearsal of a monitor before its release: how often it alarms without a shift, and how often with one."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import numpy as np
from torch import Tensor

from pipeline.drift.answers import MODEL
from pipeline.drift.compare import CLASSIFIER, Comparison
from pipeline.drift.features import Array, columns_by_feature, input_observations
from pipeline.drift.reference import (
    ALPHA,
    MAX_ROWS,
    MIN_AUC,
    MIN_EFFECT,
    About,
    Reference,
    released_score,
    summaries,
    to_files,
)
from pipeline.drift.shifts import Shift, prior_rows, shifts_of
from pipeline.drift.statistics import one_thread
from pipeline.drift.windows import Rows, Windows, taken
from pipeline.readiness.corruption import plan_threads
from pipeline.readiness.subject import Subject
from pipeline.run_store import files
from pipeline.run_store.records import ScoreRecord
from pipeline.runtime.seeds import derive
from pipeline.runtime.threads import running_on
from pipeline.serving.schema_file import Schema, read_schema

DRAWS = 200  # windows without a shift
SHIFTED_DRAWS = 40  # windows of each shift
COLUMNS_PER_REHEARSAL = 10_000  # comparisons of a feature without a shift: fewer draws for wide tables, for time
MIN_DRAWS = 40
DEVIATIONS = 3  # above the mean effect of stretches of the train rows
OFTEN = 0.05  # of the windows without a shift, or of the stretches: with more alarms, rows are not alike


class Detection(TypedDict):
    """How many windows of a shift were found; `features` are those that were named most often."""

    shift: str
    what: str
    draws: int
    detected: int
    features: list[str]


class Stretches(TypedDict):
    """How stretches of consecutive train rows differ from the others, if rows have times or windows raise alarms.

    With the common bounds `before` windows raised an alarm, most often by the features `named`. Of the stretches that
    were `compared` some `drifted`; `bounds` are then what they differ by, by feature.
    """

    before: int
    named: list[str]
    compared: int
    drifted: int
    bounds: dict[str, float]


class RehearsalEvidence(TypedDict):
    """What the rehearsal found; `why` is the reason where nothing could be compared.

    A window is half of the validation rows, at most 500, and is compared with a reference without its rows. Where
    `stretches` has bounds, all figures are those of the monitor with them, and the rows of a window are consecutive.
    """

    features: int
    reference_rows: int
    window: int
    alpha: float
    min_effect: float
    min_auc: float
    draws: int
    false_alarms: int
    falsely_named: list[str]
    shifts: list[Detection]
    monitored: dict[str, int]
    stretches: Stretches | None
    why: str | None


def build_reference(
    subject: Subject, folder: Path, schema: Schema, score: ScoreRecord | None = None
) -> tuple[Reference, Rows, Array]:
    """Return the reference of a release, the rows that it is from, and which row each of its rows is, train rows first.

    Inputs are a sample of train and validation rows; outputs are those of validation rows, since the model knows the
    train rows. `folder` has the ONNX file.
    """
    rows = Rows(subject, folder, schema)
    rng = np.random.default_rng(derive(subject.seed, "drift", "reference"))
    counts = {split: len(next(iter(of.values()))) for split, of in (("train", rows.train), ("val", rows.val))}
    chosen = np.sort(rng.permutation(sum(counts.values()))[:MAX_ROWS])
    from_train, from_val = chosen[chosen < counts["train"]], chosen[chosen >= counts["train"]] - counts["train"]
    sample = {name: np.concatenate([rows.train[name][from_train], rows.val[name][from_val]]) for name in rows.train}
    inputs = input_observations(schema, sample, rows.tokens)
    answered = np.sort(rng.permutation(counts["val"])[:MAX_ROWS])
    outputs = rows.live(taken(rows.val, answered)).outputs
    label = (subject.config.get("data") or {}).get("label")
    about: About = {
        "schema": 1,
        "task": rows.task,
        "takes": rows.takes,
        "model": files.sha256(folder / MODEL),
        "seed": derive(subject.seed, "drift", "live"),
        "rows": {**counts, "inputs": len(chosen), "outputs": 0 if outputs is None else len(outputs)},
        "alpha": ALPHA,
        "min_effect": MIN_EFFECT,
        "min_auc": MIN_AUC,
        "bounds": {},
        "tokens": rows.tokens,
        "released": None if score is None else released_score(score),
        "label": label if isinstance(label, str) else None,
        "features": summaries(inputs) + ([] if outputs is None else summaries(outputs)),
    }
    return Reference(about, inputs, outputs), rows, chosen


def measure(
    subject: Subject, folder: Path, score: ScoreRecord | None = None
) -> tuple[dict[str, Path], RehearsalEvidence]:
    """Write the reference beside the ONNX file and the schema of `folder`, and rehearse the monitor with it.

    `score` is the released figure that live scores are compared with. Returns the files by name and what was found.
    """
    if not (folder / MODEL).is_file():
        return {}, _nothing("there is no ONNX file whose answers could be monitored, see onnx_parity")
    schema = read_schema(folder)
    with running_on(plan_threads(subject)), one_thread():
        reference, rows, origin = build_reference(subject, folder, schema, score)
        windows = Windows(reference, rows, origin)
        evidence = _rehearsed(subject, windows)
        if evidence["draws"] and (rows.has_times or evidence["false_alarms"] > OFTEN * evidence["draws"]):
            stretches = _stretches(windows, evidence)
            reference.about["bounds"] |= stretches["bounds"]
            evidence = {**(_rehearsed(subject, windows) if stretches["bounds"] else evidence), "stretches": stretches}
        paths = {}
        for name, content in to_files(reference).items():
            files.write_bytes(folder / name, content)
            paths[name] = folder / name
        return paths, evidence


def _nothing(why: str) -> RehearsalEvidence:
    return {
        "features": 0,
        "reference_rows": 0,
        "window": 0,
        "alpha": ALPHA,
        "min_effect": MIN_EFFECT,
        "min_auc": MIN_AUC,
        "draws": 0,
        "false_alarms": 0,
        "falsely_named": [],
        "shifts": [],
        "monitored": {},
        "stretches": None,
        "why": why,
    }


def _stretches(windows: Windows, before: RehearsalEvidence) -> Stretches:
    """Return the bounds of a monitor of rows that are not alike, from what stretches of the train rows differ by.

    The bound of a feature that drifted in any stretch is the mean of its effects and three standard deviations, as in
    NannyML; all features of one column have the largest of theirs. Other features keep the common bound, and all do
    where hardly a stretch drifted.
    """
    rows = windows.rows
    owners = columns_by_feature(rows.schema, rows.train, rows.tokens)
    comparisons = windows.of_train(np.random.default_rng(derive(rows.seed, "drift", "stretches")))
    natural: dict[str, float] = {}
    for of_feature in zip(*(comparison["features"] for comparison in comparisons), strict=True):
        effects, name = np.array([row["effect"] for row in of_feature]), of_feature[0]["feature"]
        if any(row["drifted"] for row in of_feature):
            bound = min(1.0, float(effects.mean() + DEVIATIONS * effects.std()))
            natural[owners.get(name, name)] = max(bound, natural.get(owners.get(name, name), of_feature[0]["bound"]))
    drifted = sum(comparison["drifted"] for comparison in comparisons)
    if drifted <= OFTEN * len(comparisons):
        natural = {}
    outputs = windows.reference.outputs
    features = [*windows.reference.inputs.features, *(outputs.features if outputs else ())]
    names = [*(feature.name for feature in features), CLASSIFIER]
    return {
        "before": before["false_alarms"],
        "named": before["falsely_named"],
        "compared": len(comparisons),
        "drifted": drifted,
        "bounds": {name: natural[owners.get(name, name)] for name in names if owners.get(name, name) in natural},
    }


def _rehearsed(subject: Subject, windows: Windows) -> RehearsalEvidence:
    reference, rows = windows.reference, windows.rows
    features = [feature.name for feature in reference.inputs.features]
    outputs = reference.outputs
    evidence: RehearsalEvidence = {
        **_nothing(""),
        "features": len(features) + (0 if outputs is None else len(outputs.features)),
        "reference_rows": len(reference.inputs),
        "window": windows.size,
        "monitored": _monitored(reference),
        "why": None,
    }
    if windows.size < 2:
        evidence["why"] = f"{windows.count} validation rows have no two halves that could be compared"
        return evidence
    draws = int(np.clip(COLUMNS_PER_REHEARSAL // max(1, evidence["features"]), MIN_DRAWS, DRAWS))
    rng = np.random.default_rng(derive(subject.seed, "drift", "rehearsal"))
    comparisons = [windows.compared(windows.drawn(rng), None, rng) for _ in range(draws)]
    evidence["draws"] = draws
    evidence["false_alarms"] = sum(comparison["drifted"] for comparison in comparisons)
    evidence["falsely_named"] = _most_named(comparisons)
    shifts = shifts_of(rows.schema, rows.train)
    evidence["shifts"] = [_detected(windows, shift, rng) for shift in shifts]
    targets = subject.data.val.y
    if rows.task in ("classification", "binary", "regression") and isinstance(targets, Tensor) and outputs is not None:
        values = targets.cpu().numpy().reshape(windows.count, -1)
        if values.shape[1] == 1 and len(np.unique(values)) > 1:
            evidence["shifts"].append(_detected_prior(windows, values[:, 0], rows.task != "regression", rng))
    return evidence


def _monitored(reference: Reference) -> dict[str, int]:
    """Return how many features there are of each role."""
    features = [*reference.inputs.features, *(reference.outputs.features if reference.outputs else ())]
    roles = [feature.role for feature in features]
    return {role: roles.count(role) for role in dict.fromkeys(roles)}


def _detected(windows: Windows, shift: Shift, rng: np.random.Generator) -> Detection:
    comparisons = [windows.compared(windows.drawn(rng), shift, rng) for _ in range(SHIFTED_DRAWS)]
    return _detection(shift.name, shift.what, comparisons)


def _detected_prior(windows: Windows, targets: Array, classes: bool, rng: np.random.Generator) -> Detection:
    comparisons = [
        windows.compared(prior_rows(targets, classes, windows.size, rng), None, rng) for _ in range(SHIFTED_DRAWS)
    ]
    few = (
        "only the rarer class arrives" if len(np.unique(targets)) == 2 else "only the rarer half of the classes arrives"
    )
    what = few if classes else "only rows with the upper half of the targets arrive"
    return _detection("prior", what, comparisons)


def _detection(name: str, what: str, comparisons: list[Comparison]) -> Detection:
    detected = sum(comparison["drifted"] for comparison in comparisons)
    return {
        "shift": name,
        "what": what,
        "draws": len(comparisons),
        "detected": detected,
        "features": _most_named(comparisons),
    }


def _most_named(comparisons: list[Comparison]) -> list[str]:
    """Return up to three features that drifted most often."""
    names = [row["feature"] for comparison in comparisons for row in comparison["features"] if row["drifted"]]
    return sorted(dict.fromkeys(names), key=lambda name: -names.count(name))[:3]
