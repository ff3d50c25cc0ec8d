"""Candidates whose training takes too long for several seeds: two trainings, compared by losses of validation rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.foreign_files import read_bytes, read_npz
from pipeline.run_store import files
from pipeline.trials.executor import Trial

if TYPE_CHECKING:
    from pipeline.tuning.validation_rows import RowLosses

ONE_SEED = "one seed"  # the label of such a comparison: another seed may show something else
FILE = "row_losses.npz"
EXPECTED = "the losses of validation rows that optimization wrote"


def write_row_losses(run_dir: Path, trial: Trial, planned: Mapping[str, Any], trust: Sequence[str]) -> None:
    """Write the loss of each validation row into the folder of a training, where its metric is a mean over rows."""
    from pipeline.readiness.comparison import row_losses
    from pipeline.trials.fix_report import evaluate_trial
    from pipeline.tuning.validation_rows import to_bytes

    if not trial.result.get("checkpoint"):
        return
    evaluation, task, data = evaluate_trial(run_dir, trial, trial.job.config(planned), trust)
    if evaluation.outputs is None or task.metric.needs == "step":
        return
    inputs = task.metric_inputs(evaluation.outputs, data.val.y)
    if losses := row_losses(task.metric, evaluation.targets, inputs):
        files.write_bytes(trial.folder / FILE, to_bytes(losses[0], data.val.row_metadata.groups))


def row_p_values(control: Path, arms: Sequence[Path], metric: str) -> list[float]:
    """Return the p-value of each arm from the files of row losses; 1 where one of the two files is missing."""
    return [_row_p_value(control, arm, metric) for arm in arms]


def _row_p_value(control: Path, arm: Path, metric: str) -> float:
    if not (control.is_file() and arm.is_file()):
        return 1.0
    from pipeline.tuning.validation_rows import compare_rows  # `verify` reads other records without numpy

    first, second = (_read(path) for path in (control, arm))
    return compare_rows(first, second, ("control", "change"), metric).p


def _read(path: Path) -> RowLosses:
    from pipeline.tuning.validation_rows import DTYPES, RowLosses

    arrays = read_npz(read_bytes(path, EXPECTED), str(path), DTYPES, EXPECTED)
    return RowLosses(arrays["losses"], arrays["groups"])
