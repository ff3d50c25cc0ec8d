"""`rollback RUN`: a named person takes a release back; the records of it stay."""

from __future__ import annotations

import argparse

from pipeline.commands import tables
from pipeline.commands.approve import refresh_report, refuse_stranger, typed_name
from pipeline.errors import Refused, fault
from pipeline.record.run import Run, opened
from pipeline.record.state import fold


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory or name")
    parser.add_argument("--root", default="runs", help="where runs live (run.root)")
    parser.add_argument("--who", help="your name (asked for on a terminal)")
    parser.add_argument("--why", default="", help="why the release is taken back")


def run(args: argparse.Namespace) -> int:
    who = typed_name(args.who)
    found = Run.find(args.run, args.root)
    with opened(found) as book:
        state = fold(book.entries)
        if not state.released:
            raise Refused(fault(found.name, "is not released", do=f"python -m pipeline status {tables.place(found)}"))
        refuse_stranger(found, state, "owner", who, "may not take a release back")
        book.append("rolled_back", {"who": who, "why": args.why, "subject": state.released["subject"]})
        refresh_report(found)
    tables.console().print(f"{found.name}: the release of {state.released['subject'][:12]} is taken back by {who}")
    return 0
