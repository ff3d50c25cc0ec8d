"""Faults that the kept batches of a loop show, also of a loop that hands over nothing but its loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from diagnostics.loops.judgement import without_refuted
from diagnostics.loops.output_gradient import ShownTargets
from diagnostics.monitor import Monitor
from pipeline.history import History
from pipeline.inspection.finding import Finding

Rows = tuple[Tensor, Tensor]  # inputs [N, 8], targets [N]
TARGET = {"task": {"metric": "accuracy", "target": 1.01}}  # never reached: what is unusual counts


def labelled(number: int, count: int = 32) -> Rows:
    """Rows whose eight features repeat two hidden numbers, which tell one of three classes."""
    generator = torch.Generator().manual_seed(number)
    hidden = torch.randn(count, 2, generator=generator)
    x = hidden.repeat(1, 4) + 0.1 * torch.randn(count, 8, generator=generator)
    return x, (hidden[:, 0] > 0).long() + (hidden[:, 1] > 0).long()


def classifier(outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, outputs))


def train(
    net: nn.Module | None = None,
    *,
    rows: Callable[[int], Rows] = labelled,
    validation: Callable[[int], Rows] = labelled,
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy,
    optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
    clip: float | None = None,
    given: bool = False,
    epochs: int = 4,
    accuracies: tuple[float, float] | None = None,
) -> dict[str, Finding]:
    """Train for epochs of 15 updates, and return what the Monitor finds, by inspection."""
    net = net or classifier()
    stepper = optimizer(net.parameters(), lr=0.01)  # type: ignore[call-arg]
    monitor = Monitor(net, stepper, every=10)
    for epoch in range(epochs):
        losses = []
        for update in range(15):
            x, y = rows(update)
            stepper.zero_grad()
            outputs = net(x)
            value = loss(outputs, y)
            value.backward()
            monitor.step(value, *((x, y, outputs) if given else ()))
            if clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            stepper.step()
            losses.append(value.item())
        with torch.no_grad():
            held_out = [loss(net(x), y).item() for x, y in map(validation, (100, 101))]
        scores = {} if accuracies is None else {"train/accuracy": accuracies[0], "val/accuracy": accuracies[1]}
        monitor.validated(epoch, {"train/loss": sum(losses) / len(losses), **scores}, loss=sum(held_out) / 2)
    findings = monitor.findings(TARGET)
    monitor.close()
    return {finding.inspection: finding for finding in findings}


# --- what a pass shows -----------------------------------------------------------------------------------------------


@given(
    rows=st.integers(2, 9),
    columns=st.integers(2, 6),
    seed=st.integers(0, 10**6),
    loss=st.sampled_from(["classes", "log-probabilities", "ignored", "binary", "squared"]),
)
def test_shown_targets_are_those_of_the_loss(rows: int, columns: int, seed: int, loss: str) -> None:
    """The gradient of a standard loss tells its targets, rows that are left out included."""
    generator = torch.Generator().manual_seed(seed)
    numbers = loss in ("binary", "squared")
    outputs = torch.randn(rows, 1 if numbers else columns, generator=generator).requires_grad_()
    targets = torch.randint(0, columns, (rows,), generator=generator)
    targets[0] = -100 if loss == "ignored" else 0
    if loss == "binary":
        expected = (targets % 2).float()[:, None]
        value = functional.binary_cross_entropy_with_logits(outputs, expected)
    elif loss == "squared":
        expected = targets.float()[:, None]
        value = functional.mse_loss(outputs, expected)
    else:
        expected = targets
        given = outputs.log_softmax(1) if loss == "log-probabilities" else outputs
        value = functional.cross_entropy(given, targets)
        outputs = given
    [gradient] = torch.autograd.grad(value, outputs)

    targets_of_loop = ShownTargets()
    for _ in range(6):  # the first ones tell the loss, and the others believe them
        shown = targets_of_loop.read(outputs, gradient, value.item())
        assert shown is not None and torch.allclose(shown.float(), expected.float(), atol=1e-3)


def test_shown_targets_of_alternating_losses_are_recognized_each_time() -> None:
    """A loop with two losses, as for two networks, gets no targets of the wrong one."""
    targets_of_loop, generator = ShownTargets(), torch.Generator().manual_seed(0)
    outputs = torch.randn(8, 3, generator=generator).requires_grad_()
    ids = torch.arange(8) % 3
    for _ in range(4):
        for loss, known in ((functional.cross_entropy, True), (functional.multi_margin_loss, False)):
            value = loss(outputs, ids)
            [gradient] = torch.autograd.grad(value, outputs)
            shown = targets_of_loop.read(outputs, gradient, value.item())
            assert (shown is not None and torch.equal(shown, ids)) if known else shown is None


def test_shown_targets_of_another_loss_are_none() -> None:
    """A hinge loss shows no targets, and none are made up."""
    outputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = functional.multi_margin_loss(outputs, torch.arange(8) % 3)
    [gradient] = torch.autograd.grad(value, outputs)

    assert ShownTargets().read(outputs, gradient, value.item()) is None


@pytest.mark.parametrize("rate", [1e-6, 0.01])
def test_experiments_need_no_more_than_the_loss(rate: float) -> None:
    """A loop that gives its loss alone is repeated on copies, and a rate a thousand times too low is proven."""
    net = classifier()
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate)
    monitor = Monitor(net, optimizer)
    for update in range(60):
        x, y = labelled(update % 15)
        optimizer.zero_grad()
        loss = functional.cross_entropy(net(x), y)
        loss.backward()
        monitor.step(loss)
        optimizer.step()
        if update % 15 == 14:
            monitor.validated(accuracy=0.4, loss=loss.item())
    verdicts = {(cause, result.verdict) for result in monitor.experiment(TARGET)[0] for cause in result.causes}

    assert (("learning_rate_too_low", "confirmed") in verdicts) == (rate == 1e-6)
    assert ("learning_rate_too_high", "refuted") in verdicts


# --- faults, each beside the loop without it -------------------------------------------------------------------------


def in_order(number: int) -> Rows:
    """Batches of one class each, as a folder per class gives them."""
    x, y = labelled(number, 200)
    own = y == number % 3
    return x[own][:32], y[own][:32]


def of_other_rows(number: int) -> Rows:
    x, y = labelled(number)
    return x, y[torch.randperm(len(y), generator=torch.Generator().manual_seed(number))]


def nearly_all_zero(number: int) -> Rows:
    x, y = labelled(number)
    return x, (y == 2).long() * (torch.arange(len(y)) == number)


def scaled(number: int) -> Rows:
    return labelled(number)[0] / 16, labelled(number)[1]


def seen(number: int) -> Rows:
    return labelled(number % 15)


def noisy(number: int) -> Rows:
    x, y = labelled(number)
    wrong = torch.rand(len(y), generator=torch.Generator().manual_seed(number)) < 0.6
    return x, torch.where(wrong, (y + number) % 3, y)


FAULTS: dict[str, tuple[dict[str, object], str, str]] = {
    "not shuffled": ({"rows": in_order}, "labels_in_order", "data_not_shuffled"),
    "labels of other rows": ({"rows": of_other_rows}, "signal_in_labels", "labels_misaligned"),
    "labels divided": ({"net": classifier(10), "rows": nearly_all_zero}, "classes_with_rows", "labels_misencoded"),
    "validation on another scale": ({"validation": scaled}, "scale_of_validation", "split_shift"),
    "train rows in validation": ({"validation": seen}, "shared_rows", "data_leakage"),
    "noisy labels": ({"rows": noisy, "accuracies": (0.45, 0.95)}, "train_labels", "label_noise"),
    "clipped to nothing": ({"optimizer": torch.optim.SGD, "clip": 1e-3}, "clipped_share", "gradient_clip_too_tight"),
    "no activation": (
        {"net": nn.Sequential(nn.Linear(8, 24), nn.BatchNorm1d(24), nn.Linear(24, 3))},
        "affine_model",
        "hidden_activation_missing",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_found_in_kept_batches(fault: str) -> None:
    """Each fault is found in a loop that gives only its loss."""
    changed, inspection, cause = FAULTS[fault]
    findings = train(**changed)  # type: ignore[arg-type]

    assert inspection in findings, list(findings)
    assert findings[inspection].cause == cause


@pytest.mark.parametrize("hands_over", [False, True])
def test_loop_without_fault_is_not_accused(hands_over: bool) -> None:
    """None of these findings is there in the same loop without a fault, although its target is never reached."""
    findings = train(given=hands_over, accuracies=(0.95, 0.95))

    assert not {inspection for _, inspection, _ in FAULTS.values()} & findings.keys()


def test_adaptive_optimizer_does_not_feel_a_clip_bound() -> None:
    """Adam takes steps of one size, whatever the norm of the gradient is."""
    assert "clipped_share" not in train(clip=1e-3)


def test_evaluation_of_train_rows_is_no_leak() -> None:
    """A loop that evaluates train rows as well has batches of nothing but these, and others of none."""
    assert "shared_rows" not in train(validation=lambda number: labelled(0 if number == 100 else number))


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_loss_that_broadcasts_is_found() -> None:
    """Outputs [N, 1] against targets [N] compare every row with every other one."""

    def flat(number: int) -> Rows:
        return labelled(number)[0], labelled(number)[0][:, 0]

    def column(number: int) -> Rows:
        return flat(number)[0], flat(number)[1][:, None]

    def trained(rows: Callable[[int], Rows]) -> dict[str, Finding]:
        return train(classifier(1), rows=rows, validation=rows, loss=functional.mse_loss, given=True)

    assert trained(flat)["shapes_of_loss"].cause == "loss_mismatch"
    assert "shapes_of_loss" not in trained(column)


def test_outliers_of_targets_are_found() -> None:
    """One target of 9999 in a hundred rows is named, and explains their small spread elsewhere."""

    def with_sentinel(number: int) -> Rows:
        x, _ = labelled(number)
        y = x[:, :1].clone()
        y[0] = 9999.0 if number == 3 else y[0]
        return x, y

    def without(number: int) -> Rows:
        return labelled(number)[0], labelled(number)[0][:, :1]

    def trained(rows: Callable[[int], Rows]) -> dict[str, Finding]:
        return train(classifier(1), rows=rows, validation=without, loss=functional.mse_loss)

    assert trained(with_sentinel)["extreme_targets"].cause == "outliers"
    assert "extreme_targets" not in trained(without)


class Tokens(nn.Module):
    """Predicts the next token from all tokens of a row, or from those before it."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head, self.causal = nn.Embedding(9, 8), nn.Linear(8, 9), causal

    def forward(self, ids: Tensor) -> Tensor:
        vectors = self.embed(ids)
        mask = torch.ones(ids.shape[1], ids.shape[1])
        weights = mask.tril() if self.causal else mask
        return self.head(weights @ vectors / weights.sum(1, keepdim=True))


@pytest.mark.parametrize("causal", [False, True])
def test_model_that_sees_the_next_token_is_found(causal: bool) -> None:
    """A language model whose mask lets it see what it must predict."""

    def text(number: int) -> Rows:
        ids = torch.randint(0, 9, (16, 7), generator=torch.Generator().manual_seed(number))
        return ids[:, :-1], ids[:, 1:]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    findings = train(Tokens(causal), rows=text, validation=text, loss=loss, given=True)
    assert ("sees_the_future" in findings) != causal


@pytest.mark.parametrize(("momentum", "slow"), [(1e-3, True), (0.1, False), (None, False)])
def test_running_statistics_that_do_not_follow_are_found(momentum: float | None, slow: bool) -> None:
    """Batch norm whose statistics have hardly moved by the end of the training."""
    net = nn.Sequential(nn.Linear(8, 24), nn.BatchNorm1d(24, momentum=momentum), nn.ReLU(), nn.Linear(24, 3))

    assert ("running_statistics" in train(net, epochs=8)) == slow


@pytest.mark.parametrize(("activation", "stays"), [(nn.ReLU, True), (nn.Tanh, False)])
def test_weights_of_zero_are_a_contradiction_where_they_stay(activation: type[nn.Module], stays: bool) -> None:
    """At 0 a tanh passes the gradient on, so that weights of 0 move; a ReLU does not, and they stay."""
    net = nn.Sequential(nn.Linear(8, 24), activation(), nn.Linear(24, 24), activation(), nn.Linear(24, 3))
    nn.init.zeros_(net[2].weight)
    nn.init.zeros_(net[2].bias)

    assert ("weights_zero" in train(net, given=True)) == stays


def test_what_forbids_fitting_is_ruled_out_where_the_training_fits() -> None:
    """Strong decay in the first update is no cause of a bad score once the training loss is next to nothing."""
    history = History()
    for step, value in enumerate([1.0] * 3 + [0.01] * 40):
        history.log_step(step, {"train/loss": value})
    decay = Finding("regularization_too_strong", "decay_over_update", "abnormality", 0.99, 0.5, 0.04, "", "decay")
    certain = replace(decay, kind="definition")

    assert without_refuted([decay, certain], history) == [certain]
    assert without_refuted([decay], History()) == [decay]
