"""How fast is the engine beside loops that do nothing but train?  `make bench`

The same data, model, optimizer and steps, three ways: (a) a bare loop that indexes tensors, (b) the idiomatic
`DataLoader` loop, (c) this engine with its defaults: order by seed, non-finite guard, monitor, history, checkpoints on
disk, and validation at the end of every epoch, which the other two leave out. Each is a process of its own, all in one
group, and rounds are interleaved, so that a machine that slows down slows all three. Judges nothing.

    benchmarks/engine.py --case mlp --rounds 7    one case; all four by default
    benchmarks/engine.py --pair                   two engine runs side by side against one alone
    benchmarks/engine.py --startup                seconds from the command to the first optimizer step
    benchmarks/engine.py --long 1000000           steps per second and memory over a long training
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from statistics import median

from arm import WAYS, Arm
from cases import CASES


def rates(arms: dict[str, Arm], rounds: int) -> dict[str, list[float]]:
    """Steps per second of each arm, round by round, one after the other."""
    found: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            arm.ask()
            found[name].append(float(arm.told()))
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
    arms = {way: Arm(name, way) for way in WAYS}
    found = rates(arms, rounds)
    sizes = f"{next(iter(arms.values())).sizes}, {CASES[name].epochs} epochs"
    for arm in arms.values():
        arm.end()
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
