"""Was the diagnosis complete, in the common words, and honest about its limits?"""

from __future__ import annotations

from pipeline.repair.causes import load as load_causes
from pipeline.results import CEILINGS, Evidence, Outcome, Result


def playbooks_read(evidence: Evidence, *, min_playbooks: int) -> Result:
    """Passing proves that every playbook on disk is among those that the diagnosis judged, and that they are enough."""
    known, judged = evidence["playbooks"], evidence["judged"]
    left_out = sorted(set(known) - set(judged))
    if left_out:
        return Result("failed", len(judged), len(known), "playbooks", f"left out: {', '.join(left_out)}")
    outcome: Outcome = "passed" if len(judged) >= min_playbooks else "failed"
    return Result(outcome, len(judged), min_playbooks, "playbooks", ", ".join(judged))


def causes_known(evidence: Evidence) -> Result:
    """Passing proves that each named cause is an id of causes.yaml, with a confidence under its basis's ceiling."""
    known = load_causes()
    for cause in evidence["diagnosis"]["root_causes"]:
        if cause["issue"] not in known:
            return Result("failed", cause["issue"], why="is no id of causes.yaml")
        if cause["confidence"] > CEILINGS[cause["basis"]]:
            why = f"{cause['issue']}: more confidence than {cause['basis']} allows"
            return Result("failed", cause["confidence"], CEILINGS[cause["basis"]], why=why)
    first = [c["issue"] for c in evidence["diagnosis"]["root_causes"][:1]]
    return Result(
        "passed", len(evidence["diagnosis"]["root_causes"]), unit="causes", why=", ".join(first) or "no cause named"
    )


def fixes_proposed(evidence: Evidence, *, min_fixes: int) -> Result:
    """Passing proves that a named cause comes with enough fixes to choose from."""
    fixes, causes = evidence["diagnosis"]["recommended_fixes"], evidence["diagnosis"]["root_causes"]
    if not causes:
        return Result("not_applicable", len(fixes), min_fixes, "fixes", "no cause is named, so none is to be cured")
    return Result("passed" if len(fixes) >= min_fixes else "failed", len(fixes), min_fixes, "fixes")


def limits_said(evidence: Evidence) -> Result:
    """Passing proves that the diagnosis carries its confidence statement, and lists what it did not check."""
    diagnosis = evidence["diagnosis"]
    if not diagnosis["confidence_statement"]:
        return Result("failed", why="there is no confidence statement")
    return Result("passed", len(diagnosis["not_checked"]), unit="not checked", why=diagnosis["confidence_statement"])


def documents_written(evidence: Evidence, *, names: list[str]) -> Result:
    """Passing proves that the diagnosis lies in the run as files with digests."""
    missing = [name for name in names if name not in evidence.artifacts]
    if missing:
        return Result("failed", len(missing), 0, "files", f"not written: {', '.join(missing)}")
    return Result("passed", len(names), len(names), "files", ", ".join(names))
