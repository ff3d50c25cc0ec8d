"""What an inspection found: something about a training that is wrong by definition, or rare among healthy trainings.

An inspection yields findings that are true by definition, and measured quantities. A quantity becomes a finding where
it is far from the values of healthy trainings in `healthy.yaml`; `meanings.yaml` says which cause that supports.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

from pipeline.results import plain
from pipeline.safe_yaml import load

Kind = Literal["definition", "abnormality"]
HEALTHY = Path(__file__).with_name("healthy.yaml")  # `make healthy-ranges` writes it
MEANINGS = Path(__file__).with_name("meanings.yaml")
MARGIN = 0.02  # of the most extreme healthy value, by which a value must be beyond it
FEWEST = 20  # healthy trainings that a place among them needs
ONE_FEATURE = "target_in_one_feature"  # the inspection
FEATURE = "feature "  # how its `where` begins, before the number


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


@dataclass(frozen=True)
class Measured:
    """A number that an inspection measured; `where` names the module, feature or setting that it belongs to."""

    quantity: str
    value: float
    where: str = ""


@dataclass(frozen=True)
class Meaning:
    """What an unusual value of a quantity means.

    `side` is the unusual side. The sentence has the places `{value}`, `{bound}` and `{where}`. Some quantities are
    meant only up to a limit, whatever healthy trainings show: `at_least` on the side of high values, `at_most` of low.
    """

    cause: str
    side: Literal["high", "low"]
    sentence: str
    unit: str = ""
    at_least: float = -math.inf
    at_most: float = math.inf


def contradiction(
    cause: str, inspection: str, sentence: str, value: float | None = None, unit: str = "", where: str = ""
) -> Finding:
    """Return a finding that is true by definition."""
    return Finding(cause, inspection, "definition", 1.0, value, None, unit, sentence, where)


def unusual(
    cause: str,
    inspection: str,
    sentence: str,
    abnormality: float,
    value: float | None = None,
    unit: str = "",
    where: str = "",
) -> Finding:
    """Return a finding that is a fault only in a run that needs mending."""
    return Finding(cause, inspection, "abnormality", abnormality, value, None, unit, sentence, where)


@functools.cache
def healthy_values() -> dict[str, list[float]]:
    """Return the values of healthy trainings by quantity, sorted."""
    content = load(HEALTHY.read_text(), HEALTHY.name)
    return {name: sorted(map(float, values)) for name, values in content["quantities"].items()}


@functools.cache
def meanings() -> dict[str, list[Meaning]]:
    """Return the meanings of every quantity."""
    content = load(MEANINGS.read_text(), MEANINGS.name)
    return {name: [Meaning(**entry) for entry in entries] for name, entries in content.items()}


def place(value: float, healthy: Sequence[float], side: str) -> tuple[float, float | None]:
    """Return the share of healthy trainings that are less extreme than a value, and the most extreme healthy value.

    Beyond the most extreme healthy value the share goes on towards 1 with the ratio of the two, since a thousand times
    beyond it is less healthy than just beyond it. NaN is beyond everything. Returns 0 and None for too few trainings.
    """
    n = len(healthy)
    if n < FEWEST:
        return 0.0, None
    edge = healthy[-1] if side == "high" else healthy[0]
    if math.isnan(value):
        return 1.0, edge
    less = bisect_left(healthy, value) if side == "high" else n - bisect_right(healthy, value)
    share = less / (n + 1)
    if less == n:
        larger, smaller = (value, edge) if side == "high" else (edge, value)
        ratio = larger / smaller if smaller > 0 else 100.0
        share = 1 - (1 - share) / max(1.0, math.sqrt(ratio))
    return min(share, 0.9999), edge


def judge(measured: Measured) -> list[Finding]:
    """Return what a value supports, where every healthy training is less extreme."""
    findings, healthy = [], healthy_values().get(measured.quantity, [])
    for meaning in meanings().get(measured.quantity, ()):
        share, edge = place(measured.value, healthy, meaning.side)
        within = measured.value < meaning.at_least if meaning.side == "high" else measured.value > meaning.at_most
        if edge is None or within or not _beyond(measured.value, edge, meaning.side):
            continue
        sentence = meaning.sentence.format(value=_short(measured.value), bound=_short(edge), where=measured.where)
        findings.append(
            Finding(
                meaning.cause, measured.quantity, "abnormality", share, measured.value, edge, meaning.unit, sentence,
                measured.where,
            )
        )  # fmt: skip
    return findings


def _beyond(value: float, edge: float, side: str) -> bool:
    """Return whether a value is clearly beyond the most extreme healthy one."""
    if math.isnan(value):
        return True
    margin = MARGIN * abs(edge)
    return value > edge + margin if side == "high" else value < edge - margin


def _short(value: float) -> str:
    return f"{value:.3g}"


def telling_feature(findings: Iterable[Finding]) -> int | None:
    """Return the number of the feature that alone tells the target, if an inspection has found one."""
    telling = [finding.where for finding in findings if finding.inspection == ONE_FEATURE]
    return int(telling[0].removeprefix(FEATURE)) if telling else None
