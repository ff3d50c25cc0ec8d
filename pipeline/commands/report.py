"""`report RUN`: write everything on record about a run into one self-contained page, `report.html` in its folder."""

from __future__ import annotations

import argparse

from pipeline.errors import Refused
from pipeline.reporting.page import collect, write_page
from pipeline.reporting.terminal import print_lines
from pipeline.run_store.run import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory or name")
    parser.add_argument("--root", default="runs", help="directory of the runs (run.root)")


def run(args: argparse.Namespace) -> int:
    """Write the page. Raises Refused, once it is written, where a file of the run could not be shown on it."""
    run = Run.find(args.run, args.root)
    data = collect(run)
    write_page(run, data)
    print_lines(run.inside("report.html").as_posix())
    if data.unreadable:
        raise Refused(*(f"{what}  Do: python -m pipeline verify {run.argument}" for what in data.unreadable))
    return 0
