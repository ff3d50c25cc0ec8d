"""The check functions: one question each, on a history, a mapping of lists, a data frame or a Keras history."""

from __future__ import annotations

import math
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import diagnostics
from diagnostics import check_convergence_rate, check_gradient_health, check_loss_divergence, check_overfitting
from diagnostics.derived import derived_facts
from diagnostics.diagnose import diagnose
from diagnostics.logs.columns import LogRun
from diagnostics.logs.comparison import spread_of_equal_runs
from pipeline.errors import UserError
from pipeline.history import History

FALLING = [2.3, 1.6, 1.0, 0.7, 0.5, 0.4, 0.33, 0.3, 0.29, 0.285, 0.283, 0.281]
OVERFIT = {"loss": FALLING, "val_loss": [2.0, 1.2, 0.9, 0.85, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6]}


class Frame:
    """A table with columns, as a pandas data frame has them."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self.columns = list(columns)
        self._values = columns

    def __getitem__(self, name: str) -> Any:
        return np.array(self._values[name])


def history_of(columns: dict[str, list[float]]) -> History:
    """The same columns as a History."""
    history = History()
    for index in range(len(FALLING)):
        history.log_step(index, {"train/loss": columns["loss"][index]})
        history.log_epoch(index, {"val/loss": columns["val_loss"][index]})
    return history


@pytest.mark.parametrize(
    "source",
    [OVERFIT, Frame(OVERFIT), SimpleNamespace(history=OVERFIT), history_of(OVERFIT)],
    ids=["mapping", "frame", "keras", "history"],
)
def test_checks_read_every_form_of_history(source: Any) -> None:
    """The answer is the same for every form: overfitted, converged, not diverged."""
    overfitting = check_overfitting(source)

    assert overfitting and overfitting.fired and overfitting.value > overfitting.bound == 0.1
    assert "validation loss has lost" in overfitting.why
    assert not check_loss_divergence(source) and not check_convergence_rate(source)


def test_check_loss_divergence_compares_with_minimum() -> None:
    """A loss far below its first value has diverged if it is far above its lowest level; NaN always has."""
    risen = [9.0, 4, 1, 0.3, 0.2, 0.2, 0.3, 0.9, 1.6, 2.2, 2.6, 2.9]

    assert check_loss_divergence({"loss": risen}) and risen[-1] < risen[0]
    assert math.isinf(check_loss_divergence({"train_loss": [1.0, math.nan]}).value)
    assert not check_loss_divergence({"loss": [2.3, 0.1, 0.01, 0.001, 0.003, 0.002, 0.003, 0.004]})


def test_check_overfitting_needs_no_target() -> None:
    """A gap of accuracies, or a ratio of losses from two points on, is enough; NaN on a schedule is not measured."""
    accuracies = {"accuracy": [0.8, 0.99, 1.0, 1.0], "val_accuracy": [0.7, 0.75, 0.74, 0.74]}
    losses = {"loss": [1.0, 0.5, 0.2, 0.1], "val_loss": [1.0, 0.9, 0.8, 0.8]}
    scheduled = {"loss": FALLING, "val_loss": [math.nan, 2.0, math.nan, 1.0] * 3}

    assert "accuracy of the train rows is 0.26 above" in check_overfitting({**losses, **accuracies}).why
    assert check_overfitting({"loss": [1.0, 0.2], "val_loss": [1.0, 0.9]}).value == pytest.approx(4.5)
    assert not math.isnan(check_overfitting(scheduled).value)


def test_check_convergence_rate_tells_stalled_from_unfinished() -> None:
    """A loss that never moved fires, and so does one that still falls by a tenth at the end."""
    assert "1.00 times its first value" in check_convergence_rate({"loss": [2.3] * 10}).why
    assert check_convergence_rate({"loss": np.linspace(2.3, 1.0, 12)}).value > 0.1


def test_check_gradient_health_names_the_layer() -> None:
    """Explosions, NaN, zeros and vanishing layers fire; steady norms do not."""
    steady = {"grad_norm": [1.0, 1.1, 0.9, 1.0], "grad_norm/head": [1.0, 1.0, 0.9, 1.0]}

    assert not check_gradient_health(steady)
    assert check_gradient_health({"grad_norm": [1, 1, 1, 900]}) and check_gradient_health({"grad_norm": [1, math.nan]})
    assert "nothing can be learned" in check_gradient_health({"grad_norm": [0, 0, 0]}).why
    assert "grad_norm/body is 1e-05" in check_gradient_health({**steady, "grad_norm/body": [1e-5] * 4}).why


def test_checks_say_what_is_missing() -> None:
    """A history without the column, or without columns, is refused with what was expected; few points are no answer."""
    with pytest.raises(UserError, match=r"history: has no grad_norm, got 'train/loss'"):
        check_gradient_health({"loss": FALLING})
    with pytest.raises(UserError, match=r"history: has no columns of numbers, got 'int'; expected a History"):
        check_loss_divergence(3)  # type: ignore[arg-type]
    short = check_loss_divergence({"loss": [2.0, 1.0]})
    assert not short.fired and math.isnan(short.value) and "not measurable" in short.why


@pytest.mark.process
def test_checks_are_imported_on_first_use() -> None:
    """Importing the package loads no check, and a check loads no torch."""
    code = "import sys, diagnostics; a = 'diagnostics.checks' in sys.modules; diagnostics.check_overfitting; "
    code += "print(a, 'diagnostics.checks' in sys.modules, 'torch' in sys.modules)"

    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "False True False\n" == shown
    with pytest.raises(AttributeError, match="no attribute 'check_nothing'"):
        diagnostics.check_nothing


def test_spread_of_runs_with_equal_settings() -> None:
    """Runs that state the same settings and end apart have a spread; runs with other settings are not compared."""

    def run(name: str, end: float, lr: str = "0.1") -> LogRun:
        history = History()
        for step, loss in enumerate([2.0, 1.0, end]):
            history.log_step(step, {"train/loss": loss})
        return LogRun(name, history, {}, [], [], 3, [], {"lr": lr, "seed": name})

    assert spread_of_equal_runs([run("a", 0.5), run("b", 1.5)]) == pytest.approx(1.0)
    assert spread_of_equal_runs([run("a", 0.5), run("b", 1.5, "0.2")]) is None
    assert spread_of_equal_runs([run("a", 0.5)]) is None


def test_derived_facts_of_a_resume() -> None:
    """A loss that is eight times as high after a resume is a break; the playbook of resumes names it."""
    history = History()
    for step in range(40):
        history.log_step(step, {"train/loss": 2.0 / (1 + step) if step < 20 else 16 / step})
    history.event("resumed", 19)
    facts = derived_facts(history)

    assert facts["jump_at_resume"] == facts["resume_break"] > 3
    diagnosis = diagnose(history)
    assert "resume_fault" in [symptom.id for symptom in diagnosis.symptoms]


def scored(losses: list[float], scores: list[float]) -> History:
    """A history with these validation losses and accuracies."""
    history = History()
    for epoch, (loss, score) in enumerate(zip(losses, scores, strict=True)):
        history.log_epoch(epoch, {"train/loss": loss, "val/loss": loss, "val/accuracy": score})
    return history


def test_derived_facts_of_an_accuracy_below_what_its_loss_allows() -> None:
    """A loss of 0.1 nats leaves at most one row in seven wrong; half of the rows right is then impossible."""
    falling = [0.69, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1]
    impossible = derived_facts(scored(falling, [0.5, 0.51, 0.5, 0.52, 0.5, 0.51, 0.5, 0.51]))
    possible = derived_facts(scored(falling, [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.95, 0.96]))

    assert impossible["accuracy_under_floor"] == pytest.approx(1 - 0.1 / math.log(2) - 0.51, abs=0.02)
    assert possible["accuracy_under_floor"] == 0


@given(st.lists(st.floats(0.01, 0.99), min_size=16, max_size=40), st.integers(2, 5))
def test_derived_floor_of_accuracy_holds_for_any_predictions(chances: list[float], classes: int) -> None:
    """No predictions have a cross-entropy and an accuracy that the bound calls impossible."""
    # Each is the probability of the true class; the rest is shared by the others alike.
    right = [chance > (1 - chance) / (classes - 1) for chance in chances]
    loss = sum(-math.log(chance) for chance in chances) / len(chances)
    share = sum(right) / len(right)
    facts = derived_facts(scored([loss + 0.01 * i for i in range(8)], [share - 1e-9 * i for i in range(8)]))

    assert facts.get("accuracy_under_floor", 0.0) == pytest.approx(0, abs=1e-6)


def test_derived_facts_of_a_score_that_falls_with_its_loss() -> None:
    """Score and loss fall together, which no right pair of them does."""
    losses = [0.5, 0.4, 0.3, 0.25, 0.2, 0.18, 0.17, 0.16]
    together = derived_facts(scored(losses, [0.5, 0.4, 0.3, 0.25, 0.2, 0.18, 0.17, 0.16]))
    apart = derived_facts(scored(losses, [0.5, 0.6, 0.7, 0.75, 0.8, 0.82, 0.83, 0.84]))

    assert together["score_follows_loss"] > 0.9 and apart["score_follows_loss"] < -0.9
    diagnosis = diagnose(scored(losses, [0.5, 0.4, 0.3, 0.25, 0.2, 0.18, 0.17, 0.16]))
    assert "score_against_loss" in [symptom.id for symptom in diagnosis.symptoms]
    assert diagnosis.root_causes[0].issue in ("loss_reduction_or_sign", "metric_wrong")
