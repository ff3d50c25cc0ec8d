"""`drift BUNDLE DATA`: compare live rows with the reference of a release; exit code 3 if they drifted."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.drift import live_rows, reference
from pipeline.drift.answers import ServedModel
from pipeline.drift.compare import CLASSIFIER, FEW_ROWS, Comparison, FeatureDrift, Live, Power, compare, power
from pipeline.drift.features import input_observations, output_observations
from pipeline.drift.plot import draw
from pipeline.drift.score import LiveScore, own_code, score_labels
from pipeline.drift.statistics import one_thread
from pipeline.errors import Refused, UserError, fault
from pipeline.release.bundle import MANIFEST, manifest_faults
from pipeline.reporting.terminal import console, new_table, print_json, styled
from pipeline.results import counted
from pipeline.run_store import files
from pipeline.run_store.run import Run
from pipeline.serving.schema_file import read_schema
from pipeline.serving.standalone import verify as standalone

if TYPE_CHECKING:
    from pipeline.serving.schema_file import Schema

MAX_COMPARED = 100_000  # rows, a random sample of more: shares of them are exact to a hundredth, a tenth is drift
MAX_OUTPUTS = 2**26  # numbers that the model answers: fewer rows where each has many
SHOWN = 15  # features in the table
PLOT = "drift.png"

EXAMPLES = """\
  python -m pipeline drift runs/digits live.csv
  python -m pipeline drift bundle live.parquet --label species --out drift

Rows are as predict.py takes them; a label column may be there as well. A feature drifted if its difference is
significant among all tests and at least as large as its bound. Exit code 0 without drift, 3 with drift or for a payload
that was changed, 2 for wrong input.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument("bundle", metavar="BUNDLE", help="folder of a bundle or of its payload, or a run or its name")
    parser.add_argument("data", metavar="DATA", help="live rows: a .csv, .json, .npz or .parquet file")
    parser.add_argument("--label", metavar="COLUMN", help="column of the true targets (default: that of the data)")
    parser.add_argument("--out", metavar="DIR", help=f"write {PLOT}, the features that differ most, to this folder")
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON instead of a table")
    parser.add_argument("--root", default="runs", help="directory of the runs (run.root)")


def run(args: argparse.Namespace) -> int:
    payload = _payload(args.bundle, args.root)
    known, schema, model = _opened(payload)
    label = args.label or known.about["label"]
    rows = live_rows.read_rows(Path(args.data), schema, label)
    if args.label and rows.labels is None:
        raise UserError(fault(args.data, "has no such column", got=args.label, expected="the column of the targets"))
    rng = np.random.default_rng(known.about["seed"])
    live, score = _answered(payload, known, schema, model, rows, rng)
    few = min(len(rows), len(known.inputs)) < FEW_ROWS
    with one_thread():
        comparison = compare(known, live, rng)
        detectable = power(known, len(rows), rng) if few else None
    plot = _plotted(args.out, known, live, comparison, schema)
    drifted = comparison["drifted"] or (score is not None and score["worse"])
    if args.json:
        body = {"schema": 1, "drifted": drifted, "live_rows": len(rows), "comparison": comparison, "score": score}
        body |= {"power": detectable, "plot": plot}
        print_json(body)
    else:
        _show(comparison, len(rows), score, detectable, drifted)
        if plot:
            console().print(f"plot: {plot}", soft_wrap=True)
        elif drifted:
            console().print("the features that differ most, as a plot: add --out DIR", soft_wrap=True)
    return 3 if drifted else 0


def _payload(bundle: str, root: str) -> Path:
    """Return the payload folder of a bundle, a payload or a run. Raises UserError where there is none."""
    given = Path(bundle)
    for folder in (given / "payload", given, given / "bundle" / "payload"):
        if (folder / MANIFEST).is_file():
            return folder
    if given.is_dir() and not (given / "ledger.jsonl").is_file():
        expected = "the folder of a bundle or of its payload, or a run"
        raise UserError(fault("BUNDLE", f"contains no {MANIFEST}", got=bundle, expected=expected))
    run = Run.find(bundle, root)
    folder = run.path / "bundle" / "payload"
    if not (folder / MANIFEST).is_file():
        do = f"python -m pipeline phase=finalization {run.overrides}"
        raise UserError(fault(run.name, "has no bundle yet", expected="a run that came to finalization", do=do))
    return folder


def _opened(payload: Path) -> tuple[reference.Reference, Schema, ServedModel]:
    """Return reference, schema and model.

    Raises Refused for a payload that is not the one of its manifest, or not the one that was approved.
    """
    faults = manifest_faults(payload)
    if not faults and any((payload.parent / "attestations").glob("*")):
        faults = [f"{MANIFEST}: {problem}" for problem in standalone.verify(payload.parent)]
    if faults:
        do = f"python -m pipeline verify {payload.parent}"
        changed = [fault(str(payload / name), f"{what}: the payload was changed", do=do)
                   for name, what in (line.split(": ", 1) for line in faults)]  # fmt: skip
        raise Refused(*changed)
    if not (payload / reference.JSON_FILE).is_file():
        what = f"has no {reference.JSON_FILE}: it was released without a monitor"
        raise UserError(fault(str(payload), what, do="release it again: python -m pipeline phase=finalization"))
    schema = read_schema(payload)
    return reference.load(payload), schema, ServedModel(payload, schema)


def _answered(
    payload: Path,
    known: reference.Reference,
    schema: Schema,
    model: ServedModel,
    rows: live_rows.LiveRows,
    rng: np.random.Generator,
) -> tuple[Live, LiveScore | None]:
    """Return the rows as the monitor compares them, a sample of many, and their score where they have labels."""
    about = known.about
    chosen = _sampled(len(rows), min(MAX_COMPARED, MAX_OUTPUTS // _numbers_of_answer(schema)), rng)
    sample = {name: values[chosen] for name, values in rows.tensors.items()}
    inputs = input_observations(schema, sample, about["tokens"])
    if inputs.features != known.inputs.features:
        what = "has other features than the schema beside it"
        raise UserError(fault(reference.JSON_FILE, what, expected="the files of one release"))
    outputs, answered = model.answer(sample)
    observed = None
    if outputs:
        answered_sample = {name: values[answered] for name, values in sample.items()}
        observed = output_observations(outputs, about["task"], about["takes"], answered_sample)
    score = None
    if rows.labels is not None:
        labels: Any = rows.labels
        labels = labels[chosen] if isinstance(labels, np.ndarray) else [labels[at] for at in chosen]
        score = score_labels(known, schema, labels, outputs, answered, own_code(payload))
    return Live(inputs, observed, int((~answered).sum())), score


def _sampled(rows: int, most: int, rng: np.random.Generator) -> live_rows.Array:
    """Return the places of all rows, or of a random sample of `most`, in their order."""
    return np.arange(rows) if rows <= most else np.sort(rng.choice(rows, max(most, 1), replace=False))


def _numbers_of_answer(schema: Schema) -> int:
    """Return how many numbers the model answers to one row, as far as the schema says."""
    return max(1, sum(math.prod(size or 1 for size in output["shape"][1:]) for output in schema["outputs"]))


def _plotted(
    out: str | None, known: reference.Reference, live: Live, comparison: Comparison, schema: Schema
) -> str | None:
    if out is None:
        return None
    names = {"predicted class": schema["class_names"]}
    for column in schema["inputs"]:
        if column["categories"]:
            names[column["name"]] = sorted(column["categories"], key=column["categories"].__getitem__)
    path = Path(out) / PLOT
    files.write_bytes(path, draw(known, live, comparison, names))
    return str(path)


# --- what is printed -------------------------------------------------------------------------------------------------


def _show(comparison: Comparison, live: int, score: LiveScore | None, detectable: Power | None, drifted: bool) -> None:
    screen = console()
    rows = comparison["features"]
    order = sorted(rows, key=lambda row: (not row["drifted"], row["adjusted"], -row["effect"] / row["bound"]))
    table = new_table("feature", "of", "distance", "PSI", "effect", "bound", "p-value", "drift")
    for row in order[:SHOWN]:
        table.add_row(*_cells(row))
    sampled = f", of which a random {comparison['rows']:,} are compared," if live > comparison["rows"] else ""
    screen.print(f"{counted(live, 'live row')}{sampled} against {comparison['reference_rows']} of the reference")
    screen.print(table)
    if len(rows) > SHOWN:
        screen.print(f"and {len(rows) - SHOWN} more, which differ less; --json has all of them", soft_wrap=True)
    if comparison["refused"]:
        share = comparison["refused"] / comparison["rows"]
        screen.print(f"{comparison['refused']} rows ({share:.1%}) are refused by predict.py", soft_wrap=True)
    if score is not None:
        screen.print(_score_line(score), soft_wrap=True)
    if detectable is not None:
        windows = f"{detectable['draws']} windows of {detectable['rows']} rows"
        what = f"{detectable['shift']} is noticed in {detectable['detected']} of {windows}"
        screen.print(f"few rows: {what}; collect more before trusting silence", soft_wrap=True)
    names = [row["feature"] for row in order if row["drifted"]]
    if score is not None and score["worse"]:
        names.append(f"{score['metric']} is worse than released")
    if drifted:
        screen.print(styled("[red]drift[/]: {names}", names=_listed(names)), soft_wrap=True)
    else:
        screen.print(styled("[green]no drift[/]"))


def _cells(row: FeatureDrift) -> tuple[str, ...]:
    distance = "" if row["distance"] is None else f"{row['distance']:.2g} sd"
    of = "classifier" if row["feature"] == CLASSIFIER else row["role"]
    effect = f"AUC {row['effect']:.2f}" if row["feature"] == CLASSIFIER else f"{row['effect']:.2g}"
    psi = "" if row["psi"] is None else f"{row['psi']:.2g}"
    mark = "yes" if row["drifted"] else "no"
    return row["feature"], of, distance, psi, effect, f"{row['bound']:g}", f"{row['adjusted']:.2g}", mark


def _score_line(score: LiveScore) -> str:
    if score["value"] is None:
        return f"{score['metric']}: not scored, {score['why'] or 'it is undefined on these rows'}"
    interval = _interval(score["low"], score["high"])
    live = f"{score['metric']} {score['value']:.4g}{interval} on {score['rows']} labelled rows"
    if score["released"] is None:
        return live
    released = f"{score['released']:.4g}{_interval(score['released_low'], score['released_high'])}"
    return f"{live}; released with {released}: {'worse' if score['worse'] else 'not shown to be worse'}"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" ({low:.4g} to {high:.4g})"


def _listed(names: list[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
