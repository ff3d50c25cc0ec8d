"""A process that trains one case with one training loop, as often as it is asked to.

Each loop has a process of its own. In a shared process the settings of the engine (threads, allocator, kernels) would
also speed up the loops that it is compared with.
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
    from cases import PlannedCase
    from torch import Tensor, nn
    from torch.optim import Optimizer


def build_components(planned: PlannedCase) -> tuple[nn.Module, nn.Module, Optimizer]:
    """Return model, loss and optimizer as a plain script would build them."""
    import torch
    from torch import nn

    from pipeline.config.build import build

    torch.manual_seed(0)
    config = planned.permit.plan.config
    model: Any = build(dict(config["model"]), where="model")
    return model, nn.CrossEntropyLoss(), torch.optim.AdamW(model.parameters(), lr=config["optimizer"]["lr"])


def train(planned: PlannedCase, batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> int:
    """Train with a plain loop over the batches of every epoch; return the number of steps."""
    model, loss, optimizer = build_components(planned)
    steps = 0
    for _ in range(planned.case.epochs):
        for inputs, targets in batches():
            optimizer.zero_grad()
            loss(model(inputs), targets).backward()
            optimizer.step()
            steps += 1
    return steps


def tensor_loop(planned: PlannedCase) -> int:
    """(a) a loop that indexes tensors."""
    import torch

    X, y = planned.data.train
    size = int(planned.permit.plan.config["loader"]["batch_size"])

    def batches() -> Iterable[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(X))
        for start in range(0, len(X), size):
            rows = order[start : start + size]
            yield X[rows], y[rows]

    return train(planned, batches)


def data_loader_loop(planned: PlannedCase) -> int:
    """(b) the `DataLoader` loop of every tutorial."""
    from torch.utils.data import DataLoader, TensorDataset

    size = int(planned.permit.plan.config["loader"]["batch_size"])
    loader = DataLoader(TensorDataset(*planned.data.train), batch_size=size, shuffle=True)
    return train(planned, lambda: loader)


def engine_loop(planned: PlannedCase) -> int:
    """(c) this engine, with checkpoints on disk."""
    from diagnostics.monitor import Monitor
    from pipeline.engine.fit import fit

    with TemporaryDirectory() as folder:
        return fit(planned.permit, planned.job, [Monitor()], data=planned.data, folder=Path(folder)).steps


LOOPS: dict[str, Callable[[PlannedCase], int]] = {
    "a bare loop": tensor_loop,
    "b DataLoader": data_loader_loop,
    "c engine": engine_loop,
}


def work(name: str, loop: str) -> None:
    """Train the case once as a warm-up, then once per line of stdin, and print the steps per second."""
    import torch
    from cases import plan_case

    torch.set_num_threads(1)
    with plan_case(name) as planned:
        LOOPS[loop](planned)
        sizes = f"{len(planned.data.train)} train and {len(planned.data.val)} validation rows"
        print(sizes, flush=True)
        for _ in sys.stdin:
            started = time.perf_counter()
            print(LOOPS[loop](planned) / (time.perf_counter() - started), flush=True)


class TrainingProcess:
    """The parent's handle of such a process; `sizes` says how many rows it trains on.

    With `checkout`, the process runs the code and the environment of another checkout that has this file.
    """

    def __init__(self, name: str, loop: str = "c engine", checkout: Path | None = None) -> None:
        command: Any = [sys.executable, __file__, name, loop]
        if checkout is not None:
            python = checkout / ".venv" / "bin" / "python"
            command = [python, checkout / "benchmarks" / "training_process.py", name, loop]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.sizes = self._read_line()

    def start_training(self) -> None:
        """Start another training, without waiting for it."""
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)

    def steps_per_second(self) -> float:
        """Wait for the training and return its speed."""
        return float(self._read_line())

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _read_line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise SystemExit("a benchmark process died")
        return line


if __name__ == "__main__":
    work(*sys.argv[1:])
