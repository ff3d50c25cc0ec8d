"""The state machine: runs phases in the order that the gates allow, and records their results in the ledger.

planning -> baseline -+- sufficient ------------------------------> finalization -> released
                      +- insufficient -> diagnostics -> optimization -+- sufficient -> finalization
                                             ^                        |
                                             +-- at most 3 rounds ----+   then: exhausted, a person decides
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NotRequired, TypedDict

from pipeline.errors import FivegateError, PendingReview, Refused, UserCodeError, UserError, fault
from pipeline.json_types import mismatch
from pipeline.orchestration.phase import Hooks, PhaseContext, Registry, RunRequest
from pipeline.orchestration.plan_revision import Checklists, format_revision, freeze
from pipeline.release.verify import refuse_unless_clean
from pipeline.results import PHASES, ROUNDED, Evidence, GateState
from pipeline.run_store import checklist, files
from pipeline.run_store import plan as plans
from pipeline.run_store.gate import BranchInputs, branch
from pipeline.run_store.job import Job
from pipeline.run_store.ledger import SCHEMA, Entry, Ledger, changed_files, is_intact, read_ledger, read_recorded_json
from pipeline.run_store.next_step import next_step, obstacle
from pipeline.run_store.plan import Plan
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState, fold
from pipeline.runtime.interrupt import is_stop_request
from pipeline.trials.candidates import alternatives


def choose_phase(run: Run, state: RunState, request: RunRequest, replan: bool) -> str | None:
    """The phase to run now, or None when the request is fulfilled or nothing can run."""
    if replan or (request.phase == "baseline" and state.gate("planning") != "open"):
        return "planning"
    if request.phase == "auto":
        return next_step(state, run.path).phase
    if request.phase == "finalization" and state.gate("finalization") == "open" and state.released:
        return None
    return None if _is_complete(run, state, request.phase) else request.phase


def _is_complete(run: Run, state: RunState, phase: str) -> bool:
    """Whether the phase passed on the inputs that it would get now, and the files that it wrote are intact."""
    if phase in ("planning", "finalization") or state.gate(phase) != "open":
        return False
    round_ = state.finished[phase]["round"]
    changed = changed_files(run.path, read_ledger(run.ledger_path))
    return not any(_phase_of(entry) == (phase, round_) for _, entry in changed)


def _phase_of(entry: Entry) -> tuple[str | None, int]:
    return entry["data"].get("phase"), entry["data"].get("round", 1)


def run_phase(registry: Registry, hooks: Hooks, run: Run, ledger: Ledger, phase: str, request: RunRequest) -> GateState:
    """Run one phase, evaluate its gate, record both, and return the state of the gate.

    Only planning reads the config of the request; later phases work from the frozen plan. Raises Refused when a gate
    before the phase is closed.
    """
    state = fold(ledger.entries)
    _refuse_unless_ready(state, phase, run)
    if phase != PHASES[0]:  # planning stands on nothing, and mends a plan
        refuse_unless_clean(run, registry.judge, before=(phase, state.round if phase in ROUNDED else 1))
    checklists = _read_checklists(registry, request.config) if phase == "planning" else {}
    ctx = _phase_context(registry, hooks, run, ledger, phase, request)
    basis = state.basis(phase)
    measure = registry.phase(phase)
    with _page_of_a_stop(hooks, ctx), _recorded(ctx, phase, basis):
        evidence = measure(ctx)
    evidence = _record_evidence(ctx, phase, evidence)
    plan = ctx.plan or freeze(run, ledger, request, checklists, evidence["facts"])
    if not ctx.plan and (changed := ledger.entries[-1]["data"].get("changed")):
        hooks.log(format_revision(plan, changed))
    gate = _decide_gate(registry, ctx, plan, phase, basis, evidence)
    record_branch(run, ledger)
    _write_page(hooks, run)
    return gate


def _write_page(hooks: Hooks, run: Run) -> None:
    """Write the page of the run; it can be written again at any time, so that the run goes on without it."""
    if hooks.report is None:
        return
    try:
        hooks.report(run)
    except FivegateError as error:
        hooks.log(f"no report: {error}")


@contextmanager
def _page_of_a_stop(hooks: Hooks, ctx: PhaseContext) -> Iterator[None]:
    """Write the page of a planned run also when its phase fails or is interrupted: it shows what was recorded."""
    try:
        yield
    except (FivegateError, KeyboardInterrupt):
        if ctx.plan is not None:
            _write_page(hooks, ctx.run)
        raise


def _refuse_unless_ready(state: RunState, phase: str, run: Run) -> None:
    """Raise Refused when `phase` may not run now, with the command that continues the run."""
    if why := obstacle(state, phase):
        step = next_step(state, run.path)
        raise Refused(fault(f"phase={phase}", why, do=step.command))


def _read_checklists(registry: Registry, config: Mapping[str, Any]) -> Checklists:
    """The items of all phases with their thresholds, as the plan freezes them."""
    paths = {p: registry.checklists / f"{config['phases'][p]['checklist']}.yaml" for p in PHASES}
    return {p: checklist.read(path, config, registry.check) for p, path in paths.items()}


def _phase_context(
    registry: Registry, hooks: Hooks, run: Run, ledger: Ledger, phase: str, request: RunRequest
) -> PhaseContext:
    state = fold(ledger.entries)
    plan = plans.load(run, state) if phase != "planning" else None
    return PhaseContext(
        run=run,
        ledger=ledger,
        state=state,
        config=_config_of(plan, request.config),
        plan=plan,
        folder=files.folder(run.inside(phase, state.round) if phase in ROUNDED else run.inside(phase)),
        round=state.round if phase in ROUNDED else 1,
        log=hooks.log,
        make_progress=hooks.progress,
        judge=registry.judge,
        show_trials=hooks.show_trials,
    )


def _config_of(plan: Plan | None, requested: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the plan, computed where the request says; that of the request where there is no plan yet."""
    if plan is None:
        return requested
    return {**plan.config, **{key: requested[key] for key in plans.PLACES if key in requested}}


@contextmanager
def _recorded(ctx: PhaseContext, phase: str, basis: int) -> Iterator[None]:
    """Record the start of the phase, and its failure or interruption when the block raises."""
    ctx.ledger.append("phase.started", {"phase": phase, "round": ctx.round, "basis": basis})
    try:
        yield
    except PendingReview:  # its entry says that it waits
        raise
    except BaseException as error:
        shown = _as_user_sees(error)
        kind = "phase.failed" if isinstance(shown, Exception) else "stopped"
        why = str(shown) if isinstance(shown, FivegateError) else f"{type(shown).__name__}: {shown}"
        record = {"phase": phase, "round": ctx.round, "why": why}
        if isinstance(shown, UserError):  # wrong input does not change by itself
            record["mend"] = shown.place if isinstance(shown, UserCodeError) else ""
        ctx.ledger.append(kind, record)
        if shown is error:
            raise
        raise shown from error


def _as_user_sees(error: BaseException) -> BaseException:
    """The error of a phase; one of the user's code that no part has claimed becomes a UserError.

    An exception that would end the process with another exit code, such as a library's `sys.exit`, is a fault.
    """
    if isinstance(error, FivegateError) or is_stop_request(error):
        return error
    from pipeline.error_attribution import text_of, unclaimed_error  # imports torch, which a phase has loaded already

    shown = unclaimed_error(error)
    if isinstance(shown, Exception):
        return shown
    return FivegateError(fault("phase", f"was ended from within by a library ({text_of(error)})"))


def _record_evidence(ctx: PhaseContext, phase: str, evidence: Evidence) -> Evidence:
    """Write the evidence to its file, record the end of the phase with the digests of all its files.

    Returns the evidence as it is read from the file: the gate judges what `verify` judges again.
    """
    path = ctx.folder / "evidence.json"
    files.write_json(path, {"schema": SCHEMA, **evidence.to_json()})
    record = {"phase": phase, "round": ctx.round, "evidence": ctx.artifact(path), "artifacts": evidence.artifacts}
    ctx.ledger.append("phase.finished", record)
    return Evidence.from_json(json.loads(path.read_text()))


def _decide_gate(
    registry: Registry, ctx: PhaseContext, plan: Plan, phase: str, basis: int, evidence: Evidence
) -> GateState:
    """Evaluate every item of the gate, record the outcomes and the gate's state, and return the state."""
    ledger = ctx.ledger
    for item in registry.judge(plan.checklists[phase], evidence):
        ledger.append("item.evaluated", {"phase": phase, "round": ctx.round, **vars(item)})
    decision = {
        "phase": phase,
        "round": ctx.round,
        "revision": plan.revision,
        "basis": basis,
        "subject": evidence.get("subject"),
    }
    # The state is computed by the same fold that every later reader uses, on the ledger with the new entry.
    entry = Entry(seq=len(ledger.entries), time="", kind="gate.decided", data=decision, prev=ledger.head, hash="")
    state = fold([*ledger.entries, entry])
    gate = state.gate(phase)
    assert gate is not None
    ledger.append("gate.decided", {**decision, "state": gate})
    return gate


def record_branch(run: Run, ledger: Ledger) -> None:
    """Record what follows from an open gate after a training: candidate, branch, skipped gates, exhaustion.

    The facts come from the recorded evidence and are appended only where they are missing. So a kill between two
    entries, or a waiver that opens a gate later, never leaves the run without its branch.
    """
    for phase in ("baseline", "optimization"):
        state = fold(ledger.entries)
        record = state.finished.get(phase)
        if record is None or state.gate(phase) != "open":
            continue
        if not is_intact(run.path, **record["evidence"]):
            continue  # the evidence is lost, so the phase counts as not done and runs again
        values = _decisive_values(run, record["evidence"]["path"])
        where = {"phase": phase, "round": record["round"]}
        if values.get("candidate") and (state.candidate is None or state.candidate["seq"] < record["seq"]):
            ledger.append("candidate.chosen", {**where, **values["candidate"]})
        if state.awaits_branch(phase):
            compared = {"score": fold(ledger.entries).score, "target_value": _target(run, state)}
            decision = {"branch": branch(**values["branch"]), **values["branch"]}
            ledger.append("branch.decided", {**where, **decision, **compared})
        if phase == "optimization":
            _record_exhaustion(run, ledger, values)
    _record_skipped_gates(ledger)


class DecisiveValues(TypedDict):
    """What the evidence of a training says of the branch."""

    branch: BranchInputs
    candidate: NotRequired[dict[str, Any] | None]


def _decisive_values(run: Run, path: str) -> Any:
    """Return the values of the evidence of a training. Raises Refused for a file that this version did not write."""
    body = read_recorded_json(run.path, {"path": path, "sha256": files.sha256(run.path / path)})
    values = body.get("values") if isinstance(body, dict) else None
    if (what := mismatch(values, DecisiveValues, "values")) is not None:
        do = f"python -m pipeline verify {run.argument}"
        raise Refused(fault(path, f"cannot be read: {what}", expected="the evidence that a phase wrote", do=do))
    return values


def _target(run: Run, state: RunState) -> float | None:
    """The value of the metric that the plan requires; None for a plan without a target."""
    target = (plans.load(run, state).config.get("task") or {}).get("target")
    return None if target is None else float(target)


def _record_exhaustion(run: Run, ledger: Ledger, values: Mapping[str, Any]) -> None:
    """Record that a person must decide when the last round, or the last untried change, was not enough.

    `values` are the evidence of the optimization. What a person can try instead is recorded as well.
    """
    state, nothing_left = fold(ledger.entries), bool(values.get("nothing_left"))
    decision = state.current_branch()
    if decision is None or decision["phase"] != "optimization":
        return
    last_round = nothing_left or decision["round"] >= state.max_rounds
    if decision["branch"] == "insufficient" and last_round and not state.exhausted:
        rounds = f"{state.max_rounds} rounds did not reach the target"
        why = values.get("nothing_left_why", "no untried cure is left") if nothing_left else rounds
        packages = [grant["package"] for grant in state.trust]
        jobs = [e["data"]["job"] for e in ledger.entries if e["kind"] == "job.started"]
        tried = [Job.from_json(job).delta.overrides for job in jobs]
        options = alternatives(plans.load(run, state).config, packages, tried)
        ledger.append("exhausted", {"round": decision["round"], "why": why, "alternatives": options})


def _record_skipped_gates(ledger: Ledger) -> None:
    """Record the gates that a sufficient model does not need, with the entry that makes them unnecessary."""
    state = fold(ledger.entries)
    because = state.sufficient_since()
    for phase in ROUNDED:
        if because is not None and phase not in state.not_needed and state.skips(phase):
            ledger.append("gate.not_needed", {"phase": phase, "because": because})
