"""Nothing of ours trains, reads test rows or exports without a permit that an open gate made."""

from __future__ import annotations

import copy
import pickle

import pytest

from pipeline.errors import FivegateError, Refused
from pipeline.run_store import permits
from pipeline.run_store.job import Job
from pipeline.run_store.run import Run, opened

KINDS = (permits.TrainPermit, permits.TestKey, permits.ExportPermit)


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
