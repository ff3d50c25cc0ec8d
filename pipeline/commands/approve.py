"""`approve RUN --who NAME`: a named person signs the exact bundle that a gate waits for."""

from __future__ import annotations

import argparse
import sys

from pipeline.commands import tables
from pipeline.errors import Refused, UserError, fault
from pipeline.record import plan as plans
from pipeline.record.advice import advise
from pipeline.record.ledger import Ledger
from pipeline.record.release import release
from pipeline.record.run import Run, opened
from pipeline.record.state import RunState, fold


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory or name")
    parser.add_argument("--root", default="runs", help="where runs live (run.root)")
    parser.add_argument("--who", help="your name, as the plan knows it (asked for on a terminal)")
    parser.add_argument("--note", default="", help="what you looked at")


def typed_name(who: str | None) -> str:
    """The name of the person who acts, from the option or the terminal. Raises UserError without either."""
    if who is None and sys.stdin.isatty():
        who = input("your name: ")
    if not who or not who.strip():
        raise UserError(
            fault(
                "--who", "a name is missing", expected="the name of the person who decides", do="repeat with --who NAME"
            )
        )
    return who.strip()


def may_sign(run: Run, state: RunState, role: str) -> list[str]:
    """The names that may sign for a role: the plan's approvers, or its owner."""
    plan = plans.load(run, state).config["plan"]
    approvers = plan.get("approvers") or []
    return approvers or [name for name in [plan.get(role)] if name]


def sign(run: Run, book: Ledger, who: str, note: str) -> list[str]:
    """Every item that waits for this person is signed, bound to the digest of what it is about; their ids come back."""
    state = fold(book.entries)
    waiting = [(p, g, i) for p, g in state.gates.items() for i in g.items if i.sign_off and not state.stale(p)]
    if not waiting:
        raise Refused(fault(run.name, "nothing waits for a signature", do=advise(state).command))
    signed = []
    for phase, gate, item in waiting:
        allowed = may_sign(run, state, str(item.sign_off))
        if who not in allowed:
            raise UserError(fault("--who", f"may not sign {item.id}", got=who, among=allowed, do="ask one of them"))
        if gate.subject is None:
            raise Refused(
                fault(
                    item.id,
                    "there is no bundle to sign yet",
                    do=f"python -m pipeline phase={phase} run.name={run.name}",
                )
            )
        book.append("sign_off", {"phase": phase, "item": item.id, "who": who, "digest": gate.subject, "note": note})
        signed.append(item.id)
    return signed


def release_when_open(run: Run, book: Ledger) -> None:
    """Release the bundle when the last gate has just opened, and print what comes next."""
    console = tables.console()
    if fold(book.entries).gate("finalization") == "open":
        release(run, book)
        console.print(f"[green]released[/]: {run.inside('bundle')}")
    console.print(tables.advice_line(advise(fold(book.entries))), soft_wrap=True)


def run(args: argparse.Namespace) -> int:
    who = typed_name(args.who)
    found = Run.find(args.run, args.root)
    with opened(found) as book:
        for item in sign(found, book, who, args.note):
            tables.console().print(f"[green]✓[/] {item} signed by {who}")
        release_when_open(found, book)
    return 0
