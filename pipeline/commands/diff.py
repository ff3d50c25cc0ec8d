"""`diff A B`: compare two runs: config, facts of the plan, gates, branch and score."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TypedDict

from pipeline.reporting import tables
from pipeline.reporting.terminal import console, new_table, print_json
from pipeline.results import PHASES
from pipeline.run_store import plan as plans
from pipeline.run_store.run import Run


class Difference(TypedDict):
    """One key in which two runs differ, with its value in each."""

    key: str
    a: object
    b: object


class DiffAnswer(TypedDict):
    """What `diff --json` prints."""

    schema: int
    a: str
    b: str
    changed: list[Difference]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="A", help="run directory or name")
    parser.add_argument("other", metavar="B", help="run directory or name")
    parser.add_argument("--root", default="runs", help="directory of the runs (run.root)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def outcome(run: Run) -> dict[str, object]:
    """Return what is compared of a run, as one nested dictionary."""
    state = run.state()
    plan = plans.load(run, state)
    candidate: Mapping[str, object] = {**state.candidate} if state.candidate else {}
    return {
        "config": plan.config,
        "facts": plan.facts,
        "gates": {p: state.gate_label(p) for p in PHASES},
        "branch": state.branch,
        "candidate": {k: candidate.get(k) for k in ("phase", "score", "weights")},
    }


def run(args: argparse.Namespace) -> int:
    first, second = Run.find(args.run, args.root), Run.find(args.other, args.root)
    changed = plans.differences(outcome(first), outcome(second))
    if args.json:
        differences = [Difference(key=key, a=old, b=new) for key, (old, new) in changed.items()]
        print_json(DiffAnswer(schema=1, a=first.name, b=second.name, changed=differences), indent=2)
        return 0
    if not changed:
        console().print(f"{first.name} and {second.name} agree in config, facts, gates and outcome")
        return 0
    table = new_table("key", first.name, second.name)
    for key, (old, new) in changed.items():
        table.add_row(key, tables.number(old), tables.number(new))
    console().print(table)
    return 0
