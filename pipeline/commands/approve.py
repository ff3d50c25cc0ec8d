"""`approve RUN --who NAME [--key PATH]`: approve the bundle for release, or the plan of a study that waits.

The person must be an approver of the plan, or its owner where the plan names no approver.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import FivegateError, Refused, UserError, fault
from pipeline.escaping import hidden_characters
from pipeline.orchestration.state_machine import record_branch
from pipeline.release.attestation import attest_sign_off
from pipeline.release.signatures import read_key
from pipeline.release.verify import refuse_unless_clean
from pipeline.repair.config_edits import format_override_value
from pipeline.reporting import tables
from pipeline.reporting.terminal import console, styled
from pipeline.results import PHASES, counted
from pipeline.run_store import plan as plans
from pipeline.run_store.checklist import Judge
from pipeline.run_store.ledger import Ledger
from pipeline.run_store.next_step import next_step
from pipeline.run_store.run import Run, opened
from pipeline.run_store.state import RunState, fold

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory or name")
    parser.add_argument("--root", default="runs", help="directory of the runs (run.root)")
    parser.add_argument("--who", help="your name as in plan.approvers, or in plan.owner if it names nobody else")
    parser.add_argument("--note", default="", help="what you reviewed")
    parser.add_argument("--key", type=Path, metavar="PATH", help="your OpenSSH Ed25519 private key, to sign with it")


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


def role_fault(run: Run, state: RunState, role: str, who: str, what: str) -> str:
    """Return the fault `what` when the plan does not name this person for the role; empty when it does."""
    allowed = state.people(role)
    if who in allowed:
        return ""
    if allowed:
        return fault("--who", what, got=who, among=allowed, do="ask one of them")
    override = shlex.quote(f"plan.{role}={format_override_value(who)}")
    do = f"python -m pipeline phase=planning {run.overrides_for('planning', state)} {override}"
    return fault("--who", f"{what}, since the plan names nobody", got=who, expected=f"a plan with an {role}", do=do)


def require_role(run: Run, state: RunState, role: str, who: str, what: str) -> None:
    """Raise UserError, with `what` as the fault, when the plan does not name this person for the role."""
    if unknown := role_fault(run, state, role, who, what):
        raise UserError(unknown)


def _require_signer(run: Run, state: RunState, role: str, who: str, what: str) -> None:
    """Raise UserError, with `what` as the fault, for a person whom the plan does not let sign for the role."""
    require_role(run, state, role, who, what)
    allowed = state.signers(role)
    if who not in allowed:
        what = f"{what}: this is the {role}, and the plan names approvers"
        raise UserError(fault("--who", what, got=who, expected=", ".join(allowed), do="ask one of them"))


def _refuse_before_waivers(run: Run, state: RunState, phase: str) -> None:
    """Raise Refused while a gate waits for more than signatures: a later waiver would not be covered by this one."""
    for before in PHASES[: PHASES.index(phase)]:
        if not state.passed(before):
            label = state.gate_label(before)
            do = f"python -m pipeline explain {run.argument} --gate {before}"
            raise Refused(fault(f"gate {before}", "has to be open before anything is signed", got=label, do=do))
    gate = state.gates[phase]
    open_items = [i for i in gate.items if i.outcome != "pending" and not tables.satisfied(i, state, phase)]
    if open_items:
        names = ", ".join(item.id for item in open_items)
        left = f"{counted(len(open_items), 'check')} first must pass or be waived: {names}"
        what = f"cannot be signed yet, since a signature covers only the waivers before it; {left}"
        do = f"python -m pipeline explain {run.argument} --gate {phase}"
        raise Refused(fault(f"gate {phase}", what, do=do))


def _accept_study(run: Run, ledger: Ledger, state: RunState, who: str, note: str) -> str:
    """Record that a person accepts the plan of a study, which the phase may then pay for."""
    assert state.review is not None
    what = f"the plan of the study of round {state.review['round']}"
    _require_signer(run, state, "owner", who, f"may not accept {what}")
    about = {"phase": "optimization", "round": state.review["round"], "digest": state.review["digest"]}
    ledger.append("review.approved", {**about, "who": who, "note": note})
    return what


def sign(
    run: Run, ledger: Ledger, judge: Judge, who: str, note: str, key: Ed25519PrivateKey | None = None
) -> list[str]:
    """Sign every check that waits for this person, and return the checks' ids; or accept the plan of a study.

    A signature is of the bundle's digest, of the outcomes of all checks and of the waivers in force. It is attested
    next to the bundle, signed with the `key` where there is one.
    """
    state = fold(ledger.entries)
    if state.review and not state.review.get("who"):
        return [_accept_study(run, ledger, state, who, note)]
    waiting = [(p, g, i) for p, g in state.gates.items() for i in g.items if i.sign_off and not state.stale(p)]
    if not waiting:
        do = next_step(state, run.path).command
        raise Refused(fault(run.name, "nothing waits for approval", do=do))
    signatures = []
    for phase, gate, item in waiting:
        _require_signer(run, state, str(item.sign_off), who, f"may not sign {item.id}")
        # A signature belongs to the digest of a bundle: without one it would hold for any later bundle.
        if gate.subject is None:
            do = f"python -m pipeline status {run.argument}"
            raise Refused(fault(item.id, "there is no bundle to sign yet", do=do))
        _refuse_before_waivers(run, state, phase)
        signatures.append(state.signature(phase, item.id, who, note))
    refuse_unless_clean(run, judge)
    for signature in signatures:
        ledger.append("sign_off", {**signature, "attestation": attest_sign_off(run, ledger, signature, key)})
    return [signature["item"] for signature in signatures]


def refresh_report(run: Run) -> None:
    """Write the report again; print why where that is not possible, since the ledger already has what was recorded."""
    from pipeline.reporting.page import write_report

    try:
        write_report(run.path)
    except FivegateError as error:
        console().print(f"the report was not written: {error}", soft_wrap=True)


def send_to_tracker(run: Run) -> None:
    """Send to the run's tracker what it does not have yet: with it, a decision is also on record outside of the run."""
    section = plans.load(run).config.get("tracking") or {}
    if section.get("kind") == "mlflow" or section.get("tensorboard"):
        from pipeline.tracking.connection import TrackingConfig
        from pipeline.tracking.sync_process import mirror_run

        config = TrackingConfig(
            kind=section["kind"],
            tensorboard=bool(section.get("tensorboard")),
            uri=section.get("uri"),
            experiment=section.get("experiment"),
        )

        def log(text: str) -> None:
            console().print(text, soft_wrap=True)

        def warn(why: str) -> None:
            log(f"the tracker is unavailable ({why}); what is missing is sent later")

        with mirror_run(run.path, config, warn, log):
            pass


def print_next_step(run: Run, ledger: Ledger, signed: bool = False) -> None:
    """Write the report, and print the next step. What was `signed` is sent to the tracker at once."""
    record_branch(run, ledger)  # a waiver may have opened the gate of a training, or replaced its branch
    refresh_report(run)
    console().print(tables.next_step_line(next_step(fold(ledger.entries), run.path)), soft_wrap=True)
    if signed:
        send_to_tracker(run)


def run(args: argparse.Namespace, judge: Judge) -> int:
    who = typed_name(args.who)
    if faults := hidden_faults("--note", args.note):
        raise UserError(*faults)
    key = read_key(args.key) if args.key else None
    run = Run.find(args.run, args.root)
    with opened(run) as ledger:
        for item in sign(run, ledger, judge, who, args.note, key):
            console().print(styled("[green]✓[/] {item} signed by {who}", item=item, who=who))
        print_next_step(run, ledger, signed=True)
    return 0
