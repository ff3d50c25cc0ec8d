"""What the curves and the settings of a log show that only one cause explains, and what looks alike in healthy runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from diagnostics.diagnosis import Diagnosis
from diagnostics.logs.evidence.recorded import findings_of
from diagnostics.logs.read import read
from diagnostics.logs.report import diagnose_log

EPOCHS, STEPS = 6, 20
Wave = Callable[[int, float], float]  # (epoch, place in the epoch from 0 to 1) -> loss


def diagnosed(path: Path, lines: Sequence[str]) -> Diagnosis:
    log = path / "train.log"
    log.write_text("\n".join(lines))
    return diagnose_log(log).diagnoses[0][1]


def named(diagnosis: Diagnosis) -> list[str]:
    return [cause.issue for cause in diagnosis.root_causes]


def considered(diagnosis: Diagnosis) -> list[str]:
    return [*named(diagnosis), *(entry.issue for entry in diagnosis.considered)]


def of_epochs(wave: Wave) -> list[str]:
    """A log of some epochs, each with a row per step."""
    places = [(epoch, step) for epoch in range(EPOCHS) for step in range(STEPS)]
    return [f"epoch {e} loss {wave(e, s / STEPS):.4f}" for e, s in places]


def test_diagnose_log_names_the_order_of_rows_where_each_epoch_has_the_same_waves(tmp_path: Path) -> None:
    diagnosis = diagnosed(tmp_path, of_epochs(lambda e, place: 2.5 - 0.1 * e - 2 * math.sin(4 * math.pi * place)))
    assert named(diagnosis)[:1] == ["data_not_shuffled"]
    assert "same places of each of 6 epochs" in diagnosis.root_causes[0].evidence[0]


@pytest.mark.parametrize(
    "wave",
    [
        lambda e, place: 2.3 * 0.6 ** (e + place) * (1 + 0.3 * np.random.default_rng([e, int(place * 99)]).normal()),
        lambda e, place: 2.3 * 0.7**e * (1 + 0.2 * math.exp(-6 * place)),  # a mean since the begin of the epoch
        lambda e, place: 2.3 * 0.7 ** (e + place),
        lambda e, place: 2.3,
    ],
    ids=["noise", "running mean", "falling", "flat"],
)
def test_diagnose_log_does_not_suspect_the_order_of_rows_without_waves(tmp_path: Path, wave: Wave) -> None:
    assert "data_not_shuffled" not in named(diagnosed(tmp_path, of_epochs(wave)))


@pytest.mark.parametrize("classes", [3, 10, 100])
def test_diagnose_log_names_two_softmaxes_by_the_floor_of_the_loss(tmp_path: Path, classes: int) -> None:
    floor, guessing = math.log(math.e + classes - 1) - 1, math.log(classes)
    losses = [floor + (guessing - floor) * 0.5**epoch for epoch in range(10)]
    lines = [f"epoch {e} train_loss {loss:.4f} train_acc {0.99 - 0.8 * 0.5**e:.3f}" for e, loss in enumerate(losses)]
    assert named(diagnosed(tmp_path, lines)) == ["redundant_softmax"]


def test_diagnose_log_does_not_take_label_smoothing_for_two_softmaxes(tmp_path: Path) -> None:
    losses = [0.5 + 1.8 * 0.5**epoch for epoch in range(10)]  # 0.5: the entropy of targets that are smoothed by 0.1
    lines = [f"epoch {e} train_loss {loss:.4f} train_acc {0.99 - 0.8 * 0.5**e:.3f}" for e, loss in enumerate(losses)]
    assert "redundant_softmax" not in considered(diagnosed(tmp_path, lines))


@pytest.mark.parametrize(("recall", "causes"), [(0.0, ["class_imbalance"]), (0.6, [])])
def test_diagnose_log_names_a_class_that_is_never_found(tmp_path: Path, recall: float, causes: list[str]) -> None:
    rows = [f"{e},{0.5 * 0.8**e},{0.5 * 0.8**e},0.96,{recall}" for e in range(8)]
    diagnosis = diagnosed(tmp_path, ["epoch,loss,val_loss,val_accuracy,val_recall", *rows])
    assert [cause for cause in named(diagnosis) if cause == "class_imbalance"] == causes


def of_rates(rates: Sequence[float], losses: Sequence[float]) -> list[str]:
    return [f"step {i} loss {loss:.4f} lr {rate:.6f}" for i, (rate, loss) in enumerate(zip(rates, losses, strict=True))]


WARM_UP = [0.001, 0.005, 0.01]
DECAY = [0.01 * (1 + math.cos(math.pi * i / 20)) / 2 for i in range(20)]
FALLING = [2.3 * 0.9**i for i in range(23)]


def test_diagnose_log_names_a_lost_schedule_where_its_warm_up_comes_once_more(tmp_path: Path) -> None:
    rates = [*WARM_UP, *DECAY, *WARM_UP, *DECAY[:8]]
    diagnosis = diagnosed(tmp_path, of_rates(rates, [*FALLING, *np.linspace(0.3, 0.5, 11)]))
    assert named(diagnosis)[:1] == ["resume_state_lost"]


@pytest.mark.parametrize(
    ("rates", "losses"),
    [
        ([*WARM_UP, *DECAY, *DECAY[:8]], [*FALLING, *np.linspace(0.3, 0.5, 8)]),  # a restart at the peak
        ([*WARM_UP, *DECAY, *WARM_UP, *DECAY[:8]], [*FALLING, *np.linspace(0.2, 0.1, 11)]),  # a second, better cycle
        ([*WARM_UP, *DECAY], FALLING),
    ],
    ids=["cosine restarts", "cycles", "one warm-up"],
)
def test_diagnose_log_does_not_suspect_schedules_that_are_meant(
    tmp_path: Path, rates: list[float], losses: list[float]
) -> None:
    assert "resume_state_lost" not in considered(diagnosed(tmp_path, of_rates(rates, losses)))


def test_diagnose_log_reads_the_settings_of_a_line_that_states_the_rate_too(tmp_path: Path) -> None:
    lines = ["config: model=mlp-256 batch_size=128 lr=0.001 amp_dtype=float16 epochs=30"]
    lines += [f"epoch={e} step={e * 5} loss={1 / (e + 1):.3f} gnorm=1.2 scale=4.0 lr=1e-3" for e in range(8)]
    lines += [f"epoch={e} step={e * 5} loss=nan gnorm=nan scale=nan lr=1e-3" for e in range(8, 12)]
    log = tmp_path / "train.log"
    log.write_text("\n".join(lines))
    report = diagnose_log(log)
    assert report.reading is not None
    run = report.reading.runs[0]
    assert run.header == {"batch_size": "128", "lr": "0.001", "dtype": "float16"}
    assert run.row_count == 12 and len(run.history.series("lr")[0]) == 12
    assert named(report.diagnoses[0][1])[:1] == ["precision_overflow"]


def test_diagnose_log_reads_the_settings_of_an_object_of_json(tmp_path: Path) -> None:
    config = {"optimizer": "AdamW", "lr": 0.001, "batch_size": 32, "amp": {"dtype": "float16"}}
    rows = [{"event": "train", "step": i, "metrics": {"loss": 1 / (i + 1)}} for i in range(9)]
    log = tmp_path / "train.log"
    log.write_text("\n".join(map(json.dumps, [{"event": "start", "config": config}, *rows])))
    report = diagnose_log(log)
    assert report.reading is not None
    run = report.reading.runs[0]
    assert run.header == {"optimizer": "AdamW", "lr": "0.001", "batch_size": "32", "dtype": "float16"}
    assert run.history.facts["precision_bits"] == 16 and len(run.history.series("train/loss")[0]) == 9


@pytest.mark.parametrize(("between", "suspected"), [("", True), ("  (9): BatchNorm1d(64)", False)])
def test_diagnose_log_reads_a_printed_model(tmp_path: Path, between: str, suspected: bool) -> None:
    layers = [
        line for i in range(5) for line in (f"  ({2 * i}): Linear(in_features=64)", f"  ({2 * i + 1}): Sigmoid()")
    ]
    rows = [f"Epoch {e}: loss 2.30{e % 3}, accuracy 0.10" for e in range(12)]
    diagnosis = diagnosed(tmp_path, ["Sequential(", *layers, between, ")", *rows])
    assert ("squashes its signal in 5 layers" in str(diagnosis.to_json())) == suspected


def test_diagnose_log_judges_a_rate_beside_those_of_its_optimizer(tmp_path: Path) -> None:
    rows = [f"step {i}: loss {2 / (i + 1):.3f}, lr 0.06" for i in range(9)]
    assert "learning_rate_too_high" in considered(diagnosed(tmp_path, ["using fused AdamW: False", *rows]))
    assert "learning_rate_too_high" not in considered(diagnosed(tmp_path, ["using SGD", *rows]))


@pytest.mark.parametrize(
    ("settings", "causes"),
    [
        ("momentum: 0.9\nweight_decay: 0.08", ["regularization_too_strong"]),
        ("momentum: 0.9\nweight_decay: 0.0005", []),
        ("optimizer: AdamW\nweight_decay: 0.1", []),
        ("optimizer: AdamW\nweight_decay: 10.0", ["regularization_too_strong"]),
    ],
)
def test_recorded_decay_is_judged_by_its_optimizer(tmp_path: Path, settings: str, causes: list[str]) -> None:
    """SGD adds the decay to the gradient and takes far less of it than AdamW, which subtracts it times the rate."""
    rows = "\n".join(f"epoch {i}: train_loss = {1.8 - 0.001 * i:.4f}, val_loss = 1.84" for i in range(1, 20))
    path = tmp_path / "train.log"
    path.write_text(f"{settings}\n\n{rows}\n")
    [run] = read(path).runs

    assert [f.cause for f in findings_of(run, run.history) if f.inspection == "recorded decay"] == causes
