"""Evaluation: nested rows in parts, each module's own mode, and one loss whichever way it is asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.data.splits import Split
from pipeline.evaluation import evaluate
from pipeline.evaluation.task import Task, build_task

NESTED = {"left": torch.randn(20, 2), "more": (torch.randn(20, 3), torch.arange(20))}
Y = torch.arange(20) % 3
TASK = {"kind": "classification", "metric": "accuracy"}


class Net(nn.Module):
    """Three logits of a nested batch."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(2, 3), nn.Linear(3, 3)

    def forward(self, batch: Any) -> Tensor:
        return self.left(batch["left"]) + self.right(batch["more"][0]) * batch["more"][1][:, None]


def task(loss: nn.Module | None = None) -> Task:
    return build_task({"task": TASK}, loss or nn.CrossEntropyLoss())


def test_nested_rows_are_evaluated_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dicts and tuples of tensors are cut together; the parts say what the whole says."""
    model, split = Net(), Split("val", NESTED, Y)
    whole = evaluate.score_split(model, split, task())
    assert whole.outputs is not None and torch.equal(whole.outputs, model(NESTED).detach())
    monkeypatch.setattr(evaluate, "BATCH_SIZE", 7)
    parts = evaluate.score_split(model, split, task())
    assert whole.loss == pytest.approx(parts.loss, rel=1e-6) and whole.score == parts.score


def test_the_loss_alone_is_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once bit for bit; in parts their mean weighted by rows."""
    model = Net()
    whole = evaluate.loss_and_metrics(model, NESTED, Y, task()).loss
    assert whole == evaluate.mean_loss(model, NESTED, Y, task())
    monkeypatch.setattr(evaluate, "BATCH_SIZE", 7)
    assert whole == pytest.approx(evaluate.mean_loss(model, NESTED, Y, task()), rel=1e-6)


class Merged(nn.Linear):
    """Does more than set a flag when its mode changes, as adapters do that merge their weights for evaluation."""

    merged = False

    def train(self, mode: bool = True) -> Any:
        self.merged = not mode
        return super().train(mode)


def test_every_module_gets_its_own_mode_back() -> None:
    """Also one frozen in eval mode inside a model that trains, and after an error."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).train()
    model[1].eval()
    with pytest.raises(RuntimeError), evaluate.eval_mode(model):
        assert not model.training and not model[0].training and not torch.is_grad_enabled()
        raise RuntimeError
    assert (True, True, False) == (model.training, model[0].training, model[1].training) and torch.is_grad_enabled()


def test_a_module_with_its_own_way_to_change_modes_is_asked() -> None:
    """Its `train` is called on the way in and on the way out."""
    model = nn.Sequential(Merged(2, 2), nn.Dropout()).train()
    model[1].eval()
    with evaluate.eval_mode(model):
        assert model[0].merged and not model[0].training
    assert not model[0].merged and model[0].training and not model[1].training


def test_what_a_model_keeps_while_it_is_evaluated_still_serves_training() -> None:
    """A table made on first use is an ordinary tensor."""

    class Lazy(nn.Linear):
        table: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.table is None:
                self.table = torch.ones(2)
            return super().forward(x * self.table)

    model = Lazy(2, 3)
    evaluate.loss_and_metrics(model, NESTED["left"], Y, task())
    model(NESTED["left"]).sum().backward()
    assert model.weight.grad is not None
