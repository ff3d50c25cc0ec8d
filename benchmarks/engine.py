"""How fast is the engine beside a loop that does nothing but train?  `make bench`

The same data, model, optimizer and steps, three ways: (a) a bare loop that indexes tensors, (b) the idiomatic
`DataLoader` loop, (c) this engine with its defaults (order by seed, non-finite guard, history, monitor). Rounds are
interleaved, so that a machine that slows down slows all three; medians and ratios are what counts. Judges nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from diagnostics.monitor import Monitor
from pipeline.__main__ import house
from pipeline.data.load import load
from pipeline.drafting import draft
from pipeline.engine.loop import fit
from pipeline.job import Job
from pipeline.models.mlp import MLP
from pipeline.record import permits
from pipeline.session import drive

EPOCHS = 60
BATCH = 64


def bare(X: torch.Tensor, y: torch.Tensor) -> int:
    """(a) steps of a loop that indexes tensors."""
    torch.manual_seed(0)
    model, loss = MLP(64, 10), nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    steps = 0
    for _ in range(EPOCHS):
        order = torch.randperm(len(X))
        for start in range(0, len(X), BATCH):
            rows = order[start : start + BATCH]
            optimizer.zero_grad()
            loss(model(X[rows]), y[rows]).backward()
            optimizer.step()
            steps += 1
    return steps


def loader(X: torch.Tensor, y: torch.Tensor) -> int:
    """(b) steps of the loop that every tutorial shows."""
    torch.manual_seed(0)
    model, loss = MLP(64, 10), nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    steps = 0
    batches = DataLoader(TensorDataset(X, y), batch_size=BATCH, shuffle=True)
    for _ in range(EPOCHS):
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss(model(inputs), targets).backward()
            optimizer.step()
            steps += 1
    return steps


def rates(ways: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Steps per second of each way, round by round, interleaved; the first round only warms up."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            steps = way()
            if number:
                found[name].append(steps / (time.perf_counter() - started))
    return found


def planned(root: Path) -> Any:
    """A real permit for the digits, from a real open gate."""
    made = draft(["experiment=digits", "phase=planning", "tracking=none", f"run.root={root}"], ())
    run, gate, _ = drive(house(lambda text: None), made)
    assert gate == "open"
    return permits.train(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds that count")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        permit = planned(Path(folder))
        data = load(permit.plan.config)
        job = Job(permit.plan.digest, "baseline")
        ways = {
            "a bare loop": lambda: bare(data.train.X, data.train.y),
            "b DataLoader": lambda: loader(data.train.X, data.train.y),
            "c engine": lambda: fit(permit, job, [Monitor()], data=data).steps,
        }
        found = rates(ways, rounds)
    print(f"digits MLP 64-128-10, batch {BATCH}, AdamW, 1 thread, {rounds} interleaved rounds")
    print(f"{'':<14}{'steps/s':>9}{'min':>9}{'max':>9}{'over a':>9}{'over b':>9}")
    for name, values in found.items():
        over = [median(v / w for v, w in zip(values, found[other], strict=True)) for other in list(found)[:2]]
        print(f"{name:<14}{median(values):>9.0f}{min(values):>9.0f}{max(values):>9.0f}{over[0]:>9.2f}{over[1]:>9.2f}")


if __name__ == "__main__":
    main()
