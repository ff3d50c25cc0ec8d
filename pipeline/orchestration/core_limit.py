"""Jobs side by side share the cores: a phase waits until as many are free as it computes on.

Results differ with the number of threads, so a job is never given fewer: it waits.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.orchestration.phase import PhaseContext
from pipeline.results import Evidence
from pipeline.run_store.lock import shares
from pipeline.runtime.threads import cores

PhaseRun = Callable[[PhaseContext], Evidence]


def in_turn(phase: Callable[[str], PhaseRun], path: Path) -> Callable[[str], PhaseRun]:
    """The same phases, each of them begun when its cores are free among those who share this file.

    Planning takes one, a baseline the threads of its plan, and whatever starts workers or takes times takes all.
    """

    def find(name: str) -> PhaseRun:
        run = phase(name)

        def waits(ctx: PhaseContext) -> Evidence:
            total = cores()
            facts: Any = ctx.plan.facts if ctx.plan else {}
            wanted = {"planning": 1, "baseline": int(facts.get("threads") or 1)}.get(name, total)
            with shares(path, wanted, total):
                return run(ctx)

        return waits

    return find
