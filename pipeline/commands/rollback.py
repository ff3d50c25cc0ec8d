"""`rollback RUN`: withdraw a release, as a person whom the plan names; its records stay.

The release before it becomes the champion again, if its payload is intact.
"""

from __future__ import annotations

import argparse

from pipeline.commands.approve import hidden_faults, refresh_report, require_role, send_to_tracker, typed_name
from pipeline.errors import Refused, UserError, fault
from pipeline.escaping import visible
from pipeline.release.registry import model_name, withdraw
from pipeline.reporting import tables
from pipeline.reporting.terminal import console, styled
from pipeline.run_store import files
from pipeline.run_store.next_step import next_step
from pipeline.run_store.run import Run, opened
from pipeline.run_store.state import fold


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory or name")
    parser.add_argument("--root", default="runs", help="directory of the runs (run.root)")
    parser.add_argument("--who", help="your name as in plan.owner or plan.approvers (prompted for if omitted)")
    parser.add_argument("--why", default="", help="why the release is withdrawn")


def run(args: argparse.Namespace) -> int:
    who = typed_name(args.who)
    if faults := hidden_faults("--why", args.why):
        raise UserError(*faults)
    run = Run.find(args.run, args.root)
    with opened(run) as ledger:
        state = fold(ledger.entries)
        if not state.released:
            do = f"python -m pipeline status {run.argument}"
            raise Refused(fault(run.name, "is not released", do=do))
        require_role(run, state, "owner", who, "may not withdraw a release")
        rollback = {"who": who, "why": args.why, "subject": state.released["subject"]}
        path = run.inside("bundle", "attestations", "rollback.json")
        files.write_json(path, {"schema": 1, **rollback})  # in the bundle too, for people who have only that
        ledger.append("rolled_back", rollback)
        champion = withdraw(run.path.parent, model_name(state), rollback["subject"], who, args.why)
        refresh_report(run)
        send_to_tracker(run)
        step = next_step(fold(ledger.entries), run.path)
    template = "{run}: {who} has withdrawn the release of {subject}"
    console().print(styled(template, run=run.name, who=who, subject=rollback["subject"][:12]))
    if champion:
        now = f"the champion is now {champion['subject'][:12]} of the run {champion['run']}, its payload is intact"
    else:
        now = "no release before it is left: switch off what serves this model"
    console().print(visible(now), soft_wrap=True)
    console().print(tables.next_step_line(step), soft_wrap=True)
    return 0
