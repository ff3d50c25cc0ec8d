"""The faults that would matter most, each made in a copy of the checkout: a named test notices each one.

The other mutants, drawn at random, are those of `make mutants`, which judges nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = (
    ".git",
    ".venv",
    ".integrations",
    "runs",
    "__pycache__",
    ".*_cache",
    ".hypothesis",
    "build",
    "dist",
    "*.egg-info",
)
NOTICED: list[str] = []
TESTS_FAILED = 1  # the exit code of pytest; a file that cannot be imported ends with another one


class Mutant(NamedTuple):
    """A fault: the text of a file that is replaced once, and the test that has to notice it."""

    file: str
    before: str
    after: str
    test: str


MUTANTS = {
    "a gate opens with an errored item": Mutant(
        "pipeline/run_store/gate.py",
        'if item.outcome in ("passed", "not_applicable") or item.accepted_by:',
        'if item.outcome in ("passed", "not_applicable", "errored") or item.accepted_by:',
        "test_gate.py::test_gate_opens_for_passed_and_not_applicable_only",
    ),
    "training is permitted without an open gate": Mutant(
        "pipeline/run_store/permits.py",
        '    _need_open(run, state, "planning")\n',
        "",
        "test_permits.py::test_train_permit_needs_open_planning_gate",
    ),
    "a permit is not verified again by its worker": Mutant(
        "pipeline/trials/worker.py",
        "permit = permits.train(run)",
        "permit = permits.TrainPermit(permits._ISSUER, run, permits.plans.load(run, run.state()), '')",
        "test_permits.py::test_worker_refuses_run_with_closed_gate",
    ),
    "sealed test rows are readable with any permit": Mutant(
        "pipeline/data/sealed.py",
        "permits.require(key, permits.TestKey).spend(self.digest)",
        "getattr(key, 'spend', str)(self.digest)",
        "test_data.py::test_sealed_test_refuses_a_train_permit",
    ),
    "test rows are evaluated twice": Mutant(
        "pipeline/run_store/permits.py",
        "        if self._spent:\n",
        "        if False:\n",
        "test_phase_finalization.py::test_test_key_opens_once_for_its_candidate",
    ),
    "the lock is shared": Mutant(
        "pipeline/run_store/lock.py",
        "fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "...",
        "test_lock.py::test_lock_refuses_second_process",
    ),
    "the ledger is written without the lock": Mutant(
        "pipeline/run_store/ledger.py",
        "if not self._lock.guards(self.path):",
        "if False:",
        "test_ledger.py::test_ledger_is_written_under_its_lock_only",
    ),
    "a write is not synced": Mutant(
        "pipeline/run_store/files.py",
        '    _point("fsync", path)\n    os.fsync(descriptor)\n',
        '    _point("fsync", path)\n',
        "test_files.py::test_writes_sync_the_file_and_then_its_folder",
    ),
    "the chain of hashes leaves out the entry before": Mutant(
        "pipeline/run_store/ledger.py",
        'entry["seq"] != seq or entry["prev"] != prev',
        'entry["seq"] != seq',
        "test_ledger.py::test_read_ledger_detects_an_entry_with_a_new_hash",
    ),
    "a waiver never expires": Mutant(
        "pipeline/run_store/gate.py",
        "today <= date.fromisoformat(self.expires)",
        "bool(today)",
        "test_phase_finalization.py::test_expired_waiver_closes_the_gate",
    ),
    "a signature counts for any bundle": Mutant(
        "pipeline/run_store/gate.py",
        "s.item == item.id and s.digest == subject",
        "s.item == item.id",
        "test_gate.py::test_sign_off_is_bound_to_its_subject",
    ),
    "the digest of a bundle leaves out a file": Mutant(
        "pipeline/release/bundle.py",
        'inside = sorted(p for p in payload.rglob("*") if p.is_file())\n    return digest',
        'inside = sorted(p for p in payload.rglob("*") if p.is_file())[1:]\n    return digest',
        "test_bundle.py::test_bundle_digest_covers_every_byte",
    ),
    "the digest of a grant is not compared": Mutant(
        "pipeline/trust/grants.py",
        "if what := _change(grant):",
        "if what := None:",
        "test_build.py::test_activate_refuses_a_changed_source",
    ),
    "two purposes have the same seed": Mutant(
        "pipeline/runtime/seeds.py",
        "(int(master), *parts)",
        "(int(master), *parts[1:])",
        "test_engine.py::test_derive_depends_on_seed_and_purpose",
    ),
    "the exact test is one-sided": Mutant(
        "pipeline/trials/stats.py",
        "2 * min(at_most, at_least) / count",
        "min(at_most, at_least) / count",
        "test_stats.py::test_sign_flip_p_value_counts_ties_of_shares",
    ),
    "Holm's correction is left out": Mutant(
        "pipeline/trials/stats.py",
        "(len(p_values) - rank) * p_values[i]",
        "p_values[i]",
        "test_stats.py::test_holm_corrects_for_every_candidate",
    ),
    "an interval is one-sided": Mutant(
        "pipeline/evaluation/intervals/bounded.py",
        "TAIL = 0.025",
        "TAIL = 0.05",
        "test_metrics.py::test_confidence_interval_of_342_in_360",
    ),
    "a resumed training skips a batch": Mutant(
        "pipeline/batching/in_memory_source.py",
        "first = skip * batch * size\n",
        "first = (skip and skip + 1) * batch * size\n",
        "test_resume.py::test_training_resumes_from_any_step",
    ),
    "validation rows count twice": Mutant(
        "pipeline/evaluation/evaluate.py",
        "            sizes.append(len(targets))\n",
        "            sizes.append(len(targets) + 1)\n",
        "test_evaluate.py::test_mean_loss_equals_loss_and_metrics",
    ),
    "the target is decided on train rows": Mutant(
        "pipeline/results.py",
        'if self.split not in ("val", "test"):',
        'if self.split not in ("train", "val", "test"):',
        "test_gate.py::test_score_refuses_train_split",
    ),
    "a NaN among the predictions is masked": Mutant(
        "pipeline/evaluation/metrics.py",
        'if predictions.dtype.kind == "f" and not np.isfinite(predictions).all():',
        'if predictions.dtype.kind == "f" and np.isnan(predictions).all():',
        "test_metrics.py::test_metric_of_nan_predictions_is_nan",
    ),
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    copy = tmp_path_factory.mktemp("mutants") / "checkout"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
    yield copy
    shutil.rmtree(copy)
    print(f"\nnamed mutants: {len(NOTICED)} of {len(MUTANTS)} noticed by their tests")


def test_named_mutants_fit_the_code_and_their_tests() -> None:
    """The text of every mutant is once in its file, and the test that has to notice it exists."""
    misfits = []
    for name, mutant in MUTANTS.items():
        file, _, test = mutant.test.partition("::")
        if (ROOT / mutant.file).read_text().count(mutant.before) != 1:
            misfits.append(f"{name}: {mutant.file} has changed")
        if f"def {test}(" not in (ROOT / "tests" / file).read_text():
            misfits.append(f"{name}: {mutant.test} does not exist")
    assert misfits == [] and len(MUTANTS) >= 20


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_noticed(checkout: Path, name: str) -> None:
    """The test that is named fails where the fault is made."""
    mutant = MUTANTS[name]
    path = checkout / mutant.file
    source = path.read_text()
    assert source.count(mutant.before) == 1, f"{mutant.file} has changed: {mutant.before!r}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(checkout)}
    for variable in [variable for variable in environment if variable.startswith("PYTEST_")]:
        del environment[variable]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "", f"tests/{mutant.test}"]
    path.write_text(source.replace(mutant.before, mutant.after))
    try:
        ended = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    finally:
        path.write_text(source)
    assert ended.returncode == TESTS_FAILED, ended.stdout[-2000:]
    NOTICED.append(name)
