"""Real loops that go on from a checkpoint, and that have workers, as the Monitor sees them, each with its twin."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from diagnostics.monitor import Monitor
from tests.test_loop_faults import found, rows_of


def net_of(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, monitor: Monitor | None, epochs: range) -> None:
    """Train for some epochs in a plain loop."""
    for epoch in epochs:
        for update in range(10):
            x, y = rows_of(10 * epoch + update)
            outputs = net(x)
            loss = nn.functional.cross_entropy(outputs, y)
            optimizer.zero_grad()
            loss.backward()
            if monitor:
                monitor.step(loss, x, y, outputs)
            optimizer.step()
        if monitor:
            monitor.validated(epoch, loss=loss.item())


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model."])
def test_loop_findings_see_a_checkpoint_whose_keys_do_not_fit(prefix: str) -> None:
    """A state whose keys have a prefix loads nothing where strict is False; without the prefix nothing is accused."""
    trained = net_of(0)
    optimizer = torch.optim.Adam(trained.parameters(), lr=0.01)
    train(trained, optimizer, None, range(20))
    state = {f"{prefix}{name}": value for name, value in trained.state_dict().items()}
    resumed = net_of(1)
    resumed.load_state_dict(state, strict=False)
    restored = torch.optim.Adam(resumed.parameters(), lr=0.01)
    restored.load_state_dict(optimizer.state_dict())
    with Monitor(resumed, restored, every=5) as monitor:
        train(resumed, restored, monitor, range(20, 24))
        findings = found(monitor)

    assert ("checkpoint_not_loaded" in findings) is bool(prefix)
    assert "resume_state_lost" not in findings
    if prefix:
        assert "strict=False" in findings["checkpoint_not_loaded"].sentence


class Drawn(IterableDataset[tuple[Tensor, Tensor]]):
    """Rows that are drawn at random with a generator of NumPy, of which each worker gets a copy."""

    def __init__(self, *, seeds_workers: bool) -> None:
        self.seeds_workers, self.generator = seeds_workers, np.random.default_rng(0)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = np.random.default_rng(torch.initial_seed()) if self.seeds_workers else self.generator
        for _ in range(5 * 16):
            row = torch.from_numpy(generator.normal(size=6).astype(np.float32))
            yield row, row[:3].argmax()


@pytest.mark.parametrize("seeds_workers", [False, True])
def test_loop_findings_see_workers_with_one_generator(seeds_workers: bool) -> None:
    """Real workers that draw with copies of one generator give each batch twice; seeded by worker, they do not."""
    net = net_of(0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    with Monitor(net, optimizer, every=5) as monitor:
        for x, y in DataLoader(Drawn(seeds_workers=seeds_workers), batch_size=16, num_workers=2):
            outputs = net(x)
            loss = nn.functional.cross_entropy(outputs, y)
            optimizer.zero_grad()
            loss.backward()
            monitor.step(loss, x, y, outputs)
            optimizer.step()
        assert ("worker_seed_shared" in found(monitor)) is not seeds_workers
