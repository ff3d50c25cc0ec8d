"""The cases of the fault benchmark: what is known to be true of each training, and where it stands.

A case is an experiment file (`conf/experiment/<id>.yaml`), a plain loop (`loops/<id>.py`), or what either of them
wrote to a log. Its truth stands in `truth/<family>.yaml`; a family is everything that was made from one parent, and
goes as a whole to the tuning part or to the part that is held out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

HERE = Path(__file__).resolve().parent
Part = Literal["tuning", "held_out"]
PARTS: tuple[Part, ...] = ("tuning", "held_out")
WAYS = ("experiment", "loop", "logs")


@dataclass(frozen=True)
class Case:
    """A training and the truth about it.

    `faults` hold for each fault the ids that count as right, the main one first; a healthy training has none. Flaws
    that are `harmless` are there and count neither way. Each of `mended` is a list of overrides that make it well. Well
    is a `metric` on `split` of `at_least` or `at_most` so much; both where a figure that is too good is the lie. The
    split is `val` everywhere, since test is sealed; what a loop is judged by is for its script to say.
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

    @property
    def healthy(self) -> bool:
        return not self.faults

    @property
    def causes(self) -> tuple[str, ...]:
        """Every id that counts as right, of all its faults."""
        return tuple(cause for fault in self.faults for cause in fault)

    @property
    def part(self) -> Part:
        """By a hash of the parent's name: nobody chooses what is held out."""
        return "tuning" if hashlib.sha256(self.family.encode()).digest()[0] % 2 else "held_out"

    def well(self, value: float | None) -> bool:
        """Whether a score is that of a healthy training; a score that is missing or NaN is not."""
        if value is None or value != value:
            return False
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


def cases() -> list[Case]:
    """Every case, by family and id."""
    return [case for path in sorted((HERE / "truth").glob("*.yaml")) for case in _family(path)]


def _family(path: Path) -> Iterator[Case]:
    read: Any = OmegaConf.to_container(OmegaConf.load(path))
    for name, truth in read["cases"].items():
        own, causes = truth.get("health", {}), truth.get("causes", [])
        bounds = own if {"at_least", "at_most"} & own.keys() else read["health"]
        yield Case(
            id=name,
            family=path.stem,
            way=truth.get("way", "experiment"),
            faults=tuple(map(tuple, [causes] if causes and isinstance(causes[0], str) else causes)),
            harmless=tuple(truth.get("harmless", ())),
            mended=tuple(tuple(words) for words in truth.get("mended", ())),
            split=own.get("split", read["health"]["split"]),
            metric=own.get("metric", read["health"]["metric"]),
            at_least=bounds.get("at_least"),
            at_most=bounds.get("at_most"),
            source=truth.get("source", ""),
        )
