"""`approve RUN --who NAME`: approve the bundle for release, as the owner or an approver whom the plan names."""

from __future__ import annotations

import argparse
import sys

from pipeline.errors import FivegateError, Refused, UserError, fault
from pipeline.escaping import hidden_characters
from pipeline.orchestration.state_machine import record_branch
from pipeline.release.release import release, release_blocker
from pipeline.reporting import tables
from pipeline.reporting.terminal import console, styled
from pipeline.run_store import plan as plans
from pipeline.run_store.gate import utc_today
from pipeline.run_store.ledger import Ledger
from pipeline.run_store.next_step import next_step
from pipeline.run_store.run import Run, opened
from pipeline.run_store.state import RunState, fold


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory or name")
    parser.add_argument("--root", default="runs", help="directory of the runs (run.root)")
    parser.add_argument("--who", help="your name as in plan.owner or plan.approvers (prompted for if omitted)")
    parser.add_argument("--note", default="", help="what you reviewed")


def typed_name(who: str | None) -> str:
    """Return the name of the person who acts, from the option or the terminal. Raises UserError without either."""
    if who is None and sys.stdin.isatty():
        who = input("your name: ")
    if not who or not who.strip():
        expected = "the name of the person who decides"
        raise UserError(fault("--who", "is missing", expected=expected, do="repeat with --who NAME"))
    who = who.strip()
    if faults := hidden_faults("--who", who):
        raise UserError(*faults)
    return who


def hidden_faults(option: str, text: str) -> list[str]:
    """Return a message if a text that will be recorded has control or invisible characters, as a pasted one may."""
    hidden = hidden_characters(text)
    expected = "one line of visible characters"
    return [fault(option, f"has {', '.join(hidden)}", got=text, expected=expected)] if hidden else []


def allowed_names(run: Run, state: RunState, role: str) -> list[str]:
    """Return who may sign for a role: the person who has it in the plan, and the plan's approvers."""
    plan = plans.load(run, state).config["plan"]
    return [name for name in dict.fromkeys([plan.get(role), *(plan.get("approvers") or [])]) if name]


def require_role(run: Run, state: RunState, role: str, who: str, what: str) -> None:
    """Raise UserError, with `what` as the fault, when the plan does not name this person for the role."""
    allowed = allowed_names(run, state, role)
    if who not in allowed:
        do = "ask one of them" if allowed else f"add plan.{role}=NAME with phase=planning"
        raise UserError(fault("--who", what, got=who, among=allowed, do=do))


def sign(run: Run, ledger: Ledger, who: str, note: str) -> list[str]:
    """Sign every check that waits for this person, bound to the digest of its bundle, and return the checks' ids."""
    state = fold(ledger.entries)
    waiting = [(p, g, i) for p, g in state.gates.items() for i in g.items if i.sign_off and not state.stale(p)]
    if not waiting:
        do = next_step(state, root=run.shown_root).command
        raise Refused(fault(run.name, "nothing waits for approval", do=do))
    signed = []
    for phase, gate, item in waiting:
        require_role(run, state, str(item.sign_off), who, f"may not sign {item.id}")
        # A signature belongs to the digest of a bundle: without one it would hold for any later bundle.
        if gate.subject is None:
            do = f"python -m pipeline status {tables.command_argument(run)}"
            raise Refused(fault(item.id, "there is no bundle to sign yet", do=do))
        ledger.append("sign_off", {"phase": phase, "item": item.id, "who": who, "digest": gate.subject, "note": note})
        signed.append(item.id)
    return signed


def refresh_report(run: Run) -> None:
    """Write the report again; print why where that is not possible, since the ledger already has what was recorded."""
    from pipeline.reporting.page import write_report

    try:
        write_report(run.path)
    except FivegateError as error:
        console().print(f"the report was not written: {error}", soft_wrap=True)


def release_when_open(run: Run, ledger: Ledger) -> None:
    """Release the bundle if the last gate is open now, write the report, and print the next step."""
    record_branch(run, ledger)  # a waiver may have opened the gate of a training, or replaced its branch
    if release_blocker(fold(ledger.entries), utc_today()) is None:
        release(run, ledger)
        console().print(styled("[green]released[/]: {bundle}", bundle=run.inside("bundle")), soft_wrap=True)
    refresh_report(run)
    console().print(tables.next_step_line(next_step(fold(ledger.entries), root=run.shown_root)), soft_wrap=True)


def run(args: argparse.Namespace) -> int:
    who = typed_name(args.who)
    if faults := hidden_faults("--note", args.note):
        raise UserError(*faults)
    run = Run.find(args.run, args.root)
    with opened(run) as ledger:
        for item in sign(run, ledger, who, args.note):
            console().print(styled("[green]✓[/] {item} signed by {who}", item=item, who=who))
        release_when_open(run, ledger)
    return 0
