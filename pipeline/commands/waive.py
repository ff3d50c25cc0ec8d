"""`waive RUN CHECK --who --why --expires`: accept a failed check, or a validation below the target, until a day."""

from __future__ import annotations

import argparse
from datetime import date

from pipeline.commands.approve import hidden_faults, print_next_step, require_role, role_fault, typed_name
from pipeline.errors import Refused, UserError, fault
from pipeline.reporting.terminal import console, styled
from pipeline.run_store.checklist import Judge
from pipeline.run_store.gate import LONGEST_WAIVER, utc_today
from pipeline.run_store.run import Run, opened
from pipeline.run_store.state import RunState, fold

MIN_WHY_CHARS = 10  # shorter texts such as `ok` tell a later reader nothing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory or name")
    parser.add_argument("item", metavar="CHECK", help="id of a check, or 'branch' for a validation below the target")
    parser.add_argument("--root", default="runs", help="directory of the runs (run.root)")
    parser.add_argument("--who", help="your name as in plan.owner or plan.approvers (prompted for if omitted)")
    parser.add_argument("--why", default="", help="why this is acceptable")
    parser.add_argument("--expires", default="", help="expiry date, inclusive, within a year, as YYYY-MM-DD")


def _phase_of(run: Run, state: RunState, name: str) -> str:
    """Return the phase of the check, or of the validation. Raises UserError or Refused if it cannot be waived."""
    if name == "branch":
        branch = state.current_branch()
        if branch is None or branch["branch"] == "sufficient":
            do = f"python -m pipeline status {run.argument}"
            raise Refused(fault("branch", "cannot be waived: no model has missed the target on validation", do=do))
        return str(branch["phase"])
    items = {item.id: (phase, item) for phase, gate in state.gates.items() for item in gate.items}
    if name not in items:
        raise UserError(fault("CHECK", "no evaluated check has this id", got=name, among=[*items, "branch"]))
    phase, item = items[name]
    if not item.waivable:
        do = f"python -m pipeline explain {run.argument} {name}"
        raise Refused(fault(name, "cannot be waived: without it no other value of this run can be trusted", do=do))
    return phase


def _faults(why: str, expires: str, today: date) -> list[str]:
    faults = []
    if len(why.strip()) < MIN_WHY_CHARS:
        expected = f"a sentence of at least {MIN_WHY_CHARS} characters"
        what, got = ("is not a justification", {"got": why}) if why else ("is missing", {})
        faults.append(fault("--why", what, expected=expected, **got))
    faults += hidden_faults("--why", why.strip())
    try:
        day = date.fromisoformat(expires)
    except ValueError:
        what, got = ("is not a date", {"got": expires}) if expires else ("is missing", {})
        return [*faults, fault("--expires", what, expected="a date, YYYY-MM-DD", **got)]
    latest = today + LONGEST_WAIVER
    if day < today:
        faults.append(fault("--expires", "is in the past", got=expires, expected=f"{today.isoformat()} or later"))
    elif day > latest:
        expected = f"{latest.isoformat()} or earlier"
        faults.append(fault("--expires", "is more than a year away", got=expires, expected=expected))
    return faults


def run(args: argparse.Namespace, judge: Judge) -> int:
    faults: list[str] = []
    try:
        who = typed_name(args.who)
    except UserError as error:  # reported together with the other options
        who, faults = "", list(error.faults)
    run = Run.find(args.run, args.root)
    faults += _faults(args.why, args.expires, utc_today())
    what = f"may not waive {args.item}"
    if faults:
        unknown = role_fault(run, run.state(), "owner", who, what) if who else ""
        raise UserError(*faults, *([unknown] if unknown else []))
    with opened(run) as ledger:
        state = fold(ledger.entries)
        phase = _phase_of(run, state, args.item)
        require_role(run, state, "owner", who, what)
        expires = date.fromisoformat(args.expires).isoformat()
        waiver = {"phase": phase, "item": args.item, "who": who, "why": args.why.strip(), "expires": expires}
        ledger.append("waiver", waiver)
        template = "[yellow]~[/] {phase}/{item} waived by {who} until {expires}"
        console().print(styled(template, phase=phase, item=args.item, who=who, expires=expires))
        print_next_step(run, ledger)
    return 0
