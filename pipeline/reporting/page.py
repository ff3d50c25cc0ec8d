"""The page of a run: everything on record of it as one self-contained file, `report.html` in its folder."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.history import History
from pipeline.reporting.measures import interval, measures, words
from pipeline.reporting.plots import kind_of, panels
from pipeline.reporting.tables import number, phase_state, place, satisfied
from pipeline.results import PHASES
from pipeline.run_store import files
from pipeline.run_store import plan as plans
from pipeline.run_store.gate import Item
from pipeline.run_store.ledger import read_ledger
from pipeline.run_store.next_step import next_step
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState, fold

TEMPLATE = "report.html.j2"
LISTS = ("symptoms", "root_causes", "recommended_fixes", "experiments", "not_checked")  # of a diagnosis
GOOD = ("passed", "not applicable", "signed", "waived")


def write_page(run_dir: Path) -> Path:
    """The page stands in the run's folder, made of its ledger and files alone; its path is returned.

    Raises Refused when the ledger was tampered with. A file that is absent or unreadable is left out and said.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=templates, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters.update(number=number, interval=interval, words=words, kind=kind_of)
    page = environment.get_template(TEMPLATE).render(gather(Run(Path(run_dir).resolve())))
    path = Path(run_dir) / "report.html"
    files.write_text(path, page)
    return path


def gather(run: Run) -> dict[str, Any]:
    """What the page shows, as plain values."""
    entries = read_ledger(run.ledger_path)
    state = fold(entries)
    missing: list[str] = []
    diagnoses = _diagnoses(run, missing)
    curves, measured = _curves(run, missing), measures(run, state, missing)
    plan = plans.load(run, state) if state.plan else None
    return {
        "name": run.name,
        "place": place(run),
        "experiment": state.experiment,
        "made": entries[-1]["time"][:16].replace("T", " ") if entries else "",
        "config": plan.config if plan else {},
        "verdict": _verdict(state),
        "branch": state.current_branch(),
        "candidate": state.candidate,
        "advice": next_step(state, root=run.shown_root),
        "phases": [_phase(state, phase, plan) for phase in PHASES],
        "revisions": state.revisions,
        "waivers": [(waiver, any(waiver in state.valid_waivers(p) for p in PHASES)) for waiver in state.waivers],
        "sign_offs": state.sign_offs,
        "test_opened": len(state.test_opened),
        "failed": state.failed,
        "curves": curves,
        "measures": measured,
        "pictures": _pictures(run),
        "diagnoses": diagnoses,
        "studies": [_study(entry["data"]) for entry in entries if entry["kind"] == "study.decided"],
        "not_checked": _not_checked(state, diagnoses, missing),
        "entries": [(e["seq"], e["time"][:19].replace("T", " "), e["kind"], _in_short(e["data"])) for e in entries],
        "head": state.head,
    }


def _verdict(state: RunState) -> tuple[str, str]:
    """The run in one or two words, with the tone they are shown in."""
    if state.released:
        return "released", "good"
    if state.exhausted:
        return "exhausted", "bad"
    branch = state.current_branch()
    if branch is None:
        return "in progress", "plain"
    return branch["branch"], "good" if branch["branch"] == "sufficient" else "warn"


def _phase(state: RunState, phase: str, plan: plans.Plan | None) -> dict[str, Any]:
    gate = state.gates.get(phase)
    items = [_item(item, state, phase) for item in gate.items] if gate else []
    good = sum(item["word"] in GOOD for item in items)
    asked = len(items) or (len(plan.checklists.get(phase, ())) if plan else 0)
    word = phase_state(state, phase)
    tone = {"open": "good", "closed": "bad", "pending": "warn", "stale": "warn"}.get(word, "plain")
    shown = {"items": items, "good": good, "asked": asked, "tone": tone}
    return {"name": phase, "word": word, "round": gate.round if gate else None, **shown}


def _item(item: Item, state: RunState, phase: str) -> dict[str, Any]:
    """One question as shown: its word is the outcome, or the signature or waiver that lies over it."""
    word = item.outcome.replace("_", " ")
    if item.outcome not in ("passed", "not_applicable") and satisfied(item, state, phase):
        word = "signed" if any(s.item == item.id for s in state.valid_sign_offs(phase)) else "waived"
    tones = {"passed": "good", "signed": "good", "failed": "bad", "errored": "bad", "not applicable": "plain"}
    return {**vars(item), "word": word, "tone": tones.get(word, "warn")}


def _read(path: Path, run: Run, missing: list[str]) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        missing.append(f"{run.relative(path)} cannot be read ({type(error).__name__})")
        return None
    return found if isinstance(found, dict) else None


def _diagnoses(run: Run, missing: list[str]) -> list[dict[str, Any]]:
    """Every round's diagnosis, the newest first, with whatever key it lacks empty."""
    rounds = [path for path in run.path.glob("diagnostics/*/diagnosis.json") if path.parent.name.isdigit()]
    found: list[dict[str, Any]] = []
    for path in sorted(rounds, key=lambda p: int(p.parent.name), reverse=True):
        body = _read(path, run, missing)
        if body is not None:
            found.append(
                {**dict.fromkeys(LISTS, ()), "confidence_statement": "", **body, "round": int(path.parent.name)}
            )
    return found


def _curves(run: Run, missing: list[str]) -> list[dict[str, Any]]:
    """The learning curves of the baseline and of each round's fixed training."""
    from pipeline.errors import UserError
    from pipeline.reporting.svg import draw

    found = []
    fixed = sorted(run.path.glob("optimization/*/trials/fixed/history.npz"))
    for path in [run.inside("baseline", "history.npz"), *fixed]:
        title = "baseline" if path.parent.name == "baseline" else f"fixed, round {path.parts[-4]}"
        try:
            shown = panels(History.load(path)) if path.is_file() else []
        except UserError:
            missing.append(f"{run.relative(path)} is no history")
            continue
        if shown:
            found.append({"title": title, "panels": [(panel, draw(panel)) for panel in shown]})
    return found


def _pictures(run: Run) -> list[tuple[str, str]]:
    """Pictures that are no learning curve, as name and data URI."""
    paths = [path for path in sorted(run.path.glob("*/*.png")) if path.stem != "learning_curve"]
    encoded = [(path, base64.b64encode(path.read_bytes()).decode()) for path in paths]
    return [(f"{p.parent.name}: {p.stem.replace('_', ' ')}", f"data:image/png;base64,{text}") for p, text in encoded]


def _study(data: Mapping[str, Any]) -> dict[str, Any]:
    """A comparison of arms, with bars scaled to the largest effect."""
    arms = [{**arm, "adopted": arm["id"] == data["winner"]} for arm in data["arms"]]
    return {"round": data["round"], "arms": arms, "winner": data["winner"]}


def _not_checked(state: RunState, diagnoses: list[dict[str, Any]], missing: list[str]) -> list[tuple[str, str]]:
    """What this report cannot vouch for: items without an answer, what the diagnosis left out, files not readable."""
    unanswered = ("errored", "inconclusive", "pending")
    found = [
        (f"{phase}: {item.ask}", item.why)
        for phase in PHASES
        if phase in state.gates
        for item in state.gates[phase].items
        if item.outcome in unanswered
    ]
    found += [(f"gate {phase}", "never evaluated") for phase in PHASES if phase_state(state, phase) == "not reached"]
    found += [(entry["what"], entry["why"]) for body in diagnoses[:1] for entry in body["not_checked"]]
    return found + [("a file of this run", text) for text in missing]


def _in_short(data: Mapping[str, Any]) -> str:
    """A ledger entry's data on one line."""
    words = (f"{key}={value}" for key, value in data.items() if isinstance(value, str | int | float) and value != "")
    text = "  ".join(words)
    return text if len(text) <= 160 else text[:157] + "…"
