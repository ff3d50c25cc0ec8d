"""Nothing of ours trains, reads test rows or exports without a permit that an open gate made."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest

from pipeline.__main__ import make_registry
from pipeline.errors import FivegateError, Refused
from pipeline.release.verify import verify
from pipeline.run_store import permits
from pipeline.run_store.job import DIAGNOSTICS, Job
from pipeline.run_store.run import Run, opened
from tests.conftest import go

KINDS = (permits.TrainPermit, permits.ProbePermit, permits.TestKey, permits.ExportPermit)


@pytest.mark.parametrize("kind", KINDS)
def test_permit_cannot_be_constructed(kind: type) -> None:
    """Constructing a permit is a TypeError, whatever is handed in."""
    with pytest.raises(TypeError, match="is issued by an open gate and cannot be constructed"):
        kind(object(), None, None, "")


def test_permit_cannot_be_copied(digits_permit: permits.TrainPermit) -> None:
    """A permit stays where it was issued."""
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be copied into another process"):
            attempt(digits_permit)


@pytest.mark.parametrize("nothing", [None, True, object(), "permit"])
def test_fit_needs_permit(nothing: object) -> None:
    """The engine makes no step for anything but a TrainPermit."""
    from pipeline.engine.fit import fit

    with pytest.raises(Refused, match="this needs a TrainPermit"):
        fit(nothing, Job("", "baseline"))  # type: ignore[arg-type]


@pytest.mark.parametrize("nothing", [None, object()])
def test_training_loop_needs_permit(nothing: object) -> None:
    """Going round `fit` to the class behind it leads to the same refusal."""
    from pipeline.engine.loop import Training

    with pytest.raises(Refused, match="this needs a TrainPermit"):
        Training(nothing, None, Job("", "baseline"))  # type: ignore[arg-type]


def test_worker_refuses_run_with_closed_gate(tmp_path) -> None:
    """A job laid by hand into a run without an open gate is not trained."""
    from pipeline.run_store import files
    from pipeline.trials.worker import work

    run = Run(tmp_path / "fresh")
    with opened(run):
        files.write_json(run.inside("job", "job.json"), Job("", "trial").to_json())
    with pytest.raises(Refused, match="gate planning: is not open"):
        work(run.inside("job"), lambda: [])


def test_fit_refuses_job_of_another_plan(digits_permit: permits.TrainPermit) -> None:
    """A permit holds for its own plan only."""
    from pipeline.engine.fit import fit

    with pytest.raises(Refused, match="is of another plan"):
        fit(digits_permit, Job("0" * 64, "baseline"))


def test_require_refuses_other_kind_of_permit(digits_permit: permits.TrainPermit) -> None:
    """A permit to train opens no test rows and exports nothing."""
    from pipeline.data.load import load

    sealed = load(digits_permit.plan.config).test
    with pytest.raises(Refused, match="this needs a TestKey"):
        sealed.read(digits_permit)  # type: ignore[arg-type]
    with pytest.raises(Refused, match="this needs an ExportPermit"):
        permits.require(digits_permit, permits.ExportPermit)


def test_train_permit_needs_open_planning_gate(tmp_path) -> None:
    """A run without an open planning gate gives no permit, and so does one whose plan file was touched."""
    run = Run(tmp_path / "fresh")
    with opened(run), pytest.raises(Refused, match="gate planning: is not open"):
        permits.train(run)


def test_train_permit_needs_unchanged_plan(planned: Run) -> None:
    """One changed threshold in the plan's file, and nothing trains any more."""
    path = planned.path / "plan" / "1.yaml"
    path.write_text(path.read_text().replace("target: 0.95", "target: 0.05"))

    with pytest.raises(Refused, match="is not the plan that the ledger recorded"):
        permits.train(planned)


def test_train_permit_needs_unchanged_ledger(planned: Run) -> None:
    """One changed byte of the ledger, and nothing trains any more."""
    raw = planned.ledger_path.read_bytes()
    planned.ledger_path.write_bytes(raw.replace(b'"outcome":"passed"', b'"outcome":"failed"', 1))

    with pytest.raises(Refused, match="the ledger was changed: entry"):
        permits.train(planned)


def test_test_key_needs_candidate(trained: Run) -> None:
    """After an insufficient baseline there is neither a key to test nor a permit to export."""
    with opened(trained) as ledger:
        before = len(ledger.entries)
        with pytest.raises(FivegateError, match="gate diagnostics: is not open"):
            permits.test(trained, ledger, "0" * 64)
        assert len(ledger.entries) == before
    with pytest.raises(Refused, match="gate diagnostics: is not open"):
        permits.export(trained)


def append_byte(run: Run, *path: str) -> None:
    file = run.inside(*path)
    file.write_bytes(file.read_bytes() + b" ")


RECORDED = [("planning", "manifest.json"), ("baseline", "evidence.json"), ("baseline", "history.npz")]


@pytest.mark.parametrize("path", RECORDED)
def test_damaged_record_opens_no_test_rows(finished: Run, path: tuple[str, str]) -> None:
    """One byte more in a file that finalization stands on: no key to the test rows, no export, nothing recorded."""
    append_byte(finished, *path)
    before = finished.ledger_path.read_bytes()
    phase, repeat = path[0], f"or run the phase again  Do: python -m pipeline phase={path[0]} run.name=digits"
    rows = finished.state().test_opened[0]["digest"]

    with opened(finished) as ledger, pytest.raises(Refused, match="is not the file that the ledger recorded") as key:
        permits.test(finished, ledger, rows)
    with pytest.raises(Refused, match=f"{phase}/{path[1]}: is not the file") as export:
        permits.export(finished)
    with pytest.raises(Refused, match=f"{phase}/{path[1]}: is not the file that entry") as begun:
        go(finished.path.parent, "phase=finalization", "run.name=digits")

    assert all(repeat in str(stop.value) for stop in (key, export, begun))
    assert finished.ledger_path.read_bytes() == before


@pytest.mark.process
def test_damaged_record_is_mended_by_its_phase(finished: Run) -> None:
    """The command of the message is accepted: the phase runs again, although its gate is open, and mends the run."""
    append_byte(finished, "baseline", "evidence.json")
    append_byte(finished, "finalization", "evidence.json")  # which no phase before it waits for

    go(finished.path.parent, "phase=baseline", "run.name=digits")
    go(finished.path.parent, "phase=finalization", "run.name=digits")

    assert verify(finished, make_registry().judge).faults == []


def test_train_permit_needs_intact_records(planned: Run) -> None:
    """A changed manifest of the data: nothing trains, until planning ran again."""
    append_byte(planned, "planning", "manifest.json")
    with pytest.raises(Refused, match=r"planning/manifest\.json: is not the file.* or run the phase again  Do: "):
        permits.train(planned)
    go(planned.path.parent, "phase=planning", "run.name=digits")

    assert permits.train(planned)


def test_phase_refuses_a_rewritten_ledger(finished: Run) -> None:
    """Items that the evidence does not give open no test rows, although ledger and files agree."""
    from tests.test_verify import rewrite

    def change(entry: dict) -> None:
        if entry["kind"] == "item.evaluated" and entry["data"]["id"] == "loss_at_init_measured":
            entry["data"]["value"] = 0.5

    rewrite(finished, change)
    with pytest.raises(
        Refused, match=r"baseline/loss_at_init_measured .* is recorded as value 0\.5, its evidence gives"
    ):
        go(finished.path.parent, "phase=finalization", "run.name=digits")


@pytest.mark.process
def test_phase_that_was_killed_runs_again(finished: Run) -> None:
    """Files that a killed attempt replaced, and that are not recorded yet, are no fault of the next attempt."""
    with opened(finished) as ledger:
        ledger.append("phase.started", {"phase": "finalization", "round": 1, "basis": 0})
    append_byte(finished, "finalization", "export", "model.onnx")
    append_byte(finished, "finalization", "evidence.json")

    go(finished.path.parent, "phase=finalization", "run.name=digits")

    assert verify(finished, make_registry().judge).faults == []


def test_probe_permit_trains_experiments_only(digits_permit: permits.TrainPermit, tmp_path: Path) -> None:
    """Nothing that a ProbePermit trains can become a candidate: another purpose, seed or a checkpoint is refused."""
    from pipeline.engine.fit import fit

    permit = permits.probe(digits_permit.run)
    for purpose, index in (("baseline", 1), ("trial", 1), (DIAGNOSTICS, 0), (DIAGNOSTICS, 10)):
        with pytest.raises(Refused, match="a ProbePermit allows experiments of diagnostics only"):
            fit(permit, Job(permit.plan.digest, purpose, seed_index=index, max_steps=2))
    job = Job(permit.plan.digest, DIAGNOSTICS, seed_index=1, max_steps=2)
    with pytest.raises(Refused, match="keeps no checkpoint"):
        fit(permit, job, folder=tmp_path)
    done = fit(permit, job)
    assert done.steps == 2 and done.checkpoint is None


def test_probe_permit_needs_seed_and_rows(tmp_path: Path) -> None:
    """Behind a closed planning gate there is a permit for experiments, unless the plan has no seed."""
    run = go(tmp_path, "phase=planning", "experiment=digits", "plan.purpose=null", "tracking=none").run
    assert run.state().gate("planning") == "closed"
    with pytest.raises(Refused, match="gate planning: is not open"):
        permits.train(run)
    assert permits.probe(run).plan.digest
    unseeded = go(
        tmp_path, "phase=planning", "experiment=digits", "seed=null", "run.name=unseeded", "tracking=none"
    ).run
    with pytest.raises(Refused, match="has no seed"):
        permits.probe(unseeded)
