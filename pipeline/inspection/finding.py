"""What an inspection found: something about a training that is wrong by definition, or rare among healthy trainings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

from pipeline.results import plain

Kind = Literal["definition", "abnormality"]


@dataclass(frozen=True)
class Finding:
    """A flaw that was found before or beside a training, with the cause that it supports.

    A `definition` is a contradiction in terms, such as class 7 of 3: it is certain, and its `abnormality` is 1. Of an
    `abnormality` it is the share of healthy trainings that are less extreme in `value`, from 0 to 1. `bound` is the
    limit that `value` passes, in the same `unit`; None where there is no number. `where` names a module, a feature
    or a setting.
    """

    cause: str
    inspection: str
    kind: Kind
    abnormality: float
    value: float | None
    bound: float | None
    unit: str
    sentence: str
    where: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the finding in the form in which it is part of a phase's evidence."""
        return {**asdict(self)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Return the finding of a record; numbers that JSON cannot hold, such as `nan`, may be strings in it."""
        values: dict[str, Any] = {field.name: record[field.name] for field in fields(cls) if field.name in record}
        for name in ("abnormality", "value", "bound"):
            values[name] = _number(values[name])
        return cls(**values)


@dataclass(frozen=True)
class NotChecked:
    """An inspection that gave no answer, and why."""

    what: str
    why: str


@dataclass(frozen=True)
class Inspections:
    """The findings of all inspections of one training, most abnormal first, and what could not be checked."""

    findings: tuple[Finding, ...] = ()
    not_checked: tuple[NotChecked, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the evidence `inspections` of the baseline."""
        return plain(
            {
                "findings": [finding.to_json() for finding in self.findings],
                "not_checked": [asdict(entry) for entry in self.not_checked],
            }
        )

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Return the inspections of a record; an empty record has none."""
        findings = tuple(Finding.from_json(entry) for entry in record.get("findings", ()))
        return cls(findings, tuple(NotChecked(**entry) for entry in record.get("not_checked", ())))


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
