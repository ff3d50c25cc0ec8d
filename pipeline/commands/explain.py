"""`explain RUN [ITEM]`: why a gate stands where it stands, one paragraph per item, with the command that helps."""

from __future__ import annotations

import argparse

from pipeline.errors import UserError, fault
from pipeline.reporting import tables
from pipeline.results import PHASES
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
    parser.add_argument("--root", default="runs", help="where runs live (run.root)")
    parser.add_argument("--gate", choices=PHASES, help="one gate only")


def _way_out(place: str, item: Item) -> str:
    if item.sign_off:
        return f"python -m pipeline approve {place} --who NAME"
    if item.waivable:
        waive = f"python -m pipeline waive {place} {item.id} --who NAME --why '...' --expires YYYY-MM-DD"
        if item.why.startswith("not built"):
            return f"no run can answer it in this version; a named person may let it pass: {waive}"
        return f"mend it and run the phase again, or: {waive}"
    return "mend it and run the phase again; nobody can waive it"


def paragraph(run: Run, state: RunState, phase: str, item: Item) -> str:
    """What was asked, what was found, what it means and what can be done."""
    lines = [f"{phase}/{item.id}: {item.outcome}", f"  asked:  {item.ask}"]
    if item.value is not None:
        bound = f", bound {tables.number(item.bound)}" if item.bound is not None else ""
        lines.append(f"  found:  {tables.number(item.value)} {item.unit}".rstrip() + bound)
    if item.why:
        lines.append(f"  why:    {item.why}")
    if item.cause:
        from pipeline.repair.causes import load

        lines.append(f"  cause:  {item.cause}: {load()[item.cause].means}")
    lines += [
        f"  waived: by {w.who} until {w.expires}: {w.why}" for w in state.valid_waivers(phase) if w.item == item.id
    ]
    lines += [f"  signed: by {s.who}" for s in state.valid_sign_offs(phase) if s.item == item.id]
    if not tables.satisfied(item, state, phase):
        lines.append(f"  do:     {_way_out(tables.command_argument(run), item)}")
    return "\n".join(lines)


def _not_asked_yet(run: Run, state: RunState, name: str) -> str:
    """What an item will ask when its phase has run. Raises UserError for an id that no gate of the plan has."""
    lists = plans.load(run, state).checklists if state.plan else {}
    planned = {item["id"]: (phase, item) for phase, items in lists.items() for item in items}
    if name not in planned:
        raise UserError(fault("ITEM", "no gate has an item of this id", got=name, among=planned))
    phase, item = planned[name]
    advice = next_step(state, root=run.shown_root)
    return f"{phase}/{name}: not asked yet\n  asked:  {item['ask']}\n  next:   {advice.command}"


def run(args: argparse.Namespace) -> int:
    found = Run.find(args.run, args.root)
    state = found.state()
    everything = [(p, i) for p in PHASES if p in state.gates and args.gate in (None, p) for i in state.gates[p].items]
    wanted = [(p, i) for p, i in everything if (i.id == args.item if args.item else not tables.satisfied(i, state, p))]
    if args.item and not wanted:
        print(_not_asked_yet(found, state, args.item))
        return 0
    for phase, item in wanted:
        print(paragraph(found, state, phase, item) + "\n")
    if not wanted:
        print("every evaluated item is satisfied\n")
    tables.console().print(tables.branch_line(state))
    return 0
