"""`preflight MODEL DATA`: what planning and the baseline's proofs ask, of any model and data, without a run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, fault
from pipeline.reporting import tables

EXAMPLES = """\
  python -m pipeline preflight my_pkg.model:Net my_pkg.data:load
  python -m pipeline preflight my_pkg.model:Net my_pkg.data:load task=regression optimizer.lr=0.01 +model.width=64

Naming a module trusts its package: its code is run. Task and loss are guessed from targets and outputs where they are
not given. Exit 0 when nothing failed, 3 when something did, 2 for input that is wrong.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", metavar="MODEL", help="package.module:name of what makes the model")
    parser.add_argument("data", metavar="DATA", help="package.module:name of what returns train, val and test")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="as for a run: optimizer.lr=0.01")
    parser.add_argument("--seed", type=int, default=1, help="the master seed (1)")
    parser.add_argument("--junit", metavar="FILE", help="write the items as JUnit XML")
    parser.add_argument("--json", action="store_true", help="print the items as JSON instead of a table")


def run(args: argparse.Namespace, preflight: Callable[..., Any]) -> int:
    """Fly, write what was asked for, and show it. Who flies is handed in."""
    if not 0 <= args.seed < 2**32:
        raise UserError(fault("--seed", "is no seed", got=args.seed, expected="0 to 4294967295"))
    if args.junit and not Path(args.junit).resolve().parent.is_dir():
        raise UserError(fault("--junit", "there is no such folder", got=str(Path(args.junit).parent)))
    flown = preflight(args.model, args.data, args.overrides, args.seed)
    if args.junit:
        from pipeline.run_store import files
        from pipeline.sanity_checks.junit import junit

        files.write_text(Path(args.junit), junit("preflight", flown.items, flown.seconds))
    if args.json:
        _print_json(args, flown)
    else:
        _show(flown)
    return 0 if flown.good else 3


def _print_json(args: argparse.Namespace, flown: Any) -> None:
    import json

    from pipeline.results import plain

    items = [{"phase": phase, **vars(item)} for phase, some in flown.items.items() for item in some]
    body = {"model": args.model, "data": args.data, "guessed": flown.guessed, "said": flown.said, "items": items}
    print(json.dumps(plain({**body, "good": flown.good, "seconds": round(flown.seconds, 3)}), allow_nan=False))


def _show(flown: Any) -> None:
    from rich.markup import escape
    from rich.table import Table

    console = tables.console()
    for line in (*(f"guessed: {line}" for line in flown.guessed), *flown.said):
        console.print(escape(line), soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("item", "outcome", "value", "bound", "why"):
        table.add_column(name, overflow="fold", no_wrap=name in ("item", "outcome"))
    for some in flown.items.values():
        for item in some:
            value = f"{tables.number(item.value)} {item.unit}".strip() if item.value is not None else ""
            why = escape(item.why + (f" ({item.cause})" if item.cause else ""))
            mark = "[yellow]! passed[/]" if item in flown.recorded_warnings else tables.OUTCOMES[item.outcome]
            table.add_row(item.id, mark, escape(value), escape(tables.number(item.bound)), why)
    console.print(table)
    outcomes = [item.outcome for some in flown.items.values() for item in some]
    counts = ", ".join(f"{outcomes.count(o)} {o.replace('_', ' ')}" for o in dict.fromkeys(outcomes))
    console.print(f"\n{'[green]ready[/]' if flown.good else '[red]not ready[/]'}: {counts}, in {flown.seconds:.1f} s")
    for item in flown.recorded_warnings:
        console.print(f"  look at {item.id}: {escape(item.why.removeprefix('warning: '))}", soft_wrap=True)
