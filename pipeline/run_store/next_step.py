"""What comes next: a pure function from the state of a run to the next phase, the command and the exit code.

`obstacle` alone knows whether a phase may run. The state machine refuses by it, and `next_step` proposes no phase that
it forbids, so a proposed command is never refused.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import relative_path
from pipeline.results import PHASES, ROUNDED, counted
from pipeline.run_naming import COMPOSING, composing_overrides, run_argument, run_overrides
from pipeline.run_store.gate import branch_conditions
from pipeline.run_store.state import RunState

SEED_ITEM = "seeds_fixed"  # the item of planning without which the phase evaluates no other evidence
CAUSES_ITEM = "causes_known"  # the item of diagnostics whose value is the number of causes that were named
NEEDS = {"baseline": PHASES[:1], "optimization": PHASES[:3], "finalization": PHASES[:4]}


class Alternative(NamedTuple):
    """Another command than that of the next step, and what it does."""

    why: str
    command: str


@dataclass(frozen=True)
class NextStep:
    """The next step: a `phase` that can run now, or None with the reason and the exit code of stopping.

    Where a person has to decide, `alternatives` are what else can be done; after a release, what it is for.
    """

    phase: str | None
    why: str
    command: str
    exit_code: int = 0
    alternatives: tuple[Alternative, ...] = ()


def obstacle(state: RunState, phase: str) -> str | None:
    """Why the phase may not run now, as what follows its name in a message; None when it may run.

    Diagnostics needs a plan only: it may run after a closed gate, to explain it.
    """
    closed = [p for p in NEEDS.get(phase, ()) if not state.passed(p)]
    sufficient, decision = state.sufficient(), state.current_branch()
    if phase == "finalization" and decision and not sufficient:
        return f"cannot run yet, since on validation: {', '.join(branch_conditions(decision))}"
    if phase in ROUNDED and decision and not sufficient and (state.exhausted or state.round > state.max_rounds):
        return f"cannot run, since {_why_exhausted(state)}"
    if phase == "optimization" and sufficient and not state.awaits_branch(phase) and not state.pursues_goal:
        conditions = branch_conditions(decision) if decision and decision["branch"] == "sufficient" else []
        reason = f"on validation: {', '.join(conditions)}" if conditions else "a person accepted the model"
        return f"is not needed, since {reason}"
    if closed:
        return f"cannot run yet, since the {closed[0]} gate is {state.gate(closed[0]) or 'not evaluated'}"
    if phase == "diagnostics" and state.plan is None:
        return "cannot run, since there is no plan yet"
    return None


def _why_exhausted(state: RunState) -> str:
    return state.exhausted["why"] if state.exhausted else f"{state.max_rounds} rounds did not reach the target"


def stale_reason(state: RunState, phase: str) -> str:
    """Why a stale gate no longer counts, as a sentence about it."""
    gate, decision = state.gates[phase], state.current_branch()
    same_plan = state.plan is not None and gate.revision == state.plan["revision"]
    if phase == "diagnostics" and same_plan and decision is not None and decision["phase"] == "optimization":
        return f"it explains round {gate.round}, after which optimization decided the branch again"
    return "it was evaluated for an earlier plan or training, and says nothing of the present one"


def lapsed_signature(state: RunState, phase: str) -> str:
    """Why the newest signature of a gate does not count; empty where it counts, or where there is none."""
    signatures = [s for s in state.sign_offs if s.phase == phase]
    return state.lapse(signatures[-1]) if signatures else ""


def release_blocker(state: RunState, today: date) -> str | None:
    """Return why the records do not permit a release on that day, None where they do. Every gate is evaluated again."""
    if state.released:
        return f"it is released already, as {state.released['subject'][:12]}"
    closed = next((phase for phase in PHASES[:-1] if not state.passed(phase, today)), None)
    # Without a sufficient branch the next two gates are closed, too, but the branch is the reason.
    if closed not in ("planning", "baseline") and not state.sufficient(today):
        return "the branch is insufficient and has no valid waiver"
    if closed:
        gate = "stale" if state.stale(closed) else state.gate(closed, today) or "not evaluated"
        return f"the {closed} gate is not open, it is {gate}"
    if state.gate("finalization", today) != "open":
        return "the finalization gate is not open"
    return None


def next_step(state: RunState, run_dir: Path) -> NextStep:
    """The next step of the run in this folder, or why it stops and which command continues it."""
    run, overrides = run_argument(run_dir), run_overrides(run_dir)
    composing = composing_overrides(run_dir, state.plan.get("env", ()) if state.plan else ())
    if state.released:
        return NextStep(None, "released", f"python -m pipeline verify {run}", alternatives=_uses(run_dir))
    phase, why = _due_phase(state)
    gate = state.gate(phase)
    blocked = gate in ("closed", "pending")
    # The only obstacle of a phase that is due is the number of rounds; a blocked optimization is explained first.
    if obstacle(state, phase) and not (blocked and phase == "optimization"):
        waive = f"python -m pipeline waive {run} branch --who NAME --why '...' --expires YYYY-MM-DD"
        choice = "a person decides: accept the model below its target, or try something else"
        why = f"exhausted: {_why_exhausted(state)}; {choice}"
        return NextStep(None, why, waive, 3, _alternatives(state, composing))
    if phase == "optimization" and state.review and not state.review.get("who"):
        approve = f"python -m pipeline approve {run} --who NAME"
        page = f"optimization/{state.review['round']}/study_plan.md"
        return NextStep(None, f"the plan of the study waits for a person: {page}", approve, 4)
    if gate == "pending":
        approve = f"python -m pipeline approve {run} --who NAME"
        lapse = lapsed_signature(state, phase)
        why = f"the {phase} gate waits for a person" + (f" to sign again: {lapse}" if lapse else "")
        return NextStep(None, why, approve, 4)
    if gate == "closed" and phase == PHASES[0] and _lacks_seed(state):
        plan = f"python -m pipeline phase={phase} {composing} seed=1"
        return NextStep(None, "the planning gate is closed: there is no seed", plan, 3)
    if gate == "closed":
        return NextStep(None, f"the {phase} gate is closed", f"python -m pipeline explain {run} --gate {phase}", 3)
    step = NextStep(phase, why, f"python -m pipeline phase={phase} {composing if phase in COMPOSING else overrides}")
    return _after_mending(state, step, composing)


def _after_mending(state: RunState, step: NextStep, overrides: str) -> NextStep:
    """The same step, or what must be changed before it: a phase that failed on wrong input fails again without."""
    failed = state.failed
    if failed is None or "mend" not in failed:
        return step
    line = failed["mend"]
    why = f"{failed['phase']} fails again until {line or 'what its message names'} is mended; then"
    command = step.command
    if line and state.trust:  # a changed package is a changed plan, and has to be trusted again
        packages = ",".join(grant["package"] for grant in state.trust)
        command = f"python -m pipeline phase=baseline {overrides} 'trust=[{packages}]'"
    return replace(step, why=why, command=command)


def _alternatives(state: RunState, overrides: str) -> tuple[Alternative, ...]:
    """What can be tried instead where no repair is left; a new revision of the plan starts with the first round."""
    records = state.exhausted.get("alternatives", []) if state.exhausted else []
    commands = (f"python -m pipeline phase={r['phase']} {overrides} {shlex.join(r['overrides'])}" for r in records)
    return tuple(Alternative(r["why"], command.rstrip()) for r, command in zip(records, commands, strict=True))


def _uses(run_dir: Path) -> tuple[Alternative, ...]:
    """What a release is for: predictions, and the comparison of new rows with its own."""
    script = shlex.quote(relative_path(run_dir.absolute() / "bundle" / "payload" / "predict.py"))
    drift = f"python -m pipeline drift {run_argument(run_dir)} ROWS.csv"
    return (
        Alternative("predict raw rows", f"python {script} ROWS.csv"),
        Alternative("ask whether new rows differ from those of the release", drift),
    )


def _why_optimization(state: RunState) -> str:
    """What optimization can do with the diagnosis: test a fix; without a named cause, say what else can be tried."""
    diagnosis = state.gates["diagnostics"]
    causes = next((item.value for item in diagnosis.items if item.id == CAUSES_ITEM), None)
    if causes == 0:
        page = f"diagnostics/{diagnosis.round}/incident.md"
        return (
            f"not decided: the diagnosis names no cause, and {page} says what would decide; optimization has no fix to "
            "compare and says what else can be tried"
        )
    return f"{counted(causes, 'candidate cause')} named: test a fix" if causes else "the diagnosis is done: test a fix"


def _lacks_seed(state: RunState) -> bool:
    return any(item.id == SEED_ITEM and item.outcome == "failed" for item in state.gates["planning"].items)


def _due_phase(state: RunState) -> tuple[str, str]:
    """The first phase on the way to a release that has not passed, and why it is due."""
    for phase in PHASES[:2]:
        if state.gate(phase) != "open":
            return phase, "stale: what it was built on has changed" if state.stale(phase) else "not done yet"
    for phase in ("baseline", "optimization"):
        if state.awaits_branch(phase):
            return phase, "its gate is open, and the branch is not decided yet"
    if not state.sufficient():
        if state.gate("optimization") in ("closed", "pending"):
            return "optimization", ""
        if state.gate("diagnostics") != "open":
            return "diagnostics", "the run is not good enough yet: find out why"
        return "optimization", _why_optimization(state)
    for phase in ROUNDED:
        if not state.passed(phase):
            goal = f": {state.plan['goal']}" if phase == "optimization" and state.plan and "goal" in state.plan else ""
            return phase, f"the plan asks for it before finalization{goal}"
    if state.gate("finalization") == "open":
        return "finalization", "every question is answered: the bundle can be released"
    return "finalization", "finalize the model"
