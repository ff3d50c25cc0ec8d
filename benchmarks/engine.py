"""How fast is the engine beside loops that do nothing but train?  `make bench`

The same data, model, optimizer and steps, three ways: (a) a bare loop that indexes tensors, (b) the idiomatic
`DataLoader` loop, (c) this engine with its defaults: order by seed, non-finite guard, monitor, history, checkpoints on
disk, and validation at the end of every epoch, which the other two leave out. Rounds are interleaved, so that a
machine that slows down slows all three. Judges nothing.

    benchmarks/engine.py --case mlp --rounds 7    one case; all four by default
    benchmarks/engine.py --pair                   two engine runs side by side against one alone
    benchmarks/engine.py --startup                seconds from the command to the first optimizer step
    benchmarks/engine.py --long 1000000           steps per second and memory over a long training
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from cases import CASES, Planned, planned
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from diagnostics.monitor import Monitor
from pipeline.config.build import build
from pipeline.engine.fit import fit


def parts(given: Planned) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
    """Model, loss and optimizer as anybody would write them down."""
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


def bare(given: Planned) -> int:
    """(a) a loop that indexes tensors."""
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
    size = int(given.permit.plan.config["loader"]["batch_size"])
    batches = DataLoader(TensorDataset(*given.data.train), batch_size=size, shuffle=True)
    return trained(given, lambda: batches)


def engine(given: Planned) -> int:
    """(c) this engine, its checkpoints on disk."""
    with TemporaryDirectory() as folder:
        return fit(given.permit, given.job, [Monitor()], data=given.data, folder=Path(folder)).steps


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


def table(found: dict[str, list[float]]) -> Iterable[str]:
    """Medians, extremes, and the medians of the paired ratios."""
    first, second = list(found)[:2]
    yield f"{'':<14}{'steps/s':>9}{'min':>9}{'max':>9}{'over a':>8}{'over b':>8}{'   over a, from to':>18}"
    for name, values in found.items():
        over_a, over_b = ([v / w for v, w in zip(values, found[other], strict=True)] for other in (first, second))
        spread = f"{min(over_a):.2f} to {max(over_a):.2f}"
        figures = f"{median(values):>9.1f}{min(values):>9.1f}{max(values):>9.1f}"
        yield f"{name:<14}{figures}{median(over_a):>8.2f}{median(over_b):>8.2f}{spread:>18}"


def compare(name: str, rounds: int) -> None:
    with planned(name) as given:
        ways = {"a bare loop": bare, "b DataLoader": loader, "c engine": engine}
        found = rates({title: lambda way=way: way(given) for title, way in ways.items()}, rounds)  # type: ignore[misc]
        sizes = f"{len(given.data.train)} train and {len(given.data.val)} validation rows, {given.case.epochs} epochs"
    print(f"\n{CASES[name].title}, AdamW, 1 thread, {sizes}, {rounds} interleaved rounds")
    print("\n".join(table(found)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append", help="one of the trainings; may be repeated")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds that count")
    parser.add_argument("--pair", action="store_true", help="two runs side by side against one alone")
    parser.add_argument("--startup", action="store_true", help="seconds to the first optimizer step")
    parser.add_argument("--long", type=int, metavar="N", help="N steps of the digits MLP")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    cases = asked.case or list(CASES)
    if asked.pair:
        from pair import pair

        return pair(asked.case or ["mlp", "cnn28"], asked.rounds)
    if asked.startup:
        from startup import startup

        return startup(asked.rounds)
    if asked.long:
        from long import long

        return long(asked.long)
    for name in cases:
        compare(name, asked.rounds)


if __name__ == "__main__":
    main()
