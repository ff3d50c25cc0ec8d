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


def reproduced_on_slice(evidence: Evidence, *, min_seeds: int) -> Result:
    """Passing proves that the unchanged run missed its goal on at least `min_seeds` other seeds.

    The value is the number of steps of the shortest training that shows it. Not applicable where nothing was trained
    again, with the reason.
    """
    reproduction = evidence["reproduction"]
    if reproduction is None:
        return Result("not_applicable", unit="steps", why=_why_untested(evidence))
    if reproduction["seeds"] < min_seeds:
        return Result("failed", reproduction["seeds"], min_seeds, "seeds", reproduction["why"], relation=">=")
    outcome: Outcome = "passed" if reproduction["reproduced"] else "failed"
    return Result(outcome, reproduction["slice_steps"], unit="steps", why=reproduction["why"])


def hypotheses_documented(evidence: Evidence) -> Result:
    """Passing proves that every experiment belongs to a hypothesis that the ledger had before it.

    Not applicable, with the reason, if no experiment was run.
    """
    experiments, stated = evidence["experiments"], set(evidence["hypotheses"])
    if not experiments:
        return Result("not_applicable", 0, unit="experiments", why=_why_untested(evidence))
    missing = [experiment["id"] for experiment in experiments if experiment["id"] not in stated]
    if missing:
        why = f"without a hypothesis in the ledger: {', '.join(missing)}"
        return Result("failed", len(experiments) - len(missing), len(experiments), "experiments", why, relation=">=")
    return Result("passed", len(experiments), len(experiments), "experiments", ", ".join(sorted(stated)), relation=">=")


def experiments_controlled(evidence: Evidence, *, min_seeds: int) -> Result:
    """Passing proves that each confirmed verdict has at least `min_seeds` seeds, and that the allowance was kept.

    Not applicable, with the reason, if no experiment was run.
    """
    experiments, spent = evidence["experiments"], evidence["trainings_spent"]
    if not experiments:
        return Result("not_applicable", 0, unit="experiments", why=_why_untested(evidence))
    for experiment in experiments:
        if experiment["verdict"] == "confirmed" and experiment["seeds"] < min_seeds:
            why = f"{experiment['id']} is confirmed on {experiment['seeds']} seeds"
            if experiment["restored"] is not None:
                return Result("failed", experiment["seeds"], min_seeds, "seeds", why, relation=">=")
    if spent["spent"] > spent["allowed"]:
        why = "the experiments cost more than the allowance"
        return Result("failed", spent["spent"], spent["allowed"], "planned trainings", why)
    confirmed = [experiment["id"] for experiment in experiments if experiment["verdict"] == "confirmed"]
    why = f"confirmed: {', '.join(confirmed) or 'nothing'}"
    return Result("passed", round(spent["spent"], 2), spent["allowed"], "planned trainings", why)


def metrics_per_split(evidence: Evidence, *, splits: list[str]) -> Result:
    """Passing proves that the history has a metric or a loss of each split, so that they can be told apart.

    Not applicable without a history.
    """
    if evidence["history"] is None:
        return Result("not_applicable", unit="splits", why=UNTRAINED)
    measured = evidence["metrics_per_split"]
    missing = [split for split in splits if not measured.get(split)]
    why = "; ".join(f"{split}: {', '.join(names)}" for split, names in measured.items())
    if missing:
        return Result(
            "failed", len(splits) - len(missing), len(splits), "splits", f"none of {', '.join(missing)}; {why}"
        )
    return Result("passed", len(splits), len(splits), "splits", why, relation=">=")


def confidence_ceiling_stated(evidence: Evidence) -> Result:
    """Passing proves that each named cause has a basis, whose ceiling its confidence keeps, and that what is called
    confirmed has an experiment of this run that confirmed it.

    Not applicable where no cause is named.
    """
    causes = evidence["diagnosis"]["root_causes"]
    if not causes:
        return Result("not_applicable", 0, unit="causes", why="no cause is named, so no confidence is stated")
    confirmed = {cause for e in evidence["experiments"] if e["verdict"] == "confirmed" for cause in e["causes"]}
    for cause in causes:
        ceiling = CEILINGS.get(cause["basis"])
        if ceiling is None or cause["confidence"] > ceiling:
            why = f"{cause['issue']}: the confidence has no ceiling, or is above that of its basis {cause['basis']!r}"
            return Result("failed", cause["confidence"], ceiling, why=why)
        if cause["status"] == "confirmed" and cause["issue"] not in confirmed:
            return Result("failed", cause["issue"], why="is called confirmed, and no experiment confirmed it")
    first = causes[0]
    why = f"{first['issue']}: {first['confidence']:.2f} of at most {CEILINGS[first['basis']]:.2f} for {first['basis']}"
    return Result("passed", len(causes), unit="causes", why=why)


def _why_untested(evidence: Evidence) -> str:
    """Return why no experiment was run."""
    gaps = [gap["why"] for gap in evidence["diagnosis"]["not_checked"] if gap["what"] == "controlled experiments"]
    return gaps[0] if gaps else "no experiment was made"
