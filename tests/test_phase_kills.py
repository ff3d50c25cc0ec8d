"""A run that is killed again and again in all five phases ends as an undisturbed one.

FIVEGATE_KILLS is the number of SIGKILLs: 3 in `make test-process`, 300 in `make test-crash`.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.release.verify import faults
from pipeline.run_store.ledger import read_ledger, scan_ledger
from pipeline.run_store.run import Run
from tests.phase_walks import NAME, Kill, Walks, outcome

pytestmark = pytest.mark.process
KILLS = int(os.environ.get("FIVEGATE_KILLS", "3"))
PER_RUN = 12  # kills of one run before it is left to end


@pytest.fixture
def walks(own_folder: Path) -> Iterator[Walks]:
    walks = Walks(own_folder)
    yield walks
    walks.close()


def phase_reached(run: Run) -> str:
    """Return the phase that the ledger began last, as far as it is intact."""
    started = [e["data"]["phase"] for e in scan_ledger(run.ledger_path).entries if e["kind"] == "phase.started"]
    return started[-1] if started else "planning"


def drawn(draw: random.Random, entries: int, seconds: float) -> Kill:
    """Return a kill at a random instant: some seconds from now, or right after some of the next entries."""
    victim = draw.choice(["group", "group", "group", "parent", "worker"])
    if draw.random() < 0.3:
        return Kill(victim, entries=entries + draw.randint(1, 25))
    return Kill(victim, draw.uniform(0, seconds))


def test_run_ends_the_same_after_kills_in_every_phase(walks: Walks, own_folder: Path) -> None:
    """Killed at random instants and resumed by the same command: same choice, weights, payload and gates."""
    draw = random.Random(KILLS)
    calm = walks(own_folder / "calm")
    assert calm.code == 3, calm.output
    expected = outcome(Run(own_folder / "calm" / NAME))
    assert set(expected["gates"]) == {"planning", "baseline", "diagnostics", "optimization", "finalization"}

    killed, number, where, who = 0, 0, Counter[str](), Counter[str]()
    while killed < KILLS:
        number += 1
        root = own_folder / f"killed-{number}"
        run, code, entries = Run(root / NAME), -9, []
        for _ in range(min(PER_RUN, KILLS - killed)):
            kill = drawn(draw, len(entries), calm.seconds / 5)
            ended = walks(root, kill=kill)
            code = ended.code
            assert code == (-9 if ended.killed and kill.victim != "worker" else 3), ended.output
            scan = scan_ledger(run.ledger_path)
            assert scan.fault is None and scan.entries[: len(entries)] == entries  # no acknowledged fact is lost
            entries = scan.entries
            if ended.killed:
                killed += 1
                where[phase_reached(run)] += 1
                who[kill.victim] += 1
            if code == 3:
                break
        if code != 3:
            last = walks(root)
            assert last.code == 3, last.output
        assert outcome(run) == expected, f"run {number}"
        assert faults(run)[1] == [] and read_ledger(run.ledger_path)
        print(f"run {number} ended as the undisturbed one: {killed} of {KILLS} kills so far", flush=True)
    print(
        f"kills in five phases: {killed} of {KILLS} over {number} runs ({spelled(where)}; {spelled(who)}); 0 failures"
    )


def spelled(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
