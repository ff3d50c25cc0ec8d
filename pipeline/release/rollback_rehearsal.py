"""The rehearsal of a rollback: on a registry of its own, the champion becomes another model and is restored."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TypedDict

from pipeline.release import registry
from pipeline.release.bundle import bundle_digest
from pipeline.run_store import files

CANDIDATE = "candidate"  # stands for the bundle that is not written yet


class RollbackRehearsal(TypedDict):
    """What the rehearsal found: the champion before the release (empty without one), and that after its withdrawal.

    `intact` says whether the payload of the champion still has its digest, None without a champion. `problem` is the
    reason why the rehearsal could not be done.
    """

    champion: str
    restored: str
    intact: bool | None
    seconds: float
    problem: str


def rehearse(root: Path, name: str, run: str, scratch: Path) -> RollbackRehearsal:
    """Make the candidate champion in the folder `scratch`, withdraw it, and compare with the champion of the root."""
    started = time.perf_counter()
    files.remove_folder(scratch)
    rehearsal = RollbackRehearsal(champion="", restored="", intact=None, seconds=0.0, problem="")
    try:
        current = registry.champion(root, name)
        if current:
            payload = registry.payload_of(root, current)
            rehearsal |= {"champion": current["subject"], "intact": payload is not None}
            if payload is not None:  # a copy, as a real rollback reads the whole payload
                copy = scratch / current["run"] / "bundle" / "payload"
                for path in sorted(p for p in payload.rglob("*") if p.is_file()):
                    files.write_bytes(copy / path.relative_to(payload), path.read_bytes())
                assert bundle_digest(copy) == current["subject"]
            registry.move(scratch, name, "champion", current["run"], current["subject"], "rehearsal")
        registry.move(scratch, name, "champion", run, CANDIDATE, "rehearsal")
        after = registry.withdraw(scratch, name, CANDIDATE, "rehearsal")
        rehearsal["restored"] = after["subject"] if after else ""
    except Exception as error:  # an unreadable registry is a result of the rehearsal, not of the phase
        rehearsal["problem"] = str(error) or type(error).__name__
    finally:
        files.remove_folder(scratch)
    rehearsal["seconds"] = time.perf_counter() - started
    return rehearsal
