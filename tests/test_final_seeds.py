"""The trainings of a release: which jobs they are, and which of them is frozen."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checklists.checks.training import stable_across_seeds
from pipeline.__main__ import make_hooks, make_registry
from pipeline.errors import Refused
from pipeline.history import History
from pipeline.orchestration import frozen_candidate
from pipeline.orchestration.frozen_candidate import freeze_candidate
from pipeline.orchestration.phase import PhaseContext, RunRequest
from pipeline.orchestration.state_machine import _phase_context
from pipeline.release.verify import faults
from pipeline.results import Evidence, Result
from pipeline.run_store.job import Delta, Job
from pipeline.run_store.ledger import Ledger, read_ledger
from pipeline.run_store.run import Run, opened
from pipeline.trials.executor import Trial
from pipeline.trials.final_seeds import (
    FIRST_SEED,
    final_jobs,
    format_stability,
    median_trial,
    stability,
    study_of,
)
from tests.conftest import SMALL, go

CHANGE = Delta({"optimizer.lr": 0.01})
BASELINE = {"phase": "baseline", "round": 1, "job": Job("p" * 64, "baseline").to_json()}
FIXED = {"phase": "optimization", "round": 2, "seq": 9, "job": Job("p" * 64, "fixed", CHANGE, 0, 100).to_json()}


def trial(index: int, value: float | None) -> Trial:
    """The training on one seed with its score on validation; None for one that died."""
    job, name = Job("p" * 64, "finalization", seed_index=index), f"seed-{index}"
    if value is None:
        return Trial(name, job, Path(), died="exit 1: boom")
    return Trial(name, job, Path(), {"score": {"metric": "accuracy", "value": value}, "weights": f"w{index}"})


def judged(values: list[float | None], *, target: float = 0.9, margin: float | None = 0.02) -> Result:
    """The check on trainings with these scores."""
    trials = [trial(FIRST_SEED + i, value) for i, value in enumerate(values)]
    table = stability(trials, trials[0], "accuracy", True, {"values": [0.93, 0.95]}, "phases.finalization.seeds is 1")
    return stable_across_seeds(Evidence({"seed_stability": table}), target=target, margin=margin, min_seeds=7)


@given(st.lists(st.sampled_from([0.5, 0.6, 0.7, 0.8]), min_size=7, max_size=7), st.booleans())
def test_median_trial_has_as_many_better_as_worse(values: list[float], greater: bool) -> None:
    """At most three trainings are better and at most three are worse, whichever direction is better."""
    trials = [trial(i, value) for i, value in enumerate(values)]

    chosen = median_trial(trials, greater)

    assert sum(value > chosen.value for value in values) <= 3
    assert sum(value < chosen.value for value in values) <= 3
    assert chosen.job.seed_index == values.index(chosen.value)


def test_median_trial_counts_the_dead_as_the_worst() -> None:
    """Three dead trainings of seven leave the worst of the four that live."""
    values = [None, 0.9, None, 0.8, 0.95, None, 0.99]
    assert median_trial([trial(i, value) for i, value in enumerate(values)], greater=True).value == 0.8
    assert math.isnan(median_trial([trial(i, None) for i in range(7)], greater=True).value)


def test_final_jobs_of_a_baseline_have_seeds_of_their_own() -> None:
    """Seed indices 30 to 36, each in the folder of finalization."""
    jobs = final_jobs(BASELINE, None, Path("run"), Path("own"), 7)  # type: ignore[arg-type]

    assert [job.seed_index for _, _, job in jobs] == list(range(30, 37))
    assert {folder for folder, _, _ in jobs} == {Path("own")}


@pytest.mark.parametrize(("seeds", "own"), [(7, 0), (6, 1), (20, 0)])
def test_final_jobs_reuse_the_confirmation_of_a_fix(seeds: int, own: int) -> None:
    """The trainings that confirmed the change are taken over, and those that lack are trained."""
    jobs = final_jobs(FIXED, ("c2", seeds, 20), Path("run"), Path("own"), 7)  # type: ignore[arg-type]

    assert [name for _, name, _ in jobs] == [f"c2-{i}" for i in range(1, 8 - own)] + ["seed-30"] * own
    assert {folder for folder, _, job in jobs if job.purpose == "trial"} == {Path("run/optimization/2/trials")}
    assert all((job.delta, job.max_steps) == (CHANGE, 100) for _, _, job in jobs)
    assert [job.seed_index for _, _, job in jobs] == [*range(20, 27 - own), *([30] * own)]


def test_study_of_finds_the_round_that_adopted_the_candidate() -> None:
    """A later round that adopted nothing does not count."""
    arms = [{"id": "control", "values": [0.1] * 6}, {"id": "c2", "values": [0.9] * 6}]
    studies = [
        {"round": 2, "winner": "c2", "arms": arms},
        {"round": 3, "winner": None, "arms": arms},
    ]
    entries = [{"seq": 8 + 2 * i, "kind": "study.decided", "data": study} for i, study in enumerate(studies)]

    assert study_of(entries, FIXED) == ("c2", 6, 1)  # type: ignore[arg-type]
    assert study_of(entries, BASELINE) is None  # type: ignore[arg-type]


def test_stable_across_seeds_judges_the_worst_seed() -> None:
    """One seed below target minus margin fails, although the mean is far above."""
    good = [0.95, 0.93, 0.96, 0.89, 0.95, 0.94, 0.97]
    assert (judged(good).outcome, judged(good).value) == ("passed", 0.89)
    assert "cross-validation 0.93 to 0.95" in judged(good).why
    assert judged([*good[:6], 0.87]).outcome == "failed"
    assert judged([*good[:6], None]).outcome == "failed"
    assert judged(good, margin=None).outcome == "failed"


def test_stable_across_seeds_needs_seven() -> None:
    """A single training says nothing of stability, unless it misses the target itself."""
    single = judged([0.95])
    assert (single.outcome, single.acceptable) == ("inconclusive", "small_sample")
    assert "phases.finalization.seeds is 1" in single.why
    assert judged([0.5]).outcome == "failed"


def test_format_stability_names_the_frozen_training() -> None:
    """The line has every score and the chosen one."""
    trials = [trial(30, 0.5), trial(31, None), trial(32, 0.75)]
    line = format_stability(stability(trials, trials[0], "accuracy", True, {}))
    assert line == "accuracy of 3 trainings on validation: 0.5, died, 0.75; the median, seed-30, is frozen"


def context(run: Run, ledger: Ledger, target: float) -> PhaseContext:
    """What finalization of a finished run gets, before its candidate was frozen and with another target."""
    hooks = make_hooks(lambda text: None)
    request = RunRequest({"phase": "finalization"}, [], [])
    ctx = _phase_context(make_registry(), hooks, run, ledger, "finalization", request)
    config = {**ctx.config, "task": {**ctx.config["task"], "target": target}}
    return replace(ctx, config=config, state=replace(ctx.state, frozen=None))


def test_freeze_candidate_refuses_a_median_below_the_target(finished: Run) -> None:
    """The phase ends with the reason and a command, and nothing is frozen."""
    with opened(finished) as ledger:
        before = len(ledger.entries)
        with pytest.raises(Refused, match=r"misses the target on validation, got 'accuracy .*phase=diagnostics"):
            freeze_candidate(context(finished, ledger, 1.1))
        assert len(ledger.entries) == before


def test_freeze_candidate_accepts_a_waived_branch(finished: Run) -> None:
    """A named person accepted the model below its target: then the median below it is no obstacle."""
    with opened(finished) as ledger:
        ctx = context(finished, ledger, 1.1)
        branch = {**ctx.state.branches[-1], "branch": "insufficient"}
        frozen = freeze_candidate(replace(ctx, state=replace(ctx.state, branches=(branch,))))  # type: ignore[arg-type]
    assert frozen["weights"] == finished.state().candidate["weights"]  # type: ignore[index]


@pytest.mark.parametrize(("seconds", "minutes"), [(2.0, 33), (1.7, None)])
def test_train_seeds_takes_a_long_training_as_it_is(tmp_path: Path, seconds: float, minutes: int | None) -> None:
    """Above half an hour for one training the candidate itself is released, and its stability is inconclusive."""
    history = History()
    history.log_steps(1, {"time/step": [seconds] * 1000})
    (tmp_path / "baseline").mkdir()
    (tmp_path / "baseline" / "history.npz").write_bytes(history.to_bytes())
    candidate = {**BASELINE, "checkpoint": "baseline/checkpoints/last", "weights": "w", "score": {"value": 0.95}}
    ctx: Any = SimpleNamespace(
        plan=SimpleNamespace(facts={}), settings={"seeds": 7}, folder=tmp_path, run=SimpleNamespace(path=tmp_path)
    )
    ctx.state = SimpleNamespace(candidate=candidate)
    if minutes is None:
        with pytest.raises(AttributeError, match="ledger"):  # it goes on to train seven seeds
            frozen_candidate._train_seeds(ctx, candidate)  # type: ignore[arg-type]
        return
    [trained], why = frozen_candidate._train_seeds(ctx, candidate)  # type: ignore[arg-type]

    assert (trained.value, why) == (0.95, f"one training takes {minutes} minutes")
    table = stability([trained], trained, "accuracy", True, {}, why)
    judged = stable_across_seeds(Evidence({"seed_stability": table}), target=0.9, margin=0.02, min_seeds=7)
    assert judged.outcome == "inconclusive" and why in judged.why


@pytest.mark.process
def test_finalization_trains_on_seeds_of_its_own_once(tmp_path: Path) -> None:
    """Three seeds are trained before the test rows are opened; the phase that runs again trains none."""
    go(tmp_path, "phase=auto", *SMALL, "task.target=0.3", "phases.finalization.seeds=3", "export.formats=[torchscript]")
    run = Run.at(tmp_path, "digits")
    kinds = [e["kind"] for e in read_ledger(run.ledger_path)]
    frozen = run.state().frozen
    assert frozen is not None

    go(tmp_path, "phase=finalization", "run.name=digits")
    later = [e["kind"] for e in read_ledger(run.ledger_path)]

    assert kinds.count("job.finished") == later.count("job.finished") == 3
    assert kinds.index("candidate.frozen") < kinds.index("test.opened")
    assert later.count("candidate.frozen") == later.count("test.opened") == 1
    values = sorted(t["value"] for t in frozen["stability"]["trainings"])
    assert frozen["score"] is not None and frozen["score"]["value"] == values[1]
    assert faults(run)[1] == []
