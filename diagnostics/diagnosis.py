"""A diagnosis as it is handed on: symptoms, ranked causes, fixes, and what was not checked. JSON, a page, a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Literal

from diagnostics.conditions import Observation
from diagnostics.confidence import Confidence
from diagnostics.playbook import Kind, Severity
from pipeline.repair.cures import Remedy
from pipeline.results import plain
from pipeline.run_store import files

SCHEMA = 1


@dataclass(frozen=True)
class Symptom:
    """A playbook whose conditions all hold, with what was observed."""

    id: str
    title: str
    severity: Severity
    observations: tuple[Observation, ...]


@dataclass(frozen=True)
class RootCause:
    """A cause from causes.yaml, a candidate until an experiment confirmed or refuted it."""

    issue: str
    means: str
    confidence: Confidence
    evidence: tuple[str, ...]
    fix: str
    cites: str = ""
    status: Literal["candidate", "confirmed", "refuted"] = "candidate"


@dataclass(frozen=True)
class Fix:
    """One change worth a trial: for which cause, of which kind, and what it should change."""

    cause: str
    kind: Kind
    remedy: Remedy
    expected_impact: str

    def to_dict(self, priority: int) -> dict[str, Any]:
        how = {"overrides": self.remedy.overrides, "surgery": self.remedy.surgery, "code": self.remedy.code}
        return {
            "priority": priority,
            "cause": self.cause,
            "cure": self.remedy.cure,
            "kind": self.kind,
            "implementation": how,
            "expected_impact": self.expected_impact,
            "verified": None,
        }


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong, why, and what to try. Empty lists mean that nothing was found, not that nothing was looked at."""

    symptoms: tuple[Symptom, ...] = ()
    root_causes: tuple[RootCause, ...] = ()
    fixes: tuple[Fix, ...] = ()
    quick_wins: tuple[str, ...] = ()
    not_checked: tuple[Mapping[str, str], ...] = ()
    confidence_statement: str = ""
    judged: tuple[str, ...] = ()  # the playbooks that were held against the history
    round: int = field(default=1, compare=False)

    def to_json(self) -> dict[str, Any]:
        """diagnosis.json, schema 1, as plain values."""
        causes = [
            {
                "issue": cause.issue,
                "status": cause.status,
                "confidence": cause.confidence.value,
                "basis": cause.confidence.basis,
                "evidence": cause.evidence,
                "fix": cause.fix,
            }
            for cause in self.root_causes
        ]
        symptoms = [
            {"id": s.id, "severity": s.severity, "observations": [o.to_dict() for o in s.observations]}
            for s in self.symptoms
        ]
        body = {
            "symptoms": symptoms,
            "root_causes": causes,
            "quick_wins": self.quick_wins,
            "recommended_fixes": [fix.to_dict(i) for i, fix in enumerate(self.fixes, 1)],
            "experiments": [],
            "not_checked": self.not_checked,
            "confidence_statement": self.confidence_statement,
            "schema": SCHEMA,
        }
        return dict(plain(body))

    def save(self, path: str | Path) -> None:
        """Write diagnosis.json to that file, or with incident.md into that folder where the path has no suffix."""
        path = Path(path)
        if path.suffix:
            files.write_json(path, self.to_json())
        else:
            files.write_json(path / "diagnosis.json", self.to_json())
            files.write_text(path / "incident.md", self.incident())

    def incident(self) -> str:
        """One page for a person, in Markdown: what happened, why, what to do, what is not known."""
        if not self.symptoms:
            parts = ["# No symptom found", self.confidence_statement]
        else:
            parts = [f"# {self.symptoms[0].title}", self.confidence_statement, "## What was seen"]
            for symptom in self.symptoms:
                seen = "".join(f"\n- {o.sentence()}" for o in symptom.observations)
                parts.append(f"**{symptom.title}** (`{symptom.id}`, {symptom.severity}){seen}")
            parts.append("## Why, most likely first")
            parts += [_told(rank, cause) for rank, cause in enumerate(self.root_causes[:5], 1)]
            parts.append("## What to try, in this order")
            tried = [f"{f.remedy.description} ({f.kind} of `{f.cause}`)" for f in self.fixes[:7]]
            parts.append("\n".join(f"{i}. {text}" for i, text in enumerate(tried, 1)) or "Nothing to propose.")
        parts.append("## What was not checked")
        parts.append("\n".join(f"- {gap['what']}: {gap['why']}" for gap in self.not_checked) or "Nothing was left out.")
        return "\n\n".join(parts) + "\n"

    def _repr_html_(self) -> str:
        """A small table for a notebook."""
        rows = "".join(
            f"<tr><td>{escape(c.issue)}</td><td>{c.confidence.value:.2f} ({escape(c.confidence.basis)})</td>"
            f"<td>{escape('; '.join(c.evidence[:2]))}</td><td>{escape(c.fix)}</td></tr>"
            for c in self.root_causes
        )
        names = ", ".join(s.title for s in self.symptoms) or "No symptom found"
        head = "<tr><th>cause</th><th>confidence</th><th>evidence</th><th>fix</th></tr>" if rows else ""
        table = f"<table><caption>{escape(names)}</caption>{head}{rows}</table>"
        return f"{table}<p>{escape(self.confidence_statement)}</p>"

    def __repr__(self) -> str:
        found = ", ".join(f"{c.issue} {c.confidence.value:.2f}" for c in self.root_causes[:3])
        return f"Diagnosis({', '.join(s.id for s in self.symptoms) or 'no symptom'}{found and ': ' + found})"


def _told(rank: int, cause: RootCause) -> str:
    seen = "".join(f"\n   - {sentence}" for sentence in cause.evidence)
    source = f"\n   - Known from: {cause.cites}" if cause.cites else ""
    sure = f"{cause.confidence.value:.2f}, {cause.confidence.basis}"
    return f"{rank}. **{cause.issue}** ({sure}): {cause.means}.{seen}{source}\n   - First to try: {cause.fix}"
