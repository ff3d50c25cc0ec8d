"""`approve RUN --who NAME`: a named person signs the exact bundle that a gate waits for."""

from __future__ import annotations

import argparse
import sys

from pipeline.errors import FivegateError, Refused, UserError, fault
from pipeline.orchestration.state_machine import record_branch
from pipeline.release.release import hindrance, release
from pipeline.reporting import tables
from pipeline.run_store import plan as plans
from pipeline.run_store.gate import utc_today
from pipeline.run_store.ledger import Ledger
from pipeline.run_store.next_step import next_step
from pipeline.run_store.run import Run, opened
from pipeline.run_store.state import RunState, fold


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
    """The names that may sign for a role: who holds it in the plan, and the approvers whom the plan names."""
    plan = plans.load(run, state).config["plan"]
    return [name for name in dict.fromkeys([plan.get(role), *(plan.get("approvers") or [])]) if name]


def refuse_stranger(run: Run, state: RunState, role: str, who: str, what: str) -> None:
    """Raise UserError when the plan does not name this person for the role."""
    allowed = may_sign(run, state, role)
    if who not in allowed:
        do = "ask one of them" if allowed else f"add plan.{role}=NAME with phase=planning"
        raise UserError(fault("--who", what, got=who, among=allowed, do=do))


def sign(run: Run, ledger: Ledger, who: str, note: str) -> list[str]:
    """Every item that waits for this person is signed, bound to the digest of what it is about; their ids come back."""
    state = fold(ledger.entries)
    waiting = [(p, g, i) for p, g in state.gates.items() for i in g.items if i.sign_off and not state.stale(p)]
    if not waiting:
        raise Refused(
            fault(run.name, "nothing waits for a signature", do=next_step(state, root=run.shown_root).command)
        )
    signed = []
    for phase, gate, item in waiting:
        refuse_stranger(run, state, str(item.sign_off), who, f"may not sign {item.id}")
        if gate.subject is None:
            do = f"python -m pipeline status {tables.command_argument(run)}"
            raise Refused(fault(item.id, "there is no bundle to sign yet", do=do))
        ledger.append("sign_off", {"phase": phase, "item": item.id, "who": who, "digest": gate.subject, "note": note})
        signed.append(item.id)
    return signed


def refresh_report(run: Run) -> None:
    """The run's page shows what was just recorded; where it cannot be written, that is said and nothing is lost."""
    from pipeline.reporting.page import write_report

    try:
        write_report(run.path)
    except FivegateError as error:
        tables.console().print(f"no report: {error}", markup=False, soft_wrap=True)


def release_when_open(run: Run, ledger: Ledger) -> None:
    """Release the bundle when the last gate has just opened, write the report anew, and print what comes next."""
    console = tables.console()
    record_branch(run, ledger)  # a waiver may have opened the gate of a training, or replaced its branch
    if hindrance(fold(ledger.entries), utc_today()) is None:
        release(run, ledger)
        console.print(f"[green]released[/]: {run.inside('bundle')}")
    refresh_report(run)
    console.print(tables.next_step_line(next_step(fold(ledger.entries), root=run.shown_root)), soft_wrap=True)


def run(args: argparse.Namespace) -> int:
    who = typed_name(args.who)
    found = Run.find(args.run, args.root)
    with opened(found) as ledger:
        for item in sign(found, ledger, who, args.note):
            tables.console().print(f"[green]✓[/] {item} signed by {who}")
        release_when_open(found, ledger)
    return 0
