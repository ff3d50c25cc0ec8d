"""`rollback RUN`: a named person takes a release back; the records of it stay."""

from __future__ import annotations

import argparse

from pipeline.commands.approve import refresh_report, refuse_stranger, typed_name
from pipeline.errors import Refused, fault
from pipeline.reporting import tables
from pipeline.run_store import files
from pipeline.run_store.next_step import next_step
from pipeline.run_store.run import Run, opened
from pipeline.run_store.state import fold


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory or name")
    parser.add_argument("--root", default="runs", help="where runs live (run.root)")
    parser.add_argument("--who", help="your name (asked for on a terminal)")
    parser.add_argument("--why", default="", help="why the release is taken back")


def run(args: argparse.Namespace) -> int:
    who = typed_name(args.who)
    found = Run.find(args.run, args.root)
    with opened(found) as ledger:
        state = fold(ledger.entries)
        if not state.released:
            raise Refused(
                fault(found.name, "is not released", do=f"python -m pipeline status {tables.command_argument(found)}")
            )
        refuse_stranger(found, state, "owner", who, "may not take a release back")
        taken = {"who": who, "why": args.why, "subject": state.released["subject"]}
        path = found.inside("bundle", "attestations", "rollback.json")
        files.write_json(path, {"schema": 1, **taken})  # whoever holds the bundle sees it too
        ledger.append("rolled_back", taken)
        refresh_report(found)
        advice = next_step(fold(ledger.entries), root=found.shown_root)
    console = tables.console()
    console.print(f"{found.name}: the release of {taken['subject'][:12]} is taken back by {who}")
    console.print(tables.next_step_line(advice), soft_wrap=True)
    return 0
