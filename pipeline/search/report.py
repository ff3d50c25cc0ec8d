"""What a search prints: its trials ranked, what confirmed the best one, and the command that adopts it."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.escaping import visible
from pipeline.reporting.terminal import console, new_table, print_json, styled
from pipeline.search.command import SearchOutcome
from pipeline.search.result import SearchRecord, SearchTrial
from pipeline.search.trainings import format_values

OUTCOMES = ("scored", "pruned", "failed")  # in the order of the ranking


def show(outcome: SearchOutcome, as_json: bool) -> int:
    """Print the outcome of a search, as a table or as one JSON object, and return the exit code."""
    record, step = outcome.record, {"command": outcome.command}
    if as_json:
        print_json({"schema": 1, "run": outcome.run.name, **(record or {}), "next": step}, indent=2)
    elif record is not None:
        _print(outcome.run.name, record)
    if not as_json:
        why = "accepted" if record and record["accepted"] else "the reference stays" if record else "the gate is closed"
        console().print(styled("next: {why}\n  [bold]{command}[/]", why=why, command=outcome.command), soft_wrap=True)
    return outcome.exit_code


def ranked(trials: Sequence[SearchTrial], greater: bool) -> list[SearchTrial]:
    """Return the trials, the best first; those that were stopped early or failed are last."""

    def place(trial: SearchTrial) -> tuple[int, float]:
        score = trial["score"]
        worth = 0.0 if score is None else -score if greater else score
        return OUTCOMES.index(trial["outcome"]), worth

    return sorted(trials, key=place)


def _print(run: str, record: SearchRecord) -> None:
    screen = console()
    keys = [*record["reference"]]
    table = new_table("trial", *keys, record["metric"], "outcome")
    for trial in ranked(record["trials"], record["greater_is_better"]):
        cells = [format_values({key: trial["values"][key]}).partition("=")[2] for key in keys]
        score = "" if trial["score"] is None else f"{trial['score']:.4g}"
        end = {"scored": "", "pruned": "stopped early", "failed": f"failed: {trial['why']}"}[trial["outcome"]]
        table.add_row(str(trial["number"]), *map(visible, cells), score, visible(end))
    screen.print(styled("[bold]{run}[/]  search {study}\n", run=run, study=record["study"]))
    screen.print(table)
    for line in lines(record):
        screen.print(visible(line), soft_wrap=True)


def lines(record: SearchRecord) -> list[str]:
    """Return what the search says besides its trials, one line each."""
    reference = f"reference: {record['reference_score']:.4g}, {format_values(record['reference'])}"
    candidate, proof = record["candidate"], record.get("comparison")
    without = [f"without the change of {key}: {'no score' if score is None else f'{score:.4g}'}"
               for key, score in record["without"].items()]  # fmt: skip
    if candidate is None or proof is None:
        return [reference, "no trial was better than the reference", *record["notes"]]
    verdict = "accepted" if record["accepted"] else "not shown better, so that the reference stays"
    confirmed = (
        f"{format_values(candidate)}: {verdict}; effect {proof['effect']:+.4g}, p = {proof['p']:.3g}, {proof['basis']}"
    )
    return [reference, confirmed, *without, *record["notes"]]
