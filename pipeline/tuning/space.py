"""The space of a search: ranges and lists of values by name, and what its trials say about it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.errors import UserError, fault

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

EDGE = 0.05  # of a range, in its own scale: the best value so close to a limit is at the edge
TRIALS_PER_PARAMETER = 10  # Loeppky, Sacks and Welch, Technometrics 51, 2009
EXPECTED = "(low, high), (low, high, 'log') or a list of at least two values"


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, whole ones if both are; in a logarithmic scale with `log`."""

    low: float
    high: float
    log: bool

    @property
    def middle(self) -> float:
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return round(middle) if isinstance(self.low, int) else middle

    def place(self, value: float) -> float:
        """Return where a value is between low, 0, and high, 1."""
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return (at - low) / (high - low)

    def describe(self) -> str:
        return f"{self.low} to {self.high}"

    def contains(self, value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    def encode(self, value: Any) -> Any:
        """Return a value as the study knows it."""
        return value

    def decode(self, encoded: Any) -> Any:
        """Return the value that the study knows as `encoded`."""
        return encoded

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import FloatDistribution, IntDistribution

        if isinstance(self.low, int) and isinstance(self.high, int):
            return IntDistribution(self.low, self.high, log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)


@dataclass(frozen=True)
class Choices:
    """Values of any type; the study knows them by their index, since Optuna's choices are numbers or text."""

    values: tuple[object, ...]

    @property
    def middle(self) -> object:
        return self.values[0]

    def describe(self) -> str:
        return f"one of {list(self.values)}"

    def contains(self, value: object) -> bool:
        return value in self.values

    def encode(self, value: object) -> int:
        """Return a value as the study knows it."""
        return self.values.index(value)

    def decode(self, encoded: Any) -> object:
        """Return the value that the study knows as `encoded`."""
        return self.values[int(encoded)]

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution([*range(len(self.values))])


Space = Mapping[str, Range | Choices]


def values_of(space: Space, params: Mapping[str, Any]) -> dict[str, object]:
    """Return the values of a trial by name, from the `params` of Optuna's trial."""
    return {name: parameter.decode(params[name]) for name, parameter in space.items()}


class Tried(NamedTuple):
    """The values of one trial that ended with a score, and the score, higher being better."""

    values: Mapping[str, object]
    score: float


def parse_space(space: object) -> dict[str, Range | Choices]:
    """Return a space that is written as names with (low, high), (low, high, "log") or lists of values.

    Raises UserError with all faults.
    """
    if not isinstance(space, Mapping) or not space:
        got = f"a {type(space).__name__}" if not isinstance(space, Mapping) else "no parameter"
        raise UserError(fault("space", "is no mapping of names to values", got=got, expected=f"names with {EXPECTED}"))
    parsed: dict[str, Range | Choices] = {}
    faults: list[str] = []
    for name, written in space.items():
        parameter = _parse(f"space[{name!r}]", written)
        if isinstance(parameter, str):
            faults.append(parameter)
        else:
            parsed[str(name)] = parameter
    if faults:
        raise UserError(*faults)
    return parsed


def _parse(where: str, written: object) -> Range | Choices | str:
    """Return one parameter, or what is wrong with it."""
    if isinstance(written, list):
        if len(written) < 2 or any(value in written[:i] for i, value in enumerate(written)):
            return fault(
                where, "has nothing to choose from", got=f"{written}", expected="at least two different values"
            )
        return Choices(tuple(written))
    if not isinstance(written, tuple) or len(written) not in (2, 3):
        return fault(where, "is no range and no list", got=f"{written}", expected=EXPECTED)
    low, high, *scale = written
    if scale and scale != ["log"]:
        return fault(where, "has an unknown scale", got=f"{scale[0]}", among=["log"])
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in (low, high)):
        return fault(where, "has a limit that is no number", got=f"{written}", expected=EXPECTED)
    if not low < high:
        return fault(where, "ends before it begins", got=f"{written}", expected="low below high")
    if scale and low <= 0:
        return fault(where, "has no logarithm at its lower limit", got=f"{written}", expected="low above 0")
    whole = isinstance(low, int) and isinstance(high, int)
    return Range(low if whole else float(low), high if whole else float(high), bool(scale))


def check_reference(space: Space, reference: Mapping[str, object]) -> None:
    """Raise UserError with all values of the reference that are outside of the space."""
    faults = []
    for name, parameter in space.items():
        value = reference[name]
        if not parameter.contains(value):
            what = "is outside of the space"
            faults.append(fault(f"reference[{name!r}]", what, got=f"{value}", expected=parameter.describe()))
    if faults:
        raise UserError(*faults)


def doubts(space: Space, tried: Sequence[Tried]) -> list[str]:
    """Return what the trials say against the space: the best at an edge of a range, and too few points."""
    if not tried:
        return []
    best = max(tried, key=lambda trial: trial.score)
    remarks = []
    for name, parameter in space.items():
        if isinstance(parameter, Range) and not isinstance(best.values[name], str):
            place = parameter.place(float(str(best.values[name])))
            if min(place, 1 - place) <= EDGE:
                limit, side = (parameter.low, "lower") if place <= EDGE else (parameter.high, "upper")
                remarks.append(
                    f"{name}: the best value is at the {side} edge, {limit:.4g}; a wider range may be better"
                )
    enough = TRIALS_PER_PARAMETER * len(space)
    distinct = len({tuple(map(str, trial.values.values())) for trial in tried})
    if distinct < min(enough, _size(space)):
        word = "parameter" if len(space) == 1 else "parameters"
        remarks.append(f"{distinct} points are few for {len(space)} {word}; about {enough} cover such a space")
    return remarks


def _size(space: Space) -> float:
    """Return the number of points in the space; infinite with a range of fractions."""
    size = 1.0
    for parameter in space.values():
        if isinstance(parameter, Choices):
            size *= len(parameter.values)
        else:
            size *= parameter.high - parameter.low + 1 if isinstance(parameter.low, int) else math.inf
    return size
