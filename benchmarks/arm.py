"""One arm of a comparison: a process of its own that trains a case, one way, whenever it is asked.

Each arm has a process, since an engine that sets up its process well would else set up that of its rivals too.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cases import Planned
    from torch import Tensor, nn
    from torch.optim import Optimizer


def parts(given: Planned) -> tuple[nn.Module, nn.Module, Optimizer]:
    """Model, loss and optimizer as anybody would write them down."""
    import torch
    from torch import nn

    from pipeline.config.build import build

    torch.manual_seed(0)
    config = given.permit.plan.config
    model: Any = build(dict(config["model"]), where="model")
    return model, nn.CrossEntropyLoss(), torch.optim.AdamW(model.parameters(), lr=config["optimizer"]["lr"])


def trained(given: Planned, epoch: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> int:
    """The steps of a plain loop over these batches."""
    model, loss, optimizer = parts(given)
    steps = 0
    for _ in range(given.case.epochs):
        for inputs, targets in epoch():
            optimizer.zero_grad()
            loss(model(inputs), targets).backward()
            optimizer.step()
            steps += 1
    return steps


def unwrap(given: Planned) -> int:
    """(a) a loop that indexes tensors."""
    import torch

    X, y = given.data.train
    size = int(given.permit.plan.config["loader"]["batch_size"])

    def epoch() -> Iterable[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(X))
        for start in range(0, len(X), size):
            rows = order[start : start + size]
            yield X[rows], y[rows]

    return trained(given, epoch)


def loader(given: Planned) -> int:
    """(b) the loop that every tutorial shows."""
    from torch.utils.data import DataLoader, TensorDataset

    size = int(given.permit.plan.config["loader"]["batch_size"])
    batches = DataLoader(TensorDataset(*given.data.train), batch_size=size, shuffle=True)
    return trained(given, lambda: batches)


def engine(given: Planned) -> int:
    """(c) this engine, its checkpoints on disk."""
    from diagnostics.monitor import Monitor
    from pipeline.engine.fit import fit

    with TemporaryDirectory() as folder:
        return fit(given.permit, given.job, [Monitor()], data=given.data, folder=Path(folder)).steps


WAYS: dict[str, Callable[[Planned], int]] = {"a bare loop": unwrap, "b DataLoader": loader, "c engine": engine}


def work(name: str, way: str) -> None:
    """Train the case once to warm up, then once for every line that comes in, and tell the steps per second."""
    import torch
    from cases import planned

    torch.set_num_threads(1)
    with planned(name) as given:
        WAYS[way](given)
        sizes = f"{len(given.data.train)} train and {len(given.data.val)} validation rows"
        print(sizes, flush=True)
        for _ in sys.stdin:
            started = time.perf_counter()
            print(WAYS[way](given) / (time.perf_counter() - started), flush=True)


class Arm:
    """Such a process, seen from outside; `sizes` says what it trains on."""

    def __init__(self, name: str, way: str = "c engine") -> None:
        command: Any = [sys.executable, __file__, name, way]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.sizes = self.told()

    def told(self) -> str:
        """What the process says next."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise SystemExit("a benchmark process died")
        return line

    def ask(self) -> None:
        """It trains once more."""
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)

    def end(self) -> None:
        """It is gone."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


if __name__ == "__main__":
    work(*sys.argv[1:])
