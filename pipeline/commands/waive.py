"""`waive RUN ITEM --who --why --expires`: a named person accepts an item, or the branch, as it is, until a day."""

from __future__ import annotations

import argparse
from datetime import date

from pipeline.commands.approve import release_when_open, typed_name
from pipeline.errors import Refused, UserError, fault
from pipeline.reporting import tables
from pipeline.run_store.gate import utc_today
from pipeline.run_store.run import Run, opened
from pipeline.run_store.state import RunState, fold


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory or name")
    parser.add_argument("item", metavar="ITEM", help="an item's id, or 'branch' to go on below the target")
    parser.add_argument("--root", default="runs", help="where runs live (run.root)")
    parser.add_argument("--who", help="your name (asked for on a terminal)")
    parser.add_argument("--why", default="", help="why this is acceptable")
    parser.add_argument("--expires", default="", help="the last day it holds, as YYYY-MM-DD")


def _phase_of(run: Run, state: RunState, name: str) -> str:
    """The phase whose gate holds the item, or whose branch is waived. Raises where there is nothing to waive."""
    if name == "branch":
        decided = state.current_branch()
        if decided is None or decided["branch"] == "sufficient":
            do = f"python -m pipeline status {tables.command_argument(run)}"
            raise Refused(fault("branch", "there is no insufficient branch to waive", do=do))
        return str(decided["phase"])
    places = {i.id: (p, i) for p, g in state.gates.items() for i in g.items}
    if name not in places:
        raise UserError(fault("ITEM", "no evaluated item has this id", got=name, among=[*places, "branch"]))
    phase, item = places[name]
    if not item.waivable:
        do = f"python -m pipeline explain {tables.command_argument(run)} {name}"
        raise Refused(fault(name, "cannot be waived by anybody: it is what makes every other figure honest", do=do))
    return phase


def _faults(why: str, expires: str, today: date) -> list[str]:
    found = []
    if len(why.strip()) < 10:
        found.append(
            fault("--why", "does not justify anything", got=why, expected="a sentence of at least 10 characters")
        )
    try:
        day = date.fromisoformat(expires)
    except ValueError:
        found.append(fault("--expires", "is no day", got=expires, expected="YYYY-MM-DD"))
    else:
        if day < today:
            found.append(fault("--expires", "is past", got=expires, expected=f"{today.isoformat()} or later"))
    return found


def run(args: argparse.Namespace) -> int:
    who = typed_name(args.who)
    found = Run.find(args.run, args.root)
    faults = _faults(args.why, args.expires, utc_today())
    if faults:
        raise UserError(*faults)
    with opened(found) as ledger:
        phase = _phase_of(found, fold(ledger.entries), args.item)
        waiver = {"phase": phase, "item": args.item, "who": who, "why": args.why.strip(), "expires": args.expires}
        ledger.append("waiver", waiver)
        tables.console().print(f"[yellow]~[/] {phase}/{args.item} waived by {who} until {args.expires}")
        release_when_open(found, ledger)
    return 0
