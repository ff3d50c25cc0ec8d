"""The report of a run: everything on record about it as one self-contained file, `report.html` in its folder."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipeline.documents.readiness_score import Readiness, gate_readiness
from pipeline.errors import UserError
from pipeline.escaping import visible_lines
from pipeline.foreign_files import read_bytes
from pipeline.history import EXPECTED as HISTORY
from pipeline.history import History
from pipeline.repair.diagnosis_record import DiagnosisRecord, read_diagnosis
from pipeline.reporting.measures import Measures, measures
from pipeline.reporting.panels import Panel, panels, reference_kind
from pipeline.reporting.studies import StudySection, studies
from pipeline.reporting.tables import (
    compare_test_with_target,
    format_required,
    in_words,
    items_count,
    number,
    satisfied,
    why_not_judged,
)
from pipeline.results import PHASES, format_interval
from pipeline.run_store import files
from pipeline.run_store import plan as plans
from pipeline.run_store.gate import Item, SignOff, Waiver, branch_conditions
from pipeline.run_store.ledger import Entry, read_ledger
from pipeline.run_store.next_step import NextStep, next_step
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState, fold

TEMPLATE = "report.html.j2"
MAX_IMAGE_BYTES = 2**24
SATISFIED_LABELS = ("passed", "passed with warning", "signed", "waived", "accepted")
ENTRY_CHARS = 160  # of a ledger entry in the table of entries

Round = tuple[int, DiagnosisRecord]  # the number of a round, and its diagnosis


@dataclass(frozen=True)
class ItemRow:
    """One item of a gate; `label` is its outcome, or the signature, waiver or statement that replaces it in the count.

    `details` are its reason, with who signed or accepted it.
    """

    item: Item
    label: str
    tone: str
    details: str


@dataclass(frozen=True)
class PhaseSection:
    """One phase and its gate; `count` says how many items are satisfied, of those that the plan has.

    `reason` says why a phase has no rows.
    """

    name: str
    label: str
    tone: str
    round: int | None
    rows: list[ItemRow]
    count: str
    reason: str


@dataclass(frozen=True)
class LearningCurve:
    """The panels of one training, each with its drawing."""

    title: str
    panels: list[tuple[Panel, Markup]]


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
    waivers: list[tuple[Waiver, bool]]
    sign_offs: list[SignOff]
    curves: list[LearningCurve]
    measures: Measures
    images: list[tuple[str, str]]
    diagnoses: list[Round]
    studies: list[StudySection]
    not_checked: list[tuple[str, str]]
    unreadable: list[str]  # a message for each file of the run that could not be shown
    entries: list[tuple[int, str, str, str]]


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into the run's folder, from its ledger and files alone, and return its path.

    Raises Refused when the ledger was tampered with. A file that is missing or unreadable is listed on the page.
    """
    run = Run(Path(run_dir).resolve())
    write_page(run, collect(run))
    return Path(run_dir) / "report.html"


def write_page(run: Run, data: ReportData) -> None:
    """Write `report.html` of the run with what was collected."""
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
    }
    environment.filters.update(
        filters, conditions=branch_conditions, not_judged=why_not_judged, override=format_override_value
    )
    files.write_text(run.inside("report.html"), environment.get_template(TEMPLATE).render(vars(data)))


def collect(run: Run) -> ReportData:
    """Return what the report shows."""
    entries = read_ledger(run.ledger_path)
    state = fold(entries)
    missing: list[str] = []
    diagnoses = _read_diagnoses(run, missing)
    curves, measured = _learning_curves(run, missing), measures(run, state, entries, missing)
    images = _images(run, missing)
    plan = plans.load(run, state) if state.plan else None
    return ReportData(
        name=run.name,
        place=run.argument,
        state=state,
        updated=_time_text(entries[-1])[:16] if entries else "",
        config=plan.config if plan else {},
        verdict=_verdict(state),
        test=compare_test_with_target(state),
        test_score=_test_score(entries, state),
        readiness=gate_readiness(state, plan.checklists["finalization"]) if plan else None,
        next=next_step(state, run.path),
        phases=[_phase_section(state, phase, plan) for phase in PHASES],
        waivers=[(waiver, any(waiver in state.valid_waivers(p) for p in PHASES)) for waiver in state.waivers],
        sign_offs=list(state.sign_offs),
        curves=curves,
        measures=measured,
        images=images,
        diagnoses=diagnoses,
        studies=studies(entries),
        not_checked=_not_checked(state, diagnoses, missing),
        unreadable=missing,
        entries=[(e["seq"], _time_text(e), e["kind"], _entry_summary(e)) for e in entries],
    )


def _shown(value: object) -> object:
    """Return what the page shows of a value: every text without control characters, and our own HTML as it is."""
    return visible_lines(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _rounded(value: float | str, form: str) -> str:
    """Return a number in this form; NaN and infinity are text in a file."""
    return format(float(value), form)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _time_text(entry: Entry) -> str:
    return str(entry["time"])[:19].replace("T", " ")


def _test_score(entries: Sequence[Entry], state: RunState) -> Mapping[str, Any] | None:
    """Return the test score of the candidate; None where it was not measured."""
    candidate = state.candidate["weights"] if state.candidate else None
    scored = [e["data"] for e in entries if e["kind"] == "test.scored" and e["data"]["candidate"] == candidate]
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
        return "in progress", "plain"
    missed = "target missed on validation" if not branch["target"] else "not sufficient on validation"
    return ("sufficient on validation", "good") if branch["branch"] == "sufficient" else (missed, "warn")


def _phase_section(state: RunState, phase: str, plan: plans.Plan | None) -> PhaseSection:
    label = state.gate_label(phase)
    gate = None if label == "not needed" else state.gates.get(phase)
    rows = [_item_row(item, state, phase) for item in gate.items] if gate else []
    planned = len(plan.checklists.get(phase, ())) if plan else 0
    return PhaseSection(
        name=phase,
        label=label,
        tone={"open": "good", "closed": "bad", "pending": "warn", "stale": "warn"}.get(label, "plain"),
        round=gate.round if gate else None,
        rows=rows,
        count=_count(rows, planned),
        reason=_reason_without_rows(state, label),
    )


def _count(rows: list[ItemRow], planned: int) -> str:
    """Return how many items are satisfied; of a gate that was not evaluated, only how many there will be."""
    if not rows:
        return f"–/{planned}" if planned else ""
    count, idle = items_count(sum(row.label in SATISFIED_LABELS for row in rows), [row.item for row in rows])
    return f"{count}, {idle} n/a" if idle and "/" in count else count


def _reason_without_rows(state: RunState, label: str) -> str:
    """Return why a gate has no items on record: not evaluated yet, or not needed, and for which reason."""
    if label != "not needed":
        return "Not evaluated yet."
    branch = state.current_branch()
    assert branch is not None
    if branch["branch"] == "sufficient":
        return f"The branch was sufficient after {branch['phase']}."
    return f"The branch was insufficient after {branch['phase']}, and a named person waived it."


def _item_row(item: Item, state: RunState, phase: str) -> ItemRow:
    label, details = item.label, item.why
    if item.outcome not in ("passed", "not_applicable") and satisfied(item, state, phase):
        signers = [sign_off.who for sign_off in state.valid_sign_offs(phase) if sign_off.item == item.id]
        label = "signed" if signers else "accepted" if item.accepted_by else "waived"
        details = f"signed by {', '.join(signers)}" if signers else details
        details += f"; accepted by {item.accepted_by}" if label == "accepted" else ""
    tones = {"passed": "good", "signed": "good", "failed": "bad", "errored": "bad", "not applicable": "plain"}
    return ItemRow(item, label, tones.get(label, "warn"), details)


def _read_diagnoses(run: Run, missing: list[str]) -> list[Round]:
    """Return the number and the diagnosis of every round, newest first; a file that is none is added to `missing`."""
    paths = [path for path in run.path.glob("diagnostics/*/diagnosis.json") if path.parent.name.isdecimal()]
    diagnoses = []
    for path in sorted(paths, key=lambda p: int(p.parent.name), reverse=True):
        try:
            diagnoses.append((int(path.parent.name), read_diagnosis(path, run.relative(path))))
        except UserError as error:
            missing += error.faults
    return diagnoses


def _learning_curves(run: Run, missing: list[str]) -> list[LearningCurve]:
    """Return the learning curves of the baseline and of each round's fixed training."""
    from pipeline.reporting.plots import inline_svg

    curves = []
    fixed = sorted(run.path.glob("optimization/*/trials/fixed/history.npz"))
    for path in [run.inside("baseline", "history.npz"), *fixed]:
        title = "baseline" if path.parent.name == "baseline" else f"after the fix, round {path.parts[-4]}"
        try:
            shown = panels(History.from_bytes(read_bytes(path, HISTORY), run.relative(path))) if path.exists() else []
        except UserError as error:
            missing += error.faults
            continue
        if shown:
            curves.append(LearningCurve(title, [(p, inline_svg(p, f"{title}/{p.title}")) for p in shown]))
    return curves


def _images(run: Run, missing: list[str]) -> list[tuple[str, str]]:
    """Return the run's PNG files as (title, data URI); the learning curve is drawn as SVG instead."""
    image_paths = [*sorted(run.path.glob("*/*.png")), *sorted(run.path.glob("optimization/*/*.png"))]
    images = []
    for path in (path for path in image_paths if path.stem != "learning_curve"):
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


def _not_checked(state: RunState, diagnoses: list[Round], missing: list[str]) -> list[tuple[str, str]]:
    """Return (what, why) for unanswered items, gates never evaluated, gaps in the diagnosis and unreadable files."""
    rows = [
        (f"{phase}: {item.ask}", item.why)
        for phase in PHASES
        if phase in state.gates
        for item in state.gates[phase].items
        if item.outcome in ("errored", "inconclusive", "pending")
    ]
    rows += [(f"gate {phase}", "never evaluated") for phase in PHASES if state.gate_label(phase) == "not reached"]
    rows += [(gap["what"], gap["why"]) for _, diagnosis in diagnoses[:1] for gap in diagnosis["not_checked"]]
    return rows + [("a file of this run", text) for text in missing]


def _entry_summary(entry: Entry) -> str:
    """Return the plain values of an entry's data on one line."""
    values = [(key, value) for key, value in entry["data"].items() if isinstance(value, str | int | float)]
    text = "  ".join(f"{key}={value}" for key, value in values if value != "")
    return text if len(text) <= ENTRY_CHARS else text[: ENTRY_CHARS - 3] + "…"
