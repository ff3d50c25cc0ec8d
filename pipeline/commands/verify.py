"""`verify RUN`: check ledger and recorded files, and judge gates and branch again; never repairs anything."""

from __future__ import annotations

import argparse

from pipeline.release import verify
from pipeline.reporting.terminal import console, styled
from pipeline.run_store.checklist import Judge
from pipeline.run_store.ledger import scan_ledger
from pipeline.run_store.run import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory or name")
    parser.add_argument("--root", default="runs", help="directory of the runs (run.root)")


def run(args: argparse.Namespace, judge: Judge) -> int:
    run = Run.find(args.run, args.root)
    entries, faults, notes = verify.verify(run, judge)
    screen = console()
    for fault in faults:
        screen.print(f"✗ {fault}", style="red", soft_wrap=True)
    if faults:
        screen.print(f"{run.name}: not as recorded; {entries} ledger entries are intact")
        return 3
    # Not a fault: only a kill during a write leaves an incomplete last line, and nothing acknowledged is in it.
    torn = scan_ledger(run.ledger_path).torn
    if torn:
        screen.print(f"the last write was interrupted: {len(torn)} bytes, which the next write moves out of the ledger")
    for note in notes:
        screen.print(f"not judged again: {note}", soft_wrap=True)
    template = "[green]✓[/] {run}: {entries} ledger entries, all recorded files and all gates are intact"
    screen.print(styled(template, run=run.name, entries=entries))
    return 0
