"""Is it known where the figures were made?"""

from __future__ import annotations

from pipeline.records import Evidence, Result


def environment_recorded(evidence: Evidence, *, needs: list[str]) -> Result:
    """Passing proves that every named fact about the machine and its software is on record."""
    environment = evidence["environment"]
    missing = [name for name in needs if environment.get(name) in (None, "")]
    if missing:
        return Result("failed", len(missing), 0, "facts", f"not recorded: {', '.join(missing)}")
    return Result(
        "passed", len(needs), len(needs), "facts", f"torch {environment['torch']}, {environment['threads']} thread(s)"
    )
