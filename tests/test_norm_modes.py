"""Batch norm in the wrong mode: found with its name, and silent where the mode is right or kept for a reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.inspection.finding import Finding
from pipeline.inspection.inspect import inspect_training
from pipeline.models.mlp import MLP
from pipeline.sanity_checks.context import CheckContext
from tests.check_helpers import judge
from tests.trainings import blobs, config

INSPECTIONS = {"norm_idle", "norm_in_training_mode", "norm_without_statistics"}


class Normed(nn.Module):
    """A net with batch norm, whose modes go wrong in one way."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault = fault
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.norm = nn.BatchNorm1d(8, track_running_stats=fault != "no statistics")
        if fault == "pretrained":
            self.norm.running_mean.fill_(0.1)  # type: ignore[union-attr, operator]

    def train(self, mode: bool = True) -> Normed:
        """Set the mode of all modules but the one that the fault is about."""
        super().train(mode)
        if self.fault in ("idle", "pretrained"):
            self.norm.eval()
        if self.fault == "always training":
            self.norm.train()
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.fault == "set in forward":
            self.norm.eval()
        out: Tensor = self.head(torch.relu(self.norm(self.body(x))))
        return out


@pytest.fixture
def findings(monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module], list[Finding]]:
    """`findings(model)`: what inspections of a planned training of this model say of the modes of its batch norms."""

    def inspect(model: nn.Module) -> list[Finding]:
        monkeypatch.setattr("pipeline.engine.setup.build_model", lambda *_: model)
        context = CheckContext(config(), (), blobs(), {})
        with context.training_conditions() as setup:
            before = {name: buffer.clone() for name, buffer in model.named_buffers()}
            inspections, _ = inspect_training(setup, context.data, seconds=0.0)
        assert "modes" not in {gap.what for gap in inspections.not_checked}
        assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
        return [finding for finding in inspections.findings if finding.inspection in INSPECTIONS]

    return inspect


FAULTS = [
    ("idle", "norm_idle", "normalization_misused"),
    ("set in forward", "norm_idle", "normalization_misused"),
    ("always training", "norm_in_training_mode", "eval_mode_missing"),
    ("no statistics", "norm_without_statistics", "normalization_misused"),
]


@pytest.mark.parametrize(("fault", "inspection", "cause"), FAULTS)
def test_inspect_modes_names_the_norm(findings: Any, fault: str, inspection: str, cause: str) -> None:
    """A batch norm in the wrong mode in training or validation is a contradiction with its name."""
    [found] = findings(Normed(fault))
    assert (found.inspection, found.cause, found.kind, found.where) == (inspection, cause, "definition", "norm")
    assert found.sentence.startswith("norm ")


@pytest.mark.parametrize("fault", ["", "pretrained"])
def test_inspect_modes_is_silent_on_usual_norms(findings: Any, fault: str) -> None:
    """A usual batch norm is fine, and so is one that keeps the statistics of an earlier training."""
    assert findings(Normed(fault)) == []


@pytest.mark.parametrize("normalization", ["batch", "layer", "none"])
def test_inspect_modes_is_silent_on_own_models(findings: Any, normalization: str) -> None:
    """The models of the bundled experiments are silent with every normalization."""
    assert findings(MLP(4, 3, [8, 8], normalization=normalization)) == []


@pytest.mark.parametrize(
    ("inspection", "cause"),
    [("norm_in_training_mode", "eval_mode_missing"), ("noise_in_evaluation", "normalization_misused")],
)
def test_rows_independent_names_the_mode(inspection: str, cause: str) -> None:
    """Rows that depend on each other for a batch norm in training mode have that cause; another finding has none."""
    evidence = {
        "sanity_checks": {
            "batch_independence": {
                "outcome": "measured", "seconds": 0.1, "difference": 0.5, "alone": 0.4, "rows": 32, "alone_fails": ""
            }
        },
        "inspections": {"findings": [{"inspection": inspection, "cause": "eval_mode_missing"}]},
    }  # fmt: skip
    item = judge("sanity.rows_independent", evidence, max_difference=0.01)
    assert (item.outcome, item.cause) == ("failed", cause)
