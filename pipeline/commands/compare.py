"""`compare A B` or `compare FILE.csv`: is B better than A, or is it the seed?

A and B are two sweeps of one config each, paired by seed; A alone is a sweep of two configs. A sweep is named by the
name of its runs without the last number (`digits-1`). Two single runs are paired by validation row, which is one seed.
FILE.csv has the columns seed and one per arm, or arm, seed and a metric. The answer is better, not shown or worse.
RUN@COMMIT RUN@COMMIT trains the plan of a run with two commits of its code, on three seeds, and says whether the first
restores what the second misses of the target; `--trust` names the packages whose code of these commits may be imported.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from pipeline.errors import UserError, fault
from pipeline.escaping import visible
from pipeline.orchestration.sweep_arms import arms_of_sweeps, find_sweep
from pipeline.reporting.terminal import console, print_json, styled
from pipeline.run_naming import DEFAULT_ROOT
from pipeline.run_store.run import Run
from pipeline.tuning.commits import compare_commits, parse
from pipeline.tuning.comparison import Comparison
from pipeline.tuning.own_training import greater_is_better
from pipeline.tuning.seed_arms import SeedArms, read_csv
from pipeline.tuning.validation_rows import compare_runs

COLOURS = {"better": "green", "worse": "red", "not shown": "yellow"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("arms", nargs="+", metavar="A B | FILE.csv", help="two sweeps, two runs, one sweep, or a file")
    parser.add_argument("--metric", help="what is compared; else the runs' own metric, or the file's only one")
    parser.add_argument("--mode", choices=["max", "min"], help="whether higher or lower is better; else by the name")
    parser.add_argument("--require", choices=["better"], help="exit with 3 unless B is better")
    parser.add_argument(
        "--trust", action="append", default=[], metavar="PACKAGE", help="for RUN@COMMIT: import its code"
    )
    parser.add_argument("--root", default=DEFAULT_ROOT, help="directory of the runs (run.root)")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")


def run(args: argparse.Namespace) -> int:
    answer = _answer(args)
    if args.json:
        print_json({"schema": 1, **answer.to_json()})
    else:
        screen = console()
        template = f"[bold {COLOURS[answer.answer]}]{{answer}}[/]: {{headline}}"
        screen.print(styled(template, answer=answer.answer, headline=answer.headline()), soft_wrap=True)
        for line in answer.lines():
            screen.print(f"  {line}", soft_wrap=True)
    return 3 if args.require and answer.answer != args.require else 0


def _answer(args: argparse.Namespace) -> Comparison:
    """Return the comparison; that of two commits has a note on what the target says."""
    commits = parse(args.arms)
    if commits is None:
        return _compare(args.arms, Path(args.root), args.metric, args.mode)
    run, screen = Run.find(commits[0][0], Path(args.root)), console()

    def log(text: str) -> None:
        if not args.json:
            screen.print(visible(text), soft_wrap=True, markup=False)

    arms, restored = compare_commits(run, [commit for _, commit in commits], args.trust, log)
    comparison = arms.compare()
    return replace(comparison, notes=(*comparison.notes, restored)) if restored else comparison


def _compare(arms: list[str], root: Path, metric: str | None, mode: str | None) -> Comparison:
    if len(arms) > 2:
        raise UserError(fault("compare", "takes two arms", got=" ".join(arms), expected="A B, one sweep, or FILE.csv"))
    if len(arms) == 1 and Path(arms[0]).suffix.lower() == ".csv":
        names, scores, measured = read_csv(Path(arms[0]), metric)
        return SeedArms(names, scores, measured, greater_is_better(measured, mode)).compare()
    sweeps = [(name, sweep) for name in arms if not _is_run(name, root) and (sweep := find_sweep(name, root))]
    if len(sweeps) == len(arms):
        return arms_of_sweeps(sweeps, metric, mode).compare()
    runs = [Run.find(name, root) for name in arms if name not in dict(sweeps)]  # raises for what is neither
    if len(runs) < 2:
        what = "needs a second run" if len(arms) == 1 else "compares a run with a sweep"
        raise UserError(fault("compare", what, got=" ".join(arms), expected="two runs, two sweeps, or one sweep"))
    return compare_runs((runs[0], runs[1]), (runs[0].name, runs[1].name), metric)


def _is_run(name: str, root: Path) -> bool:
    return any((path / "ledger.jsonl").is_file() for path in (Path(name), root / name))
