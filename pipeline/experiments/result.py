"""The result of a controlled experiment, as the diagnosis ranks causes by it and as diagnosis.json records it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, TypedDict

from pipeline.results import plain

Verdict = Literal["confirmed", "refuted", "inconclusive"]
FIRST_SPLIT = "first_split"  # the experiment that replaces everything but the rows: model, loss, optimizer, settings
ON_TOP_OF = "+"  # in an id between two changes: what the second one adds to the first


class Reproduction(TypedDict):
    """Whether the unchanged run misses its goal again on other seeds, and from which step on every control does."""

    reproduced: bool
    seeds: int
    steps: int
    slice_steps: int
    control: float
    goal: float | None
    why: str


@dataclass(frozen=True)
class ArmResult:
    """One change of the run, trained on the seeds of its control, and what it showed about the causes.

    An experiment with several `causes` speaks for or against their group and not for one of them alone; without a
    cause it is context for the others. `control` and `observed` are means over the seeds, in the unit of the metric.
    `restored` is the share of the shortfall that the change removed: 1 reaches the target, 0 changes nothing, below 0
    is worse; None where the experiment measures no shortfall. `steps` is the length of one training. `why` is the
    reason of the verdict, in one sentence.
    """

    id: str
    causes: tuple[str, ...]
    change: str
    expected: str
    control: float
    observed: float
    restored: float | None
    verdict: Verdict
    seeds: int
    steps: int
    why: str

    def to_json(self) -> dict[str, Any]:
        """Return the result as diagnosis.json stores it."""
        record: dict[str, Any] = plain(self)
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Return the result that `to_json` gave; NaN and infinity are read from their names."""
        numbers = {name: float(record[name]) for name in ("control", "observed")}
        restored = None if record["restored"] is None else float(record["restored"])
        return cls(**{**record, **numbers, "causes": tuple(record["causes"]), "restored": restored})
