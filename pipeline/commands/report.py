"""`report RUN`: write everything on record about a run into one self-contained page, `report.html` in its folder.

`report --all` writes a table of all runs into `report.html` of their folder, with a link to the page of each.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.errors import Refused, UserError, fault
from pipeline.reporting.page import collect, write_page, write_table
from pipeline.reporting.terminal import print_lines
from pipeline.run_store.run import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", nargs="?", help="run directory or name; left out with --all")
    parser.add_argument("--all", action="store_true", help="a table of all runs instead of the page of one")
    parser.add_argument("--root", default="runs", help="directory of the runs (run.root)")


def run(args: argparse.Namespace) -> int:
    """Write the page. Raises Refused, once it is written, where a run or a file of it could not be shown on it."""
    if args.all == bool(args.run):
        got = f"--all and {args.run}" if args.all else "neither"
        expected = "RUN, or --all for a table of all runs"
        raise UserError(
            fault("report", "needs a run or --all", got=got, expected=expected, do="python -m pipeline status")
        )
    if args.all:
        return _table(Path(args.root))
    run = Run.find(args.run, args.root)
    data = collect(run)
    write_page(run, data)
    print_lines(run.inside("report.html").as_posix())
    if data.unreadable:
        raise Refused(*(f"{what}  Do: python -m pipeline verify {run.argument}" for what in data.unreadable))
    return 0


def _table(root: Path) -> int:
    if not any(root.glob("*/ledger.jsonl")):
        do = "python -m pipeline phase=baseline experiment=digits"
        raise UserError(fault(str(root), "there is no run yet", do=do))
    path, damaged = write_table(root)
    print_lines(path.as_posix())
    if damaged:
        raise Refused(*damaged)
    return 0
