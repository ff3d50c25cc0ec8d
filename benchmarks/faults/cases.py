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
WAYS = ("experiment", "loop", "logs")


@dataclass(frozen=True)
class Case:
    """A training and the truth about it.

    `causes` are the ids that count as right, the main one first, none for a healthy training; `several` says that each
    of them is a fault of its own. `harmless` flaws are there and count neither way. Each of `mended` is a list of
    overrides that make it well. Healthy is a `metric` on `split` of at least (or at most) `bound`; the split is `val`
    everywhere, since test is sealed and train proves nothing.
    """

    id: str
    family: str
    way: Literal["experiment", "loop", "logs"]
    causes: tuple[str, ...]
    harmless: tuple[str, ...]
    several: bool
    mended: tuple[tuple[str, ...], ...]
    split: str
    metric: str
    bound: float
    greater_is_better: bool
    source: str

    @property
    def healthy(self) -> bool:
        return not self.causes

    @property
    def part(self) -> Part:
        """By a hash of the parent's name: nobody chooses what is held out."""
        return "tuning" if hashlib.sha256(self.family.encode()).digest()[0] % 2 else "held_out"

    def well(self, value: float | None) -> bool:
        """Whether a score is that of a healthy training; a score that is missing or NaN is not."""
        if value is None or value != value:
            return False
        return value >= self.bound if self.greater_is_better else value <= self.bound


def cases() -> list[Case]:
    """Every case, by family and id."""
    return [case for path in sorted((HERE / "truth").glob("*.yaml")) for case in _family(path)]


def _family(path: Path) -> Iterator[Case]:
    read: Any = OmegaConf.to_container(OmegaConf.load(path))
    for name, truth in read["cases"].items():
        own = truth.get("health", {})
        bounds = own if {"at_least", "at_most"} & own.keys() else read["health"]
        health = {**{key: own.get(key, read["health"][key]) for key in ("split", "metric")}, **bounds}
        better = "at_least" in health
        yield Case(
            id=name,
            family=path.stem,
            way=truth.get("way", "experiment"),
            causes=tuple(truth.get("causes", ())),
            harmless=tuple(truth.get("harmless", ())),
            several=bool(truth.get("several", False)),
            mended=tuple(tuple(words) for words in truth.get("mended", ())),
            split=health["split"],
            metric=health["metric"],
            bound=float(health["at_least" if better else "at_most"]),
            greater_is_better=better,
            source=truth.get("source", ""),
        )
