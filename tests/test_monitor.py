"""The Monitor: it does not change the run, names the first non-finite value, and removes its hooks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diagnostics.monitor import Monitor, NonFiniteError
from pipeline.errors import UserError
from pipeline.history import History

Loop = Callable[..., list[Tensor]]


def make_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def batches(n: int = 4, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(16, 6, generator=generator), torch.randint(3, (16,), generator=generator)) for _ in range(n)]


def train(net: nn.Module, optimizer: torch.optim.Optimizer, monitor: Monitor | None, steps: int = 4) -> list[Tensor]:
    """Train in a plain loop that calls the monitor, if there is one, after each backward."""
    losses = []
    for x, y in batches(steps):
        optimizer.zero_grad()
        out = net(x)
        loss = nn.functional.cross_entropy(out, y)
        loss.backward()
        if monitor:
            monitor.step(loss, x, y, out)
        optimizer.step()
        losses.append(loss.detach())
    return losses


def test_monitor_does_not_change_run() -> None:
    """Weights and losses are bit-identical with and without the monitor."""
    a, b = make_model(), make_model()
    plain = train(a, torch.optim.AdamW(a.parameters()), None)
    optimizer = torch.optim.AdamW(b.parameters())
    with Monitor(b, optimizer, every=2) as monitor:
        watched = train(b, optimizer, monitor)

    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert torch.equal(torch.stack(plain), torch.stack(watched))


def test_monitor_records_columns_and_facts() -> None:
    """Loss and learning rate are recorded at every step, norms at the first steps and at every n-th."""
    net = make_model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    with Monitor(net, optimizer, every=4) as monitor:
        losses = train(net, optimizer, monitor, 6)
    history = monitor.history

    assert torch.stack(losses).tolist() == history.series("train/loss")[1].tolist()
    assert list(range(6)) == history.series("lr")[0].tolist()
    for name in ("grad_norm", "grad_norm/0", "update_ratio/2", "weight_norm/2", "dead/0", "output_std"):
        assert [0, 1, 2, 4] == history.series(name)[0].tolist(), name
    assert losses[0].item() == pytest.approx(history.facts["loss_at_init"])
    assert math.log(3) == history.facts["loss_expected"]
    assert (6 * 8 + 8 + 8 * 3 + 3, 16, 3) == tuple(history.facts[n] for n in ("parameters", "batch_size", "classes"))
    assert 1 == pytest.approx(history.facts["input_rms"], rel=0.3)


def test_measurements_match_plain_arithmetic() -> None:
    """Norms and the update ratio equal those computed from the tensors."""
    net = make_model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    before = [p.detach().clone() for p in net.parameters()]
    with Monitor(net, optimizer) as monitor:
        train(net, optimizer, monitor, 1)
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    history = monitor.history

    def norm(tensors: list[Tensor]) -> float:
        return torch.cat([t.flatten() for t in tensors]).norm().item()

    assert norm(grads) == pytest.approx(history.series("grad_norm")[1][0], rel=1e-5)
    assert norm(grads[2:]) == pytest.approx(history.series("grad_norm/2")[1][0], rel=1e-5)
    assert 0.5 * norm(grads[:2]) / norm(before[:2]) == pytest.approx(history.series("update_ratio/0")[1][0], rel=1e-4)
    assert norm([p.detach() for p in net.parameters()]) == pytest.approx(history.series("weight_norm")[1][0], rel=1e-5)


def test_step_measures_gradients_before_clipping() -> None:
    """Called after backward, `step` measures the unclipped gradient; called last, the clipped one."""
    norms = []
    for early in (True, False):
        net = make_model()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with Monitor(net, optimizer) as monitor:
            (x, y), *_ = batches()
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            if early:
                monitor.step(loss)
            nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
            optimizer.step()
            if not early:
                monitor.step(loss)
        assert [0] == monitor.history.series("train/loss")[0].tolist()
        norms.append(monitor.history.series("grad_norm")[1][0])

    assert norms[0] > 1e-2 and norms[1] == pytest.approx(1e-3, rel=1e-2)


def test_step_may_be_called_after_optimizer_step() -> None:
    """A loop that calls the monitor last has its losses at the same steps."""
    net = make_model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Monitor(net, optimizer) as monitor:
        for value in (3.0, 2.0, 1.0):
            optimizer.step()
            monitor.step(value)

    assert ([0, 1, 2], [3.0, 2.0, 1.0]) == tuple(x.tolist() for x in monitor.history.series("train/loss"))


def test_step_averages_accumulated_losses() -> None:
    """Several losses within one optimizer step give one measurement."""
    net = make_model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Monitor(net, optimizer) as monitor:
        for pair in ((1.0, 3.0), (2.0, 6.0)):
            for value in pair:
                monitor.step(value)
            optimizer.step()

    assert ([0, 1], [2.0, 4.0]) == tuple(x.tolist() for x in monitor.history.series("train/loss"))


def test_verdict_names_first_nonfinite_value() -> None:
    """The first non-finite value is in the history and the verdict, and the batch is examined."""
    net = make_model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Monitor(net, optimizer) as monitor:
        train(net, optimizer, monitor, 2)
        x, y = batches()[0]
        x[3, 2] = math.nan
        out = net(x)
        verdict = monitor.step(nn.functional.cross_entropy(out, y), x, y, out)
        diagnosis = monitor.diagnose()

    assert not verdict and (2, "step 2: the loss is nan") == (verdict.step, verdict.why)
    assert math.isnan(monitor.history.series("train/loss")[1][2])
    assert [{"kind": "nonfinite", "step": 2, "what": "loss", "where": ""}] == monitor.history.events
    assert (1, 0) == (monitor.history.facts["batch_nonfinite"], monitor.history.facts["weights_nonfinite"])
    assert "nonfinite_inputs" == diagnosis.root_causes[0].issue


def test_verdict_names_module_of_nonfinite_gradient() -> None:
    """A non-finite gradient of a finite loss is found, with its module."""
    net = make_model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Monitor(net, optimizer) as monitor:
        x, y = batches()[0]
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        net[2].weight.grad[0, 0] = math.inf
        monitor.step(loss)
        optimizer.step()
        verdict = monitor.step(loss)

    assert "step 0: the gradient of 2 is inf" == verdict.why


def test_verdict_accepts_large_finite_weights() -> None:
    """Finite weights whose squares overflow are not reported as infinite."""
    net = make_model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    with torch.no_grad():
        net[0].weight.fill_(1e30)
    with Monitor(net, optimizer) as monitor:
        optimizer.step()
        verdict = monitor.step(1.0)

    assert verdict and 48**0.5 * 1e30 == pytest.approx(monitor.history.series("weight_norm/0")[1][0], rel=1e-5)


def test_step_raises_with_on_nonfinite_raise() -> None:
    """`on_nonfinite="raise"` turns the verdict into an exception that a loop can catch."""
    net = make_model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Monitor(net, optimizer, on_nonfinite="raise") as monitor:
        assert monitor.step(1.0)
        with pytest.raises(NonFiniteError, match="the loss is inf"):
            monitor.step(math.inf)
    with pytest.raises(ValueError, match="'record' or 'raise', got 100 and 'ignore'"):
        Monitor(net, optimizer, on_nonfinite="ignore")  # type: ignore[arg-type]


def test_close_removes_hooks() -> None:
    """After `close` the optimizer and the model have no hooks."""
    net = make_model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Monitor(net, optimizer) as monitor:
        assert 1 == len(optimizer._optimizer_step_pre_hooks) == len(optimizer._optimizer_step_post_hooks)
    train(net, optimizer, None, 2)

    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in net.modules())
    assert [] == monitor.history.names()


def test_validated_logs_by_epoch() -> None:
    """Metrics are logged in the epoch table under `val/`, or under their own name if it has a split."""
    net = make_model()
    with Monitor(net, torch.optim.SGD(net.parameters(), lr=0.1)) as monitor:
        monitor.validated(loss=0.5, accuracy=0.9)
        monitor.validated(**{"train/accuracy": 0.95}, loss=0.4)
        monitor.validated(epoch=7, loss=0.3)

    assert [0, 1, 7] == monitor.history.series("val/loss")[0].tolist()
    assert ["train/accuracy", "val/accuracy", "val/loss"] == monitor.history.names()


def test_validated_refuses_metrics_as_epoch() -> None:
    """Metrics passed as the epoch would be lost silently."""
    net = nn.Linear(2, 1)
    with Monitor(net, torch.optim.SGD(net.parameters(), lr=0.1)) as monitor:
        with pytest.raises(UserError, match="the first argument is the epoch, got 'dict'"):
            monitor.validated({"train/loss": 0.5}, epoch=3)  # type: ignore[arg-type]
        assert not monitor.history.epoch


def test_share_untrained_counts_frozen_and_unoptimized_parameters() -> None:
    """Parameters that are frozen or not passed to the optimizer count as untrained."""
    net = make_model()
    net[0].bias.requires_grad_(False)
    with Monitor(net, torch.optim.SGD(net[0].parameters(), lr=0.1)) as monitor:
        assert (8 + 8 * 3 + 3) / 83 == pytest.approx(monitor.history.facts["share_untrained"])


def test_dead_units_and_unused_parameters() -> None:
    """A unit without a gradient from any row is dead; a parameter without a gradient has norm 0."""
    net = make_model()
    net.append(nn.Linear(3, 3))  # never called
    with torch.no_grad():
        net[0].bias.fill_(-1e3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Monitor(net, optimizer) as monitor:
        x, y = batches()[0]
        nn.functional.cross_entropy(net[:3](x), y).backward()
        monitor.step(1.0)
        optimizer.step()

    assert (1.0, 0.0) == tuple(monitor.history.series(n)[1][0] for n in ("dead/0", "grad_norm/3"))


def test_monitor_accepts_sparse_gradients_and_nested_batches() -> None:
    """Sparse gradients of an embedding and a nested batch are measured like any others."""
    table = nn.Embedding(10, 4, sparse=True)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
    with Monitor(table, optimizer) as monitor:
        ids = torch.tensor([1, 1, 2])
        loss = table(ids).square().sum()
        loss.backward()
        monitor.step(loss, {"ids": ids, "weights": [torch.full((3,), 2.0)]})
        optimizer.step()

    assert table.weight.grad.coalesce().values().norm().item() == pytest.approx(
        monitor.history.series("grad_norm")[1][0], rel=1e-5
    )
    assert 2.0 == monitor.history.facts["input_rms"] and "dead/model" not in monitor.history.names()


def test_monitor_accepts_model_without_parameters() -> None:
    """A model without parameters counts as untrained, and its loss is logged."""
    spare = nn.Linear(1, 1)
    with Monitor(nn.ReLU(), torch.optim.SGD(spare.parameters(), lr=0.1)) as monitor:
        monitor.step(1.0)

    assert 1.0 == monitor.history.facts["share_untrained"] and ["train/loss"] == monitor.history.names()


def train_as_engine(monitor: Monitor, steps: int, broken_at: int | None = None) -> History:
    """Call an observer as the engine does: at sampled steps counted from 1, with a non-finite update suppressed."""
    net, history = make_model(), History()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    monitor.start(net, optimizer, history, 0)
    for step, (x, y) in enumerate(batches(steps), 1):
        if step == broken_at:
            x[0, 0] = math.nan
        optimizer.zero_grad()
        due = step % monitor.every == 0
        if due:
            monitor.before_forward(step)
        out = net(x)
        loss = nn.functional.cross_entropy(out, y)
        loss.backward()
        if due:
            monitor.before_update(step, x, y, out, loss)
        if not loss.isfinite():
            history.event("nonfinite", step, what="loss")
            break
        optimizer.step()
        if due:
            monitor.after_update(step)
    monitor.validated(0, {"val/loss": 1.0})
    monitor.finish()
    return history


class Extremes(nn.Module):
    """One unit of the rectifier is dead, half of the units of the sigmoid are saturated, and one class is answered."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.relu, self.sigmoid, self.head = nn.Linear(6, 4), nn.ReLU(), nn.Sigmoid(), nn.Linear(4, 3)
        with torch.no_grad():
            self.body.bias[0] = -100.0
            self.head.bias.copy_(torch.tensor([50.0, 0.0, 0.0]))
        self.scale = torch.tensor([100.0, 100.0, 0.0, 0.0])

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.relu(self.body(x))
        return self.head(self.sigmoid((hidden - 1) * self.scale))


@pytest.mark.parametrize("step_first", [True, False])
def test_monitor_measures_activations(step_first: bool) -> None:
    """Dead and saturated units and collapsed outputs are measured in sampled steps only, wherever `step` is called."""
    torch.manual_seed(0)
    net = Extremes()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    with Monitor(net, optimizer, every=5) as monitor:
        for x, y in batches(8):
            out = net(x)
            loss = nn.functional.cross_entropy(out, y)
            loss.backward()
            if step_first:
                monitor.step(loss, x, y, out)
            optimizer.step()
            if not step_first:
                monitor.step(loss, x, y, out)
        history = monitor.history

    assert [0, 1, 2, 5] == history.series("zeros/relu")[0].tolist()
    assert all(value == 0.25 for value in history.series("zeros/relu")[1])
    assert all(value > 0.3 for value in history.series("saturated/sigmoid")[1])
    assert all(value > 0 for value in history.series("activation_rms/body")[1])
    assert not any(module._forward_hooks for module in net.modules())
    if step_first:
        assert all(value < 0.01 for value in history.series("output_entropy")[1])


def test_monitor_as_observer_samples_steps() -> None:
    """The first steps and every n-th are sampled; the engine logs loss and validation itself."""
    history = train_as_engine(Monitor(every=5), 11)

    assert [1, 2, 3, 5, 10] == history.series("update_ratio")[0].tolist() == history.series("zeros/1")[0].tolist()
    assert "train/loss" not in history.names() and "val/loss" not in history.names()
    assert 1 == pytest.approx(history.facts["input_rms"], rel=0.3)


@pytest.mark.parametrize(("broken_at", "batch"), [(2, 1.0), (7, None)])
def test_monitor_examines_suppressed_update(broken_at: int, batch: float | None) -> None:
    """At a sampled step batch and weights are examined, at any other step the weights."""
    history = train_as_engine(Monitor(every=5), 9, broken_at)

    assert 0 == history.facts["weights_nonfinite"]
    assert batch == history.facts.get("batch_nonfinite")
    assert 1 == len(history.events)


def test_monitor_implements_observer_protocol() -> None:
    """The monitor has every method that the engine calls on an observer."""
    from pipeline.engine.observer import StepObserver

    needed: list[Any] = [name for name in vars(StepObserver) if not name.startswith("_")]
    assert needed and all(hasattr(Monitor(), name) for name in needed)
