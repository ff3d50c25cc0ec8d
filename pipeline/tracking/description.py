"""How a run reads in the tracker's own page: its tags, its description, the data it stands on. Knows no tracker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from pipeline.results import PHASES, canonical
from pipeline.run_store.next_step import next_step
from pipeline.run_store.records import ScoreRecord
from pipeline.run_store.state import RunState
from pipeline.tracking.run_export import RunExport

DIGEST_CHARS = 36  # most that MLflow keeps of a digest
NOTE_CHARS = 8000  # of a tag
PROFILE_CHARS = 16_000_000  # of a dataset's profile


@dataclass(frozen=True)
class Rows:
    """One split as a tracker shows it; `source`, `schema` and `profile` are JSON."""

    split: str
    name: str
    digest: str
    source: str
    schema: str
    profile: str


def word(state: RunState, phase: str) -> str:
    """A phase's gate in a word, empty where it was not reached."""
    return "stale" if state.stale(phase) else state.gate(phase) or ("not needed" if state.passed(phase) else "")


def tags(story: RunExport) -> dict[str, str]:
    """Where the run stands: phase, gates, branch, plan, the command that continues it, and all of it to be read."""
    state = story.state
    found = {"fivegate.run": state.name, "fivegate.identity": story.identity}
    if state.experiment:  # one was named; else it is the default one
        found["fivegate.experiment"] = state.experiment
    started = [entry["data"]["phase"] for entry in story.entries if entry["kind"] == "phase.started"]
    if started:
        found["fivegate.phase"] = started[-1]
    found |= {f"fivegate.gate.{phase}": word(state, phase) for phase in PHASES if word(state, phase)}
    if state.plan:
        found |= {"fivegate.plan.digest": state.plan["digest"], "fivegate.plan.revision": str(state.plan["revision"])}
    branch = state.current_branch()
    found["fivegate.branch"] = branch["branch"] if branch else "not decided"
    found["fivegate.next"] = next_step(state).command
    found["mlflow.source.name"] = "python -m pipeline"
    found["mlflow.source.type"] = "LOCAL"
    found["mlflow.note.content"] = note(story)[:NOTE_CHARS]
    return found


def note(story: RunExport) -> str:
    """The run's description, in Markdown: what it is for, how good it is, where it stands, what comes next."""
    state, plan = story.state, story.config.get("plan") or {}
    of = f" of the experiment `{state.experiment}`" if state.experiment else ""
    lines = [str(plan.get("purpose") or f"Run `{state.name}`{of}."), ""]
    lines += [_score(state.score), ""] if state.score else []
    advice, branch = next_step(state), state.current_branch()
    if branch:
        lines += [f"Branch: **{branch['branch']}**, blocking symptoms: {', '.join(branch['symptoms']) or 'none'}.", ""]
    lines += [f"Next: {advice.why}", "", f"    {advice.command}", "", "| phase | gate |", "|---|---|"]
    return "\n".join([*lines, *(f"| {phase} | {word(state, phase) or 'not reached'} |" for phase in PHASES), ""])


def _score(score: ScoreRecord) -> str:
    said = f"**{score['metric']} {_figure(score['value'])}** on {score.get('split', 'val')}"
    interval = f", 95 % interval {_figure(score.get('low'))} to {_figure(score.get('high'))}"
    return said + (interval if isinstance(score.get("low"), float) else "") + f", n = {score.get('n')}"


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


def rows(story: RunExport) -> Iterator[Rows]:
    """The splits that the newest plan froze, with their digests; of the test split nothing but what is sealed into it.

    The source is the plan's own section on data, of whose paths only the last part is shown.
    """
    if not story.plans:
        return
    plan = story.plans[max(story.plans)]
    data = {key: _shown(value) for key, value in dict(plan.config.get("data") or {}).items()}
    name = str(data.get("_target_", "data")).rpartition(".")[2]
    for split, known in (plan.facts.get("splits") or {}).items():
        profile = {"rows": known.get("rows"), "counts": known.get("counts")}
        schema = canonical({"schema": known.get("schema")})
        yield Rows(split, f"{name}/{split}", str(known["digest"])[:DIGEST_CHARS], canonical(data), schema,
                   canonical(profile)[:PROFILE_CHARS])  # fmt: skip


def _shown(value: Any) -> Any:
    """The value without the folders of an absolute path, which name a person or a machine."""
    return PurePath(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value
