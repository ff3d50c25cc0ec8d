"""Drift on halves of the bundled data: how often a shifted half is found, and an unshifted one raises an alarm.

    make bench-drift                       all sets; the table goes to benchmarks/drift.md
    make bench-drift ARGS='--only iris'    one set; the table is printed only

Each of 20 draws splits all rows of a set into two random halves. The first is the reference: a model of scikit-learn is
fitted on a half of it, and its answers to the other half are the reference of predictions and confidence. The second is
compared with it as it is, and under every shift that the rehearsal of a release tries. Sets with fewer than 100 rows in
a half have no bar: their figures are the power of so few rows. The text is that of the experiment `text`, in windows of
32 bytes; the table is that of the experiment `csv`, with its categories and missing values.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.data.digits import digits
from pipeline.data.load import seal
from pipeline.data.sources import bundled
from pipeline.data.sources.delimited import csv_table
from pipeline.data.sources.stdlib import stdlib_text
from pipeline.drift.compare import FEW_ROWS, Live, compare
from pipeline.drift.features import Observations, frequent_tokens, input_observations, output_observations
from pipeline.drift.reference import ALPHA, MAX_ROWS, MIN_AUC, MIN_EFFECT, Reference
from pipeline.drift.shifts import prior_rows, shifts_of
from pipeline.drift.statistics import one_thread
from pipeline.serving.schema import Schema, build_schema

DRAWS, SEED = 20, 1
VEHICLES = Path(__file__).resolve().parents[1] / "examples" / "table" / "vehicles.csv"
FOUND, FALSE = 18, 2  # the bars, of 20 draws
TABLE = Path(__file__).with_suffix(".md")
KINDS = {
    "digits": "classification",
    "digits_images": "classification",
    "breast_cancer": "classification",
    "diabetes": "regression",
    "csv": "classification",
    "text": "language_model",
    "wine": "classification",
    "iris": "classification",
}
SHIFTS = ("mean", "missing", "unit", "categories", "contrast", "tokens", "prior")

Array = NDArray[Any]


class Rows:
    """All rows of a set: inputs by tensor, targets, and the schema of its rows."""

    def __init__(self, name: str) -> None:
        self.kind = KINDS[name]
        own = {
            "digits": digits,
            "digits_images": partial(digits, image=True),
            "csv": partial(csv_table, str(VEHICLES), "state", ignore=["vehicle"]),
            "text": partial(stdlib_text, context=32),
        }
        source: Any = own.get(name) or getattr(bundled, name)
        splits = source()
        pairs = [splits[split] for split in ("train", "val", "test")]
        self.X, self.y = (np.concatenate([np.asarray(pair[part]) for pair in pairs]) for part in (0, 1))
        if np.asarray(self.X).dtype.kind == "f":
            self.X = self.X.astype(np.float32)
        self.imputes = name == "csv"  # its rows lack values, so that rows with more of them are answered
        body = {"task": {"kind": self.kind}, "data": {}, "preprocess": {"impute": "median"} if self.imputes else {}}
        self.schema: Schema = build_schema(seal(splits, self.kind), body)

    def fitted(self, rows: Array) -> Any:
        """A model of scikit-learn on these rows; None for text."""
        from sklearn.impute import SimpleImputer
        from sklearn.linear_model import LogisticRegression, Ridge
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        if self.kind == "language_model":
            return None
        model = Ridge() if self.kind == "regression" else LogisticRegression(max_iter=200)
        steps = [SimpleImputer(strategy="median")] if self.imputes else []
        return make_pipeline(*steps, StandardScaler(), model).fit(self.X[rows].reshape(len(rows), -1), self.y[rows])

    def live(self, model: Any, X: Array, tokens: dict[str, list[int]]) -> Live:
        """Rows as a monitor sees them; those with missing values are refused, unless the model fills them."""
        inputs = input_observations(self.schema, {"input": X}, tokens)
        known = self.imputes | ~np.isnan(X.reshape(len(X), -1).astype(float)).any(1)
        return Live(inputs, self.outputs(model, X[known]), int((~known).sum()))

    def outputs(self, model: Any, X: Array) -> Observations | None:
        if model is None or not len(X):
            return None
        flat = X.reshape(len(X), -1)
        answers = model.predict(flat) if self.kind == "regression" else model.predict_proba(flat)
        return output_observations({"output": answers}, self.kind, "probabilities", {"input": X})


def compare_halves(rows: Rows, rng: np.random.Generator) -> dict[str, bool]:
    """Return whether one draw of halves raised an alarm: without a shift under "", else by shift."""
    first, second = np.array_split(rng.permutation(len(rows.X)), 2)
    fitted, answered = np.array_split(first, 2)
    model = rows.fitted(fitted)
    tokens = frequent_tokens(rows.schema, {"input": rows.X[first]})
    sample = rows.X[first[:MAX_ROWS]]
    about: Any = {"alpha": ALPHA, "min_effect": MIN_EFFECT, "min_auc": MIN_AUC, "bounds": {}, "seed": SEED}
    inputs = input_observations(rows.schema, {"input": sample}, tokens)
    reference = Reference(about, inputs, rows.outputs(model, rows.X[answered]))

    def alarm(X: Array) -> bool:
        return compare(reference, rows.live(model, X, tokens), rng, distances=False)["drifted"]

    found = {"": alarm(rows.X[second])}
    for shift in shifts_of(rows.schema, {"input": rows.X[first]}):
        found[shift.name] = alarm(shift.change({"input": rows.X[second]}, rng)["input"])
    if rows.kind != "language_model":
        chosen = prior_rows(rows.y[second], rows.kind != "regression", len(second), rng)
        found["prior"] = alarm(rows.X[second][chosen])
    return found


def measure(name: str) -> tuple[int, dict[str, int]]:
    """Return the rows of a half, and the alarms of all draws by shift."""
    rows, rng = Rows(name), np.random.default_rng(SEED)
    found = [compare_halves(rows, rng) for _ in range(DRAWS)]
    return len(rows.X) // 2, {shift: sum(draw[shift] for draw in found) for shift in found[0]}


def table_of(measured: dict[str, tuple[int, dict[str, int]]]) -> list[str]:
    """Return the lines of the table; a figure beyond its bar is bold."""
    lines = [f"| set | rows of a half | no shift | {' | '.join(SHIFTS)} |", f"|---|---|---|{'---|' * len(SHIFTS)}"]
    for name, (rows, alarms) in measured.items():
        has_bar = rows >= FEW_ROWS
        cells = [bold(alarms[""], has_bar and alarms[""] > FALSE)]
        cells += [bold(alarms[s], has_bar and alarms[s] < FOUND) if s in alarms else "" for s in SHIFTS]
        lines.append(f"| {name}{'' if has_bar else ' (no bar)'} | {rows} | {' | '.join(cells)} |")
    return lines


def bold(count: int, beyond: bool) -> str:
    return f"**{count}**" if beyond else str(count)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(KINDS), help="measure this set only, and write no table")
    only = parser.parse_args().only
    start, measured = time.monotonic(), {}
    with one_thread():
        for name in [only] if only else KINDS:
            measured[name] = measure(name)
            print(f"{name}: {measured[name]}", file=sys.stderr, flush=True)
    lines = table_of(measured)
    print("\n".join(lines))
    beyond = sum("**" in line for line in lines)
    print(f"{beyond} sets beyond a bar, in {time.monotonic() - start:.0f} s")
    if not only:
        what = (
            "Written by `make bench-drift`. In how many of 20 draws a random half of all rows raises an alarm when it\n"
            "is compared with the other half, as it is and under each shift that a release rehearses. Bars, from 100\n"
            "rows in a half: at most 2 without a shift, at least 18 with one. Bold: beyond the bar.\n"
        )
        TABLE.write_text("\n".join(["# Drift on halves of the bundled data", "", what, *lines, ""]))
    return 1 if beyond else 0


if __name__ == "__main__":
    sys.exit(main())
