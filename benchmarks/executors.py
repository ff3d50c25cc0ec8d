"""How many trials an hour do two workers train, compared with one?  `make bench-executors`

The trials are real jobs of a planned `digits` run: equal trainings on different seeds, each in a process of its own,
which also starts Python and imports torch, as in an optimization. A pair is the same number of trials with one worker
and with two, in an order that alternates, so that a machine that becomes slower slows down both. On two free cores two
workers should train at least 1.8 times as many. Other work on the machine makes the ratio say nothing, so that the load
before each pair is printed.

    benchmarks/executors.py --pairs 3 --trials 4     the default; --epochs 60 for longer trainings
    benchmarks/executors.py --executor submitit      jobs of submitit on this machine; or ray
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median

from pipeline.__main__ import make_hooks, make_registry
from pipeline.executors.settings import ExecutorSettings
from pipeline.orchestration.execute import execute_run
from pipeline.orchestration.run_request import resolve_request
from pipeline.run_store import permits
from pipeline.run_store.job import Delta, Job
from pipeline.run_store.run import Run
from pipeline.trials.executor import run_jobs

EXPECTED = 1.8  # trials per hour of two workers on two free cores, compared with one
PLAN = ("experiment=digits", "tracking=none", "trainer.threads=1")


def planned_run(root: Path, epochs: int) -> Run:
    """Return a run of digits whose planning gate is open."""
    arguments = [*PLAN, f"trainer.max_epochs={epochs}", f"run.root={root}", "phase=planning"]
    outcome = execute_run(make_registry(), make_hooks(lambda text: None), resolve_request(arguments, []))
    assert outcome.gate == "open", outcome
    return outcome.run


def trials_per_hour(run: Run, name: str, workers: int, trials: int, executor: ExecutorSettings) -> float:
    """Train the trials with so many workers, and return how many an hour that would be."""
    plan = permits.train(run).plan.digest
    jobs = [(f"t{index}", Job(plan, "trial", Delta(), index)) for index in range(10, 10 + trials)]
    start = time.perf_counter()
    ended = run_jobs(
        jobs, run.inside(name), parallel=workers, threads=1, on_finished=lambda trial: None, settings=executor
    )
    seconds = time.perf_counter() - start
    assert not any(trial.died for trial in ended), [trial.died for trial in ended]
    return 3600 * trials / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--trials", type=int, default=4, help="of each half of a pair")
    parser.add_argument("--epochs", type=int, default=60, help="of each trial, as the experiment has")
    parser.add_argument("--executor", choices=("local", "submitit", "ray"), default="local")
    args = parser.parse_args()
    executor = ExecutorSettings(kind=args.executor, cluster="local")
    ratios: list[float] = []
    with tempfile.TemporaryDirectory() as root:
        run = planned_run(Path(root), args.epochs)
        print(f"{args.trials} trials of {args.epochs} epochs, {args.executor}, {os.cpu_count()} cores, trials per hour")
        for pair in range(args.pairs):
            order = (1, 2) if pair % 2 == 0 else (2, 1)
            load = os.getloadavg()[0]
            rates = {n: trials_per_hour(run, f"{pair}-{n}", n, args.trials, executor) for n in order}
            ratios.append(rates[2] / rates[1])
            print(f"  one worker {rates[1]:.0f}, two {rates[2]:.0f}: {ratios[-1]:.2f} times (load before: {load:.1f})")
    verdict = "reached" if median(ratios) >= EXPECTED else "missed"
    print(f"median {median(ratios):.2f} times, from {min(ratios):.2f} to {max(ratios):.2f}; {EXPECTED} is {verdict}")


if __name__ == "__main__":
    main()
