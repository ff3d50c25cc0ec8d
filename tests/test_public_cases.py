"""Public reports of trainings that went wrong, re-created: each log gets the answer that its report came to."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from diagnostics.logs.report import diagnose_log
from tests.conftest import Cli

PUBLIC = Path(__file__).resolve().parents[2] / "shared" / "public_cases"
pytestmark = pytest.mark.skipif(not PUBLIC.is_dir(), reason="the public cases are not beside the checkout")

LOGS: dict[str, tuple[str, ...]] = {  # accepted causes; none for a training that is well
    "keras-two-preprocessings/training.csv": ("split_shift",),
    "nanogpt-fp16/train.log": ("precision_overflow",),
    "swift-resume/logging.jsonl": ("resume_data_replayed",),
    "tensorboard-csv": ("regularization_missing", "too_many_epochs"),
    "wandb-panel/wandb_export_2026-11-28T10_12_44.123+01_00.csv": ("learning_rate_too_high", "batch_size_too_small"),
    "yolo-val-nan/results.csv": ("precision_overflow",),
    "lightning-sparse/metrics.csv": (),
}


@pytest.mark.parametrize("name", LOGS)
def test_diagnose_log_of_public_case(name: str) -> None:
    """An accepted cause is among the first three, named or considered, and a log that is well is not accused."""
    _, diagnosis = diagnose_log(PUBLIC / name).diagnoses[0]
    first = [cause.issue for cause in (*diagnosis.root_causes, *diagnosis.considered)][:3]

    assert bool(diagnosis.symptoms) == bool(LOGS[name])
    assert set(LOGS[name]) & set(first) if LOGS[name] else not diagnosis.root_causes


def test_diagnose_log_compares_the_runs_of_a_public_panel() -> None:
    """Of two runs in one export the bad one is diagnosed, the good one is not, and it is said what tells them apart."""
    report = diagnose_log(next((PUBLIC / "wandb-panel").glob("*.csv")))
    bad, good = report.diagnoses

    assert ("gpt2-1gpu-noaccum", "gpt2-8gpu") == (bad[0], good[0])
    assert not good[1].symptoms and not good[1].root_causes
    assert report.differences[0].startswith("gpt2-1gpu-noaccum ends at train/loss")


@pytest.mark.process
@pytest.mark.parametrize("name", LOGS)
def test_diagnose_command_reads_public_case(cli: Cli, name: str) -> None:
    """The command says what it understood before anything else, and exits with 0."""
    code, out, err = cli("diagnose", PUBLIC / name)
    assert (code, err) == (0, "") and "What was understood of the log" in out.split("read as")[0]


SHORT_BASELINE = (
    "tracking=none", "phases.baseline.folds=0", "phases.baseline.reproducibility_steps=0",
    "phases.diagnostics.experiments=false",
)  # fmt: skip
NAMED = {"lstm-batch-first": "batch_axis_swapped", "list-of-layers": "parameters_not_trained"}  # by the diagnosis
EXPERIMENTS = {  # folder: experiment, package, phase, exit code, words that must be said
    "mse-broadcast": ("rent_own", "rent", "planning", 2, "outputs and targets differ in shape"),
    "token-ids": ("words_plain", "words", "planning", 0, "integer features stay integers"),
    "lstm-batch-first": ("rowscan", "rowscan", "baseline", 3, "rows_independent"),
    "list-of-layers": ("stacked", "stacked", "baseline", 3, "nn.ModuleList"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_public_experiment_is_answered(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A fault of shapes, axes or layers is said where it is met, and integer features reach the model as such."""
    experiment, package, phase, expected, words = EXPERIMENTS[name]
    monkeypatch.syspath_prepend(str(PUBLIC / name))
    monkeypatch.chdir(PUBLIC / name)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    where = (f"phase={phase}", "--config-dir", "conf", f"experiment={experiment}", f"trust=[{package}]")
    code, out, err = cli(*where, *SHORT_BASELINE, f"run.root={tmp_path}")

    assert expected == code and words in out + err
    if name in NAMED:  # behind the closed gate, without an experiment
        code, out, err = cli("phase=diagnostics", f"run.root={tmp_path}", f"run.name={experiment}")
        diagnosis = json.loads((tmp_path / experiment / "diagnostics" / "1" / "diagnosis.json").read_text())
        assert code == 0 and diagnosis["root_causes"][0]["issue"] == NAMED[name], out + err


WELL = {"token-ids": ("words_nested", "words"), "mse-broadcast": ("rent_bundled", "rent")}  # the mended forms


@pytest.mark.slow
@pytest.mark.parametrize("name", WELL)
def test_public_experiment_that_is_well_reaches_its_target(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Integer ids in a dict, and a loss that aligns shapes, train well, and nothing is accused."""
    experiment, package = WELL[name]
    monkeypatch.syspath_prepend(str(PUBLIC / name))
    monkeypatch.chdir(PUBLIC / name)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    where = ("phase=baseline", "--config-dir", "conf", f"experiment={experiment}", f"trust=[{package}]")
    code, out, err = cli(*where, *SHORT_BASELINE, f"run.root={tmp_path}")

    assert code == 0 and "validation: target reached" in out and "no blocking symptom" in out, out + err
