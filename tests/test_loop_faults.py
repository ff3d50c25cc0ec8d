"""Faults of a training loop that the Monitor finds, each beside a loop without the fault."""

from __future__ import annotations

import copy
import io
import math
import runpy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diagnostics.callbacks.metric_names import as_columns
from diagnostics.diagnosis import Diagnosis
from diagnostics.loops.alarm import SymptomError, SymptomWarning
from diagnostics.loops.output_gradient import gradient_scale
from diagnostics.monitor import Monitor
from pipeline.inspection.finding import Finding

PUBLIC = Path(__file__).resolve().parents[2] / "shared" / "public_cases"


def small_net(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3))


def rows_of(number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(16, 6, generator=generator)
    return x, x[:, :3].argmax(1)


def no_change(*_: object) -> None:
    """Leaves the loop as it is."""


def train(
    *,
    parts: int = 1,
    divide: bool = True,
    zero: bool = True,
    evaluate: Callable[[nn.Module], object] = nn.Module.eval,
    change: Callable[[nn.Module, torch.optim.Optimizer], object] = no_change,
    schedule: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler] | None = None,
    batch: Callable[[int], tuple[Tensor, Tensor]] = rows_of,
    first_epoch: int = 0,
    rate: float = 0.05,
    scale: float = 1.0,
    clip: Callable[[nn.Module, float], object] = no_change,
    detach: bool = False,
    epochs: int = 4,
    **options: object,
) -> Monitor:
    """Train a small net in a loop of one's own, with one thing changed."""
    net = small_net(0.2)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9)
    change(net, optimizer)
    monitor = Monitor(net, optimizer, every=5, **options)  # type: ignore[arg-type]
    moving = schedule(optimizer) if schedule else None
    for epoch in range(epochs):
        net.train()
        for update in range(10):
            if zero:
                optimizer.zero_grad()
            for part in range(parts):
                x, y = batch(100 * epoch + 10 * part + update)
                outputs = net(x)
                loss = nn.functional.cross_entropy(outputs.detach().requires_grad_() if detach else outputs, y)
                (scale * loss / (parts if divide else 1)).backward()
                monitor.step(loss, x, y, outputs)
            clip(net, scale)
            optimizer.step()
            if moving:
                moving.step()
        evaluate(net)
        with torch.no_grad():
            x, y = rows_of(7)
            monitor.validated(first_epoch + epoch, loss=nn.functional.cross_entropy(net(x), y).item())
    return monitor


def unscale_first(net: nn.Module, scale: float) -> None:
    for p in net.parameters():
        p.grad /= scale
    nn.utils.clip_grad_norm_(net.parameters(), 0.1)


def clip_first(net: nn.Module, scale: float) -> None:
    nn.utils.clip_grad_norm_(net.parameters(), 0.1)
    for p in net.parameters():
        p.grad /= scale


def freeze_late(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """A frozen layer whose old gradient and momentum go on moving it."""
    net[0].weight.grad = torch.ones_like(net[0].weight)
    net[0].weight.requires_grad_(False)


def freeze_layers(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for p in (*net[0].parameters(), *net[1].parameters()):
        p.requires_grad_(False)


def only_head(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[0]["params"] = list(net[4].parameters())


def nan_in_one(number: int) -> tuple[Tensor, Tensor]:
    x, y = rows_of(number)
    if number == 1:
        x[3, 2] = math.nan
    return x, y


def decay(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.05)


def found(monitor: Monitor, config: dict[str, object] | None = None) -> dict[str, Finding]:
    return {finding.cause: finding for finding in monitor.findings(config)}


FAULTS = {
    "gradients_not_zeroed": {"zero": False},
    "eval_mode_missing": {"evaluate": nn.Module.train},
    "accumulation_not_divided": {"parts": 4, "divide": False},
    "clip_before_unscale": {"scale": 1024.0, "clip": clip_first},
    "nonfinite_inputs": {"batch": nan_in_one},
    "scheduler_misstepped": {"schedule": decay},
    "resume_state_lost": {"first_epoch": 20},
}


@pytest.mark.parametrize("cause", FAULTS)
def test_monitor_finds_fault_of_loop(cause: str) -> None:
    """Each fault is found in its loop, and the diagnosis of a run that misses its target names it."""
    monitor = train(**FAULTS[cause])  # type: ignore[arg-type]
    config = {"task": {"target": 0.001, "metric": "loss"}}

    assert cause in found(monitor)
    assert cause in [root.issue for root in monitor.diagnose(config).root_causes][:3]


@pytest.mark.parametrize(
    "healthy",
    [
        {},
        {"parts": 4},
        {"scale": 1024.0, "clip": unscale_first},
        {"schedule": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)},
        {"schedule": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=41)},
        {"first_epoch": 1},
    ],
    ids=["plain", "accumulates", "clips", "cosine", "one cycle", "epochs from 1"],
)
def test_healthy_loops_are_not_accused(healthy: dict[str, object]) -> None:
    """Accumulation, clipping, schedules and epochs that begin with 1 are no faults."""
    monitor = train(**healthy)  # type: ignore[arg-type]

    assert [] == [finding for finding in monitor.findings() if finding.inspection in LOOP_INSPECTIONS]
    assert () == monitor.diagnose().root_causes


LOOP_INSPECTIONS = (
    "gradients_cleared", "finite_batch", "gradients_exist", "frozen_stay", "frozen_statistics", "mode_of_validation",
    "batches_differ", "left_out", "accumulated_scale", "norm_times_scale", "rate_over_updates", "rate_never_changes",
    "state_of_optimizer",
)  # fmt: skip


def test_losses_added_up_with_a_fitting_rate_are_not_accused() -> None:
    """Four losses that are added up under a quarter of the rate are the same training: found, but no cause."""
    monitor = train(parts=4, divide=False, rate=0.0125)

    assert "abnormality" == found(monitor)["accumulation_not_divided"].kind
    assert () == monitor.diagnose().root_causes


def test_parameters_that_nothing_trains_are_found() -> None:
    """Without a gradient at any parameter, or with some that the optimizer lacks, parameters are not trained."""
    assert "definition" == found(train(detach=True, epochs=1))["parameters_not_trained"].kind
    assert "not in the optimizer" in found(train(change=only_head, epochs=1))["parameters_not_trained"].sentence


def test_frozen_parameters_that_move_are_found() -> None:
    """A frozen layer that the optimizer moves, and frozen batch normalization whose statistics follow the batches."""
    assert (
        "changes 0.weight"
        in found(train(change=freeze_late, zero=False, epochs=1))["frozen_parameters_trained"].sentence
    )
    statistics = found(train(change=freeze_layers, epochs=1))["frozen_parameters_trained"]
    assert ("abnormality", "1") == (statistics.kind, statistics.where)


def test_gradients_that_another_loss_leaves_are_no_fault() -> None:
    """A second loss whose gradients arrive in between, as in adversarial training, is cleared before the own one."""
    net = small_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    monitor = Monitor(net, optimizer)
    for update in range(4):
        x, y = rows_of(update)
        net(x).square().mean().backward()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        monitor.step(loss)
        optimizer.step()

    assert "gradients_not_zeroed" not in found(monitor)


def test_equal_batches_are_found_only_among_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that come in pairs are a shared seed where two workers live; without workers they are meant."""
    repeated = {"batch": lambda number: rows_of(number // 2), "epochs": 2}
    assert "worker_seed_shared" not in found(train(**repeated))  # type: ignore[arg-type]
    monkeypatch.setattr("multiprocessing.active_children", lambda: [None, None])
    assert "worker_seed_shared" in found(train(**repeated))  # type: ignore[arg-type]
    assert "worker_seed_shared" not in found(train(batch=lambda _: rows_of(0)))


@pytest.mark.parametrize("shape", [(8, 5), (2, 4, 5), (8,), (8, 1)])
@pytest.mark.parametrize("factor", [1.0, 0.25, 512.0])
def test_gradient_scale_recovers_factor(shape: tuple[int, ...], factor: float) -> None:
    """The factor of a cross-entropy is read from the gradient of the outputs; another loss is not explained."""
    torch.manual_seed(0)
    outputs = torch.randn(shape, requires_grad=True)
    if shape[-1] == 5:
        loss = nn.functional.cross_entropy(outputs.flatten(0, -2), torch.randint(5, shape[:-1]).flatten())
    else:
        loss = nn.functional.binary_cross_entropy_with_logits(outputs, torch.randint(2, shape).float())
    [gradient] = torch.autograd.grad(factor * loss, outputs)
    [other] = torch.autograd.grad((outputs - 3).abs().mean() + outputs.square().mean(), outputs)

    scale, remainder = gradient_scale(outputs, gradient).tolist()  # type: ignore[union-attr]
    assert factor == pytest.approx(scale, rel=1e-4) and remainder < 1e-3
    assert gradient_scale(outputs, other)[1] > 0.05  # type: ignore[index]


def test_watched_model_can_be_copied_and_saved() -> None:
    """A copy of a watched model is not watched, and its file has nothing of the Monitor."""
    net = small_net(0.2)
    monitor = Monitor(net, torch.optim.SGD(net.parameters(), lr=0.1), every=1000)
    for update in range(4):
        x, y = rows_of(update)
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        monitor.step(loss)
        monitor._optimizer.step()
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    for other in (copy.deepcopy(net), torch.load(file, weights_only=False)):
        with torch.no_grad():
            assert other(x).isfinite().all()
    monitor.validated(loss=1.0)

    assert b"diagnostics" not in file.getvalue()
    assert "eval_mode_missing" not in found(monitor)


@pytest.mark.process
@pytest.mark.skipif(not PUBLIC.is_dir(), reason="the public cases are not beside the checkout")
@pytest.mark.parametrize("words", [[], ["fixed"]])
def test_public_loop_that_adds_losses_up(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A loop of 32 undivided losses per update is named as that first; divided, it is not."""
    monkeypatch.setattr(sys, "argv", ["loop.py", *words])
    runpy.run_path(str(PUBLIC / "accum-not-divided" / "loop.py"))
    printed = capsys.readouterr().out

    assert ("1. **accumulation_not_divided**" in printed) == (not words)
    assert ("accumulation_not_divided" in printed) == (not words)


# --- while the run goes on -------------------------------------------------------------------------------------------


def diverge(**options: object) -> Monitor:
    """Train with a rate so high that the loss is soon not finite."""
    net = nn.Linear(6, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e3)
    monitor = Monitor(net, optimizer, every=5, **options)  # type: ignore[arg-type]
    for update in range(40):
        optimizer.zero_grad()
        x, _ = rows_of(update)
        loss = net(x).square().mean()
        loss.backward()
        monitor.step(loss)
        optimizer.step()
    return monitor


def test_monitor_warns_of_each_symptom_once() -> None:
    """With "warn" a diverging run warns with the symptom and the likeliest cause; a healthy one is silent."""
    with pytest.warns(SymptomWarning, match="NaN or infinit") as warned:
        diverge(on_symptom="warn")
    assert 1 == len(warned)
    told: list[object] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", SymptomWarning)
        train(on_symptom="warn", notify=told.append)
    assert [] == told


def test_monitor_stops_and_tells() -> None:
    """With "stop" the loop gets an exception; `notify` has the diagnosis before it, and may fail."""
    told: list[Diagnosis] = []
    with pytest.raises(SymptomError, match="the training was stopped after"):
        diverge(on_symptom="stop", notify=told.append)
    assert ["nan_loss"] == [symptom.id for symptom in told[0].symptoms if symptom.id == "nan_loss"]
    with pytest.warns(SymptomWarning, match="notify failed: ZeroDivisionError"):
        diverge(notify=lambda _: 1 / 0)
    with pytest.raises(ValueError, match="'record', 'warn' or 'stop', got 'mail'"):
        Monitor(on_symptom="mail")  # type: ignore[arg-type]


def test_metric_names_of_other_trainers() -> None:
    """Splits are told by the prefix, whatever follows it; times and epochs are no metrics."""
    metrics = {"val_loss": 1, "valid/acc": 2.0, "eval_f1": torch.tensor(3.0), "train_loss_epoch": 4, "auc": 5}
    times = {"eval_runtime": 6, "epoch": 7.0, "eval_samples_per_second": 8, "note": "text"}
    columns = {"val/loss": 1.0, "val/acc": 2.0, "val/f1": 3.0, "train/loss": 4.0, "val/auc": 5.0}
    assert columns == as_columns({**metrics, **times})


def test_loop_findings_see_a_schedule_at_rest() -> None:
    """A schedule that exists and that nobody calls is found, and one that is called is not."""
    net = small_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    schedules = [torch.optim.lr_scheduler.StepLR(optimizer, 30)]
    for called in (False, True):
        with Monitor(net, optimizer) as monitor:
            for _ in range(3):
                inputs, targets = rows_of(0)
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(net(inputs), targets)
                loss.backward()
                monitor.step(loss, inputs, targets)
                optimizer.step()
                if called:
                    schedules[0].step()
                monitor.validated(loss=loss.item())
        found = [finding.inspection for finding in monitor.findings()]
        assert ("schedule_at_rest" in found) is not called


def test_loop_findings_see_weights_that_were_overwritten() -> None:
    """A checkpoint that is loaded and then initialized away is found; loaded alone, it is not."""
    for again in (True, False):
        net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
        net.load_state_dict(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).state_dict())
        if again:
            net.apply(lambda layer: layer.reset_parameters() if isinstance(layer, nn.Linear) else None)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        with Monitor(net, optimizer) as monitor:
            inputs, targets = rows_of(0)
            outputs = net(inputs)
            loss = nn.functional.cross_entropy(outputs, targets)
            loss.backward()
            monitor.step(loss, inputs, targets, outputs)
            optimizer.step()
        assert ("weights_written" in [finding.inspection for finding in monitor.findings()]) is again
