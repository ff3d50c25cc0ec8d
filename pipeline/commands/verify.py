"""`verify RUN`: whether the records still say what they said; never repairs."""

from __future__ import annotations

import argparse

from pipeline.release import verify
from pipeline.reporting import tables
from pipeline.run_store.ledger import scan_ledger
from pipeline.run_store.run import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory or name")
    parser.add_argument("--root", default="runs", help="where runs live (run.root)")


def run(args: argparse.Namespace) -> int:
    found = Run.find(args.run, args.root)
    entries, faults = verify.faults(found)
    console = tables.console()
    for fault in faults:
        console.print(f"✗ {fault}", style="red", markup=False, soft_wrap=True)
    if faults:
        console.print(f"{found.name}: not as recorded; {entries} ledger entries are intact")
        return 3
    torn = scan_ledger(found.ledger_path).torn
    if torn:
        console.print(f"the last write was cut short: {len(torn)} bytes that the next writer sets aside")
    console.print(f"[green]✓[/] {found.name}: {entries} ledger entries, every recorded file and every gate agree")
    return 0
