"""The baseline phase: measured completely and honestly, whether or not it is good."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.history import History
from pipeline.release.verify import faults
from pipeline.run_store import files
from pipeline.run_store.run import Run, opened
from tests.check_helpers import judge, read_evidence, with_values
from tests.conftest import SHORT, SMALL, Cli, go
from tests.user_package import WORDS, write_package


def test_baseline_saves_weights_history_and_plots(trained: Run) -> None:
    """Weights, history, plots and values are saved with digests, and agree with each other."""
    values = read_evidence(trained, "baseline")
    history = History.load(trained.inside("baseline", "history.npz"))

    assert faults(trained)[1] == []
    assert values["weights_on_disk"] == values["trained"]["weights"] == values["candidate"]["weights"]
    assert values["score"]["split"] == "val" and values["score"]["n"] == 360
    assert values["score"]["low"] < values["score"]["value"] < values["score"]["high"]
    assert values["loss_expected"] == pytest.approx(math.log(10))
    assert values["loss_at_init"] == pytest.approx(values["loss_expected"], rel=0.2)
    assert values["sanity_checks"]["overfit_one_batch"]["loss_ratio"] < 0.8
    assert values["trained"]["steps"] == 51 == len(history.series("train/loss")[0])
    assert {p.name for p in trained.inside("baseline").glob("*.*")} >= {
        "learning_curve.png", "learning_curve.svg", "confusion_matrix.png", "confusion_matrix.json", "history.npz",
    }  # fmt: skip


def test_baseline_evidence_agrees_with_its_checkpoint(trained: Run) -> None:
    """Plan and seed are those of the checkpoint, and a changed byte of its weights is found."""
    values = read_evidence(trained, "baseline")
    checkpoint = trained.inside(values["candidate"]["checkpoint"])
    state = json.loads((checkpoint / "state.json").read_text())
    recorded = trained.state().finished["baseline"]["artifacts"]

    assert (values["trained"]["plan"], values["trained"]["seed"]) == (state["plan_digest"], state["seed"])
    assert values["candidate"]["file"]["path"] == trained.relative(checkpoint / "weights.safetensors")
    assert {"history", "learning_curve", "confusion_matrix", "confusion_matrix.json"} <= set(recorded)
    raw = bytearray((checkpoint / "weights.safetensors").read_bytes())
    raw[-1] ^= 1
    files.write_bytes(trained.inside(values["candidate"]["checkpoint"], "weights.safetensors"), bytes(raw))
    with opened(trained) as ledger:  # as the branch of a sufficient baseline records it
        ledger.append("candidate.chosen", {"phase": "baseline", "round": 1, **values["candidate"]})
    assert "weights.safetensors: is not the file" in faults(trained)[1][0]


def test_baseline_gate_opens_below_the_target(trained: Run) -> None:
    """A baseline below its target passes its gate, and the branch leads to diagnostics."""
    state = trained.state()
    branch = state.current_branch()

    assert state.gate("baseline") == "open"
    assert {i.outcome for i in state.gates["baseline"].items} == {"passed", "not_applicable"}
    assert branch and branch["branch"] == "insufficient"
    assert branch["target"] is False and branch["trivial"] is True
    assert state.gate("diagnostics") is None and not state.passed("diagnostics")


def test_sufficient_baseline_makes_two_gates_not_needed(finished: Run) -> None:
    """Diagnostics and optimization are recorded as not needed, with the entry that is the reason."""
    from pipeline.run_store.ledger import read_ledger

    entries = read_ledger(finished.ledger_path)
    unneeded = [e["data"] for e in entries if e["kind"] == "gate.not_needed"]

    assert [u["phase"] for u in unneeded] == ["diagnostics", "optimization"]
    assert {entries[u["because"]]["kind"] for u in unneeded} == {"branch.decided"}
    assert finished.state().passed("optimization") and finished.state().gate("optimization") is None


def test_baseline_that_diverges_is_measured(own_folder: Any) -> None:
    """A training that ends in NaN has no score, passes its gate, and is blocked by a symptom."""
    run, gate, advice = go(own_folder, "phase=baseline", *SMALL, "optimizer=sgd", "optimizer.lr=1e30")
    values = read_evidence(run, "baseline")
    items = {i.id: i for i in run.state().gates["baseline"].items}

    assert (gate, advice.phase) == ("open", "diagnostics")
    assert values["trained"]["stopped"] == "nonfinite"
    assert "non-finite" in items["one_batch_tried"].why or items["one_batch_tried"].outcome == "passed"
    assert "nan_loss" in run.state().current_branch()["symptoms"]


def test_baseline_of_the_same_plan_has_the_same_weights(trained: Run, own_folder: Any) -> None:
    """Another run of a plan ends in the same weights, whatever ran before."""
    other, _, _ = go(own_folder / "elsewhere", "phase=baseline", *SMALL, "task.target=0.99")

    assert (
        read_evidence(other, "baseline")["trained"]["weights"]
        == read_evidence(trained, "baseline")["trained"]["weights"]
    )


def test_baseline_that_passed_is_not_run_again(trained: Run) -> None:
    """Requesting a baseline that passed on the same plan adds nothing to the ledger."""
    before = trained.state().seq

    _, gate, advice = go(trained.path.parent, "phase=baseline", "run.name=digits")

    assert (gate, advice.phase, trained.state().seq) == ("open", "diagnostics", before)


FAR = {"suspicious_ratio": 2.0}
PICTURES = {"names": ["history"], "for_classes": ["confusion_matrix"]}
WRONG: list[tuple[str, dict[str, Any], dict[str, Any], str, str]] = [
    ("training.loss_at_init_measured", {"loss_at_init": None}, FAR, "failed", "was not measured"),
    ("training.loss_at_init_measured", {"loss_at_init": ...}, FAR, "errored", "'loss_at_init' was not measured"),
    ("training.loss_at_init_measured", {"loss_expected": None}, FAR, "passed", "no expected value is known"),
    ("training.loss_at_init_measured", {"loss_at_init": 23.02585}, FAR, "passed", "warning: 10 times the expected"),
    ("training.loss_at_init_measured", {"loss_at_init": 2.302585}, FAR, "passed", "1 times the expected"),
    (
        "sanity.one_batch_tried",
        {"sanity_checks__overfit_one_batch__steps": 3},
        {"min_steps": 20, "suspicious_ratio": 0.99},
        "failed",
        "too few steps",
    ),
    (
        "sanity.one_batch_tried",
        {"sanity_checks__overfit_one_batch__steps": ...},
        {"min_steps": 20, "suspicious_ratio": 0.99},
        "errored",
        "steps",
    ),
    ("training.trivial_baseline_scored", {"trivial_baseline": ...}, {}, "errored", "was not measured"),
    ("training.trained_on_plan", {"trained__plan": "another"}, {}, "failed", "of another plan"),
    ("training.trained_on_plan", {"trained__seed": 7}, {}, "failed", "of another seed"),
    ("training.trained_on_plan", {"trained__stopped": "clock"}, {}, "inconclusive", "raise trainer.max_minutes"),
    ("training.scored_on_validation", {"score": None}, {}, "passed", "there is no score"),
    ("training.scored_on_validation", {"score__n": 359}, {}, "failed", "not scored on all"),
    ("training.scored_on_validation", {"score__split": "test"}, {}, "failed", "not scored on all"),
    ("training.artifacts_saved", {}, {"names": ["roc"], "for_classes": []}, "failed", "not saved: roc"),
    ("training.artifacts_saved", {}, PICTURES, "failed", "not saved: confusion_matrix"),
    ("training.artifacts_saved", {"classes": None}, PICTURES, "passed", "there are no classes"),
    ("training.checkpoint_identified", {"weights_on_disk": "others"}, {}, "failed", "other weights"),
]


@pytest.mark.parametrize(("check", "wrong", "bounds", "outcome", "why"), WRONG)
def test_baseline_items_on_changed_evidence(
    trained: Run, check: str, wrong: dict[str, Any], bounds: dict[str, Any], outcome: str, why: str
) -> None:
    """On real evidence with one value changed, the item of that value has the expected outcome."""
    item = judge(check, with_values(read_evidence(trained, "baseline"), **wrong), "history", **bounds)

    assert item.outcome == outcome
    assert why in item.why


def test_one_batch_tried_passes_if_it_ends_in_nan(trained: Run) -> None:
    """A sanity check that becomes non-finite early is a result too."""
    broken = {
        "sanity_checks__overfit_one_batch__loss_ratio": math.nan,
        "sanity_checks__overfit_one_batch__stopped": "nonfinite",
    }
    values = with_values(read_evidence(trained, "baseline"), sanity_checks__overfit_one_batch__steps=2, **broken)

    item = judge("sanity.one_batch_tried", values, min_steps=20, suspicious_ratio=0.99)

    assert item.outcome == "passed" and "non-finite" in item.why


@pytest.mark.parametrize("checks", [pytest.param((), marks=pytest.mark.process), SHORT], ids=["all", "few"])
@pytest.mark.parametrize(
    ("name", "smaller", "metric"),
    [
        ("digits_cnn", ("model.width=4", "trainer.max_steps=8"), "accuracy"),
        ("autoencoder", ("model.width=16", "trainer.max_steps=8"), "rmse"),
        ("text", ("model.width=16", "model.depth=1", "trainer.max_steps=8"), "perplexity"),
    ],
)
def test_baseline_of_every_kind_of_task(
    own_folder: Path, name: str, smaller: tuple[str, ...], metric: str, checks: tuple[str, ...]
) -> None:
    """Images, autoencoders and text: the gate opens, with a score and a trivial baseline."""
    quick = ("trainer.max_epochs=1", "phases.baseline.overfit_steps=20", "tracking=none")
    run, gate, _ = go(own_folder, "phase=baseline", f"experiment={name}", *quick, *smaller, *checks)
    assert "open" == gate
    values = read_evidence(run, "baseline")
    assert metric == values["trivial_baseline"]["metric"] == values["score"]["metric"]
    assert values["score"]["low"] <= values["score"]["value"] <= values["score"]["high"]


def test_baseline_of_a_custom_step_passes_its_gate(own_folder: Path, cli: Cli) -> None:
    """The outputs of a custom step need not be classes: no confusion matrix is drawn, and none is required."""
    write_package(own_folder)
    task = ["task.kind=custom", "task.metric=loss", "task.metrics=[]", "task.target=1.2"]
    step = "task.step={_target_: somebody.step}"
    code, out, _ = cli("phase=baseline", *WORDS, *task, step, "trainer.max_epochs=2")
    assert code == 0 and "baseline: loss " in out
    run = Run(own_folder / "runs" / "somebody")
    assert run.state().gate("baseline") == "open" and not (run.path / "baseline" / "confusion_matrix.png").exists()
