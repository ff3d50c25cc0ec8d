"""Faults of a loop that its own objects state exactly: frozen parts, schedules, modes, and the scale of any loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    SequentialLR,
    StepLR,
)

from diagnostics.loops.first_pass import spread_of_answers
from diagnostics.loops.output_gradient import ScaleOfLosses
from diagnostics.loops.schedules import rises_for, steps_to_tenth
from diagnostics.monitor import Monitor
from pipeline.inspection.finding import Finding
from pipeline.inspection.inspect import inspect_model

LOSSES = [functional.mse_loss, functional.l1_loss, functional.smooth_l1_loss, functional.cross_entropy]
UPDATES = 8  # of an epoch


class Regressor(nn.Module):
    """A body with normalization, dropout that may forget the mode, and a head."""

    def __init__(self, dropout: float = 0.0, *, forgets_mode: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(5, 12), nn.BatchNorm1d(12), nn.Tanh())
        self.drop, self.forgets_mode, self.head = nn.Dropout(dropout), forgets_mode, nn.Linear(12, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        return self.head(functional.dropout(hidden) if self.forgets_mode else self.drop(hidden))


def rows_of(number: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(number))
    return x, x[:, :2].sum(1, keepdim=True) + 0.1 * x[:, 2:3] ** 2


def train(
    net: Regressor,
    *,
    parts: int = 1,
    scale: float = 1.0,
    clips: bool = False,
    schedule: Callable[[torch.optim.Optimizer], LRScheduler] | None = None,
    per: str = "update",
    evaluate: Callable[[nn.Module], object] = nn.Module.eval,
    with_gradients: bool = False,
    at_start: Callable[[nn.Module], object] = id,  # leaves it as it is
    first_epoch: int = 0,
    cleared: bool = False,
    given: bool = True,
    spoil: int = -1,
    epochs: int = 4,
) -> dict[str, Finding]:
    """Return what the Monitor finds in a loop of 8 updates per epoch, of which one thing is another."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    moving = schedule(optimizer) if schedule else None
    monitor = Monitor(net, optimizer, every=5)
    at_start(net)
    for epoch in range(epochs):
        net.train()
        for update in range(UPDATES):
            optimizer.zero_grad()
            for part in range(parts):
                x, y = rows_of(100 * epoch + 10 * part + update)
                if epoch * UPDATES + update == spoil:
                    x[2, 1] = math.nan
                outputs = net(x)
                loss = functional.mse_loss(outputs, y)
                (scale * loss).backward()
                monitor.step(loss, *((x, y, outputs) if given else ()))
            if clips:
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            if cleared:
                optimizer.zero_grad(set_to_none=False)
            for p in net.parameters():
                if p.grad is not None:
                    p.grad /= scale
            optimizer.step()
            if moving and per == "update":
                moving.step()
        evaluate(net)
        with torch.set_grad_enabled(with_gradients):
            monitor.validated(first_epoch + epoch, loss=functional.mse_loss(net(rows_of(7)[0]), rows_of(7)[1]).item())
        if moving and per == "epoch":
            moving.step()
    findings = monitor.findings({"task": {"target": 1e-9, "metric": "loss"}})
    monitor.close()
    return {finding.cause: finding for finding in reversed(findings)}


def freeze_module(net: nn.Module) -> None:
    net.body.requires_grad = False  # type: ignore[assignment]


def freeze_misspelled(net: nn.Module) -> None:
    for p in net.body.parameters():  # type: ignore[union-attr]
        p.require_grad = False  # type: ignore[attr-defined]


def thaw(net: nn.Module) -> None:
    net.requires_grad_(True)


def frozen() -> Regressor:
    net = Regressor()
    net.body[0].requires_grad_(False)
    return net


@pytest.mark.parametrize("freeze", [freeze_module, freeze_misspelled])
def test_attribute_that_freezes_nothing_is_found(freeze: Callable[[nn.Module], object]) -> None:
    """`requires_grad` set on a module, or misspelled on a parameter, freezes nothing, and is a contradiction."""
    finding = train(Regressor(), at_start=freeze, epochs=1)["frozen_parameters_trained"]

    assert ("definition", "frozen_by_name") == (finding.kind, finding.inspection)
    assert "body.0.weight" in finding.sentence


def test_parts_that_are_frozen_rightly_are_not_accused() -> None:
    """Parameters that are frozen and stay so are no fault, also where their module has the attribute as well."""
    net = frozen()
    net.body[0].requires_grad = False

    assert "frozen_parameters_trained" not in train(net, epochs=1)


def test_parts_that_are_thawed_before_the_first_update_are_found() -> None:
    """Parameters that were frozen when the Monitor was made, and that the first update trains."""
    finding = train(frozen(), at_start=thaw, epochs=2)["frozen_parameters_trained"]

    assert "frozen_at_first" == finding.inspection and "body.0.weight" in finding.sentence


def test_statistics_of_frozen_normalization_that_moved_far_are_surer() -> None:
    """Frozen normalization whose mean leaves that of its first rows weighs more than one whose mean stays near."""
    near, far = Regressor(), Regressor()
    for net in (near, far):
        net.body[0].requires_grad_(False)
        net.body[1].requires_grad_(False)
    far.body[1].running_mean.fill_(8.0)
    with torch.no_grad():
        near.body[1].running_mean.copy_(near.body[0](rows_of(0)[0]).mean(0))

    findings = [train(net, epochs=2)["frozen_parameters_trained"] for net in (near, far)]
    assert ["abnormality", "definition"] == [finding.kind for finding in findings]


STEPPED = {
    "steps per batch": (lambda o: StepLR(o, 2, 0.1), "update"),
    "milestones per batch": (lambda o: MultiStepLR(o, [2, 3], 0.1), "update"),
    "polynomial per batch": (lambda o: PolynomialLR(o, 4), "update"),
    "one cycle per epoch": (lambda o: OneCycleLR(o, 0.1, total_steps=100), "epoch"),
}


@pytest.mark.parametrize("name", STEPPED)
def test_schedule_that_is_stepped_at_the_wrong_place_is_found(name: str) -> None:
    """The counter of a schedule beside its settings says that it was made for epochs, or for updates."""
    schedule, per = STEPPED[name]
    finding = train(Regressor(), schedule=schedule, per=per)["scheduler_misstepped"]

    assert "steps_of_schedule" == finding.inspection


RIGHT = {
    "steps per epoch": (lambda o: StepLR(o, 2, 0.1), "epoch"),
    "cosine per batch": (lambda o: CosineAnnealingLR(o, 32), "update"),
    "warmup per batch": (lambda o: LinearLR(o, 0.1, total_iters=4), "update"),
    "one cycle per batch": (lambda o: OneCycleLR(o, 0.1, total_steps=33), "update"),
    "warmup, then cosine": (
        lambda o: SequentialLR(o, [ConstantLR(o, 0.5, 30), CosineAnnealingLR(o, 40)], [30]), "update",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_schedule_that_is_stepped_rightly_is_not_accused(name: str) -> None:
    """Schedules for epochs and for updates, each stepped where it belongs, also with a part that has not begun."""
    schedule, per = RIGHT[name]

    assert not {"scheduler_misstepped", "resume_state_lost"} & train(Regressor(), schedule=schedule, per=per).keys()


def test_schedule_that_begins_anew_after_a_resume_is_found() -> None:
    """An optimizer without a state of its own: the schedule alone tells that the resume lost something."""
    findings = train(Regressor(), schedule=lambda o: StepLR(o, 50), per="epoch", first_epoch=20)

    assert "state_of_schedule" == findings["resume_state_lost"].inspection


class WarmUp(LambdaLR):
    """A warm-up of 40 steps; one whose state was lost begins anew every 8 steps."""

    def __init__(self, optimizer: torch.optim.Optimizer, period: int) -> None:
        super().__init__(optimizer, lambda step: 0.025 + min(1.0, step % period / 40))


@pytest.mark.parametrize(("period", "lost"), [(8, True), (1000, False)])
def test_warm_up_that_begins_anew_is_found(period: int, lost: bool) -> None:
    """A rate that rises and falls back to its first value at once, epoch by epoch."""
    findings = train(Regressor(), schedule=lambda o: WarmUp(o, period))

    assert ("resume_state_lost" in findings) == lost
    assert not lost or findings["resume_state_lost"].inspection == "rate_begins_anew"


def resumed(optimizer: torch.optim.Optimizer) -> LRScheduler:
    schedule = StepLR(optimizer, 50)
    schedule.load_state_dict({**schedule.state_dict(), "last_epoch": 20})
    return schedule


def test_schedule_that_was_restored_is_not_accused() -> None:
    """A schedule that goes on from the epoch of the checkpoint has lost nothing."""
    assert "resume_state_lost" not in train(Regressor(), schedule=resumed, per="epoch", first_epoch=20)


def known_schedules() -> Iterator[tuple[LRScheduler, float | None, float | None]]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    yield StepLR(optimizer, 5, 0.1), 5, None
    yield StepLR(optimizer, 5, 0.5), pytest.approx(16.6, abs=0.1), None
    yield MultiStepLR(optimizer, [3, 9], 0.1), 3, None
    yield MultiStepLR(optimizer, [3, 9], 0.2), 9, None
    yield CosineAnnealingLR(optimizer, 7), 7, None
    yield LinearLR(optimizer, 0.1, total_iters=6), None, 6
    yield OneCycleLR(optimizer, 0.1, total_steps=100, pct_start=0.3), None, pytest.approx(29, abs=1)


def test_settings_of_schedules_are_read() -> None:
    """The steps down to a tenth of the rate, and those during which it rises."""
    for schedule, tenth, rise in known_schedules():
        assert (tenth, rise) == (steps_to_tenth(schedule), rises_for(schedule))


@pytest.mark.parametrize("with_gradients", [False, True])
def test_validation_in_training_mode_is_found_with_gradients_too(with_gradients: bool) -> None:
    """A validation without `no_grad` is told from training by its outputs, which no backward pass uses."""
    wrong = train(Regressor(0.5), evaluate=nn.Module.train, with_gradients=with_gradients)
    right = train(Regressor(0.5), with_gradients=with_gradients)

    assert "mode_of_validation" == wrong["eval_mode_missing"].inspection
    assert "eval_mode_missing" not in right


def test_dropout_that_forgets_the_mode_is_found() -> None:
    """`F.dropout(x)` drops in eval mode too: two answers to one batch differ."""
    assert "answers_in_eval_mode" == train(Regressor(forgets_mode=True))["eval_mode_missing"].inspection


def test_spread_of_answers_of_models_that_answer_otherwise() -> None:
    """A model that takes other arguments, or returns no tensor, has no spread; random numbers stay as they were."""
    nets = nn.Bilinear(5, 5, 1), Regressor(0.5), Regressor(forgets_mode=True)
    state = torch.get_rng_state()
    other_arguments, right, random = (spread_of_answers(net, rows_of(0)[0]) for net in nets)

    assert 0.0 == other_arguments == right and random > 0.1
    assert torch.equal(state, torch.get_rng_state())


def test_scale_of_a_regression_is_found() -> None:
    """Losses that are added up, and gradients that are clipped before they are unscaled, without a cross-entropy."""
    added = train(Regressor(), parts=4)
    clipped = train(Regressor(), scale=4096.0, clips=True)

    assert 4 == added["accumulation_not_divided"].value
    assert 1.0 == pytest.approx(clipped["clip_before_unscale"].value, rel=1e-3)
    assert not {"accumulation_not_divided", "clip_before_unscale"} & train(Regressor(), clips=True).keys()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("factor", [1.0, 0.25, 2048.0])
def test_scale_of_losses_recovers_factor(loss: Callable[..., Tensor], factor: float) -> None:
    """The factor of every standard loss is read from the gradient of the outputs and the targets."""
    torch.manual_seed(0)
    outputs = torch.randn(9, 4, requires_grad=True)
    targets = torch.randint(4, (9,)) if loss is functional.cross_entropy else 3 * torch.randn(9, 4)
    [gradient] = torch.autograd.grad(factor * loss(outputs, targets), outputs)
    measured = ScaleOfLosses().measure(outputs, gradient, targets)

    assert measured is not None
    assert factor == pytest.approx(float(measured[0]), rel=1e-4) and float(measured[1]) < 1e-3
    assert ScaleOfLosses().measure(outputs[:1, :1], gradient[:1, :1], targets[:1]) is None


def test_scale_of_losses_remembers_and_compares_again() -> None:
    """The loss that explained the last gradient is tried first; where another explains the next one, it is found."""
    torch.manual_seed(0)
    outputs, targets, scale = torch.randn(9, 4, requires_grad=True), 3 * torch.randn(9, 4), ScaleOfLosses()
    measured = []
    for factor, loss in ((2.0, functional.mse_loss), (3.0, functional.mse_loss), (5.0, functional.l1_loss)):
        [gradient] = torch.autograd.grad(factor * loss(outputs, targets), outputs)
        pair = scale.measure(outputs, gradient, targets)
        assert pair is not None
        measured.append(float(pair[0]))
    assert measured == pytest.approx([2.0, 3.0, 5.0], rel=1e-4)


def test_gradients_of_exactly_zero_are_found() -> None:
    """Gradients that are cleared between backward and the step train nothing."""
    finding = train(Regressor(), cleared=True, epochs=1)["parameters_not_trained"]

    assert "gradients_nonzero" == finding.inspection


def test_batch_with_nan_is_found_where_the_loop_gives_none() -> None:
    """`monitor.step(loss)` alone: the inputs are those of the forward pass."""
    assert "nonfinite_inputs" in train(Regressor(), given=False, spoil=13, epochs=2)


def test_optimizer_whose_eps_is_zero_in_half_precision_is_found() -> None:
    """Adam on float16 weights divides by zero; on float32, or with a larger eps, it does not."""
    for dtype, eps, found in ((torch.float16, 1e-8, True), (torch.float32, 1e-8, False), (torch.float16, 1e-4, False)):
        net = nn.Linear(3, 2).to(dtype)
        monitor = Monitor(net, torch.optim.Adam(net.parameters(), eps=eps))
        assert found == any(finding.inspection == "eps_in_half_precision" for finding in monitor.findings())
        monitor.close()


def test_outputs_that_the_loss_does_not_take_are_not_judged_by_it() -> None:
    """The tanh of a generator bounds pictures, and not the logits of the discriminator that the loss takes."""
    generator, discriminator = nn.Sequential(nn.Linear(4, 6), nn.Tanh()), nn.Linear(6, 1)
    outputs = generator(torch.randn(8, 4))
    causes = {}
    for name, judged in (("generator", discriminator(outputs)), ("classifier", outputs)):
        loss = functional.binary_cross_entropy_with_logits(judged, torch.ones_like(judged))
        found = inspect_model(generator, None, torch.randn(8, 4), torch.ones_like(judged), outputs, loss)
        causes[name] = {finding.cause for finding in found.findings}

    assert "output_activation_mismatch" in causes["classifier"] - causes["generator"]
