"""The report of a run: everything on record about it as one self-contained file, `report.html` in its folder."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipeline.documents.readiness_score import Readiness, gate_readiness
from pipeline.errors import FivegateError, UserError
from pipeline.escaping import visible_lines
from pipeline.foreign_files import read_bytes
from pipeline.reporting.canvas import NO_DRAWING, marked_target
from pipeline.reporting.measures import Measures, measures
from pipeline.reporting.panels import reference_kind
from pipeline.reporting.sections.confusion import ConfusionPanel, confusion_panels
from pipeline.reporting.sections.diagnosis import DiagnosisSection, read_diagnoses
from pipeline.reporting.sections.experiments import ExperimentSection, experiment_sections
from pipeline.reporting.sections.gates import OpenItem, PhaseSection, by_section, open_items, phase_section
from pipeline.reporting.sections.quality import QualityPanel, quality_panels
from pipeline.reporting.sections.reproduce import Reproduction, reproduction
from pipeline.reporting.sections.scores import interval_plot, score_rows
from pipeline.reporting.sections.timeline import Event, entry_summary, time_text, timeline
from pipeline.reporting.sections.training import TrainingSection, training_sections
from pipeline.reporting.sections.trials import StudySection, studies
from pipeline.reporting.tables import (
    compare_test_with_target,
    format_required,
    in_words,
    number,
    satisfied,
    why_not_judged,
)
from pipeline.results import PHASES, format_interval
from pipeline.run_store import files
from pipeline.run_store import plan as plans
from pipeline.run_store.gate import SignOff, Waiver, branch_conditions
from pipeline.run_store.ledger import Entry, read_ledger
from pipeline.run_store.next_step import NextStep, next_step
from pipeline.run_store.records import ScoreRecord
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState, fold

TEMPLATE, TABLE = "report.html.j2", "runs.html.j2"
MAX_IMAGE_BYTES = 2**24
DRAWN = ("learning_curve.png", "baseline/confusion_matrix.png")  # images that the page draws itself


@dataclass(frozen=True)
class ReportData:
    """What the template shows, under the names that it uses."""

    name: str
    place: str
    state: RunState
    updated: str
    config: Mapping[str, Any]
    verdict: tuple[str, str]
    test: tuple[str, str] | None
    test_score: Mapping[str, Any] | None
    readiness: Readiness | None
    next: NextStep
    phases: list[PhaseSection]
    open: list[OpenItem]
    waivers: list[tuple[Waiver, bool]]
    sign_offs: list[SignOff]
    trainings: list[TrainingSection]
    measures: Measures
    comparison: Markup
    confusion: list[ConfusionPanel]
    quality: list[QualityPanel]
    images: list[tuple[str, str]]
    diagnoses: list[DiagnosisSection]
    experiments: Mapping[int, ExperimentSection]
    studies: list[StudySection]
    not_checked: list[tuple[str, str]]
    unreadable: list[str]  # a message for each file of the run that could not be shown
    events: list[Event]
    entries: list[tuple[int, str, str, str]]
    reproduction: Reproduction


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into the run's folder, from its ledger and files alone, and return its path.

    Raises Refused when the ledger was tampered with. A file that is missing or unreadable is listed on the page.
    """
    run = Run(Path(run_dir).resolve())
    write_page(run, collect(run))
    return Path(run_dir) / "report.html"


def write_page(run: Run, data: ReportData) -> None:
    """Write `report.html` of the run with what was collected."""
    files.write_text(run.inside("report.html"), _render(TEMPLATE, vars(data)))


def _render(template: str, context: Mapping[str, Any]) -> str:
    """Return the page that a template makes of its context; every text of it is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from pipeline.repair.config_edits import format_override_value

    templates = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=templates, autoescape=True, finalize=_shown, undefined=StrictUndefined, trim_blocks=True
    )
    filters = {
        "number": number,
        "words": in_words,
        "kind": reference_kind,
        "sentence": _sentence,
        "required": format_required,
        "interval": format_interval,
        "rounded": _rounded,
        "seconds": _seconds,
    }
    environment.filters.update(
        filters, conditions=branch_conditions, not_judged=why_not_judged, override=format_override_value
    )
    environment.filters["by_section"] = by_section
    return environment.get_template(template).render(context)


@dataclass(frozen=True)
class RunRow:
    """One run in the table of all runs; `page` is its report relative to the table, empty where none was written."""

    name: str
    page: str
    experiment: str
    verdict: tuple[str, str]
    phases: list[PhaseSection]
    score: ScoreRecord | None
    test: tuple[str, str] | None
    waivers: int
    next: NextStep
    updated: str


def write_table(root: Path) -> tuple[Path, list[str]]:
    """Write `report.html` of a folder of runs, and return its path and a message for each run that cannot be read."""
    rows: list[RunRow] = []
    damaged: list[str] = []
    for path in sorted(root.glob("*/ledger.jsonl")):
        try:
            rows.append(_run_row(Run.find(path.parent.absolute())))
        except FivegateError as error:  # the other runs are still shown
            damaged += error.faults
    rows.sort(key=lambda row: row.updated, reverse=True)
    target = root / "report.html"
    files.write_text(
        target, _render(TABLE, {"rows": rows, "damaged": damaged, "root": root.name, "all_phases": PHASES})
    )
    return target, damaged


def _run_row(run: Run) -> RunRow:
    entries = read_ledger(run.ledger_path)
    state = fold(entries)
    return RunRow(
        name=run.name,
        page=f"{run.path.name}/report.html" if run.inside("report.html").exists() else "",
        experiment=state.experiment,
        verdict=_verdict(state),
        phases=[phase_section(state, phase, None) for phase in PHASES],
        score=state.score,
        test=compare_test_with_target(state),
        waivers=sum(len(state.valid_waivers(phase)) for phase in PHASES),
        next=next_step(state, run.path),
        updated=time_text(entries[-1])[:16] if entries else "",
    )


def collect(run: Run) -> ReportData:
    """Return what the report shows."""
    entries = read_ledger(run.ledger_path)
    state = fold(entries)
    missing: list[str] = []
    plan = plans.load(run, state) if state.plan else None
    config: Mapping[str, Any] = plan.config if plan else {}
    target, metric = _target(config)
    diagnoses = read_diagnoses(run, missing)
    trainings, measured = training_sections(run, diagnoses, missing), measures(run, state, entries, missing)
    confusion = confusion_panels(run, state, entries, missing)
    test_score = _test_score(entries, state)
    phases = [phase_section(state, phase, plan) for phase in PHASES]
    return ReportData(
        name=run.name,
        place=run.argument,
        state=state,
        updated=time_text(entries[-1])[:16] if entries else "",
        config=config,
        verdict=_verdict(state),
        test=compare_test_with_target(state),
        test_score=test_score,
        readiness=gate_readiness(state, plan.checklists["finalization"]) if plan else None,
        next=next_step(state, run.path),
        phases=phases,
        open=open_items(phases),
        waivers=[(waiver, any(waiver in state.valid_waivers(p) for p in PHASES)) for waiver in state.waivers],
        sign_offs=list(state.sign_offs),
        trainings=trainings,
        measures=measured,
        comparison=_comparison(measured, test_score, target),
        confusion=confusion,
        quality=quality_panels(run, state, _limits(config), missing),
        images=_images(run, missing, bool(confusion)),
        diagnoses=diagnoses,
        experiments=experiment_sections(run, entries, target, metric, missing),
        studies=studies(entries, target),
        not_checked=_not_checked(state, diagnoses, missing),
        unreadable=missing,
        events=timeline(entries),
        entries=[(e["seq"], time_text(e), e["kind"], entry_summary(e)) for e in entries],
        reproduction=reproduction(run, state, plan),
    )


def _target(config: Mapping[str, Any]) -> tuple[float | None, str]:
    """Return the target and the metric of the plan."""
    task = config.get("task") or {}
    target = task.get("target")
    known = target if isinstance(target, int | float) and not isinstance(target, bool) else None
    return known, str(task.get("metric") or "score")


def _limits(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return (config.get("plan") or {}).get("limits") or {}


def _comparison(measured: Measures, test_score: Mapping[str, Any] | None, target: float | None) -> Markup:
    """Return the picture of the scores; empty where the model has none, or nothing to be compared with."""
    rows = score_rows(measured, test_score)
    if len(rows) < 2:
        return NO_DRAWING
    return interval_plot(rows, f"{measured.metric} of the models", marked_target(target), "scores")


def _shown(value: object) -> object:
    """Return what the page shows of a value: every text without control characters, and our own HTML as it is."""
    return visible_lines(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _rounded(value: float | str, form: str) -> str:
    """Return a number in this form; NaN and infinity are text in a file."""
    return format(float(value), form)


def _seconds(value: float) -> str:
    """Return a duration with two digits, or more where seconds have more."""
    return f"{value:.2g} s" if value < 10 else f"{value:.0f} s"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _test_score(entries: Sequence[Entry], state: RunState) -> Mapping[str, Any] | None:
    """Return the test score of the candidate; None where it was not measured."""
    chosen = [record["weights"] for record in (state.candidate, state.frozen) if record]
    scored = [e["data"] for e in entries if e["kind"] == "test.scored" and e["data"]["candidate"] in chosen]
    return scored[-1]["score"] if scored else None


def _verdict(state: RunState) -> tuple[str, str]:
    """Return the state of the run in a few words, and the tone they are shown in."""
    if state.released:
        return "released", "good"
    if state.exhausted:
        return "exhausted", "bad"
    gate, branch = state.gate("finalization"), state.current_branch()
    if gate is not None:
        return {"closed": ("release blocked", "bad"), "pending": ("waits for approval", "warn")}.get(
            gate, ("ready to release", "good")
        )
    if branch is None:
        shut = next((phase for phase in PHASES if state.gate(phase) in ("closed", "pending")), None)
        if shut:
            return f"{shut} gate {state.gate(shut)}", "bad"
        return (f"{state.failed['phase']} stopped", "warn") if state.failed else ("in progress", "plain")
    missed = "target missed on validation" if not branch["target"] else "not sufficient on validation"
    return ("sufficient on validation", "good") if branch["branch"] == "sufficient" else (missed, "warn")


def _images(run: Run, missing: list[str], has_confusion: bool) -> list[tuple[str, str]]:
    """Return the run's PNG files as (title, data URI), without those that the page draws itself."""
    image_paths = [*sorted(run.path.glob("*/*.png")), *sorted(run.path.glob("optimization/*/*.png"))]
    drawn = DRAWN if has_confusion else DRAWN[:1]
    images = []
    for path in (path for path in image_paths if not run.relative(path).endswith(drawn)):
        try:
            text = base64.b64encode(read_bytes(path, "an image", MAX_IMAGE_BYTES)).decode()
        except UserError as error:
            missing += error.faults
            continue
        images.append((f"{_place(path)}: {in_words(path.stem)}", f"data:image/png;base64,{text}"))
    return images


def _place(path: Path) -> str:
    """Return which phase wrote a file: `baseline`, or `fixed, round 1`."""
    return f"fixed, round {path.parent.name}" if path.parent.name.isdigit() else path.parent.name


def _not_checked(state: RunState, diagnoses: list[DiagnosisSection], missing: list[str]) -> list[tuple[str, str]]:
    """Return (what, why) for unanswered items, gates never evaluated, gaps in the diagnosis and unreadable files."""
    rows = [
        (f"{phase}: {item.ask}", item.label if item.is_built else item.why)
        for phase in PHASES
        if phase in state.gates
        for item in state.gates[phase].items
        if item.outcome in ("errored", "inconclusive")
        or (item.outcome == "pending" and not satisfied(item, state, phase))
    ]
    rows += [(f"gate {phase}", "never evaluated") for phase in PHASES if state.gate_label(phase) == "not reached"]
    rows += [(gap["what"], gap["why"]) for section in diagnoses[:1] for gap in section.record["not_checked"]]
    return rows + [("a file of this run", text) for text in missing]
