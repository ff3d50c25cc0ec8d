"""`rollback RUN`: return to the candidate before the present one, or withdraw a release. Nothing is deleted.

A release is withdrawn by a person whom the plan names, and the release before it becomes the champion again, if its
payload is intact. Otherwise the run returns to the candidate that was accepted before the present one, with its branch:
what was decided since then no longer counts, its records and files stay, and the next round has the next number.
"""

from __future__ import annotations

import argparse
from typing import NotRequired, TypedDict

from pipeline.commands.approve import hidden_faults, refresh_report, require_role, send_to_tracker, typed_name
from pipeline.commands.status import next_command
from pipeline.errors import Refused, UserError, fault
from pipeline.escaping import visible
from pipeline.orchestration.state_machine import record_branch
from pipeline.release.registry import drop_challenger, model_name, withdraw
from pipeline.reporting import tables
from pipeline.reporting.terminal import console, print_json, styled
from pipeline.run_store import files
from pipeline.run_store.ledger import Ledger, is_intact
from pipeline.run_store.next_step import next_step
from pipeline.run_store.records import CandidateRecord
from pipeline.run_store.run import Run, opened
from pipeline.run_store.state import RunState, fold


class Model(TypedDict):
    """A model that a run stood at: what chose it, the digest of its weights, and its score on validation."""

    phase: str
    round: int
    weights: str
    score: float | None


class Rollback(TypedDict):
    """What a rollback undid: a release with its bundle, or a candidate; and what is in its place."""

    undone: str
    who: str
    why: str
    subject: NotRequired[str]
    champion: NotRequired[str | None]
    left: NotRequired[Model]
    returned_to: NotRequired[Model]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory or name")
    parser.add_argument("--root", default="runs", help="directory of the runs (run.root)")
    parser.add_argument("--who", help="your name; to withdraw a release as in plan.owner or plan.approvers")
    parser.add_argument("--why", default="", help="why the release or the candidate is given up")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    if faults := [*hidden_faults("--why", args.why), *(hidden_faults("--who", args.who) if args.who else ())]:
        raise UserError(*faults)
    run = Run.find(args.run, args.root)
    who = typed_name(args.who) if run.state().released else (args.who or "").strip()
    with opened(run) as ledger:
        record_branch(run, ledger)  # of a candidate that a killed command did not decide on
        state = fold(ledger.entries)
        undone = _withdraw(run, ledger, state, who, args.why) if state.released else _return(run, ledger, state, args)
        refresh_report(run)
        send_to_tracker(run)
        state = fold(ledger.entries)
        step = next_step(state, run.path)
    if args.json:
        print_json({"schema": 1, "run": run.name, **undone, "next": next_command(step)}, indent=2)
        return 0
    for line in _lines(run, undone):
        console().print(line, soft_wrap=True)
    console().print(tables.next_step_line(step), soft_wrap=True)
    return 0


def _withdraw(run: Run, ledger: Ledger, state: RunState, who: str, why: str) -> Rollback:
    """Withdraw the release. Raises UserError for a person whom the plan does not name."""
    assert state.released is not None
    require_role(run, state, "owner", who, "may not withdraw a release")
    rollback = {"who": who, "why": why, "subject": state.released["subject"]}
    path = run.inside("bundle", "attestations", "rollback.json")
    files.write_json(path, {"schema": 1, **rollback})  # in the bundle too, for people who have only that
    ledger.append("rolled_back", rollback)
    champion = withdraw(run.path.parent, model_name(state), rollback["subject"], who, why)
    subject = champion["subject"] if champion else None
    return {"undone": "release", "who": who, "why": why, "subject": rollback["subject"], "champion": subject}


def _return(run: Run, ledger: Ledger, state: RunState, args: argparse.Namespace) -> Rollback:
    """Return to the candidate before. Raises Refused where there is none, or where its weights are not as recorded."""
    do = f"python -m pipeline status {run.argument}"
    if len(state.accepted) < 2 or state.candidate is None:
        what = "has no release to withdraw and no earlier candidate to return to"
        got = "no candidate" if state.candidate is None else f"one candidate, that of {state.candidate['phase']}"
        raise Refused(fault(run.name, what, got=got, expected="an optimization that adopted a change", do=do))
    earlier = state.accepted[-2]
    before: CandidateRecord = {**ledger.entries[earlier]["data"], "seq": earlier}  # type: ignore[typeddict-item]
    weights = before.get("file")
    if weights is None or not is_intact(run.path, **weights):
        place = weights["path"] if weights else run.name
        raise Refused(fault(place, f"is not as entry {earlier} recorded it, so that nothing can return to it", do=do))
    who = (args.who or "").strip()
    ledger.append("rolled_back", {"who": who, "why": args.why, "candidate": earlier})
    drop_challenger(run.path.parent, model_name(state), run.name, who, args.why)
    return {
        "undone": "candidate",
        "who": who,
        "why": args.why,
        "left": _model(state.candidate),
        "returned_to": _model(before),
    }


def _model(candidate: CandidateRecord) -> Model:
    score = candidate.get("score")
    return {
        "phase": candidate["phase"],
        "round": candidate["round"],
        "weights": candidate["weights"],
        "score": float(score["value"]) if score else None,
    }


def _lines(run: Run, undone: Rollback) -> list[object]:
    """Return what was undone and what is in its place, one line each."""
    if undone["undone"] == "release":
        template = "{run}: {who} has withdrawn the release of {subject}"
        champion = undone["champion"]
        now = "no release before it is left: switch off what serves this model"
        if champion:
            now = f"the champion is now {champion[:12]}, its payload is intact"
        return [styled(template, run=run.name, who=undone["who"], subject=undone["subject"][:12]), visible(now)]
    left, back = undone["left"], undone["returned_to"]
    template = "{run}: returned from {left} to {back}; nothing was deleted"
    return [styled(template, run=run.name, left=_named(left), back=_named(back))]


def _named(model: Model) -> str:
    place = (
        "the baseline" if model["phase"] == "baseline" else f"the change of {model['phase']}, round {model['round']}"
    )
    score = "no score" if model["score"] is None else f"{model['score']:.4g} on validation"
    return f"{place} ({model['weights'][:12]}, {score})"
