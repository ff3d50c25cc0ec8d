"""How fast is the engine compared with loops that only train?  `make bench`

The same data, model, optimizer and number of steps, three ways: (a) a bare loop that indexes tensors, (b) the usual
`DataLoader` loop, (c) this engine with its defaults: seeded order, non-finite guard, monitor, history, checkpoints on
disk, and validation after every epoch, which the other two omit. Each loop has a process of its own, and rounds are
interleaved, so that a machine that becomes slower slows down all three. The benchmark prints ratios and judges nothing.

    benchmarks/engine.py --case mlp --rounds 7    one case; all four by default
    benchmarks/engine.py --pair                   two engine runs in parallel compared with a single one
    benchmarks/engine.py --startup                seconds from the command to the first optimizer step
    benchmarks/engine.py --long 1000000           steps per second and memory during a long training
    benchmarks/engine.py --monitor                what the Monitor costs a step, in the engine and in a plain loop
    benchmarks/engine.py --against ../before      this engine and the one of another checkout, in turn
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from cases import CASES
from training_process import LOOPS, TrainingProcess


def measure_speeds(processes: dict[str, TrainingProcess], rounds: int) -> dict[str, list[float]]:
    """Return the steps per second of each loop in each round; the loops of a round run one after the other."""
    speeds: dict[str, list[float]] = {name: [] for name in processes}
    for _ in range(rounds):
        for name, process in processes.items():
            process.start_training()
            speeds[name].append(process.steps_per_second())
    return speeds


def format_table(speeds: dict[str, list[float]]) -> Iterable[str]:
    """Yield lines with medians, extremes, and medians of the ratios per round."""
    first, second = list(speeds)[:2]
    yield f"{'':<14}{'steps/s':>9}{'min':>9}{'max':>9}{'over a':>8}{'over b':>8}{'   over a, from to':>18}"
    for name, values in speeds.items():
        over_a, over_b = ([v / w for v, w in zip(values, speeds[other], strict=True)] for other in (first, second))
        span = f"{min(over_a):.2f} to {max(over_a):.2f}"
        summary = f"{median(values):>9.1f}{min(values):>9.1f}{max(values):>9.1f}"
        yield f"{name:<14}{summary}{median(over_a):>8.2f}{median(over_b):>8.2f}{span:>18}"


def compare_loops(name: str, rounds: int) -> None:
    processes = {loop: TrainingProcess(name, loop) for loop in LOOPS}
    speeds = measure_speeds(processes, rounds)
    sizes = f"{next(iter(processes.values())).sizes}, {CASES[name].epochs} epochs"
    for process in processes.values():
        process.close()
    print(f"\n{CASES[name].title}, AdamW, 1 thread, {sizes}, {rounds} interleaved rounds")
    print("\n".join(format_table(speeds)), flush=True)


def compare_checkouts(name: str, rounds: int, other: Path) -> None:
    """Time the engine of another checkout and this one in turn; each round swaps the order of the two."""
    processes = {str(other): TrainingProcess(name, checkout=other), "this checkout": TrainingProcess(name)}
    speeds: dict[str, list[float]] = {checkout: [] for checkout in processes}
    for round_index in range(rounds):
        for checkout in list(processes)[:: -1 if round_index % 2 else 1]:
            processes[checkout].start_training()
            speeds[checkout].append(processes[checkout].steps_per_second())
    for process in processes.values():
        process.close()
    ratios = [now / before for before, now in zip(*speeds.values(), strict=True)]
    print(
        f"\n{CASES[name].title}, {rounds} rounds: "
        + ", ".join(f"{k} {median(v):.1f} steps/s" for k, v in speeds.items())
    )
    print(f"ratio, median {median(ratios):.3f}, from {min(ratios):.2f} to {max(ratios):.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append", help="one of the trainings; may be repeated")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds that are measured")
    parser.add_argument("--pair", action="store_true", help="two runs in parallel compared with a single one")
    parser.add_argument("--startup", action="store_true", help="seconds to the first optimizer step")
    parser.add_argument("--long", type=int, metavar="N", help="N steps of the digits MLP")
    parser.add_argument("--monitor", action="store_true", help="what the Monitor costs a step")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout with an environment")
    args = parser.parse_args()
    if args.pair:
        from pair import compare_pair

        return compare_pair(args.case or ["mlp", "cnn28"], args.rounds)
    if args.startup:
        from startup import measure_startup

        return measure_startup(args.rounds)
    if args.long:
        from long import train_long

        return train_long(args.long)
    if args.monitor:
        from monitor_cost import compare_monitor

        return compare_monitor(args.case or list(CASES), 10 * args.rounds)
    for name in args.case or list(CASES):
        if args.against:
            compare_checkouts(name, args.rounds, args.against.resolve())
            continue
        compare_loops(name, args.rounds)


if __name__ == "__main__":
    main()
