"""`diff A B`: what two runs did differently, and what came of it."""

from __future__ import annotations

import argparse
from typing import Any

from rich.table import Table

from pipeline.reporting import tables
from pipeline.results import PHASES
from pipeline.run_store import plan as plans
from pipeline.run_store.run import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="A", help="run directory or name")
    parser.add_argument("other", metavar="B", help="run directory or name")
    parser.add_argument("--root", default="runs", help="where runs live (run.root)")


def outcome(run: Run) -> dict[str, Any]:
    """What a run amounts to: config, facts, gates, branch and score, as one nested dictionary."""
    state = run.state()
    plan = plans.load(run, state)
    candidate = dict(state.candidate or {})
    return {
        "config": plan.config,
        "facts": plan.facts,
        "gates": {p: tables.phase_state(state, p) for p in PHASES},
        "branch": state.branch,
        "candidate": {k: candidate.get(k) for k in ("phase", "score", "weights")},
    }


def run(args: argparse.Namespace) -> int:
    first, second = Run.find(args.run, args.root), Run.find(args.other, args.root)
    changed = plans.differences(outcome(first), outcome(second))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("key", first.name, second.name):
        table.add_column(name, overflow="fold")
    for key, (old, new) in changed.items():
        table.add_row(key, tables.number(old), tables.number(new))
    console = tables.console()
    console.print(table if changed else f"{first.name} and {second.name} agree in config, facts, gates and outcome")
    return 0
