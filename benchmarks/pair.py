"""Two trainings side by side, each a process of its own, beside one alone: how much of its speed does each keep?"""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

from cases import CASES, planned


def work(name: str) -> None:
    """A process that trains a case once for every line it is given, and tells its steps per second."""
    import torch
    from engine import engine

    torch.set_num_threads(1)
    with planned(name) as given:
        engine(given)
        print("ready", flush=True)
        for _ in sys.stdin:
            started = time.perf_counter()
            print(engine(given) / (time.perf_counter() - started), flush=True)


class Worker:
    """Such a process, seen from outside."""

    def __init__(self, name: str) -> None:
        command = [sys.executable, __file__, name]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def told(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise SystemExit("a benchmark process died")
        return line

    def ask(self) -> None:
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def pair(names: list[str], rounds: int) -> None:
    for name in names:
        one, other = workers = [Worker(name), Worker(name)]
        for worker in workers:
            worker.told()
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


if __name__ == "__main__":
    work(sys.argv[1])
