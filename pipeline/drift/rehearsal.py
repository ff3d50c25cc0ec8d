"""The rehearsal of a monitor before its release: how often it alarms without a shift, and how often with one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

import numpy as np
from torch import Tensor

from pipeline.drift.answers import MODEL, ServedModel
from pipeline.drift.compare import Comparison, Live, compare
from pipeline.drift.features import (
    Array,
    Observations,
    Takes,
    frequent_tokens,
    input_observations,
    output_observations,
)
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
from pipeline.export.exported import named_leaves
from pipeline.readiness.corruption import plan_threads
from pipeline.readiness.subject import Subject
from pipeline.run_store import files
from pipeline.run_store.records import ScoreRecord
from pipeline.runtime.seeds import derive
from pipeline.runtime.threads import running_on
from pipeline.serving.schema_file import Schema, read_schema

DRAWS = 200  # windows without a shift
SHIFTED_DRAWS = 40  # windows of each shift
MAX_WINDOW = 500  # rows of a window
COLUMNS_PER_REHEARSAL = 10_000  # comparisons of a feature without a shift: fewer draws for wide tables, for time
MIN_DRAWS = 40


class Detection(TypedDict):
    """How many windows of a shift were found; `features` are those that were named most often."""

    shift: str
    what: str
    draws: int
    detected: int
    features: list[str]


class RehearsalEvidence(TypedDict):
    """What the rehearsal found; `why` is the reason where nothing could be compared.

    A window is half of the validation rows, at most 500, and is compared with a reference without its rows.
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
    why: str | None


class _Rows:
    """The rows of a rehearsal as tensors, the served model, and what is compared of them."""

    def __init__(self, subject: Subject, folder: Path, schema: Schema) -> None:
        self.schema, self.seed = schema, subject.seed
        self.train, self.val = (_tensors(split.X) for split in (subject.data.train, subject.data.val))
        self.task, self.takes = subject.task.kind, _takes(subject)
        self.tokens = frequent_tokens(schema, self.train)
        self.model = ServedModel(folder, schema)

    def live(self, tensors: Mapping[str, Array]) -> Live:
        """Return rows as the monitor sees them."""
        outputs, answered = self.model.answer(tensors)
        inputs = input_observations(self.schema, tensors, self.tokens)
        if not outputs:
            return Live(inputs, None, int((~answered).sum()))
        rows = {name: values[answered] for name, values in tensors.items()}
        observed = output_observations(outputs, self.task, self.takes, rows)
        return Live(inputs, observed, int((~answered).sum()))


def _tensors(X: object) -> dict[str, Array]:
    leaves = named_leaves(X)  # type: ignore[arg-type]
    return {name: leaf.cpu().numpy() if isinstance(leaf, Tensor) else leaf for name, leaf in leaves.items()}


def _takes(subject: Subject) -> Takes:
    return subject.task.takes


def build_reference(
    subject: Subject, folder: Path, schema: Schema, score: ScoreRecord | None = None
) -> tuple[Reference, _Rows, Array]:
    """Return the reference of a release, the rows that it is from, and the validation row of each of its rows.

    Inputs are a sample of train and validation rows, -1 where of train; outputs are those of validation rows, since the
    model knows the train rows. `folder` has the ONNX file.
    """
    rows = _Rows(subject, folder, schema)
    rng = np.random.default_rng(derive(subject.seed, "drift", "reference"))
    counts = {split: len(next(iter(of.values()))) for split, of in (("train", rows.train), ("val", rows.val))}
    chosen = np.sort(rng.permutation(sum(counts.values()))[:MAX_ROWS])
    from_train, from_val = chosen[chosen < counts["train"]], chosen[chosen >= counts["train"]] - counts["train"]
    sample = {name: np.concatenate([rows.train[name][from_train], rows.val[name][from_val]]) for name in rows.train}
    inputs = input_observations(schema, sample, rows.tokens)
    answered = np.sort(rng.permutation(counts["val"])[:MAX_ROWS])
    outputs = rows.live(_taken(rows.val, answered)).outputs
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
        "tokens": rows.tokens,
        "released": None if score is None else released_score(score),
        "label": label if isinstance(label, str) else None,
        "features": summaries(inputs) + ([] if outputs is None else summaries(outputs)),
    }
    return Reference(about, inputs, outputs), rows, np.concatenate([np.full(len(from_train), -1), from_val])


def _taken(tensors: Mapping[str, Array], rows: Array) -> dict[str, Array]:
    return {name: values[rows] for name, values in tensors.items()}


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
        paths = {}
        for name, content in to_files(reference).items():
            files.write_bytes(folder / name, content)
            paths[name] = folder / name
        return paths, _rehearsed(subject, reference, rows, origin)


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
        "why": why,
    }


class _Windows:
    """Windows of validation rows, each compared with the reference without its rows."""

    def __init__(self, reference: Reference, rows: _Rows, origin: Array) -> None:
        self.reference, self.rows, self.origin = reference, rows, origin
        self.count = len(next(iter(rows.val.values())))
        self.size = min(self.count // 2, MAX_WINDOW)
        clean = rows.live(rows.val)
        self.clean = clean if not clean.refused else None  # else rows and outputs do not correspond

    def compared(self, chosen: Array, shift: Shift | None, rng: np.random.Generator) -> Comparison:
        """Return the comparison of these validation rows, shifted or as they are."""
        in_window = np.zeros(self.count, bool)
        in_window[chosen] = True
        inputs = ~((self.origin >= 0) & in_window[self.origin])
        outputs = self._outputs(in_window, rng)
        reference = Reference(self.reference.about, self.reference.inputs.take(inputs), outputs)
        if shift is None and self.clean is not None:
            answers = self.clean.outputs
            live = Live(self.clean.inputs.take(chosen), None if answers is None else answers.take(chosen))
        else:
            tensors = _taken(self.rows.val, chosen)
            live = self.rows.live(tensors if shift is None else shift.change(tensors, rng))
        return compare(reference, live, rng, distances=False)

    def _outputs(self, in_window: Array, rng: np.random.Generator) -> Observations | None:
        """Return what the model answers to validation rows outside of the window, as many as a reference has."""
        if self.clean is None or self.clean.outputs is None:
            return self.reference.outputs
        others = np.flatnonzero(~in_window)
        chosen = others if len(others) <= MAX_ROWS else rng.choice(others, MAX_ROWS, replace=False)
        return self.clean.outputs.take(chosen)


def _rehearsed(subject: Subject, reference: Reference, rows: _Rows, origin: Array) -> RehearsalEvidence:
    windows = _Windows(reference, rows, origin)
    features = [feature.name for feature in reference.inputs.features]
    outputs = reference.outputs
    evidence = _nothing("")
    evidence |= {
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
    comparisons = [
        windows.compared(rng.choice(windows.count, windows.size, replace=False), None, rng) for _ in range(draws)
    ]
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


def _detected(windows: _Windows, shift: Shift, rng: np.random.Generator) -> Detection:
    comparisons = [
        windows.compared(rng.choice(windows.count, windows.size, replace=False), shift, rng)
        for _ in range(SHIFTED_DRAWS)
    ]
    return _detection(shift.name, shift.what, comparisons)


def _detected_prior(windows: _Windows, targets: Array, classes: bool, rng: np.random.Generator) -> Detection:
    comparisons = [
        windows.compared(prior_rows(targets, classes, windows.size, rng), None, rng) for _ in range(SHIFTED_DRAWS)
    ]
    few = "only the rarer class arrives" if len(np.unique(targets)) == 2 else "only half of the classes arrive"
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
