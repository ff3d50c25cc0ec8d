"""How often does the live guard (`trainer.guard: stop`) end a training, and how early?  `make bench-guard FACTS=DIR`

    benchmarks/faults/live_guard.py FACTS

Reads the histories that `bench.py --facts DIR` has stored, epoch by epoch as the guard sees them, and prints for
healthy and faulty runs how many would have been stopped. Stopping a healthy run is a false stop.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cases import PARTS, cases
from facts import stored

from diagnostics.loops.live_guard import GUARD, look, looks
from pipeline.history import Column, History


def until(history: History, epoch: int) -> History:
    """Return the history as it was after this epoch."""
    last_step = int(epoch * history.facts.get("steps_per_epoch", 1.0))
    early = History()
    for columns, copies, last in ((history.step, early.step, last_step), (history.epoch, early.epoch, epoch)):
        for name, column in columns.items():
            copies[name] = copy = Column()
            for index, value in zip(column.index, column.values, strict=True):
                if index <= last:
                    copy.append(index, value)
    early.facts = dict(history.facts)
    early.events = [event for event in history.events if event["step"] <= last_step]
    return early


def stop_epoch(history: History, config: Mapping[str, Any]) -> int | None:
    """Return the epoch after which the guard ends the training; None if it never does."""
    index, _ = history.series("val/loss")
    epochs = int(index[-1]) if len(index) else 0
    events: list[dict[str, Any]] = []
    for epoch in looks(epochs):
        early = until(history, epoch)
        early.events += events
        if look(early, epoch, config):
            return epoch
        events = [event for event in early.events if event["kind"] == GUARD]
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("facts", type=Path, help="folder that bench.py --facts has filled")
    folder = parser.parse_args().facts
    for part in PARTS:
        for health in ("healthy", "faulty"):
            selected = [case for case in cases() if case.part == part and case.healthy == (health == "healthy")]
            shares = []
            runs = [facts for _, facts in stored(folder, selected) if facts.config is not None]
            for facts in runs:
                epoch = stop_epoch(facts.history, facts.config or {})
                if epoch is not None:
                    shares.append(epoch / int(facts.history.series("val/loss")[0][-1]))
            when = f", after {statistics.median(shares):.0%} of the epochs (median)" if shares else ""
            print(f"{part}, {health}: {len(shares)} of {len(runs)} stopped{when}")


if __name__ == "__main__":
    main()
