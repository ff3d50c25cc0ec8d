"""What does the Monitor cost a training?  `make bench ARGS='--monitor'`

The same training twice in one process, with the Monitor at its default of every 100 steps and without it: ten steps of
one, ten steps of the other, each timed by itself. `engine` is this project's training, in which the Monitor is an
observer; `own loop` is a plain loop that calls `monitor.step`. Compared are the fastest twentieths of the steps, as
other programs on the machine only make steps slower: of the steps without the Monitor, of those between two samples,
and of the sampled ones. One step in a hundred is sampled. The first three steps are all sampled, and a loop's model is
inspected then: what they cost in all is told apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import torch
from cases import CASES, PlannedCase, plan_case
from numpy.typing import NDArray
from training_process import build_components

from diagnostics.monitor import FIRST_STEPS, Monitor
from pipeline.batching.source import Batch
from pipeline.engine.fit import prepared
from pipeline.engine.loop import Training

EVERY = 100
FAST = 0.05  # the quantile of the seconds of a step
LEAST_SAMPLES, SECONDS = 7, 60.0  # sampled steps; and seconds of both trainings, where these are enough for them
ENDLESS = ("trainer.max_epochs=100000", "trainer.max_minutes=1000000", "trainer.threads=1")
BLOCK = 10  # steps of one training before the other goes on
Block = Callable[[], list[float]]  # makes the next steps, and returns the seconds of each


@dataclass
class Cost:
    """Seconds of steps without the Monitor, of those between samples, and of sampled ones; and of the first steps."""

    plain: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    sampled: list[float] = field(default_factory=list)
    start: float = 0.0

    def summary(self) -> str:
        """Return what the Monitor adds to a step in µs and as a share, with a 95 % interval by resampling steps."""
        draw = np.random.default_rng(0)
        parts = [np.array(seconds) for seconds in (self.plain, self.between, self.sampled)]
        resampled = [_added(*(draw.choice(part, len(part)) for part in parts)) for _ in range(500)]
        low, high = np.quantile(resampled, (0.025, 0.975))
        step, cost = float(np.quantile(parts[0], FAST)), _added(*parts)
        return (
            f"{step * 1e6:>9.0f} µs a step, Monitor {cost * 1e6:+6.1f} µs ({low * 1e6:.1f} to {high * 1e6:.1f}), "
            f"{cost / step:+.2%} ({low / step:.2%} to {high / step:.2%}); start {self.start * 1e3:.0f} ms; "
            f"{len(parts[0])} steps, {len(parts[2])} sampled"
        )


def _added(plain: NDArray[np.float64], between: NDArray[np.float64], sampled: NDArray[np.float64]) -> float:
    """Return what the Monitor adds to an average step."""
    base, usual, measured = (float(np.quantile(seconds, FAST)) for seconds in (plain, between, sampled))
    return ((EVERY - 1) * usual + measured) / EVERY - base


class TimedTraining(Training):
    """A training in the engine that notes the seconds of each of its steps, without the validations between them."""

    def _train_step(self, step_seed: int, batches: list[Batch]) -> bool:
        began = time.perf_counter()
        made = super()._train_step(step_seed, batches)
        self.seconds.append(time.perf_counter() - began)
        return made

    def block(self) -> list[float]:
        """Make a block of steps and return the seconds of each."""
        self.seconds: list[float] = []
        self.run(until=self.progress.step + BLOCK)
        return self.seconds


def engine_blocks(planned: PlannedCase, stack: ExitStack, watched: bool) -> Block:
    """The blocks of a training in the engine."""
    components = stack.enter_context(prepared(planned.permit, planned.job, planned.data))
    training = TimedTraining(planned.permit, components, planned.job)
    stack.enter_context(training.session([Monitor()] if watched else []))
    return training.block


def loop_blocks(planned: PlannedCase, stack: ExitStack, watched: bool) -> Block:
    """The blocks of a plain loop."""
    steps = _loop(planned, stack, watched)
    return lambda: [next(steps) for _ in range(BLOCK)]


def _loop(planned: PlannedCase, stack: ExitStack, watched: bool) -> Iterator[float]:
    """Train without end, validate once as every loop does, and yield the seconds of each step."""
    model, loss, optimizer = build_components(planned)
    monitor = stack.enter_context(Monitor(model, optimizer)) if watched else None
    X, y = planned.data.train
    size = int(planned.permit.plan.config["loader"]["batch_size"])
    while True:
        for rows in torch.randperm(len(X)).split(size):
            inputs, targets = X[rows], y[rows]
            began = time.perf_counter()
            optimizer.zero_grad()
            outputs = model(inputs)
            value = loss(outputs, targets)
            value.backward()
            if monitor:
                monitor.step(value, inputs, targets, outputs)
            optimizer.step()
            yield time.perf_counter() - began
        if monitor and not monitor.history.epoch:
            X_val, y_val = planned.data.val
            with torch.no_grad():
                monitor.validated(loss=float(loss(model.eval()(X_val[:size]), y_val[:size])))
            model.train()


# The engine counts steps from 1, a monitor in a loop of one's own from 0.
KINDS: dict[str, tuple[Callable[[PlannedCase, ExitStack, bool], Block], int]] = {
    "engine": (engine_blocks, 1),
    "own loop": (loop_blocks, 0),
}


def measure(planned: PlannedCase, kind: str, samples: int) -> Cost:
    """Time both trainings in turn, until so many steps were sampled or the time is used up."""
    cost, spent, (make_blocks, first) = Cost(), 0.0, KINDS[kind]
    with ExitStack() as stack:
        plain, watched = (make_blocks(planned, stack, watch) for watch in (False, True))
        step = first
        while len(cost.sampled) < LEAST_SAMPLES or (len(cost.sampled) < samples and spent < SECONDS):
            for without, with_monitor in zip(plain(), watched(), strict=True):
                spent += without + with_monitor
                if step < first + FIRST_STEPS:
                    cost.start += with_monitor - without
                else:
                    cost.plain.append(without)
                    (cost.between if step % EVERY else cost.sampled).append(with_monitor)
                step += 1
    return cost


def compare_monitor(names: list[str], samples: int) -> None:
    """Print what the Monitor costs each of the trainings."""
    torch.set_num_threads(1)
    for name in names:
        with plan_case(name, *ENDLESS) as planned:
            print(f"\n{CASES[name].title}", flush=True)
            for kind in KINDS:
                print(f"  {kind:<9}{measure(planned, kind, samples).summary()}", flush=True)
