"""How a run reads on the tracker's page: its tags, its description, and its data sets. Knows no tracker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

from pipeline.escaping import code_span, markdown, visible
from pipeline.results import PHASES, canonical, format_interval
from pipeline.run_store.gate import Item, branch_conditions
from pipeline.run_store.next_step import next_step
from pipeline.run_store.records import ScoreRecord
from pipeline.tracking.run_export import RunExport, safe_name, too_large

DIGEST_CHARS = 36  # MLflow's own limits: of a dataset's digest,
TAG_CHARS = 5000  # of a tag,
PROFILE_CHARS = 16_000_000  # of a dataset's profile
NOTE = "mlflow.note.content"  # the tag that MLflow shows as the description of a run


@dataclass(frozen=True)
class DatasetRecord:
    """One split as a tracker shows it; `source`, `schema` and `profile` are JSON."""

    split: str
    name: str
    digest: str
    source: str
    schema: str
    profile: str


def tags(export: RunExport) -> dict[str, str]:
    """Return the state of the run: phase, gates with the outcome of every item, branch, plan, next command."""
    state = export.state
    values = {"fivegate.run": export.run.name, "fivegate.identity": export.identity}
    if state.experiment:  # empty for the default experiment, and MLflow shows an empty tag as a blank cell
        values["fivegate.experiment"] = state.experiment
    started = [entry["data"]["phase"] for entry in export.entries if entry["kind"] == "phase.started"]
    if started:
        values["fivegate.phase"] = started[-1]
    labels = {phase: state.gate_label(phase) for phase in PHASES}
    values |= {f"fivegate.gate.{phase}": label for phase, label in labels.items() if label != "not reached"}
    for phase, gate in state.gates.items():
        values |= {f"fivegate.gate.{phase}.{item.id}": _item_text(item) for item in gate.items}
    if state.plan:
        values |= {"fivegate.plan.digest": state.plan["digest"], "fivegate.plan.revision": str(state.plan["revision"])}
    branch = state.current_branch()
    values["fivegate.branch"] = branch["branch"] if branch else "not decided"
    values["fivegate.next"] = next_step(state, export.run.path).command
    large = too_large(export)
    if large:
        values["fivegate.not_uploaded"] = ", ".join(large)
    values["mlflow.source.name"] = "python -m pipeline"
    values["mlflow.source.type"] = "LOCAL"
    values[NOTE] = note(export)
    # The note is Markdown of several lines, whose texts are escaped where they are inserted.
    lines = {name: value if name == NOTE else visible(value) for name, value in values.items()}
    return {safe_name(name): value[:TAG_CHARS] for name, value in lines.items()}


def _item_text(item: Item) -> str:
    """Return `passed`, or `failed: 0.31 (required <= 0.05)` for an item with a value."""
    value = f": {_number(item.value)} {item.unit}".rstrip() if item.value is not None else ""
    required = f"{item.relation} {_number(item.bound)}".strip()
    return item.label + value + (f" (required {required})" if item.bound is not None else "")


def note(export: RunExport) -> str:
    """Return the run's description in Markdown: its purpose, score, branch, next command and gates."""
    state, plan = export.state, export.config.get("plan") or {}
    experiment = f" of the experiment {code_span(state.experiment)}" if state.experiment else ""
    purpose = plan.get("purpose")
    lines = [markdown(purpose) if purpose else f"Run {code_span(export.run.name)}{experiment}.", ""]
    lines += [_score_text(state.score), ""] if state.score else []
    step, branch = next_step(state, export.run.path), state.current_branch()
    if branch:
        lines += [f"Validation: {markdown(', '.join(branch_conditions(branch)))}.", ""]
    lines += [f"Next: {markdown(step.why)}", "", f"    {visible(step.command)}", "", "| phase | gate |", "|---|---|"]
    return "\n".join([*lines, *(f"| {phase} | {state.gate_label(phase)} |" for phase in PHASES), ""])


def _score_text(score: ScoreRecord) -> str:
    text = f"**{markdown(score['metric'])} {_number(score['value'])}** on {score.get('split', 'val')}"
    return f"{text}, {format_interval(score)}"


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def datasets(export: RunExport) -> Iterator[DatasetRecord]:
    """Yield the splits of the newest plan with their digests; of the test split only what is known while it is sealed.

    The source is the plan's section on data, without the folders of absolute paths.
    """
    if not export.plans:
        return
    plan = export.plans[max(export.plans)]
    source = {key: _without_folders(value) for key, value in dict(plan.config.get("data") or {}).items()}
    name = str(source.get("_target_", "data")).rpartition(".")[2]
    for split, facts in (plan.facts.get("splits") or {}).items():
        profile = canonical({"rows": facts.get("rows"), "counts": facts.get("counts")})[:PROFILE_CHARS]
        schema = canonical({"schema": facts.get("schema")})
        digest = str(facts["digest"])[:DIGEST_CHARS]
        yield DatasetRecord(split, visible(f"{name}/{split}"), digest, canonical(source), schema, profile)


def _without_folders(value: object) -> object:
    """Return the file name of an absolute path, since its folders can name a person or a machine."""
    return PurePath(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value
