"""What curves alone say of a cause: shapes that people post, each with the cause that anybody would look at first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from diagnostics.diagnosis import Diagnosis
from diagnostics.logs.report import diagnose_log

Columns = dict[str, Sequence[float]]
EPOCHS = range(24)
FITTED = [0.69 * math.exp(-e / 5) + 0.01 for e in EPOCHS]
LEARNED = [min(0.99, 0.6 + 0.05 * e) for e in EPOCHS]


def overfitted() -> Columns:
    """Validation is best after the first epochs, and its score stays nearly that of the train rows."""
    losses = [0.35 + 0.03 * max(0, e - 2) for e in EPOCHS]
    return {
        "train_loss": FITTED,
        "train_acc": LEARNED,
        "val_loss": losses,
        "val_acc": [0.86 - 0.003 * e for e in EPOCHS],
    }


def other_rows() -> Columns:
    """Train rows are learned, and validation stays at chance from the first epoch to the last."""
    losses = [2.6 + 0.1 * e + 0.8 * (-1) ** e for e in EPOCHS]
    return {"train_loss": FITTED, "train_acc": LEARNED, "val_loss": losses, "val_acc": [0.1, 0.11] * 12}


def diverged() -> Columns:
    """The loss falls for half of the run, then rises with gradients fifty times as large."""
    losses = [3.2 + 7 * math.exp(-s / 3) if s < 12 else 3.3 + 0.5 * (s - 12) for s in EPOCHS]
    return {"loss": losses, "grad_norm": [1.0 if s < 12 else 50.0 for s in EPOCHS], "lr": [6e-3] * 24}


def idle() -> Columns:
    """The rate reaches zero after a tenth of the run, and the loss stays where it is."""
    rates = [0.1 * 0.5 * (1 + math.cos(math.pi * min(1, e / 3))) for e in EPOCHS]
    return {"loss": [2.3 - 0.3 * min(e, 3) for e in EPOCHS], "lr": rates}


@pytest.mark.parametrize(
    ("columns", "likely", "unlikely"),
    [
        (overfitted, {"too_many_epochs", "regularization_missing"}, "split_shift"),
        (other_rows, {"split_shift", "labels_misencoded"}, "regularization_missing"),
        (diverged, {"learning_rate_too_high"}, "gradients_not_zeroed"),
        (idle, {"scheduler_decays_too_early"}, "learning_rate_too_high"),
    ],
    ids=["overfitted", "other rows", "diverged", "idle"],
)
def test_diagnose_log_reads_the_cause_off_the_curves(
    columns: Callable[[], Columns], likely: set[str], unlikely: str, tmp_path: Path
) -> None:
    """The likeliest cause is the one that the curves show, whether or not it is certain enough to be named."""
    diagnosis = diagnosed(tmp_path, columns())
    named = [cause.issue for cause in diagnosis.root_causes]
    first = [*named, *(entry.issue for entry in diagnosis.considered)][0]

    assert first in likely and unlikely not in named


def test_diagnose_log_takes_a_spike_for_no_forgetting(tmp_path: Path) -> None:
    """A loss that is back after two points has forgotten nothing; one that falls again slowly has."""
    falling = [0.5 + 7 * math.exp(-s / 4) for s in range(40)]
    spike, slow = list(falling), list(falling)
    spike[25:27] = [7.0, 3.0]
    slow[25:] = [0.5 + 6.5 * math.exp(-s / 4) for s in range(15)]
    first = [next(iter(diagnosed(tmp_path, {"loss": losses}).considered)).issue for losses in (spike, slow)]

    assert first[0] != "catastrophic_forgetting" == first[1]


def test_diagnose_log_reads_a_zero_beside_a_broken_gradient_as_nan(tmp_path: Path) -> None:
    """The Trainer of Hugging Face prints 0 for a loss that is NaN: the run is broken, and precision is a candidate."""
    lines = [{"loss": 2.0 - 0.1 * s, "grad_norm": 1.5, "epoch": s / 10} for s in range(1, 11)]
    lines += [{"loss": 0.0, "grad_norm": math.nan, "epoch": s / 10} for s in range(11, 21)]
    (tmp_path / "log.txt").write_text("\n".join(map(str, lines)))
    report = diagnose_log(tmp_path / "log.txt")
    diagnosis = report.diagnoses[0][1]

    assert [symptom.id for symptom in diagnosis.symptoms] == ["nan_loss"]
    assert "precision_overflow" in [entry.issue for entry in (*diagnosis.root_causes, *diagnosis.considered)][:2]
    assert "10 losses of 0 beside a gradient norm of NaN were read as NaN" in report.page()


def diagnosed(folder: Path, columns: Columns) -> Diagnosis:
    """The diagnosis of a table with one row per epoch."""
    rows = [",".join(["epoch", *columns])]
    rows += [",".join(map(str, [epoch, *values])) for epoch, values in enumerate(zip(*columns.values(), strict=True))]
    (folder / "log.csv").write_text("\n".join(rows))
    return diagnose_log(folder / "log.csv").diagnoses[0][1]
