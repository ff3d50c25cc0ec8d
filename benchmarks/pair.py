"""Two trainings in parallel, each in its own process, compared with a single one: how much slower are they?"""

from __future__ import annotations

from statistics import median

from cases import CASES
from training_process import TrainingProcess


def compare_pair(names: list[str], rounds: int) -> None:
    for name in names:
        first, second = processes = [TrainingProcess(name), TrainingProcess(name)]
        single_speeds, parallel_speeds = [], []
        for _ in range(rounds):
            first.start_training()
            single_speeds.append(first.steps_per_second())
            for process in processes:
                process.start_training()
            parallel_speeds.append(min(process.steps_per_second() for process in processes))
        first.close()
        second.close()
        ratios = [parallel / single for parallel, single in zip(parallel_speeds, single_speeds, strict=True)]
        single, parallel = median(single_speeds), median(parallel_speeds)
        print(f"{CASES[name].title}, {rounds} interleaved rounds")
        print(f"  single {single:.1f} steps/s; the slower of two in parallel {parallel:.1f}", end="; ")
        print(f"ratio {median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}", flush=True)
