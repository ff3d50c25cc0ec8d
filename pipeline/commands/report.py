"""`report RUN`: write everything on record about a run into one self-contained page, `report.html` in its folder."""

from __future__ import annotations

import argparse

from pipeline.reporting.page import write_report
from pipeline.reporting.terminal import print_lines
from pipeline.run_store.run import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory or name")
    parser.add_argument("--root", default="runs", help="directory of the runs (run.root)")


def run(args: argparse.Namespace) -> int:
    print_lines(write_report(Run.find(args.run, args.root).path).as_posix())
    return 0
