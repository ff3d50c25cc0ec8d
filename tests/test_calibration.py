"""Calibration: the temperature of probabilities and the conformal interval of values, fitted on validation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.data.splits import Split
from pipeline.evaluation.task import build_task
from pipeline.readiness import calibration
from pipeline.readiness.calibration import fit, logits_of, probabilities
from pipeline.readiness.subject import Subject

RNG = np.random.default_rng(0)


class Scaled(nn.Module):
    """A model that answers its inputs times a factor."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def subject(kind: str, loss: nn.Module, X: Tensor, y: Tensor, factor: float = 1.0) -> Subject:
    """A model whose outputs are its inputs, with validation rows."""
    model, metric = Scaled(factor), {"regression": "rmse"}.get(kind, "accuracy")
    config = {"task": {"kind": kind, "metric": metric, "target": 0.5, "predict": "auto", "class_weights": "none"}}
    task = build_task(config, loss, model)
    data: Any = SimpleNamespace(val=Split("val", X, y))
    return Subject(model, task, data, config, "w", 1)


def drawn_classes(n: int, classes: int) -> tuple[Tensor, Tensor]:
    """Logits, and labels that are drawn from exactly their probabilities."""
    logits = RNG.normal(0, 2, (n, classes))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (shares.cumsum(1) > RNG.random((n, 1))).argmax(1)
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(labels)


@pytest.mark.parametrize("factor", [0.5, 1.0, 4.0])
def test_fit_finds_the_temperature_of_scaled_logits(factor: float) -> None:
    """Logits that are a factor too large get this factor as their temperature."""
    X, y = drawn_classes(4000, 5)
    fitted = fit(subject("classification", nn.CrossEntropyLoss(), X, y, factor))
    assert fitted.temperature == pytest.approx(factor, rel=0.1) and fitted.rows == 4000


def test_fit_knows_one_logit_and_labels() -> None:
    """Two classes with one output, and several labels per row, have a temperature too."""
    X = torch.tensor(RNG.normal(0, 2, (3000, 3)), dtype=torch.float32)
    y = (torch.rand(3000, 3, generator=torch.Generator().manual_seed(0)) < X.sigmoid()).long()
    several = fit(subject("multilabel", nn.BCEWithLogitsLoss(), X, y.float(), 3.0))
    single = fit(subject("binary", nn.BCEWithLogitsLoss(), X[:, :1], y[:, 0], 3.0))
    assert several.temperature == pytest.approx(3.0, rel=0.1)
    assert single.temperature == pytest.approx(3.0, rel=0.15)


def test_fit_gives_values_an_interval_that_covers() -> None:
    """The half width is the conformal quantile of the absolute errors, and covers 90 % of new rows."""
    y = torch.tensor(RNG.normal(0, 1, 1000), dtype=torch.float32)
    X = y + torch.tensor(RNG.normal(0, 0.5, 1000), dtype=torch.float32)
    fitted = fit(subject("regression", nn.MSELoss(), X[:, None], y))
    errors = np.sort(np.abs((X - y).numpy()))
    assert fitted.half_width == pytest.approx(float(errors[int(np.ceil(1001 * 0.9)) - 1]), rel=1e-5)
    fresh = np.abs(RNG.normal(0, 0.5, 20_000))
    assert (fresh <= fitted.half_width).mean() == pytest.approx(0.9, abs=0.03)


def test_fit_says_why_there_is_nothing_to_calibrate() -> None:
    """Too few rows, outputs that are not finite, and tasks without probabilities."""
    X, y = drawn_classes(calibration.MIN_ROWS - 1, 3)
    assert "fewer than" in fit(subject("classification", nn.CrossEntropyLoss(), X, y)).why
    X, y = drawn_classes(50, 3)
    X[0, 0] = float("nan")
    assert "not finite" in fit(subject("classification", nn.CrossEntropyLoss(), X, y)).why
    values = torch.zeros(50, 2)
    assert "several values per row" in fit(subject("regression", nn.MSELoss(), values, values)).why


@given(st.floats(0.1, 10))
def test_probabilities_keep_the_predicted_class(temperature: float) -> None:
    """A temperature changes no order of the classes, and probabilities sum to one."""
    X, y = drawn_classes(40, 4)
    about = subject("classification", nn.CrossEntropyLoss(), X, y)
    shares = probabilities(about.task, logits_of(about.task, X), temperature)
    assert (shares.argmax(1) == X.numpy().argmax(1)).all()
    assert shares.sum(1) == pytest.approx(np.ones(40))


def test_logits_of_probabilities_and_their_logarithms() -> None:
    """Models that answer probabilities or log-probabilities give the same calibrated probabilities."""
    X, y = drawn_classes(40, 3)
    logarithms = subject("classification", nn.NLLLoss(), X.log_softmax(1), y)
    plain = subject("classification", nn.CrossEntropyLoss(), X, y)
    expected = probabilities(plain.task, logits_of(plain.task, X), 2.0)
    assert probabilities(logarithms.task, logits_of(logarithms.task, X.log_softmax(1)), 2.0) == pytest.approx(expected)
    one = subject("binary", nn.BCELoss(), X[:, :1].sigmoid(), y.clamp(max=1))
    assert logits_of(one.task, X[:, :1].sigmoid()) == pytest.approx(X[:, 0].numpy(), abs=1e-3)
