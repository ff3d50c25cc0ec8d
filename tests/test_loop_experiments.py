"""Experiments on a loop of the user's own: what is kept, which loss it was, and which cause a copy confirms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from diagnostics.loops.experiments import Change, LoopCopy
from diagnostics.loops.memory import LoopMemory
from diagnostics.monitor import Monitor

ROWS = torch.randn(640, 8, generator=torch.Generator().manual_seed(0))
LABELS = (ROWS[:, 0] * ROWS[:, 1] > 0).long()


def watched(rate: float, model: nn.Module | None = None, epochs: int = 3, **options: Any) -> Monitor:
    """The monitor of a plain loop on two classes that a small network learns."""
    torch.manual_seed(1)
    model = model or nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    monitor = Monitor(model, optimizer, **options)
    for _ in range(epochs):
        for rows in torch.randperm(len(ROWS)).split(32):
            optimizer.zero_grad()
            outputs = model(ROWS[rows])
            loss = functional.cross_entropy(outputs, LABELS[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            monitor.step(loss, ROWS[rows], LABELS[rows], outputs)
            optimizer.step()
        monitor.validated(accuracy=0.5)
    return monitor


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "cause"), [(1e-6, "learning_rate_too_low"), (30.0, "learning_rate_too_high")])
def test_diagnose_confirms_a_rate_by_experiments(rate: float, cause: str) -> None:
    """A rate that forbids learning is confirmed on three seeds on a copy, and the model of the loop is untouched."""
    monitor = watched(rate)
    before = [p.clone() for p in monitor._model.parameters()]
    diagnosis = monitor.diagnose({"task": {"metric": "accuracy", "target": 0.9}}, experiments=True)

    assert diagnosis.root_causes[0].issue == cause and diagnosis.root_causes[0].status == "confirmed"
    assert all(torch.equal(a, b) for a, b in zip(before, monitor._model.parameters(), strict=True))


def test_diagnose_says_why_it_cannot_experiment() -> None:
    """Without kept weights, or with a loss that torch does not have, the diagnosis says what is missing."""
    off = watched(1e-3, epochs=1, experiments=False).diagnose(experiments=True)
    own = watched(1e-3, epochs=1)
    assert own._memory is not None
    own._memory.first_loss = 123.0
    reasons = [gap["why"] for diagnosis in (off, own.diagnose(experiments=True)) for gap in diagnosis.not_checked]

    assert any("experiments=False" in why for why in reasons)
    assert any("loss=criterion" in why for why in reasons)


LOSSES: list[tuple[str, Any, torch.Tensor, torch.Tensor]] = [
    ("cross_entropy (mean)", nn.CrossEntropyLoss(), torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])),
    ("cross_entropy (sum)", nn.CrossEntropyLoss(reduction="sum"), torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])),
    ("mse_loss (mean)", nn.MSELoss(), torch.randn(6, 1), torch.randn(6, 1)),
    ("binary_cross_entropy_with_logits (mean)", nn.BCEWithLogitsLoss(), torch.randn(6), torch.ones(6)),
]


@pytest.mark.parametrize(("name", "loss", "outputs", "targets"), LOSSES, ids=[name for name, *_ in LOSSES])
def test_loss_is_recognized_by_its_value(name: str, loss: Any, outputs: torch.Tensor, targets: torch.Tensor) -> None:
    """The standard loss is the one that gives the value of the first step."""
    memory = LoopMemory({}, [])
    memory.keep(torch.zeros(6, 2), targets, outputs, loss(outputs, targets))
    known = memory.loss()
    assert known is not None and known[0] == name


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are kept until there is no room, and the weights of a model that is too large are not."""
    monkeypatch.setattr("diagnostics.loops.memory.MAX_BYTES", 4000)
    memory = LoopMemory.of(nn.Linear(2, 2))
    assert memory is not None and LoopMemory.of(nn.Linear(100, 100)) is None
    for _ in range(99):
        memory.keep(torch.zeros(32, 8), torch.zeros(32), None, 0.0)
    assert memory.full and len(memory.batches) == 3


def test_copy_has_the_groups_of_the_optimizer() -> None:
    """Each group of parameters keeps its own rate, and parameters that no group has are trained with the first."""
    body, head, left_out = nn.Linear(8, 4), nn.Linear(4, 2), nn.Linear(2, 2)
    groups = [{"params": body.parameters(), "lr": 1e-5}, {"params": head.parameters(), "lr": 1e-2}]
    optimizer = torch.optim.AdamW(groups)
    model = nn.Sequential(body, head, left_out)
    loop = LoopCopy(model, optimizer, 1e-5, 10, LoopMemory(model.state_dict(), []), functional.cross_entropy)
    copied = loop._optimizer(loop.fresh_copy(), Change(rate=10.0))

    assert [group["lr"] for group in copied.param_groups] == pytest.approx([1e-4, 1e-1])
    assert [len(group["params"]) for group in copied.param_groups] == [4, 2]


def test_copy_that_learns_rules_model_and_optimizer_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a copy learns the kept batches, the result says that the cause is in the loop, its rows or validation."""
    monkeypatch.setattr("diagnostics.loops.experiments.STEPS", (640,))  # on a busy machine, too
    results, gaps = watched(3e-3).experiment({"task": {"metric": "accuracy", "target": 0.9}})

    assert gaps == [] and {result.verdict for result in results} == {"refuted"}
    assert ("optimizer_mismatch",) in [result.causes for result in results]
    assert "the cause is in the loop" in results[0].why


def test_copy_that_diverges_is_mended_by_a_lower_rate() -> None:
    """Where neither the copy nor its references have a score, lower rates are the references."""
    torch.manual_seed(0)
    model = nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.2)
    monitor = Monitor(model, optimizer)
    for rows in torch.randperm(len(ROWS)).split(32):
        loss = functional.mse_loss(model(5 * ROWS[rows]), ROWS[rows][:, :1])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        monitor.step(loss)
        optimizer.step()
    monitor.validated(r2=-9.0)
    results, _ = monitor.experiment({"task": {"metric": "r2", "target": 0.9}})

    assert any(r.causes == ("learning_rate_too_high",) and r.verdict == "confirmed" for r in results)


class Halves(nn.Module):
    """A chain of layers of which one takes half of the units before it, so that it cannot be widened."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 16), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.second(self.first(x)[:, :8]))


@pytest.mark.parametrize(
    ("model", "widens"), [(Halves(), False), (nn.Sequential(nn.Linear(8, 1), nn.Linear(1, 2)), True)]
)
def test_model_that_cannot_be_widened_is_not_acquitted(model: nn.Module, widens: bool) -> None:
    """Where layers cannot be widened, no experiment speaks against a small model."""
    results, _ = watched(3e-3, model).experiment({"task": {"metric": "accuracy", "target": 0.9}})

    assert [("model_too_small",) in [result.causes for result in results]] == [widens]
