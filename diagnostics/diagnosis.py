"""The result of a diagnosis: symptoms, ranked causes, fixes, and what was not checked; as JSON, Markdown and HTML."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from diagnostics.candidates import Confidence
from diagnostics.conditions import Observation
from diagnostics.playbook import Kind, Severity
from pipeline.escaping import code_span, markdown, visible
from pipeline.repair.config_edits import format_override_value
from pipeline.repair.cures import Remedy
from pipeline.repair.diagnosis_record import (
    SCHEMA,
    ConsideredRecord,
    Decision,
    DiagnosisRecord,
    ExperimentRecord,
    FixRecord,
    GapRecord,
    RootCauseRecord,
    Status,
    SymptomRecord,
    TimeRecord,
)
from pipeline.results import plain
from pipeline.run_store import files

MAX_CONSIDERED = 12  # causes that the page lists although they are not named


@dataclass(frozen=True)
class Symptom:
    """A playbook whose conditions all hold, with the observations."""

    id: str
    title: str
    severity: Severity
    observations: tuple[Observation, ...]
    prevention: str = ""  # of its playbook

    @property
    def since(self) -> TimeRecord:
        """The time from which on every observation of the symptom has held."""
        times = [seen.since for seen in self.observations if seen.since]
        unknown: TimeRecord = {"step": None, "epoch": None}
        return max(times, key=lambda time: (time["step"] or 0, time["epoch"] or 0), default=unknown)

    def to_json(self) -> SymptomRecord:
        """Return the symptom as diagnosis.json stores it."""
        observations = [observation.to_json() for observation in self.observations]
        return {"id": self.id, "severity": self.severity, "observations": observations}


@dataclass(frozen=True)
class RootCause:
    """A cause from causes.yaml. It is only possible until an experiment confirms or refutes it."""

    issue: str
    means: str
    confidence: Confidence
    evidence: tuple[str, ...]
    fix: str
    cites: str = ""
    status: Status = "candidate"

    def to_json(self) -> RootCauseRecord:
        """Return the cause as diagnosis.json stores it."""
        return {
            "issue": self.issue,
            "status": self.status,
            "confidence": self.confidence.value,
            "basis": self.confidence.basis,
            "evidence": self.evidence,
            "fix": self.fix,
        }


@dataclass(frozen=True)
class Considered:
    """A cause that was looked at and is not named. `why_not` says what is missing or what speaks against it."""

    issue: str
    confidence: float
    evidence: tuple[str, ...]
    why_not: str
    status: Status = "candidate"

    def to_json(self) -> ConsideredRecord:
        """Return the cause as diagnosis.json stores it."""
        return {
            "issue": self.issue,
            "status": self.status,
            "confidence": self.confidence,
            "evidence": self.evidence,
            "why_not": self.why_not,
        }


@dataclass(frozen=True)
class Fix:
    """A change worth a trial: the cause it addresses, its kind, and the expected effect."""

    cause: str
    kind: Kind
    remedy: Remedy
    expected_impact: str

    def to_json(self, priority: int) -> FixRecord:
        """Return the fix as diagnosis.json stores it."""
        remedy = self.remedy
        return {
            "priority": priority,
            "cause": self.cause,
            "cure": remedy.cure,
            "kind": self.kind,
            "implementation": {"overrides": remedy.overrides, "surgery": remedy.surgery, "code": remedy.code},
            "expected_impact": self.expected_impact,
            "verified": None,
        }


@dataclass(frozen=True)
class Incident:
    """What incident.md says of the run: its name, what must not change, who owns it, how to repeat and undo.

    `intake` is what was on record before the diagnosis: the environment, what changed since the last good training, and
    warnings. `reproduced` says whether the unchanged run showed the shortfall again.
    """

    subject: str
    constraints: tuple[str, ...] = ()
    intake: tuple[str, ...] = ()
    reproduced: str = ""
    commands: tuple[str, ...] = ()
    owner: str = ""
    rollback: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong, why, and what to try. `not_checked` lists what the diagnosis could not measure."""

    symptoms: tuple[Symptom, ...] = ()
    root_causes: tuple[RootCause, ...] = ()
    considered: tuple[Considered, ...] = ()
    fixes: tuple[Fix, ...] = ()
    quick_wins: tuple[str, ...] = ()
    experiments: tuple[ExperimentRecord, ...] = ()
    not_checked: tuple[GapRecord, ...] = ()
    would_decide: tuple[str, ...] = ()  # where no cause is named, or none that is more likely than not
    confidence_statement: str = ""
    evaluated: tuple[str, ...] = ()  # ids of the playbooks that were evaluated on the history
    round: int = field(default=1, compare=False)

    @property
    def decision(self) -> Decision:
        """Whether a root cause is named."""
        return "decided" if self.root_causes else "not_decided"

    def to_json(self) -> DiagnosisRecord:
        """Return the content of diagnosis.json (schema 1); NaN and infinity become strings, tuples become lists."""
        body: DiagnosisRecord = {
            "symptoms": [symptom.to_json() for symptom in self.symptoms],
            "root_causes": [cause.to_json() for cause in self.root_causes],
            "considered": [cause.to_json() for cause in self.considered],
            "quick_wins": self.quick_wins,
            "recommended_fixes": [fix.to_json(priority) for priority, fix in enumerate(self.fixes, 1)],
            "experiments": list(self.experiments),
            "decision": self.decision,
            "not_checked": self.not_checked,
            "would_decide": self.would_decide,
            "confidence_statement": self.confidence_statement,
            "schema": SCHEMA,
        }
        record: DiagnosisRecord = plain(body)
        return record

    def save(self, path: str | Path) -> None:
        """Write diagnosis.json to a file, or diagnosis.json and incident.md to a folder if `path` has no suffix."""
        path = Path(path)
        if path.suffix:
            files.write_json(path, self.to_json())
        else:
            files.write_json(path / "diagnosis.json", self.to_json())
            files.write_text(path / "incident.md", self.incident())

    def _no_symptom(self) -> str:
        """Return that no symptom was found, with the number of playbooks whose measurements were complete."""
        undecided = {gap["what"] for gap in self.not_checked if gap["what"].startswith("symptom ")}
        total = len(self.evaluated)
        return f"No symptom found ({total - len(undecided)} of {total} playbooks could be evaluated)"

    def _title(self) -> str:
        """Return what is wrong in a few words: the first symptom, else what the first cause means."""
        if self.symptoms:
            return markdown(self.symptoms[0].title)
        return markdown(self.root_causes[0].means) if self.root_causes else self._no_symptom()

    def incident(self, about: Incident | None = None) -> str:
        """Return the diagnosis as one Markdown page: summary, reproduction, evidence, changes, prevention, risks.

        `about` is what the page says of the run itself: without it the page has no reproduction, owner and rollback.
        """
        parts = [f"# {self._title()}", markdown(self.confidence_statement)]
        if about:
            constraints = "".join(f"\n- {markdown(text)}" for text in about.constraints)
            parts += [f"**{markdown(about.subject)}**" + constraints]
            if about.intake:
                parts += ["## What was on record", "\n".join(f"- {markdown(text)}" for text in about.intake)]
            parts += ["## How to reproduce it", "\n".join(f"    {command}" for command in about.commands)]
            parts += [f"Reproduced: {markdown(about.reproduced)}."] if about.reproduced else []
        if self.symptoms:
            parts.append("## What was observed")
        for symptom in self.symptoms:
            observations = "".join(f"\n- {markdown(seen.sentence())}" for seen in symptom.observations)
            heading = f"**{markdown(symptom.title)}** ({code_span(symptom.id)}, {symptom.severity})"
            parts.append(heading + observations)
        if self.symptoms or self.root_causes:
            parts += self._causes_and_changes()
        if self.would_decide:
            parts += ["## What would decide", "\n".join(f"- {markdown(text)}" for text in self.would_decide)]
        if prevention := [symptom.prevention for symptom in self.symptoms if symptom.prevention]:
            owner = f"Owner: {markdown(about.owner)}." if about and about.owner else "Owner: not declared."
            parts += ["## Prevention", *dict.fromkeys(prevention), owner]
        if about and about.rollback:
            parts += ["## Rollback", markdown(about.rollback)]
        parts.append("## Remaining risks: what was not checked")
        gaps = "\n".join(f"- {markdown(gap['what'])}: {markdown(gap['why'])}" for gap in self.not_checked)
        parts.append(gaps or "Everything was checked.")
        return "\n\n".join(parts) + "\n"

    def _causes_and_changes(self) -> list[str]:
        # The page is for reading at a glance; diagnosis.json has every cause.
        parts = [_format_cause(rank, cause) for rank, cause in enumerate(self.root_causes, 1)]
        parts = ["## Causes", *(parts or ["Not decided: no cause is named."])]
        if self.experiments:
            parts += ["## Experiments", "\n".join(map(_format_experiment, self.experiments))]
        if self.considered:
            lines = [_format_considered(cause) for cause in self.considered[:MAX_CONSIDERED]]
            parts += ["## Considered, and not named", "\n".join(lines)]
        if self.fixes:
            changes = "\n".join(_format_fix(number, fix) for number, fix in enumerate(self.fixes, 1))
            parts += ["## What to try, in this order", changes]
        return parts

    def _repr_html_(self) -> str:
        """Return a small table for notebooks; every text is escaped."""
        rows = "".join(
            f"<tr><td>{_html(c.issue)}</td><td>{c.confidence.value:.2f} ({_html(c.confidence.basis)})</td>"
            f"<td>{_html('; '.join(c.evidence[:2]))}</td><td>{_html(c.fix)}</td></tr>"
            for c in self.root_causes
        )
        caption = ", ".join(s.title for s in self.symptoms) or self._no_symptom()
        head = "<tr><th>cause</th><th>confidence</th><th>evidence</th><th>fix</th></tr>" if rows else ""
        table = f"<table><caption>{_html(caption)}</caption>{head}{rows}</table>"
        return f"{table}<p>{_html(self.confidence_statement)}</p>"

    def __repr__(self) -> str:
        symptoms = ", ".join(s.id for s in self.symptoms) or "no symptom"
        causes = ", ".join(f"{c.issue} {c.confidence.value:.2f}" for c in self.root_causes[:3])
        return f"Diagnosis({symptoms}{causes and ': ' + causes})"


def _html(text: str) -> str:
    return html.escape(visible(text))


def _format_fix(number: int, fix: Fix) -> str:
    """Return one line: what to change, the overrides to type where the config has the keys, and for which cause."""
    remedy = fix.remedy
    # Hydra merges a whole section with the one before, so that typing it would not replace it.
    values = {key: value for key, value in remedy.overrides.items() if not isinstance(value, Mapping)}
    overrides = [f"{key}={format_override_value(value)}" for key, value in values.items()]
    overrides += [f"surgery={format_override_value(remedy.surgery)}"] if remedy.surgery else []
    typed = "".join(f", {code_span(override)}" for override in overrides)
    kind = "fix" if fix.kind == "cure" else fix.kind
    effect = f"; to expect: {markdown(fix.expected_impact)}" if number == 1 else ""
    return f"{number}. {markdown(remedy.description)}{typed} ({kind} for {code_span(fix.cause)}){effect}"


def _format_experiment(result: ExperimentRecord) -> str:
    """Return one line: what was changed to test which cause, what it showed, and what that means."""
    return (
        f"- {code_span(result['hypothesis'])}: {markdown(result['change'])}. Expected: {markdown(result['expected'])}. "
        f"Observed: {markdown(result['observed'])}. **{result['verdict']}**"
    )


def _format_considered(cause: Considered) -> str:
    return f"- {code_span(cause.issue)} ({cause.confidence:.2f}): {markdown(cause.why_not)}."


def _format_cause(rank: int, cause: RootCause) -> str:
    evidence = "".join(f"\n   - {markdown(sentence)}" for sentence in cause.evidence)
    source = f"\n   - Source: {markdown(cause.cites)}" if cause.cites else ""
    confidence = f"{cause.confidence.value:.2f}, {cause.confidence.basis}"
    heading = f"{rank}. **{markdown(cause.issue)}** ({confidence}): {markdown(cause.means)}."
    return f"{heading}{evidence}{source}\n   - First change to try: {markdown(cause.fix)}"
