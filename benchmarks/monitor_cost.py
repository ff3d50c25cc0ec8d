"""What does the Monitor cost a training?  `make bench ARGS='--monitor'`

The same training twice in one process, with the Monitor at its default of every 100 steps and without it: one step of
one, one step of the other, each timed by itself. `engine` is this project's training, in which the Monitor is an
observer; `own loop` is a plain loop that calls `monitor.step`. Compared are the fastest tenths of the steps, since
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
from pipeline.engine.fit import prepared
from pipeline.engine.loop import Training

EVERY = 100
FAST = 0.1  # the quantile of the seconds of a step
LEAST_SAMPLES, SECONDS = 7, 60.0  # sampled steps; and seconds of both trainings, where these are enough for them
ENDLESS = ("trainer.max_epochs=100000", "trainer.max_minutes=1000000", "trainer.threads=1")
Step = Callable[[], object]


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


def engine_steps(planned: PlannedCase, stack: ExitStack, watched: bool) -> Step:
    """One step of a training in the engine, at each call."""
    components = stack.enter_context(prepared(planned.permit, planned.job, planned.data))
    training = Training(planned.permit, components, planned.job)
    stack.enter_context(training.session([Monitor()] if watched else []))
    return lambda: training.run(until=training.progress.step + 1)


def loop_steps(planned: PlannedCase, stack: ExitStack, watched: bool) -> Step:
    """One step of a plain loop, at each call."""
    steps = _loop(planned, stack, watched)
    return lambda: next(steps)


def _loop(planned: PlannedCase, stack: ExitStack, watched: bool) -> Iterator[None]:
    model, loss, optimizer = build_components(planned)
    monitor = stack.enter_context(Monitor(model, optimizer)) if watched else None
    X, y = planned.data.train
    size = int(planned.permit.plan.config["loader"]["batch_size"])
    while True:
        for rows in torch.randperm(len(X)).split(size):
            inputs, targets = X[rows], y[rows]
            optimizer.zero_grad()
            outputs = model(inputs)
            value = loss(outputs, targets)
            value.backward()
            if monitor:
                monitor.step(value, inputs, targets, outputs)
            optimizer.step()
            yield


# The engine counts steps from 1, a monitor in a loop of one's own from 0.
KINDS = {"engine": (engine_steps, 1), "own loop": (loop_steps, 0)}


def measure(planned: PlannedCase, kind: str, samples: int) -> Cost:
    """Time steps of both trainings in turn, until so many were sampled or the time is used up."""
    cost, spent, (make_steps, first) = Cost(), 0.0, KINDS[kind]
    with ExitStack() as stack:
        plain, watched = (make_steps(planned, stack, watched=watch) for watch in (False, True))
        step = first
        while len(cost.sampled) < LEAST_SAMPLES or (len(cost.sampled) < samples and spent < SECONDS):
            without, with_monitor = _timed(plain), _timed(watched)
            spent += without + with_monitor
            if step < first + FIRST_STEPS:
                cost.start += with_monitor - without
            else:
                cost.plain.append(without)
                (cost.between if step % EVERY else cost.sampled).append(with_monitor)
            step += 1
    return cost


def _timed(step: Step) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def compare_monitor(names: list[str], samples: int) -> None:
    """Print what the Monitor costs each of the trainings."""
    torch.set_num_threads(1)
    for name in names:
        with plan_case(name, *ENDLESS) as planned:
            print(f"\n{CASES[name].title}", flush=True)
            for kind in KINDS:
                print(f"  {kind:<9}{measure(planned, kind, samples).summary()}", flush=True)
