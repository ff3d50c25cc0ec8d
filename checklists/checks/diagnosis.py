"""Is the diagnosis complete, does it use known causes, and does it state its limits?"""

from __future__ import annotations

from pipeline.repair.causes import load as load_causes
from pipeline.results import CEILINGS, Evidence, Outcome, Result

UNTRAINED = "the history is missing: no training of this plan is on record"


def playbooks_read(evidence: Evidence, *, min_playbooks: int) -> Result:
    """Passing proves that every playbook on disk was evaluated, and that there are at least `min_playbooks`.

    Not applicable without a history, on which a playbook could be evaluated.
    """
    on_disk, evaluated = evidence["playbooks"], evidence["evaluated_playbooks"]
    if evidence["history"] is None:
        return Result("not_applicable", unit="playbooks", why=UNTRAINED)
    missing = sorted(set(on_disk) - set(evaluated))
    if missing:
        why = f"not evaluated: {', '.join(missing)}"
        return Result("failed", len(evaluated), len(on_disk), "playbooks", why, relation=">=")
    outcome: Outcome = "passed" if len(evaluated) >= min_playbooks else "failed"
    return Result(outcome, len(evaluated), min_playbooks, "playbooks", ", ".join(evaluated), relation=">=")


def causes_known(evidence: Evidence) -> Result:
    """Passing proves that each named cause is an id of causes.yaml, with a confidence its basis allows.

    The value is the number of named causes. Not applicable without a history, which alone can show a cause.
    """
    known, root_causes = load_causes(), evidence["diagnosis"]["root_causes"]
    if evidence["history"] is None and not root_causes:
        return Result("not_applicable", 0, unit="causes", why=UNTRAINED)
    for cause in root_causes:
        if cause["issue"] not in known:
            return Result("failed", cause["issue"], why="is not an id of causes.yaml")
        ceiling = CEILINGS[cause["basis"]]
        if cause["confidence"] > ceiling:
            why = f"the confidence in {cause['issue']} is higher than {cause['basis']} allows"
            return Result("failed", cause["confidence"], ceiling, why=why)
    if not root_causes:
        would_decide = evidence["diagnosis"].get("would_decide") or []
        why = "; ".join(["no cause named", *([f"what would decide: {would_decide[0]}"] if would_decide else [])])
        return Result("passed", 0, unit="causes", why=why)
    return Result("passed", len(root_causes), unit="causes", why=root_causes[0]["issue"])


def fixes_proposed(evidence: Evidence, *, min_fixes: int) -> Result:
    """Passing proves that a diagnosis which names a cause offers at least `min_fixes` fixes."""
    fixes, causes = evidence["diagnosis"]["recommended_fixes"], evidence["diagnosis"]["root_causes"]
    if not causes:
        return Result("not_applicable", why="no cause is named, so there is nothing to fix")
    outcome: Outcome = "passed" if len(fixes) >= min_fixes else "failed"
    return Result(outcome, len(fixes), min_fixes, "fixes", relation=">=")


def limits_said(evidence: Evidence) -> Result:
    """Passing proves that the diagnosis has a confidence statement and a list of what it did not check."""
    diagnosis = evidence["diagnosis"]
    if not diagnosis["confidence_statement"]:
        return Result("failed", why="there is no confidence statement")
    return Result("passed", len(diagnosis["not_checked"]), unit="not checked", why=diagnosis["confidence_statement"])


def documents_written(evidence: Evidence, *, names: list[str]) -> Result:
    """Passing proves that the named documents were written to the run directory, with their digests."""
    missing = [name for name in names if name not in evidence.artifacts]
    if missing:
        return Result("failed", len(missing), 0, "files", f"not written: {', '.join(missing)}")
    return Result("passed", len(names), len(names), "files", ", ".join(names), relation=">=")
