"""What a search found: its trials, the best of them, and whether fresh seeds show it better than the reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NotRequired, TypedDict

Outcome = Literal["scored", "pruned", "failed"]


class SearchTrial(TypedDict):
    """One trial: its values, its score on validation (None without one), how it ended, and why where it failed."""

    number: int
    values: dict[str, object]
    score: float | None
    outcome: Outcome
    why: str


class SearchRecord(TypedDict):
    """The result of a search, `search.json` of its folder and the entry `search.decided` of the ledger.

    - `reference`: the values of the frozen plan, and their score on the seed of the trials.
    - `candidate`: the changes of the best trial that contribute something; None where no trial beat the reference.
    - `without`: the score of the best trial with one change taken back, by key.
    - `comparison`: of reference and candidate on fresh seeds; None without a candidate.
    - `accepted`: whether they show the candidate better.
    - `notes`: what the trials say against the space, and which changes were dropped.
    """

    schema: int
    study: str
    metric: str
    greater_is_better: bool
    reference: dict[str, object]
    reference_score: float | None
    trials: list[SearchTrial]
    candidate: dict[str, object] | None
    without: dict[str, float | None]
    comparison: NotRequired[Mapping[str, object] | None]
    accepted: bool
    notes: list[str]
