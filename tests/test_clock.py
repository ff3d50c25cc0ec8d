"""A clock that is set back or forward changes no result and no order, and a waiver ends with its last day in UTC."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta, tzinfo
from pathlib import Path

import pytest

from pipeline.release.verify import faults
from pipeline.run_store.gate import Item, Waiver, decide
from pipeline.run_store.ledger import read_ledger
from pipeline.run_store.run import Run, opened
from pipeline.tracking.run_export import RunExport, score_points
from tests.conftest import SMALL, Cli, go
from tests.phase_walks import outcome

MIDNIGHT = datetime(2031, 3, 1, tzinfo=UTC)


class Clock:
    """The one wall clock of gates and ledger: it shows `now`, and goes on by `step` after every look."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = self
        self.now, self.step = MIDNIGHT, timedelta()

        class Shown(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
                shown, clock.now = clock.now, clock.now + clock.step
                return shown.astimezone(tz)

        for module in ("ledger", "gate"):
            monkeypatch.setattr(f"pipeline.run_store.{module}.datetime", Shown)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.slow
def test_run_is_the_same_while_the_clock_runs_backwards(own_folder: Path, clock: Clock) -> None:
    """An hour back at every look, through three phases: same outcome, clean records, no time before the start."""
    arguments = (*SMALL, "task.target=0.5", "export.formats=[torchscript]")
    go(own_folder / "calm", "phase=auto", *arguments)
    clock.step = -timedelta(hours=1)
    go(own_folder / "back", "phase=auto", *arguments)
    calm, back = Run(own_folder / "calm" / "digits"), Run(own_folder / "back" / "digits")

    same = [{**outcome(run), "payload": None} for run in (calm, back)]  # TorchScript numbers its names by process
    assert same[0] == same[1]
    assert faults(back)[1] == []
    entries = read_ledger(back.ledger_path)
    assert entries[-1]["time"] < entries[0]["time"]  # as the clock showed it; the order is that of the numbers
    assert [entry["seq"] for entry in entries] == list(range(len(entries)))
    export = RunExport.of(back.path)
    times = [export.time(entry["seq"]) for entry in entries]
    assert times == sorted(times) and export.time(-1) == times[-1]
    assert all(point.time >= export.started("planning") for points in score_points(export).values() for point in points)


@pytest.mark.parametrize(
    ("moment", "gate"),
    [
        (MIDNIGHT - timedelta(microseconds=1), "open"),
        (MIDNIGHT, "closed"),
        (MIDNIGHT.astimezone() + timedelta(hours=23), "closed"),
    ],
)
def test_waiver_ends_at_midnight_in_utc(clock: Clock, moment: datetime, gate: str) -> None:
    """The last microsecond of the last day counts, the first of the next day does not."""
    waiver = Waiver("planning", "a", "Ada", "because", (MIDNIGHT - timedelta(days=1)).date().isoformat())
    clock.now = moment
    assert decide([Item("a", "?", "failed")], [waiver]) == gate


def waive_every_check(cli: Cli, run: Run, last: date) -> None:
    for item in run.state().gates["finalization"].items:
        if item.outcome not in ("passed", "not_applicable", "pending"):
            why = "It is checked by hand before every release."
            arguments = ("--who", "Example Owner", "--why", why, "--expires", last.isoformat())
            code, _, err = cli("waive", run.name, item.id, *arguments)
            assert code == 0, err


def test_expired_waivers_close_the_gate_with_a_message(finished: Run, cli: Cli, clock: Clock) -> None:
    """After the last day the gate is closed again, and the command says which waivers have expired."""
    clock.now = datetime.now(UTC)
    last = clock.now.date() + timedelta(days=5)
    waive_every_check(cli, finished, last)
    assert finished.state().gate("finalization") == "pending"

    clock.now += timedelta(days=6)
    code, _, err = cli("approve", finished.name, "--who", "Example Reviewer")

    assert finished.state().gate("finalization") == "closed" and code == 3, err
    shown = f"no longer waived: finalization/reproducible, whose waiver by Example Owner ended with {last} (UTC)"
    assert shown in cli("status", finished.name)[1]
    assert f"the waiver by Example Owner ended with {last}" in cli("explain", finished.name, "reproducible")[1]

    waive_every_check(cli, finished, clock.now.date())
    assert "no longer waived" not in cli("status", finished.name)[1]


def test_verify_accepts_a_decision_that_crosses_midnight(finished: Run, cli: Cli, clock: Clock) -> None:
    """A gate that was decided on the last day of a waiver may be recorded a moment after midnight, and not later."""
    clock.now = datetime.now(UTC)
    waive_every_check(cli, finished, clock.now.date())
    gate, midnight = finished.state().gates["finalization"], datetime.combine(clock.now.date(), time.max, UTC)
    decided = {"phase": "finalization", "round": 1, "revision": gate.revision, "basis": gate.basis}
    for seconds, accepted in ((1, True), (3600, False)):
        clock.now = midnight + timedelta(seconds=seconds)
        with opened(finished) as ledger:
            for item in gate.items:
                ledger.append("item.evaluated", {"phase": "finalization", "round": 1, **vars(item)})
            ledger.append("gate.decided", {**decided, "subject": gate.subject, "state": "pending"})
        assert any("is recorded as pending" in fault for fault in faults(finished)[1]) != accepted
