"""Two trainings side by side, each a process of its own, beside one alone: how much of its speed does each keep?"""

from __future__ import annotations

from statistics import median

from arm import Arm
from cases import CASES


def pair(names: list[str], rounds: int) -> None:
    for name in names:
        one, other = workers = [Arm(name), Arm(name)]
        alone, beside = [], []
        for _ in range(rounds):
            one.ask()
            alone.append(float(one.told()))
            for worker in workers:
                worker.ask()
            beside.append(min(float(worker.told()) for worker in workers))
        one.end()
        other.end()
        ratios = [slower / single for slower, single in zip(beside, alone, strict=True)]
        print(f"{CASES[name].title}, {rounds} interleaved rounds")
        print(f"  alone {median(alone):.1f} steps/s; side by side the slower of two {median(beside):.1f}", end="; ")
        print(f"ratio {median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}", flush=True)
