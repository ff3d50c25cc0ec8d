"""`checklist RUN [--gate G]`: print the checks of each gate as Markdown task lists, to paste into a review."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from pipeline.escaping import markdown as escaped
from pipeline.reporting import tables
from pipeline.reporting.terminal import print_lines
from pipeline.results import PHASES
from pipeline.run_store import plan as plans
from pipeline.run_store.gate import Item
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory or name")
    parser.add_argument("--root", default="runs", help="directory of the runs (run.root)")
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


def _task_line(item: Item, state: RunState, phase: str) -> str:
    box = "x" if tables.satisfied(item, state, phase) else " "
    waivers = [w for w in state.valid_waivers(phase) if w.item == item.id]
    people = [f"waived by {w.who} until {w.expires}: {w.why}" for w in waivers]
    people += [f"accepted by {item.accepted_by}"] if item.accepted_by else []
    people += [f"signed by {s.who}" for s in state.valid_sign_offs(phase) if s.item == item.id]
    required = f"required {tables.format_required(item)}" if item.bound is not None else ""
    figures = ", ".join(text for text in (tables.format_value(item), required) if text)
    remarks = "; ".join(text for text in (item.why, *people) if text)
    rest = f" *{escaped(item.label)}*{f' ({escaped(figures)})' if figures else ''} {escaped(remarks)}".rstrip()
    return f"- [{box}] **{escaped(item.id)}** {escaped(item.ask)}{rest}"


def run(args: argparse.Namespace) -> int:
    run = Run.find(args.run, args.root)
    state = run.state()
    plan = plans.load(run, state)
    print_lines(f"# Gates of {escaped(run.name)}\n")
    for phase in [args.gate] if args.gate else PHASES:
        print_lines("\n".join(markdown(state, plan, phase)) + "\n")
    return 0
