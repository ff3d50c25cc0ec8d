"""What does the Monitor cost a training?  `make bench ARGS='--monitor'`

The same training twice in one process, with the Monitor at its default of every 100 steps and without it, in turn: 100
steps of one, 100 steps of the other, so that each block with the Monitor has one sampled step. Both count the seconds
of the processor, to which other programs on the machine add little, and each pair of blocks gives one difference.
`engine` is this project's training, in which the Monitor is an observer; `own loop` is a plain loop that calls
`monitor.step`. The first three steps are all sampled, and a loop's model is inspected then: they are told apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import torch
from cases import CASES, PlannedCase, plan_case
from training_process import build_components

from diagnostics.monitor import Monitor
from pipeline.engine.fit import prepared
from pipeline.engine.loop import Training

BLOCK = 100  # steps: one of them is sampled
SECONDS = 60.0  # of processor time per training, as long as there are fewer than `rounds` pairs
ENDLESS = ("trainer.max_epochs=100000", "trainer.max_minutes=1000000", "trainer.threads=1")
Block = Callable[[], float]  # makes the next steps, and returns the processor seconds of each


@dataclass
class Cost:
    """Seconds of a step without and with the Monitor, a pair per round, and what its first block costs more."""

    plain: list[float] = field(default_factory=list)
    watched: list[float] = field(default_factory=list)
    start: float = 0.0

    def summary(self) -> str:
        """Return the median cost of a step in µs and as a share, with a 95 % interval of the median over rounds."""
        added = np.subtract(self.watched, self.plain)
        draws = np.random.default_rng(0).integers(0, len(added), (2000, len(added)))
        low, high = np.quantile(np.median(added[draws], axis=1), (0.025, 0.975))
        step, cost = median(self.plain), median(added)
        return (
            f"{step * 1e6:>10.0f} µs a step, Monitor {cost * 1e6:+7.1f} µs ({low * 1e6:.1f} to {high * 1e6:.1f}), "
            f"{cost / step:+6.2%} ({low / step:.2%} to {high / step:.2%}); "
            f"start {self.start * 1e3:.0f} ms; {len(added)} pairs of {BLOCK} steps"
        )


def timed(make_steps: Callable[[], object]) -> Block:
    """Return a function that makes a block of steps and returns the processor seconds of each."""

    def block() -> float:
        began = time.process_time()
        make_steps()
        return (time.process_time() - began) / BLOCK

    return block


def engine_blocks(planned: PlannedCase, stack: ExitStack, watched: bool) -> Block:
    """The blocks of a training in the engine."""
    components = stack.enter_context(prepared(planned.permit, planned.job, planned.data))
    training = Training(planned.permit, components, planned.job)
    stack.enter_context(training.session([Monitor()] if watched else []))
    return timed(lambda: training.run(until=training.progress.step + BLOCK))


def loop_blocks(planned: PlannedCase, stack: ExitStack, watched: bool) -> Block:
    """The blocks of a plain loop."""
    steps = _loop(planned, stack, watched)
    return timed(lambda: [next(steps) for _ in range(BLOCK)])


def _loop(planned: PlannedCase, stack: ExitStack, watched: bool) -> Iterator[None]:
    model, loss, optimizer = build_components(planned)
    monitor = stack.enter_context(Monitor(model, optimizer)) if watched else None
    X, y = planned.data.train
    size = int(planned.permit.plan.config["loader"]["batch_size"])
    while True:
        for rows in torch.randperm(len(X)).split(size):
            optimizer.zero_grad()
            outputs = model(X[rows])
            value = loss(outputs, y[rows])
            value.backward()
            if monitor:
                monitor.step(value, X[rows], y[rows], outputs)
            optimizer.step()
            yield


KINDS = {"engine": engine_blocks, "own loop": loop_blocks}


def measure(planned: PlannedCase, kind: str, rounds: int) -> Cost:
    """Time blocks of both trainings in turn, in an order that changes from round to round."""
    cost, spent = Cost(), 0.0
    with ExitStack() as stack:
        plain, watched = (KINDS[kind](planned, stack, watched=w) for w in (False, True))
        first = {name: block() for name, block in (("plain", plain), ("watched", watched))}
        while len(cost.plain) < 7 or (len(cost.plain) < rounds and spent < SECONDS):
            order = [(cost.plain, plain), (cost.watched, watched)]
            for seconds, block in order[:: -1 if len(cost.plain) % 2 else 1]:
                seconds.append(block())
                spent += seconds[-1] * BLOCK
        usual = median(cost.watched) - median(cost.plain)
        cost.start = (first["watched"] - first["plain"] - usual) * BLOCK
    return cost


def compare_monitor(names: list[str], rounds: int) -> None:
    """Print what the Monitor costs each of the trainings."""
    torch.set_num_threads(1)
    for name in names:
        with plan_case(name, *ENDLESS) as planned:
            print(f"\n{CASES[name].title}", flush=True)
            for kind in KINDS:
                print(f"  {kind:<9}{measure(planned, kind, rounds).summary()}", flush=True)
