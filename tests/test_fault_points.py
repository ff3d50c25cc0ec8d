"""Whichever call of the file module is killed, refused or cut short, the same command ends the phase as if it was not.

Calls that differ in a number alone (of a trial, a checkpoint, an entry of the same kind) are one point.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pipeline.release.verify import faults
from pipeline.run_store.ledger import read_ledger
from pipeline.run_store.run import Run
from tests.phase_walks import NAME, PHASES, Ended, Fault, Point, Walks, outcome

pytestmark = [pytest.mark.process, pytest.mark.slow]
CHAIN = 6  # injuries of one run, one command after another, before it is left to end
ENDINGS = {"planning": 0, "baseline": 0, "diagnostics": 0, "optimization": 0, "finalization": 3}


@pytest.fixture
def walks(own_folder: Path) -> Iterator[Walks]:
    walks = Walks(own_folder)
    yield walks
    walks.close()


def points_of(log: Path) -> tuple[list[Point], int]:
    """Return the points in the order of their first call, and the number of calls."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return list(dict.fromkeys(Point(*line[:3]) for line in lines)), len(lines)


def kinds_of(point: Point) -> list[str]:
    return ["kill", "ENOSPC", "EIO", *(["short"] if point.operation == "write" else [])]


def check_ending(phase: str, ended: Ended, injuries: Sequence[Fault]) -> None:
    """A refused write ends the command with one message, or changes nothing; a kill kills."""
    assert ended.code in (ENDINGS[phase], 2, -9), (injuries, ended.output)
    assert "Traceback" not in ended.output, (injuries, ended.output)
    if ended.code == 2:
        assert "cannot " in ended.output.strip().splitlines()[-1], (injuries, ended.output)


def injured(number: int = 0) -> bool:
    return Path(f"injured-{number}").exists()


@pytest.mark.parametrize("phase", PHASES)
def test_phase_ends_the_same_after_every_fault(walks: Walks, own_folder: Path, phase: str) -> None:
    """Kill, full disk, input/output error and short write at every point of the phase; then resumed and compared."""
    root, before = own_folder / "runs", own_folder / "before"
    for earlier in PHASES[: PHASES.index(phase)]:
        assert walks(root, earlier).code == 0
    if root.exists():
        shutil.copytree(root, before)
    calm = walks(root, phase, log=str(own_folder / "log"))
    assert calm.code == ENDINGS[phase], calm.output
    expected = outcome(Run(root / NAME))
    points, calls = points_of(own_folder / "log")
    ended = [
        entry["data"]["id"] for entry in read_ledger(Run(root / NAME).ledger_path) if entry["kind"] == "job.finished"
    ]
    trials = [name for name in ended if name != "fixed"]

    def afresh() -> None:
        shutil.rmtree(root, ignore_errors=True)
        if before.exists():
            shutil.copytree(before, root)

    def ends_as_expected(code: int, injuries: Sequence[Fault]) -> None:
        if code != ENDINGS[phase]:
            ended = walks(root, phase)
            assert ended.code == ENDINGS[phase], (injuries, ended.output)
        assert outcome(Run(root / NAME)) == expected, injuries
        assert faults(Run(root / NAME))[1] == [], injuries

    done = injure_parent(walks, root, phase, points, afresh, ends_as_expected)
    done += injure_workers(walks, root, phase, points, trials, afresh, ends_as_expected)
    assert done == sum(len(kinds_of(point)) for point in points)
    print(f"{phase}: {len(points)} of {len(points)} fault points ({calls} calls), {done} injuries; 0 failures")


def injure_parent(walks, root, phase, points, afresh, ends_as_expected) -> int:  # type: ignore[no-untyped-def]
    """Injure the command itself at each point, several commands in a row on the same run."""
    left = [Fault(p, kind) for p in points if p.process == "parent" for kind in kinds_of(p)]
    left.sort(key=lambda fault: fault.kind)  # so that a run is injured at point after point
    done = 0
    while left:
        afresh()
        chain: list[Fault] = []
        while left and len(chain) < CHAIN:
            ended = walks(root, phase, faults=[left[0]])
            check_ending(phase, ended, [*chain, left[0]])
            if not injured():  # the earlier attempts left nothing to do there
                assert chain, f"{left[0]} is not reached"
                break
            chain.append(left.pop(0))
        ends_as_expected(ended.code, chain)
        done += len(chain)
    return done


def injure_workers(walks, root, phase, points, trials, afresh, ends_as_expected) -> int:  # type: ignore[no-untyped-def]
    """Injure workers at each point, each of the trials of a study at another one."""
    all_faults = [(p, kind) for p in points if p.process == "worker" for kind in kinds_of(p)]
    for start in range(0, len(all_faults), max(1, len(trials))):
        some = all_faults[start : start + len(trials)]
        afresh()
        injuries = [Fault(point, kind, trial) for (point, kind), trial in zip(some, trials, strict=False)]
        ended = walks(root, phase, faults=injuries)
        check_ending(phase, ended, injuries)
        assert all(map(injured, range(len(injuries)))), [f for i, f in enumerate(injuries) if not injured(i)]
        ends_as_expected(ended.code, injuries)
    return len(all_faults)
