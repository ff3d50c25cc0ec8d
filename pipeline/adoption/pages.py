"""The pages of a round for people: what was tried and what is recommended, and the incident with its fix."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from pipeline.adoption.acceptance import format_guard, guards_of
from pipeline.adoption.search import Tally
from pipeline.escaping import code_span, markdown
from pipeline.results import exact, format_interval
from pipeline.trials.candidates import alternatives
from pipeline.trials.study import ArmResult

ROLLBACK, RISKS = "## Rollback", "## Remaining risks: what was not checked"  # headings of an incident


@dataclass(frozen=True)
class RoundSummary:
    """What the pages of a round say: the search, the confirmed arms (control first), the choice, and what is next.

    `adopted` is the change in words, empty where the reference stays; `symptoms` are those that are left. `commands`
    are what a person may do, by its reason; `undo` is the command that returns to the model of before.
    """

    round: int
    metric: str
    target: float
    choice: str
    adopted: str
    rows: Sequence[ArmResult]
    searched: Sequence[Tally]
    ablation: Sequence[Mapping[str, Any]] = ()
    symptoms: Sequence[str] = ()
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by split, `before` and `after`
    untried: Sequence[str] = ()
    commands: Mapping[str, str] = field(default_factory=dict)
    undo: str = ""
    table: Sequence[str] = ()  # the ablation table that the config asked for
    unit: str = ""  # of the figures of the confirmation if they are costs; empty for scores
    checks: Sequence[tuple[str, bool]] = ()  # what was run again on the adopted change, and whether it passes


def recommendations(summary: RoundSummary) -> str:
    """Return `recommendations.md`: the result, what was tried and what it showed, and what a person can decide."""
    verdict = f"**Adopted: {code_span(summary.adopted)}**" if summary.adopted else "**The reference stays as it is.**"
    parts = [f"# Recommendations, round {summary.round}", f"{verdict} {markdown(_sentence(summary.choice))}"]
    parts += _scores(summary)
    parts += ["## What was tried", _table(summary)]
    failed = [t for t in summary.searched if t.outcome.startswith("lost")]
    if failed:
        parts += ["## What did not help", "\n".join(map(_tried, failed))]
    if summary.ablation:
        lines = [f"- without {code_span(a['without'])}: {markdown(_ablated(a))}" for a in summary.ablation]
        parts += ["## Each change of the combination, taken out once", "\n".join(lines)]
    if summary.table:
        parts += ["## What each setting contributes", "\n".join(f"    {line}" for line in summary.table)]
    if summary.untried:
        parts += ["## What remains untried", "\n".join(f"- {code_span(change)}" for change in summary.untried)]
    if summary.symptoms:
        parts += ["## Symptoms that are left", "\n".join(f"- {code_span(name)}" for name in summary.symptoms)]
    if summary.commands:
        lines = [f"- {markdown(why)}:\n\n      {command}" for why, command in summary.commands.items()]
        parts += ["## What a person might decide", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def incident_with_fix(page: str, summary: RoundSummary, prevention: Iterable[str]) -> str:
    """Return the incident of the diagnosis with what was done: the fix with its proof, remaining risks, the rollback.

    `page` is the incident that diagnostics wrote; its sections on rollback and risks are replaced or extended.
    """
    head, _, risks = page.partition(RISKS)
    head = head.partition(ROLLBACK)[0].rstrip()
    winner = next((row for row in summary.rows if row["change"] == summary.adopted), None)
    fix = ["## Fix", f"{markdown(summary.choice)}." if winner is None else _proof(winner, summary)]
    if winner is not None:
        guards = [f"- {markdown(format_guard(guard))}" for guard in guards_of(winner)]
        fix += ["What must not become worse:\n\n" + "\n".join(guards)] if guards else []
        ran = "\n".join(
            f"- {markdown(text)}: {'passed' if passed else '**failed**'}" for text, passed in summary.checks
        )
        fix += ["### Run again on the fixed model", ran] if ran else []
        fix += ["### Watched from now on", "\n".join(f"- {markdown(item)}" for item in prevention)]
    left = [f"- the symptom {code_span(name)} is still there" for name in summary.symptoms]
    undo = f"Undo the fix, deleting nothing:\n\n    {summary.undo}" if summary.undo else "Nothing was adopted."
    parts = [head, *fix, ROLLBACK, undo, RISKS, "\n".join([*left, risks.strip()])]
    return "\n\n".join(part for part in parts if part) + "\n"


def decisions(
    config: Mapping[str, Any], packages: Sequence[str], searched: Iterable[Tally], overrides: str
) -> dict[str, str]:
    """Return the commands by which a person may go on below the target, each by its reason.

    `overrides` name the run; what the search has tried is left out.
    """
    tried = [dict(tally.arm.delta.overrides) for tally in searched]
    return {
        option["why"]: shlex.join(["python", "-m", "pipeline", f"phase={option['phase']}", *option["overrides"]])
        + f" {overrides}"
        for option in alternatives(config, list(packages), tried)
    }


def config_difference(before: Mapping[str, Any], after: Mapping[str, Any], modules: tuple[str, str]) -> str:
    """Return the difference of two configs and of the printed modules, as `diff -u` shows it; empty parts are named."""
    texts = [yaml.safe_dump(exact(config), sort_keys=True) for config in (before, after)]
    parts = []
    for name, (old, new) in (("config", (texts[0], texts[1])), ("model", modules)):
        lines = difflib.unified_diff(
            old.splitlines(), new.splitlines(), f"{name}, before", f"{name}, after", n=1, lineterm=""
        )
        parts.append("\n".join(lines) or f"{name}: no difference")
    return "\n\n".join(parts) + "\n"


def _proof(winner: ArmResult, summary: RoundSummary) -> str:
    """Return what the fix is and how it was shown to work."""
    test = f"{winner['effect']:+.4g} {summary.metric} on average over {len(winner['values'])} fresh seeds"
    return (
        f"{code_span(winner['change'])}: {markdown(test)}, p = {winner['p']:.3g} after Holm. "
        f"{markdown(_sentence(summary.choice))}"
    )


def _scores(summary: RoundSummary) -> list[str]:
    if not summary.scores:
        return []
    lines = ["| split | before | after |", "|---|---|---|"]
    for split, sides in summary.scores.items():
        lines.append(f"| {split} | {_score(sides.get('before'))} | {_score(sides.get('after'))} |")
    return ["## Before and after", "\n".join([*lines, "| test | sealed | sealed |"])]


def _score(score: Mapping[str, Any] | None) -> str:
    if not score:
        return "no score"
    interval = f" ({format_interval(score)})" if "low" in score else ""
    return markdown(f"{float(score['value']):.4g}{interval}")


def _table(summary: RoundSummary) -> str:
    """Return the candidates with their scores in the search and in the confirmation."""
    lines = ["| id | change | why | search | confirmation | result |", "|---|---|---|---|---|---|"]
    confirmed = {row["id"]: row for row in summary.rows}
    for tally in summary.searched:
        row = confirmed.get(tally.arm.id)
        figures = ", ".join(f"{value:.4g}" for value in tally.values) or "-"
        shown = f"{row['mean']:.4g}{summary.unit}, p = {row['p']:.3g}" if row else "-"
        result = tally.outcome if row is None else _result(row)
        change, why = code_span(tally.arm.delta.describe()), markdown(tally.arm.reason())
        lines.append(f"| {tally.arm.id} | {change} | {why} | {figures} | {shown} | {markdown(result)} |")
    return "\n".join(lines) if summary.searched else "Nothing: there was no candidate."


def _result(row: ArmResult) -> str:
    if not row["wins"]:
        return "not shown to be better"
    return f"better, and harms {', '.join(row['harms'])}" if row.get("harms") else "wins"


def _tried(tally: Tally) -> str:
    return f"- {code_span(tally.arm.delta.describe())}: {markdown(tally.outcome)}"


def _ablated(record: Mapping[str, Any]) -> str:
    return record["why"] if record["score"] is None else f"{float(record['score']):.4g}, {record['why']}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
