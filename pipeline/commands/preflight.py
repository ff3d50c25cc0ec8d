"""`preflight MODEL DATA`: the checks of planning and the baseline for any model and data, without a run."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError, fault
from pipeline.reporting import tables
from pipeline.reporting.terminal import console, new_table, print_json, styled

if TYPE_CHECKING:
    from pipeline.sanity_checks.preflight import PreflightReport

Preflight = Callable[[str, str, Sequence[str], int], "PreflightReport"]  # model, data, overrides, seed

EXAMPLES = """\
  python -m pipeline preflight my_pkg.model:Net my_pkg.data:load
  python -m pipeline preflight my_pkg.model:Net my_pkg.data:load task=regression optimizer.lr=0.01 +model.width=64

Naming a module trusts its package: its code is run. Task and loss are inferred from targets and outputs unless they are
given. Exit code 0 if nothing failed, 3 if a check failed, 2 for wrong input.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", metavar="MODEL", help="package.module:name that returns the model")
    parser.add_argument("data", metavar="DATA", help="package.module:name that returns train, val and test")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="as for a run: optimizer.lr=0.01")
    parser.add_argument("--seed", type=int, default=1, help="random seed (default: 1)")
    parser.add_argument("--junit", metavar="FILE", help="write the checks as JUnit XML")
    parser.add_argument("--json", action="store_true", help="print the checks as JSON instead of a table")


def run(args: argparse.Namespace, preflight: Preflight) -> int:
    """Run the preflight and print its report; `preflight` is passed in, since it imports torch."""
    if not 0 <= args.seed < 2**32:
        raise UserError(fault("--seed", "is not a seed", got=args.seed, expected="0 to 4294967295"))
    if args.junit and not Path(args.junit).resolve().parent.is_dir():
        raise UserError(fault("--junit", "there is no such folder", got=str(Path(args.junit).parent)))
    report = preflight(args.model, args.data, args.overrides, args.seed)
    if args.junit:
        from pipeline.run_store import files
        from pipeline.sanity_checks.junit import junit

        files.write_text(Path(args.junit), junit("preflight", report.items, report.seconds))
    if args.json:
        _print_json(args, report)
    else:
        _show(report)
    return 0 if report.ready else 3


def _print_json(args: argparse.Namespace, report: PreflightReport) -> None:
    items = [{"phase": phase, **vars(item)} for phase, phase_items in report.items.items() for item in phase_items]
    body = {
        "schema": 1,
        "model": args.model,
        "data": args.data,
        "inferred": report.inferred,
        "messages": report.messages,
        "items": items,
    }
    print_json({**body, "ready": report.ready, "seconds": round(report.seconds, 3)})


def _show(report: PreflightReport) -> None:
    screen = console()
    for line in (*(f"inferred: {line}" for line in report.inferred), *report.messages):
        screen.print(line, soft_wrap=True)
    table = new_table("check", "outcome", "value", "required", "details")
    for phase_items in report.items.values():
        for item in phase_items:
            details = item.why + (f" ({item.cause})" if item.cause else "")
            value, required = tables.format_value(item), tables.format_required(item)
            table.add_row(item.id, tables.outcome_of(item), value, required, details)
    screen.print(table)
    outcomes = [item.outcome for phase_items in report.items.values() for item in phase_items]
    counts = ", ".join(f"{outcomes.count(o)} {o.replace('_', ' ')}" for o in dict.fromkeys(outcomes))
    template = f"\n{'[green]ready[/]' if report.ready else '[red]not ready[/]'}: {{counts}}, in {{seconds}} s"
    screen.print(styled(template, counts=counts, seconds=f"{report.seconds:.1f}"))
    for item in report.warnings:
        screen.print(f"  look at {item.id}: {item.why.removeprefix('warning: ')}", soft_wrap=True)
