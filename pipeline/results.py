"""Types that all layers share: phases, outcomes, evidence, results, scores, and their canonical JSON."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import PurePath
from typing import Any, Literal, get_args

PHASES = ("planning", "baseline", "diagnostics", "optimization", "finalization")

ROUNDED = ("diagnostics", "optimization")  # phases that a sufficient run skips and an insufficient one may repeat

Outcome = Literal["passed", "failed", "inconclusive", "errored", "pending", "not_applicable"]
GateState = Literal["open", "closed", "pending"]
Branch = Literal["sufficient", "insufficient"]
Comparison = Literal["better", "as good", "worse"]
Relation = Literal["<=", ">=", "<", "==", "is"]
Basis = Literal["automatic", "attested"]
Acceptable = Literal["", "small_sample", "not_audited"]

OUTCOMES: tuple[str, ...] = get_args(Outcome)

# How confident a statement may be at most, by what it is based on.
CEILINGS = {"inference": 0.70, "report": 0.70, "research": 0.85, "observation": 0.95, "definition": 0.95}


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural where it is not 1; 0 is written as "no"."""
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def compared(value: float, limit: float, at_least: bool = True) -> str:
    """Return whether a value keeps a limit, as `0.9833 >= 0.95` or `0.9472 < 0.95`; in words unless both are finite.

    Numbers that differ are written with the digits that tell them apart.
    """
    value, limit = float(value), float(limit)
    if not (math.isfinite(value) and math.isfinite(limit)):
        return f"{value:.4g}, which cannot be compared with {limit:.4g}"
    within = value >= limit if at_least else value <= limit
    sign = (">=" if within else "<") if at_least else ("<=" if within else ">")
    digits = next((d for d in range(4, 17) if value == limit or f"{value:.{d}g}" != f"{limit:.{d}g}"), 17)
    return f"{value:.{digits}g} {sign} {limit:.{digits}g}"


def _json_form(value: Any, number: Callable[[float], Any]) -> Any:
    """The value as JSON can hold it, with floats as `number` gives them. Raises TypeError where it has no such form."""
    if type(value).__module__ == "numpy":  # scalars and arrays, without importing numpy
        return _json_form(value.tolist(), number)
    if isinstance(value, str):
        return str(value)  # also for its subclasses, such as torch's version
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return number(value)
    if isinstance(value, PurePath):
        return value.as_posix()
    if is_dataclass(value) and not isinstance(value, type):
        return _json_form(asdict(value), number)
    if isinstance(value, Mapping):
        return {str(k): _json_form(v, number) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return [_json_form(v, number) for v in items]
    raise TypeError(f"no JSON form for {type(value).__name__}")


def plain(value: Any) -> Any:
    """The value as JSON can hold it; NaN and infinities become the strings "nan", "inf", "-inf".

    Raises TypeError for anything that has no faithful JSON form.
    """
    return _json_form(value, lambda number: number if math.isfinite(number) else str(number))


def _nonfinite(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[list[str | int]]:
    """The place of every NaN and infinity in a JSON value, as the keys and positions that lead to it."""
    if isinstance(value, float) and not math.isfinite(value):
        yield list(path)
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from _nonfinite(part, (*path, key))


def exact(value: Any) -> Any:
    """The value as YAML can hold it: as `plain`, but NaN and infinities stay numbers, and keys keep their type."""
    if isinstance(value, Mapping):
        keys = {k: k if k is None or isinstance(k, bool | int | float | str) else str(k) for k in value}
        return {keys[k]: exact(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [exact(v) for v in value]
    return value if isinstance(value, float) else plain(value)


# What reads each type of key again; `str` marks text keys that look like a marked key themselves.
_KEY_TYPES: dict[str, Callable[[str], Any]] = {
    "int": int, "float": float, "bool": lambda text: text == "True", "NoneType": lambda text: None, "str": str,
}  # fmt: skip


def _tagged_key(key: object) -> str:
    kind, colon, _ = str(key).partition(":")
    if isinstance(key, str) and not (colon and kind in _KEY_TYPES):
        return key
    return f"{type(key).__name__}:{key}"


def _untagged_key(key: str) -> Any:
    kind, colon, text = key.partition(":")
    return _KEY_TYPES[kind](text) if colon and kind in _KEY_TYPES else key


def tagged(value: Any) -> Any:
    """The value as JSON can hold it without loss: `{"float": "nan"}` for NaN, where `plain` has the text "nan".

    Keys that are not text are text with their type, such as `int:0`. `untagged` gives both back.
    """
    if isinstance(value, Mapping):
        return {_tagged_key(k): tagged(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [tagged(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return plain(value)


def untagged(value: Any) -> Any:
    """A value that `tagged` gave, with its numbers and keys."""
    if isinstance(value, Mapping):
        if value.keys() == {"float"} and value["float"] in ("nan", "inf", "-inf"):
            return float(value["float"])
        return {_untagged_key(k): untagged(v) for k, v in value.items()}
    return [untagged(v) for v in value] if isinstance(value, list) else value


def canonical(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, ASCII only, no NaN literals."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of a value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


@dataclass(frozen=True)
class Artifact:
    """A file that a phase wrote: its path inside the run directory and its SHA-256."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Evidence:
    """The measurements of a phase that its gate evaluates: values, their units, and files with digests.

    Indexing raises KeyError for a value that was not measured, so that a check that needs it is `errored`.
    """

    values: Mapping[str, Any]
    units: Mapping[str, str] = field(default_factory=dict)
    artifacts: Mapping[str, Artifact] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        if name not in self.values:
            raise KeyError(f"evidence '{name}' was not measured")
        return self.values[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.values.get(name, default)

    def to_json(self) -> dict[str, Any]:
        """The evidence as its file has it: `plain`, and in `nonfinite` which of its texts are NaN or infinities."""
        numbers = _json_form(self.values, float)
        return {**plain(self), "values": plain(numbers), "nonfinite": list(_nonfinite(numbers))}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Evidence:
        """The evidence of a file, with its numbers: what a phase measured as every later reader gets it.

        Raises TypeError or another error of its parts for what is not the content of an evidence file.
        """
        values, units = copy.deepcopy(body["values"]), body.get("units", {})
        if not isinstance(values, dict) or not isinstance(units, dict):
            raise TypeError("values and units must be mappings")
        for *path, last in body.get("nonfinite", ()):
            node = values
            for key in path:
                node = node[key]
            node[last] = float(node[last])
        artifacts = {name: Artifact(**record) for name, record in body.get("artifacts", {}).items()}
        return cls(values, units, artifacts)


@dataclass(frozen=True)
class Result:
    """The result of a check: its outcome, the value it compared, and the bound.

    `relation` is what passing requires of the value with respect to the bound; `is` precedes a bound in words. `why` is
    one sentence; `cause` is an id of causes.yaml where one applies. `basis` is `attested` where the result rests on
    what the owner declared. An inconclusive result names in `acceptable` the plan's statement that would accept it:
    `small_sample` for too few rows, `not_audited` for what could not be audited here.
    """

    outcome: Outcome
    value: Any = None
    bound: Any = None
    unit: str = ""
    why: str = ""
    cause: str | None = None
    evidence: tuple[str, ...] = ()
    relation: Relation = "<="
    basis: Basis = "automatic"
    acceptable: Acceptable = ""

    def __post_init__(self) -> None:
        assert self.outcome in OUTCOMES, self.outcome
        if self.outcome == "not_applicable" and not self.why:
            raise ValueError("a result that is not applicable must say why")
        assert not self.acceptable or self.outcome == "inconclusive", "only an inconclusive result can be accepted"


@dataclass(frozen=True)
class Score:
    """A metric on rows the model was not trained on; the only type a target or a selection accepts.

    `low` and `high` bound the 95 % interval, NaN where there is none; `n` counts the rows, `groups` the declared groups
    among them, which alone are independent. `undefined` of the `resamples` behind the interval had no value. Raises
    ValueError for train rows.
    """

    split: Literal["val", "test"]
    metric: str
    value: float
    low: float
    high: float
    n: int
    greater_is_better: bool = True
    undefined: int = 0
    resamples: int = 0
    groups: int | None = None

    def __post_init__(self) -> None:
        if self.split not in ("val", "test"):
            raise ValueError(f"a score is measured on val or test, got {self.split!r}; for train rows use TrainSide")

    def reaches(self, target: float) -> bool:
        """Whether the value reaches the target in the direction of the metric; NaN and infinities never do."""
        if not math.isfinite(self.value):
            return False
        return self.value >= target if self.greater_is_better else self.value <= target

    def beats(self, other: float) -> bool:
        """Whether the score is shown to be better than another value, which its 95 % interval must not contain.

        Without an interval the value alone decides. NaN and infinities are neither better nor beaten.
        """
        return compare_with_score(other, asdict(self)) == "worse"


FEW_GROUPS = 20  # below, the spread of the groups is known roughly


def format_interval(score: Mapping[str, Any]) -> str:
    """Return `95 % interval 0.96 to 0.991, n = 360` for a score as a mapping, also one read from JSON."""
    low, high = (float(str(score.get(end, math.nan))) for end in ("low", "high"))
    interval = "no 95 % interval" if math.isnan(low) else f"95 % interval {low:.3g} to {high:.3g}"
    return f"{interval}, {format_sample(score)}"


def format_sample(score: Mapping[str, Any]) -> str:
    """Return the number of rows of a score, of their declared groups, and of resamples in which it was undefined."""
    groups, undefined = score.get("groups"), score.get("undefined")
    text = f"n = {score['n']}"
    if groups:
        text += f" in {'only ' if groups < FEW_GROUPS else ''}{counted(groups, 'group')}"
    return text + (f", {undefined} of {score['resamples']:,} resamples undefined" if undefined else "")


def compare_with_score(value: object, score: Mapping[str, Any]) -> Comparison | None:
    """Return how another value of the metric compares with a score: better or worse only outside its 95 % interval.

    `score` is a `Score` as a mapping, also one read from JSON. Without an interval only an equal value is as good.
    None where one of the two is NaN or infinite.
    """
    other, measured = float(str(value)), float(str(score["value"]))
    if not (math.isfinite(other) and math.isfinite(measured)):
        return None
    ends = [float(str(score.get(end, math.nan))) for end in ("low", "high")]
    bounds = [measured, *(end for end in ends if not math.isnan(end))]
    if min(bounds) <= other <= max(bounds):
        return "as good"
    return "better" if (other > measured) == bool(score.get("greater_is_better", True)) else "worse"


@dataclass(frozen=True)
class TrainSide:
    """A metric on train rows: good for diagnosis, refused by every target and selection."""

    metric: str
    value: float
    n: int
