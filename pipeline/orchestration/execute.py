"""Executing a request: the run is locked, trusted packages are checked, and phases run as far as the gates allow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from pipeline.errors import PendingReview, Refused, UserError, fault
from pipeline.orchestration.phase import Hooks, Registry, RunRequest
from pipeline.orchestration.plan_revision import changes_since
from pipeline.orchestration.run_request import override_value, plan_overrides, refuse_changes
from pipeline.orchestration.state_machine import choose_phase, record_branch, run_phase
from pipeline.release.registry import Alias, model_name, move
from pipeline.release.registry import read as read_models
from pipeline.release.release import release
from pipeline.results import GateState
from pipeline.run_store import files
from pipeline.run_store import plan as plans
from pipeline.run_store.ledger import Ledger
from pipeline.run_store.next_step import NextStep, next_step
from pipeline.run_store.records import GrantRecord
from pipeline.run_store.run import Run, opened
from pipeline.run_store.state import fold


class RunOutcome(NamedTuple):
    """Where an execution stopped: the run, the state of the last gate, and the next step."""

    run: Run
    gate: GateState
    next_step: NextStep

    def exit_code(self, requested: str) -> int:
        """3 for a closed gate, 4 for a pending one; for `auto` also the reason why the run cannot continue."""
        return {"closed": 3, "pending": 4}.get(self.gate, self.next_step.exit_code if requested == "auto" else 0)


def execute_run(registry: Registry, hooks: Hooks, request: RunRequest) -> RunOutcome:
    """Run the requested phase, with planning first where its gate is not open; `auto` runs on until a gate stops it.

    Raises UserError or Refused as the phases do. A run that is stopped before its first plan is removed.
    """
    run = request.run
    root_is_new = not run.path.parent.exists()
    gate: GateState = "open"
    with opened(run, **_origin(request)) as ledger, tracked(hooks, run, request, ledger):
        run_is_new = len(ledger.entries) == 1
        try:
            _refuse_concurrent_change(run, ledger, request)
            if request.notice:
                hooks.log(request.notice)
            request = _grant_trust(ledger, request)
            replan = request.phase == "baseline" and request.changed
            record_branch(run, ledger)
            _name_champion(run, ledger)
            while phase := choose_phase(run, fold(ledger.entries), request, replan):
                if phase == "finalization" and fold(ledger.entries).gate(phase) == "open":
                    release(run, ledger, registry.judge)
                    _register(run, ledger, "champion")
                    if hooks.report is not None:
                        hooks.report(run)
                    hooks.log(f"released: {run.inside('bundle')}")
                    break
                with _noting(phase, ledger):
                    gate, replan = run_phase(registry, hooks, run, ledger, phase, request), False
                if phase == "finalization" and gate != "closed":
                    _register(run, ledger, "challenger")
                if gate != "open" or (phase == request.phase and phase != "finalization"):
                    break
        except PendingReview as pending:
            gate = "pending"
            hooks.log(pending.faults[0])
        except (UserError, Refused):
            if run_is_new:
                _remove_unplanned_run(run, ledger, root_is_new)
            raise
        return RunOutcome(run, gate, next_step(fold(ledger.entries), run.path))


def _name_champion(run: Run, ledger: Ledger) -> None:
    """Name the bundle of a release that was killed before it was named; one that a rollback withdrew stays so."""
    state = fold(ledger.entries)
    if not state.released or state.gate("finalization") != "open":
        return
    subject = state.gates["finalization"].subject
    model = read_models(run.path.parent).get(model_name(state))
    named = {past["subject"] for past in model["history"] if past["alias"] == "champion"} if model else set()
    if subject not in named:
        _register(run, ledger, "champion")


def _register(run: Run, ledger: Ledger, alias: Alias) -> None:
    """Give the alias to the bundle of the run, in the registry of its root."""
    state = fold(ledger.entries)
    who = ", ".join(sign_off.who for sign_off in state.valid_sign_offs("finalization"))
    subject = state.gates["finalization"].subject
    assert subject is not None
    move(run.path.parent, model_name(state), alias, run.name, subject, who)


def _origin(request: RunRequest) -> dict[str, Any]:
    """What the first entry of a new ledger says about where the run came from."""
    sweep = request.config["run"].get("sweep")
    experiment = override_value(request.overrides, "experiment")
    return {"experiment": experiment, **({"sweep": sweep} if sweep else {})}


def _refuse_concurrent_change(run: Run, ledger: Ledger, request: RunRequest) -> None:
    """Raise UserError when another process wrote to the ledger after the request was compared with it."""
    last = ledger.entries[-1]
    before_repair = last["prev"] if last["kind"] == "ledger.torn" else None  # opening a torn ledger appends one entry
    if request.ledger_head and request.ledger_head not in (ledger.head, before_repair):
        what = "another process changed this run in the meantime"
        raise UserError(fault(run.name, what, do="repeat the command"))


def _grant_trust(ledger: Ledger, request: RunRequest) -> RunRequest:
    """The request, after the trusted packages were recorded, compared with their records and made importable.

    A package of which a file that the run imports changed needs a new plan, so the request then counts as changed.
    """
    from pipeline.config.override_keys import targets_of
    from pipeline.trust import grants as trust

    run, packages = request.run, request.config.get("trust") or []
    if packages:
        granted = trust.grant(packages, trust.roots(request.config_dirs), targets_of(request.config))
        grants = trust.signed(granted, run.path)
        state = fold(ledger.entries)
        before = state.trust
        if state.plan is None or state.gate("planning") != "open" or request.phase in ("planning", "baseline"):
            imported, new = ([(g["package"], g["root"], g["digest"]) for g in some] for some in (before, grants))
            request = replace(request, changed=request.changed or imported != new)
        else:
            _refuse_other_files(before, grants, run)
        known = [g for g, old in zip(grants, before, strict=False) if trust.same(g, old) and trust.is_signed(old)]
        if len(known) < max(len(grants), len(before)):
            ledger.append("trust.granted", {"packages": grants})
    state = fold(ledger.entries)
    trust.activate_recorded(state.trust, run.path, run.overrides_for("planning", state), request.phase)
    return request


def _refuse_other_files(planned: Sequence[GrantRecord], grants: Sequence[GrantRecord], run: Run) -> None:
    """Raise Refused when a package that is trusted again, after planning, is not the code that was planned with."""
    from pipeline.trust.grants import moved_files

    now = {grant["package"]: grant for grant in grants}
    faults = []
    for grant in planned:
        again = now.get(grant["package"])
        if again is None or (names := moved_files(grant, again)):
            what = (
                "is trusted by the plan" if again is None else f"has changed since it was trusted: {', '.join(names)}"
            )
            place = f"{(again or grant)['root']}/{grant['package']}"
            packages = ",".join(dict.fromkeys([*now, grant["package"]]))
            do = f"read it, then python -m pipeline phase=planning {run.overrides_for('planning')} 'trust=[{packages}]'"
            faults.append(fault(place, what, do=do))
    if faults:
        raise Refused(*faults)


@contextmanager
def _noting(phase: str, ledger: Ledger) -> Iterator[None]:
    """Record what planning imports besides the files that `import` statements name; later phases import no more."""
    before = list(fold(ledger.entries).trust)
    if phase != "planning" or not before:
        yield
        return
    from pipeline.trust.grants import with_noted
    from pipeline.trust.source_guard import GUARD

    GUARD.noting = True
    try:
        yield
    finally:
        GUARD.noting = False
    grants = with_noted(before)
    if grants != before:
        ledger.append("trust.granted", {"packages": grants})


def _remove_unplanned_run(run: Run, ledger: Ledger, root_is_new: bool) -> None:
    """Remove the folder of a run that has no plan, and the folder of runs when this command created it."""
    if not fold(ledger.entries).plan:
        files.remove_folder(run.path)
        if root_is_new and not any(run.path.parent.iterdir()):
            files.remove_folder(run.path.parent)


def tracked(hooks: Hooks, run: Run, request: RunRequest, ledger: Ledger) -> AbstractContextManager[None]:
    """Copy the ledger to the tracker inside the block; an unavailable tracker is recorded and does not stop the run."""

    def warn(why: str) -> None:
        if fold(ledger.entries).plan:
            ledger.append("tracking.unavailable", {"why": why})
        hooks.log(f"the tracker is unavailable ({why}); the next command on this run sends what is missing")

    return hooks.track(run, request.config, warn) if hooks.track else nullcontext()


@dataclass(frozen=True)
class SweepJob:
    """A job of a sweep, which is a run of its own. It can be pickled where `registry` and `hooks` can.

    `registry()` and `hooks(config)` are called in the process of the job.
    """

    registry: Callable[[], Registry]
    hooks: Callable[[dict[str, Any]], Hooks]
    config_dirs: list[str]

    def __call__(self, config: dict[str, Any], overrides: list[str]) -> int:
        """Execute the run and return its exit code."""
        request = RunRequest(config, plan_overrides(overrides), self.config_dirs)
        run = request.run
        state = run.state() if run.exists() else None
        if state and state.plan:  # an interrupted sweep goes on, and the config that it composes may have changed
            changes = changes_since(plans.load(run, state), config)
            refuse_changes(run, state, request.phase, request.overrides, changes)
            request = replace(request, changed=bool(changes))
        return execute_run(self.registry(), self.hooks(config), request).exit_code(request.phase)
