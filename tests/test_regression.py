"""No regression: the candidate against the model in use, and on the rows of earlier tasks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from checklists.checks.robustness import no_regression
from pipeline.building.builder import build_model
from pipeline.readiness.regression import Answers, measure
from pipeline.readiness.subject import Subject
from pipeline.results import Evidence, Result
from pipeline.run_store.run import Run
from tests.readiness_subjects import CLASSES, subject_of, table, uniform_rows

ROWS = uniform_rows()
BY_FIRST = (ROWS[:, 0] > 0).astype(np.int64)  # the task: the sign of the first column
BY_LAST = (ROWS[:, -1] > 0).astype(np.int64)  # an earlier task: the sign of the last one


class Sign(nn.Module):
    """Answers the sign of one column."""

    def __init__(self, column: int, wrong: float = 0.0) -> None:
        super().__init__()
        self.column, self.wrong = column, nn.Parameter(torch.tensor(wrong))

    def forward(self, x: Tensor) -> Tensor:
        value = x[:, self.column] * torch.where(x[:, 1] < 2 * self.wrong - 1, -1.0, 1.0)  # a share of the rows turned
        return torch.stack([-value, value], dim=1)


def subject(model: nn.Module, **data: Any) -> Subject:
    return subject_of(model, table(ROWS, BY_FIRST, **data), **CLASSES)


def judged(about: Subject, champion: Answers | None, *, margin: float | None = 0.02) -> Result:
    compared = measure(about, champion, "release 0123 of digits" if champion else "")
    return no_regression(Evidence({"no_regression": {"compared": compared, "lost": ""}}), margin=margin)


def test_no_regression_fails_for_a_model_that_is_worse_than_the_one_in_use() -> None:
    """A tenth of the rows newly wrong is named with their number."""
    result = judged(subject(Sign(0, wrong=0.1)), Sign(0))
    assert result.outcome == "failed" and result.value < -0.02
    assert "rows newly wrong" in result.why and "release 0123 of digits" in result.why


def test_no_regression_passes_for_a_model_that_is_as_good() -> None:
    """Equal answers on 200 rows exclude a loss of more than the margin."""
    assert judged(subject(Sign(0)), Sign(0)).outcome == "passed"
    assert judged(subject(Sign(0)), Sign(0, wrong=0.3)).outcome == "passed"


def test_no_regression_needs_rows_for_a_small_margin() -> None:
    """Two hundred equal answers do not exclude a loss of one in a thousand."""
    result = judged(subject(Sign(0)), Sign(0), margin=0.001)
    assert (result.outcome, result.acceptable) == ("inconclusive", "small_sample")
    assert judged(subject(Sign(0)), Sign(0), margin=None).outcome == "inconclusive"


def test_no_regression_fails_for_a_forgotten_task() -> None:
    """The model in use answers the earlier task, the candidate has forgotten it."""
    tasks = {"last column": (ROWS[:300], BY_LAST[:300])}
    result = judged(subject(Sign(0), previous_tasks=tasks), Sign(5))
    assert result.outcome == "failed" and "on last column" in result.why


def test_no_regression_without_anything_earlier_does_not_apply() -> None:
    """The first model of a task can forget nothing."""
    assert judged(subject(Sign(0)), None).outcome == "not_applicable"


def test_no_regression_names_an_earlier_task_without_an_earlier_model() -> None:
    """An earlier task whose earlier score nobody can measure is not passed."""
    tasks = {"last column": (ROWS[:300], BY_LAST[:300])}
    result = judged(subject(Sign(0), previous_tasks=tasks), None)
    assert result.outcome == "inconclusive" and "neither a release nor model.init_from" in result.why


def test_no_regression_names_a_model_in_use_that_cannot_answer() -> None:
    """A model of another schema is a reason, not an error of the phase."""

    def of_another_schema(inputs: Any) -> Tensor:
        raise RuntimeError("Got invalid dimensions for input: 'input'")

    result = judged(subject(Sign(0)), of_another_schema)
    assert result.outcome == "inconclusive" and "cannot answer these rows: Got invalid dimensions" in result.why


def test_no_regression_is_inconclusive_for_a_lost_release() -> None:
    """A release whose payload was changed cannot be compared with, which is said."""
    evidence = Evidence({"no_regression": {"compared": [], "lost": "the payload of the model in use is missing"}})
    assert no_regression(evidence, margin=0.01).outcome == "inconclusive"


def test_measure_answers_with_the_released_file(released: Run) -> None:
    """The released ONNX file answers the validation rows as the candidate of the same weights does."""
    from pipeline.checkpoints.generation import load as load_weights
    from pipeline.data.load import load
    from pipeline.export.runners import load_onnx
    from pipeline.readiness.regression import released_model
    from pipeline.run_store import plan as plans

    config, frozen = plans.load(released).config, released.state().frozen
    assert frozen is not None
    data = load(config)
    model = build_model(config, (), seed=0, data=data)
    model.load_state_dict(load_weights(released.path / frozen["checkpoint"])[0])
    answers = released_model(load_onnx(released.inside("bundle", "payload", "model.onnx")))

    (regression,) = measure(subject_of(model, data, **CLASSES), answers, "release")

    assert regression["comparison"] is not None and regression["comparison"]["difference"] == 0
    assert regression["negative_flips"] == 0 and regression["rows"] == len(data.val)


def test_no_regression_compares_with_the_weights_that_training_started_from(tmp_path: Path) -> None:
    """Without a release, what `model.init_from` answers on an earlier task is what the candidate may not forget."""
    model: dict[str, Any] = {"_target_": "pipeline.models.linear.Linear", "in_features": 6, "out_features": 2}
    tasks = {"last column": (ROWS[:300], BY_LAST[:300])}
    data = table(ROWS, BY_FIRST, previous_tasks=tasks)
    started = build_model({"model": model}, (), seed=1, data=data)
    weights = {name: torch.zeros_like(tensor) for name, tensor in started.state_dict().items()}
    next(tensor for tensor in weights.values() if tensor.ndim == 2)[:, 5] = torch.tensor([-1.0, 1.0])
    save_file(weights, tmp_path / "start.safetensors")

    about = subject_of(Sign(0), data, **CLASSES)
    start = {**model, "init_from": str(tmp_path / "start.safetensors")}
    result = judged(replace(about, config={**about.config, "model": start}), None)

    assert result.outcome == "failed" and "on last column" in result.why and "model.init_from" in result.why
