"""`checklist RUN [--gate G]`: a gate as Markdown boxes, to paste into a review."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from pipeline.reporting import tables
from pipeline.results import PHASES
from pipeline.run_store import plan as plans
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory or name")
    parser.add_argument("--root", default="runs", help="where runs live (run.root)")
    parser.add_argument("--gate", choices=PHASES, help="one gate; all five without it")


def markdown(state: RunState, checklists: dict[str, list[dict]], phase: str) -> Iterator[str]:
    """One gate as Markdown: a ticked box per satisfied item, with value, bound, reason, waiver or signature."""
    yield f"## {phase}: {tables.phase_state(state, phase)}\n"
    gate = state.gates.get(phase)
    if gate is None:
        yield from (f"- [ ] **{item['id']}** {item['ask']}" for item in checklists[phase])
        return
    for item in gate.items:
        waivers = [w for w in state.valid_waivers(phase) if w.item == item.id]
        over = [f"waived by {w.who} until {w.expires}: {w.why}" for w in waivers]
        over += [f"signed by {s.who}" for s in state.valid_sign_offs(phase) if s.item == item.id]
        box = "x" if tables.satisfied(item, state, phase) else " "
        measured = (
            f" ({tables.number(item.value)}, bound {tables.number(item.bound)})" if item.bound is not None else ""
        )
        yield f"- [{box}] **{item.id}** {item.ask} *{item.outcome}*{measured} {item.why} {'; '.join(over)}".rstrip()


def run(args: argparse.Namespace) -> int:
    found = Run.find(args.run, args.root)
    state = found.state()
    lists = plans.load(found, state).checklists
    print(f"# Gates of {found.name}\n")
    for phase in [args.gate] if args.gate else PHASES:
        print("\n".join(markdown(state, lists, phase)) + "\n")
    return 0
