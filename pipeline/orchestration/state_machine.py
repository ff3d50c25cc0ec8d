"""The state machine: runs phases in the order the gates allow, and writes down what they found.

planning -> baseline -+- sufficient ------------------------------> finalization -> released
                      +- insufficient -> diagnostics -> optimization -+- sufficient -> finalization
                                             ^                        |
                                             +-- at most 3 rounds ----+   then: exhausted, a person decides
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.errors import FivegateError, Refused, fault
from pipeline.orchestration.phase import House, PhaseContext, RunRequest
from pipeline.orchestration.plan_revision import freeze, told
from pipeline.release.release import release
from pipeline.results import PHASES, ROUNDED, Evidence, GateState
from pipeline.run_store import checklist, files
from pipeline.run_store import plan as plans
from pipeline.run_store.gate import branch
from pipeline.run_store.ledger import Ledger
from pipeline.run_store.next_step import NextStep, next_step
from pipeline.run_store.plan import Plan
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState, fold


def _folder(run: Run, phase: str, round_: int) -> Any:
    return files.folder(run.inside(phase, round_) if phase in ROUNDED else run.inside(phase))


def _refuse_unless_ready(state: RunState, phase: str, max_rounds: int, root: str) -> None:
    """Raise Refused when a gate or the branch before `phase` does not let it run."""
    needs = {"baseline": PHASES[:1], "optimization": PHASES[:3], "finalization": PHASES[:4]}.get(phase, ())
    closed = [p for p in needs if not state.passed(p)]
    good, decided = state.sufficient(), state.current_branch()
    why = None
    if phase == "finalization" and decided and not good:
        why = "the branch is insufficient: below its target, no better than trivial, or with a blocking symptom"
    elif phase in ROUNDED and decided and not good and (state.exhausted or state.round > max_rounds):
        why = "the rounds are spent"
    elif phase == "optimization" and good:
        why = "the branch is sufficient: there is nothing to mend"
    elif closed:
        why = f"the {closed[0]} gate is {state.gate(closed[0]) or 'not evaluated'}"
    elif phase == "diagnostics" and state.plan is None:
        why = "nothing is planned yet"
    if why:
        advice = next_step(state, max_rounds, root)
        raise Refused(fault(f"phase={phase}", f"cannot run: {why} ({advice.why})", do=advice.command))


def _measure(house: House, ctx: PhaseContext, phase: str, basis: int) -> Evidence:
    """Run the phase itself; its start and its end, good or bad, are in the ledger."""
    ledger = ctx.ledger
    ledger.append("phase.started", {"phase": phase, "round": ctx.round, "basis": basis})
    try:
        evidence = house.phase(phase)(ctx)
    except BaseException as error:
        kind = "phase.failed" if isinstance(error, Exception) else "stopped"
        why = str(error) if isinstance(error, FivegateError) else f"{type(error).__name__}: {error}"
        ledger.append(kind, {"phase": phase, "round": ctx.round, "why": why})
        raise
    path = ctx.folder / "evidence.json"
    files.write_json(path, evidence)
    found = {"phase": phase, "round": ctx.round, "evidence": ctx.artifact(path), "artifacts": evidence.artifacts}
    ledger.append("phase.finished", found)
    return evidence


def _decide(
    house: House, ledger: Ledger, plan: Plan, phase: str, round_: int, basis: int, evidence: Evidence
) -> GateState:
    """The gate's items and its state are in the ledger; the state comes back."""
    for item in checklist.judge(plan.checklists[phase], evidence, house.check):
        ledger.append("item.evaluated", {"phase": phase, "round": round_, **vars(item)})
    verdict = {
        "phase": phase,
        "round": round_,
        "revision": plan.revision,
        "basis": basis,
        "subject": evidence.get("subject"),
    }
    state = fold([*ledger.entries, {"kind": "gate.decided", "data": verdict, "seq": len(ledger.entries), "hash": ""}])
    gate = state.gate(phase)
    assert gate is not None
    ledger.append("gate.decided", {**verdict, "state": gate})
    return gate


def settle(run: Run, ledger: Ledger, max_rounds: int) -> None:
    """What follows from an open gate behind a training is in the ledger: candidate, branch, unneeded gates, exhaustion.

    Read from the recorded evidence and appended only where it is missing, so that neither a kill between two entries
    nor a waiver that opens a gate later leaves the run without its branch.
    """
    for phase in ("baseline", "optimization"):
        state = fold(ledger.entries)
        done = state.finished.get(phase)
        if done is None or state.gate(phase) != "open":
            continue
        values = _recorded_values(run, done["evidence"])
        if values is None:
            continue  # the phase is not done any more, and runs again
        where = {"phase": phase, "round": done["round"]}
        if values.get("candidate") and (state.candidate is None or state.candidate["seq"] < done["seq"]):
            ledger.append("candidate.chosen", {**where, **values["candidate"]})
        decided = state.current_branch()
        if decided is None or decided["seq"] < done["seq"]:
            ledger.append("branch.decided", {**where, "branch": branch(**values["branch"]), **values["branch"]})
        _settle_branch(ledger, phase, values, max_rounds)


def _recorded_values(run: Run, evidence: Mapping[str, str]) -> Mapping[str, Any] | None:
    """The values of a phase's evidence, None where the file is not what the ledger recorded."""
    if not _intact(run, evidence):
        return None
    values: Mapping[str, Any] = json.loads((run.path / evidence["path"]).read_text())["values"]
    return values


def _intact(run: Run, artifact: Mapping[str, str]) -> bool:
    """Whether a recorded file is there, byte for byte."""
    path = run.path / artifact["path"]
    return path.is_file() and files.sha256(path) == artifact["sha256"]


def _settle_branch(ledger: Ledger, phase: str, values: Mapping[str, Any], max_rounds: int) -> None:
    """What the newest branch makes unnecessary, or exhausted."""
    state = fold(ledger.entries)
    decided = state.current_branch()
    assert decided is not None and state.plan is not None
    if decided["phase"] != phase:
        return
    if decided["branch"] == "sufficient" and phase == "baseline":
        asked = state.plan["then"]["baseline"]["sufficient"] == "diagnostics"
        unneeded = ROUNDED if not asked else ROUNDED[1:] if state.gate("diagnostics") == "open" else ()
        for left_out in [p for p in unneeded if not state.passed(p) and not state.gate(p)]:
            ledger.append("gate.not_needed", {"phase": left_out, "because": decided["seq"]})
    spent = decided["round"] >= max_rounds or bool(values.get("nothing_left"))
    if decided["branch"] == "insufficient" and phase == "optimization" and spent and not state.exhausted:
        why = (
            "no untried cure is left" if values.get("nothing_left") else f"{max_rounds} rounds did not reach the target"
        )
        ledger.append("exhausted", {"round": decided["round"], "why": why})


def _context(house: House, run: Run, ledger: Ledger, phase: str, draft: RunRequest) -> PhaseContext:
    state = fold(ledger.entries)
    plan = plans.load(run, state) if phase != "planning" else None
    return PhaseContext(
        run=run,
        ledger=ledger,
        state=state,
        config=plan.config if plan else draft.config,
        plan=plan,
        folder=_folder(run, phase, state.round),
        round=state.round if phase in ROUNDED else 1,
        log=house.log,
        watched=house.watch,
    )


def _checklists(house: House, draft: RunRequest) -> dict[str, Any]:
    """Every phase's questions with their thresholds, as the plan freezes them."""
    files_ = {p: house.checklists / f"{draft.config['phases'][p]['checklist']}.yaml" for p in PHASES}
    return {p: checklist.read(path, draft.config, house.check) for p, path in files_.items()}


def run_phase(house: House, run: Run, ledger: Ledger, phase: str, draft: RunRequest) -> GateState:
    """Run one phase behind the gates before it, judge it, and record all of it; the state of its own gate comes back.

    `draft` is what the command asks for; only planning reads its config. Raises Refused when a gate
    before the phase is closed.
    """
    rounds = int(draft.config["phases"]["optimization"]["rounds"])
    state = fold(ledger.entries)
    _refuse_unless_ready(state, phase, rounds, run.shown_root)
    lists = _checklists(house, draft) if phase == "planning" else {}
    ctx = _context(house, run, ledger, phase, draft)
    basis = state.basis(phase)
    evidence = _measure(house, ctx, phase, basis)
    plan = ctx.plan or freeze(run, ledger, draft, lists, evidence["facts"])
    if not ctx.plan and (changed := ledger.entries[-1]["data"].get("changed")):
        house.log(told(plan, changed))
    gate = _decide(house, ledger, plan, phase, ctx.round, basis, evidence)
    settle(run, ledger, rounds)
    _tell(house, run)
    return gate


def _tell(house: House, run: Run) -> None:
    """The page is written, or it is said why not: it never stops the work."""
    if house.report is not None:
        try:
            house.report(run)
        except FivegateError as error:
            house.log(f"no report: {error}")


def _done(run: Run, state: RunState, phase: str) -> bool:
    """Whether the phase passed on exactly what it would be run on now, and what it left is still there."""
    if phase in ("planning", "finalization") or state.gate(phase) != "open":
        return False
    left = state.finished[phase]
    return all(_intact(run, artifact) for artifact in (left["evidence"], *left["artifacts"].values()))


def advance(house: House, run: Run, ledger: Ledger, wanted: str, draft: RunRequest) -> tuple[GateState, NextStep]:
    """Run the wanted phase, with planning first where it has not passed; `auto` goes as far as the gates let it.

    Back come the state of the gate it stopped at, and the advice that says why and what continues it.
    """
    rounds = int(draft.config["phases"]["optimization"]["rounds"])
    gate: GateState = "open"
    replan = wanted == "baseline" and draft.changed
    settle(run, ledger, rounds)
    while True:
        state = fold(ledger.entries)
        advice = next_step(state, rounds, run.shown_root)
        phase = advice.phase if wanted == "auto" else wanted
        if replan or (wanted == "baseline" and state.gate("planning") != "open"):
            phase, replan = "planning", False
        if phase is None or (phase == wanted and _done(run, state, phase)):
            return gate, advice
        if phase == "finalization" and state.gate(phase) == "open":
            if not state.released:
                release(run, ledger)
            return "open", next_step(fold(ledger.entries), rounds, run.shown_root)
        gate = run_phase(house, run, ledger, phase, draft)
        if gate != "open" or (phase == wanted and phase != "finalization"):
            return gate, next_step(fold(ledger.entries), rounds, run.shown_root)
