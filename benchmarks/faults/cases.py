"""The cases of the fault benchmark: the trainings and what is known to be true of each.

A case is an experiment file (`conf/experiment/<id>.yaml`), a plain loop (`loops/<id>.py`), or the log of such a loop
in the format of a library (`posted/`) or as a CSV. Its truth is in `truth/<family>.yaml`. A family is every case that
was derived from one parent; all of it is either in the tuning part or in the held-out part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

HERE = Path(__file__).resolve().parent
Part = Literal["tuning", "held_out"]
PARTS: tuple[Part, ...] = ("tuning", "held_out")
AS = "_as_"  # between the name of a loop and the format of its log
WAYS = ("experiment", "loop", "logs")


@dataclass(frozen=True)
class Case:
    """A training and the truth about it.

    `faults` contains the accepted cause ids of each fault, the main one first; a healthy training has no faults.
    `harmless` flaws exist in the training but count neither as right nor as wrong. Each entry of `mended` is a list of
    overrides that make the training healthy. A training is healthy if its `metric` on `split` is `at_least` or
    `at_most` a bound; both are given where a score that is too good is the symptom. The split is always `val`, since
    the test split is sealed. The script of a loop defines its own score.
    """

    id: str
    family: str
    way: Literal["experiment", "loop", "logs"]
    faults: tuple[tuple[str, ...], ...]
    harmless: tuple[str, ...]
    mended: tuple[tuple[str, ...], ...]
    split: str
    metric: str
    at_least: float | None
    at_most: float | None
    source: str
    format: str = ""  # of a log: a writer of `posted/`; empty for a CSV of the losses and scores of each epoch
    parent: str = ""  # the experiment that a variant changes by `overrides`
    overrides: tuple[str, ...] = ()

    @property
    def script(self) -> str:
        """The loop of a case that is one, or its log."""
        return self.id.removesuffix("_logs").partition(AS)[0]

    @property
    def healthy(self) -> bool:
        return not self.faults

    @property
    def causes(self) -> tuple[str, ...]:
        """The accepted ids of all its faults."""
        return tuple(cause for fault in self.faults for cause in fault)

    @property
    def part(self) -> Part:
        """Tuning or held out, by a hash of the family's name, so that the assignment is not a choice."""
        return "tuning" if hashlib.sha256(self.family.encode()).digest()[0] % 2 else "held_out"

    def well(self, value: float | None) -> bool:
        """Return whether a score is that of a healthy training. A score that is missing or NaN is not."""
        if value is None or value != value:
            return False
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


def cases() -> list[Case]:
    """Return every case, by family and id."""
    return [case for path in sorted((HERE / "truth").glob("*.yaml")) for case in _read_family(path)]


def _read_family(path: Path) -> Iterator[Case]:
    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    yield from (_read_case(path.stem, content, name, truth) for name, truth in content["cases"].items())
    for name, formats in content.get("posted", {}).items():
        loop = _read_case(path.stem, content, name, content["cases"][name])
        yield from (replace(loop, id=f"{name}{AS}{known}", way="logs", format=known) for known in formats)


def _read_case(family: str, content: Any, name: str, truth: Any) -> Case:
    health, causes = truth.get("health", {}), truth.get("causes", [])
    bounds = health if {"at_least", "at_most"} & health.keys() else content["health"]
    return Case(
        id=name,
        family=family,
        way=truth.get("way", "experiment"),
        faults=tuple(map(tuple, [causes] if causes and isinstance(causes[0], str) else causes)),
        harmless=tuple(truth.get("harmless", ())),
        mended=tuple(tuple(overrides) for overrides in truth.get("mended", ())),
        split=health.get("split", content["health"]["split"]),
        metric=health.get("metric", content["health"]["metric"]),
        at_least=bounds.get("at_least"),
        at_most=bounds.get("at_most"),
        source=truth.get("source", ""),
    )
