"""`explain RUN [ITEM]`: explain why a gate is not open: a paragraph per item, with the command that helps."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pipeline.errors import UserError, fault
from pipeline.reporting import tables
from pipeline.results import PHASES, counted
from pipeline.run_store import plan as plans
from pipeline.run_store.gate import Item
from pipeline.run_store.next_step import next_step
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory or name")
    parser.add_argument(
        "item", metavar="ITEM", nargs="?", help="one item; without it, every item that is not satisfied"
    )
    parser.add_argument("--root", default="runs", help="directory of the runs (run.root)")
    parser.add_argument("--gate", choices=PHASES, help="one gate only")


def _what_to_do(run: str, item: Item) -> str:
    if item.sign_off:
        return f"python -m pipeline approve {run} --who NAME"
    if item.waivable:
        waive = f"python -m pipeline waive {run} {item.id} --who NAME --why '...' --expires YYYY-MM-DD"
        # An item without a check fails in every run, so that running the phase again cannot help.
        if tables.is_not_built(item):
            return f"not built in this version; to continue, a named person can waive it: {waive}"
        return f"fix it and rerun the phase, or waive it: {waive}"
    return "fix it and rerun the phase; it cannot be waived"


def format_item(run: Run, state: RunState, phase: str, item: Item) -> str:
    """Return a paragraph with the question, the value, the reason, waivers and signatures, and what to do."""
    outcome = tables.NOT_BUILT if tables.is_not_built(item) else item.outcome
    lines = [f"{phase}/{item.id}: {outcome}", f"  question: {item.ask}"]
    if item.value is not None:
        lines.append(f"  value:    {tables.format_value(item)}")
    if item.why:
        lines.append(f"  why:      {item.why}")
    if item.cause:
        from pipeline.repair.causes import load

        lines.append(f"  cause:    {item.cause}: {load()[item.cause].means}")
    waivers = [w for w in state.valid_waivers(phase) if w.item == item.id]
    lines += [f"  waived:   by {w.who} until {w.expires}: {w.why}" for w in waivers]
    lines += [f"  signed:   by {s.who}" for s in state.valid_sign_offs(phase) if s.item == item.id]
    if not tables.satisfied(item, state, phase):
        lines.append(f"  do:       {_what_to_do(tables.command_argument(run), item)}")
    return "\n".join(lines)


def _format_not_built(run: Run, phase: str, items: Sequence[Item]) -> str:
    """Return one paragraph for the items of a gate that are not built, with the command that waives one of them."""
    place = tables.command_argument(run)
    waive = f"python -m pipeline waive {place} ITEM --who NAME --why '...' --expires YYYY-MM-DD"
    lines = [f"{phase}: {counted(len(items), 'item')} not built in this version"]
    lines += [f"  {item.id}: {item.ask}" for item in items]
    return "\n".join([*lines, f"  do:       to continue, a named person can waive each of them: {waive}"])


def _format_planned_item(run: Run, state: RunState, name: str) -> str:
    """Return what an item will ask when its phase has run. Raises UserError for an id that no gate of the plan has."""
    lists = plans.load(run, state).checklists if state.plan else {}
    planned = {item["id"]: (phase, item) for phase, items in lists.items() for item in items}
    if name not in planned:
        raise UserError(fault("ITEM", "no gate has an item of this id", got=name, among=planned))
    phase, item = planned[name]
    step = next_step(state, root=run.shown_root)
    return f"{phase}/{name}: not evaluated yet\n  question: {item['ask']}\n  next:     {step.command}"


def run(args: argparse.Namespace) -> int:
    run = Run.find(args.run, args.root)
    state = run.state()
    items = [(p, i) for p in PHASES if p in state.gates and args.gate in (None, p) for i in state.gates[p].items]
    if args.item:
        shown = [(p, i) for p, i in items if i.id == args.item]
        if not shown:
            print(_format_planned_item(run, state, args.item))
            return 0
    else:
        shown = [(p, i) for p, i in items if not tables.satisfied(i, state, p)]
    not_built = [] if args.item else [(p, i) for p, i in shown if tables.is_not_built(i)]
    for phase, item in shown:
        if (phase, item) not in not_built:
            print(format_item(run, state, phase, item) + "\n")
    for phase in dict.fromkeys(phase for phase, _ in not_built):
        print(_format_not_built(run, phase, [i for p, i in not_built if p == phase]) + "\n")
    if not shown:
        print("every evaluated item is satisfied\n")
    tables.console().print(tables.branch_line(state))
    return 0
