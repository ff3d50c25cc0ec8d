"""`checklist RUN [--gate G]`: print the checks of each gate as Markdown task lists, to paste into a review."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any, TypedDict

from pipeline.escaping import markdown as escaped
from pipeline.reporting import tables
from pipeline.reporting.terminal import print_json, print_lines
from pipeline.results import PHASES
from pipeline.run_store import plan as plans
from pipeline.run_store.gate import Item
from pipeline.run_store.ledger import read_recorded_json
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState


class Task(TypedDict):
    """One check; `outcome` is empty where it was not evaluated for the present plan and training."""

    id: str
    ask: str
    satisfied: bool
    outcome: str
    remarks: list[str]


class GateTasks(TypedDict):
    """The checks of one gate, and its state in words."""

    phase: str
    gate: str
    items: list[Task]


class ChecklistAnswer(TypedDict):
    """What `checklist --json` prints."""

    schema: int
    run: str
    gates: list[GateTasks]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory or name")
    parser.add_argument("--root", default="runs", help="directory of the runs (run.root)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--gate", choices=PHASES, help="one gate; without it, all five")


def markdown(state: RunState, plan: plans.Plan, phase: str) -> Iterator[str]:
    """Yield the lines of one gate: its title, then a task per check, ticked where it is satisfied today.

    What was evaluated for an earlier plan or training is shown as planned: it says nothing of the present one.
    """
    yield f"## {phase}: {state.gate_label(phase)}\n"
    gate = state.gates.get(phase)
    if gate is None or state.gate(phase) is None:
        yield from (f"- [ ] **{escaped(item['id'])}** {escaped(item['ask'])}" for item in plan.checklists[phase])
        return
    yield from (_task_line(item, state, phase) for item in gate.items)


def tasks(state: RunState, plan: plans.Plan, phase: str) -> GateTasks:
    """Return the checks of one gate; what was evaluated for an earlier plan or training is shown as planned."""
    gate, label = state.gates.get(phase), state.gate_label(phase)
    if gate is None or state.gate(phase) is None:
        planned = [
            Task(id=i["id"], ask=i["ask"], satisfied=False, outcome="", remarks=[]) for i in plan.checklists[phase]
        ]
        return GateTasks(phase=phase, gate=label, items=planned)
    judged = [
        Task(
            id=item.id,
            ask=item.ask,
            satisfied=tables.satisfied(item, state, phase),
            outcome=item.label,
            remarks=[text for text in (item.why, *_people(item, state, phase)) if text],
        )
        for item in gate.items
    ]
    return GateTasks(phase=phase, gate=label, items=judged)


def watched(run: Run, state: RunState) -> list[Task]:
    """Return what incidents of the run left behind: a task each, with the regression trial of the newest fix."""
    record = state.finished.get("optimization")
    if record is None or state.gate("optimization") is None:
        return []
    body = read_recorded_json(run.path, dict(record["evidence"]))
    values = body["values"] if isinstance(body, dict) else {}
    trials = {trial["id"]: trial for trial in (values.get("regression") or {}).get("trials", [])}
    return [_watched(item, trials.get(item["id"])) for item in values.get("prevention", [])]


def _watched(item: Mapping[str, Any], trial: Mapping[str, Any] | None) -> Task:
    """Return the task of one prevention item; without a trial it is held against the next fix."""
    remarks = [f"left by the incident of round {item['round']}"]
    if trial is None:
        return Task(id=item["id"], ask=item["ask"], satisfied=False, outcome="", remarks=[*remarks, "for the next fix"])
    value = trial["value"]
    measured = f"{value:.4g}" if isinstance(value, float) else str(value or "nothing")
    outcome = "passed" if trial["passed"] else "failed"
    remarks.append(f"measured: {measured}")
    return Task(id=item["id"], ask=item["ask"], satisfied=trial["passed"], outcome=outcome, remarks=remarks)


def _watched_line(task: Task) -> str:
    box, outcome = "x" if task["satisfied"] else " ", f" *{task['outcome']}*" if task["outcome"] else ""
    remarks = escaped("; ".join(task["remarks"]))
    return f"- [{box}] **{escaped(task['id'])}** {escaped(task['ask'])}{outcome} {remarks}"


def _people(item: Item, state: RunState, phase: str) -> list[str]:
    """Return who waived, accepted or signed an item, as clauses."""
    waivers = [w for w in state.valid_waivers(phase) if w.item == item.id]
    people = [f"waived by {w.who} until {w.expires}: {w.why}" for w in waivers]
    people += [f"accepted by {item.accepted_by}"] if item.accepted_by else []
    return people + [f"signed by {s.who}" for s in state.valid_sign_offs(phase) if s.item == item.id]


def _task_line(item: Item, state: RunState, phase: str) -> str:
    box = "x" if tables.satisfied(item, state, phase) else " "
    people = _people(item, state, phase)
    required = f"required {tables.format_required(item)}" if item.bound is not None else ""
    figures = ", ".join(text for text in (tables.format_value(item), required) if text)
    remarks = "; ".join(text for text in (item.why, *people) if text)
    rest = f" *{escaped(item.label)}*{f' ({escaped(figures)})' if figures else ''} {escaped(remarks)}".rstrip()
    return f"- [{box}] **{escaped(item.id)}** {escaped(item.ask)}{rest}"


def run(args: argparse.Namespace) -> int:
    run = Run.find(args.run, args.root)
    state = run.state()
    plan = plans.load(run, state)
    phases = [args.gate] if args.gate else PHASES
    if args.json:
        gates = [tasks(state, plan, phase) for phase in phases]
        for gate in gates:
            gate["items"] += watched(run, state) if gate["phase"] == "optimization" else []
        print_json(ChecklistAnswer(schema=1, run=run.name, gates=gates), indent=2)
        return 0
    print_lines(f"# Gates of {escaped(run.name)}\n")
    for phase in phases:
        left = map(_watched_line, watched(run, state) if phase == "optimization" else ())
        print_lines("\n".join([*markdown(state, plan, phase), *left]) + "\n")
    return 0
