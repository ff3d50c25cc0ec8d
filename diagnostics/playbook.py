"""Playbooks: one Markdown file per symptom, with front matter for the program and five sections for the reader.

A new playbook is a new file in this folder; nothing else is edited. Loading a file reports all its faults at once.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from diagnostics.conditions import Condition
from diagnostics.signals import SIGNALS, curve_limits
from pipeline import safe_yaml
from pipeline.errors import UserError, fault
from pipeline.foreign_files import read_bytes
from pipeline.history import History
from pipeline.repair import causes as vocabulary
from pipeline.results import CEILINGS

Kind = Literal["cure", "mitigation", "prevention"]
Severity = Literal["blocking", "advisory"]
Example = Mapping[str, str | Sequence[float] | Mapping[str, float]]  # see `example_history`

HEADINGS = ("Meaning", "Evidence", "Causes", "Remedies", "Prevention")
_KEYS = ("symptom", "severity", "when", "causes", "examples")
_OPTIONAL_KEYS = (
    "said",  # regular expressions of words by which people report the symptom
    "while_training",  # whether a run that shows the symptom early will not recover: the live guard acts on it
)
_CONDITION_KEYS = ("signal", "of", "last", "above", "below")
_CAUSE_KEYS = ("id", "supported_by", "unless", "cures", "expect", "cites", "basis")


@dataclass(frozen=True)
class CandidateCause:
    """A cause that a playbook lists: the conditions that support it, and its cures in the order to try them.

    The first support is necessary: if it was measured and does not hold, the cause is ruled out. So it is if one of
    `unless` holds.
    """

    id: str
    supported_by: tuple[Condition, ...]
    cures: tuple[tuple[str, Kind], ...]
    expect: Condition | None
    cites: str
    basis: str
    unless: tuple[Condition, ...] = ()


@dataclass(frozen=True)
class Playbook:
    """One symptom: the conditions that define it, its possible causes, and example curves that test the file."""

    id: str
    symptom: str
    severity: Severity
    when: tuple[Condition, ...]
    causes: tuple[CandidateCause, ...]
    fires: tuple[Example, ...]
    silent: tuple[Example, ...]
    sections: Mapping[str, str]
    said: tuple[str, ...] = ()
    while_training: bool = False


def names() -> list[str]:
    """Return the ids of the playbooks that are in this folder now, also of those added since `load_all` was called."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.md"))


@cache
def load_all(folder: Path | None = None) -> tuple[Playbook, ...]:
    """Return every playbook in the folder, sorted by id. Raises UserError with all faults of the first bad file."""
    folder = folder or Path(__file__).parent
    return tuple(parse(path.stem, _read(path)) for path in sorted(folder.glob("*.md")))


def _read(path: Path) -> str:
    try:
        return read_bytes(path, "a playbook", safe_yaml.MAX_BYTES).decode()
    except UnicodeDecodeError as error:
        what = f"is not text in UTF-8 ({error.reason})"
        raise UserError(fault(f"diagnostics/{path.name}", what, expected="a playbook in UTF-8")) from None


def parse(name: str, text: str) -> Playbook:
    """Return the playbook in the text of a file. Raises UserError with every fault of the text."""
    where = f"diagnostics/{name}.md"
    match = re.match(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL)
    if not match:
        raise UserError(fault(where, "no front matter", expected="YAML between two lines of ---"))
    try:
        front = safe_yaml.load_strict(match[1], where)
    except UserError:
        raise
    except Exception as error:  # the YAML parser raises many types, and each means that this file is wrong
        raise UserError(fault(where, f"front matter cannot be read: {error}")) from None
    if not isinstance(front, dict):
        raise UserError(fault(where, "front matter is not a mapping", expected=", ".join(_KEYS)))
    parser = _Parser(where)
    playbook = parser.playbook(name, {str(k): v for k, v in front.items()}, match[2])
    if parser.faults:
        raise UserError(*parser.faults)
    return playbook


class _Parser:
    """Parses one file and collects its faults. The values it returns are valid only if there are no faults.

    Values from the YAML are typed `object`, since a file may hold anything anywhere.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.faults: list[str] = []

    def add_fault(self, key: str, what: str, **details: Any) -> None:
        self.faults.append(fault(f"{self.where}: {key}", what, **details))

    def playbook(self, name: str, front: Mapping[str, object], body: str) -> Playbook:
        self._check_keys("front matter", front, (*_KEYS, *_OPTIONAL_KEYS), required=_KEYS)
        severity = str(front.get("severity", "advisory"))
        if front.get("severity") not in get_args(Severity):
            self.add_fault("severity", "unknown severity", got=front.get("severity"), among=get_args(Severity))
        fires, silent = self._examples(front.get("examples"))
        return Playbook(
            id=name,
            symptom=str(front.get("symptom")),
            severity="blocking" if severity == "blocking" else "advisory",
            when=self._conditions("when", front.get("when")),
            causes=tuple(self._cause(f"causes[{i}]", entry) for i, entry in enumerate(self._list("causes", front))),
            fires=fires,
            silent=silent,
            sections=self._sections(body),
            said=self._phrases(front),
            while_training=self._flag("while_training", front),
        )

    def _flag(self, key: str, front: Mapping[str, object]) -> bool:
        value = front.get(key, False)
        if not isinstance(value, bool):
            self.add_fault(key, "is not a boolean", got=str(value), expected="true or false")
        return value is True

    def _phrases(self, front: Mapping[str, object]) -> tuple[str, ...]:
        phrases = [str(phrase) for phrase in self._list("said", front)]
        for i, phrase in enumerate(phrases):
            try:
                re.compile(phrase)
            except re.error as error:
                self.add_fault(f"said[{i}]", f"is not a regular expression ({error})", got=phrase)
        return tuple(phrases)

    def _sections(self, body: str) -> dict[str, str]:
        parts = re.split(r"^## +(.+?) *$", body, flags=re.MULTILINE)
        sections = {title: text.strip() for title, text in zip(parts[1::2], parts[2::2], strict=True)}
        if tuple(sections) != HEADINGS or not all(sections.values()):
            titles = ", ".join(t if sections[t] else f"{t} (empty)" for t in sections) or "none"
            expected = ", ".join(f"## {heading}" for heading in HEADINGS)
            self.add_fault("headings", "wrong or empty headings", got=titles, expected=expected)
        return sections

    def _check_keys(
        self, key: str, entry: Mapping[str, object], known: Iterable[str], required: Iterable[str] = ()
    ) -> None:
        for name in entry:
            if name not in known:
                self.add_fault(key, "unknown key", got=str(name), among=known)
        for name in required:
            if not entry.get(name):
                self.add_fault(key, f"'{name}' is missing or empty")

    def _list(self, key: str, entry: Mapping[str, object]) -> list[object]:
        value = entry.get(key) or []
        if not isinstance(value, list):
            self.add_fault(key, "is not a list", got=str(value))
            return []
        return value

    def _conditions(self, key: str, entries: object) -> tuple[Condition, ...]:
        return tuple(self._condition(f"{key}[{i}]", e) for i, e in enumerate(self._list(key, {key: entries})))

    def _condition(self, key: str, entry: object) -> Condition:
        if not isinstance(entry, dict):
            self.add_fault(key, "is not a condition", got=str(entry), expected="{signal, of, above or below}")
            return Condition("", ())
        self._check_keys(key, entry, _CONDITION_KEYS, required=("signal", "of"))
        of = entry.get("of", [])
        of = (of,) if isinstance(of, str) else tuple(of or ())
        signal = str(entry.get("signal"))
        if signal not in SIGNALS:
            self.add_fault(f"{key}.signal", "unknown signal", got=signal, among=SIGNALS)
        else:
            least, most = curve_limits(signal)
            if not max(1, least) <= len(of) <= most:
                self.add_fault(f"{key}.of", f"{signal} takes {max(1, least)} to {most} curves", got=len(of))
        numbers = {k: entry[k] for k in ("last", "above", "below") if entry.get(k) is not None}
        for k, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
                self.add_fault(f"{key}.{k}", "is not a number", got=str(value)[:40])  # nor one beyond those of float64
                return Condition(signal, of)
        if not {"above", "below"} & set(numbers):
            self.add_fault(key, "has no bound", expected="above, below or both")
        if not 0 < numbers.get("last", 1) <= 1:
            expected = "above 0, at most 1"
            self.add_fault(f"{key}.last", "is not a share of the run", got=numbers["last"], expected=expected)
        return Condition(signal, of, **{k: float(v) for k, v in numbers.items()})

    def _cause(self, key: str, entry: object) -> CandidateCause:
        entry = entry if isinstance(entry, dict) else {"id": entry}
        self._check_keys(key, entry, _CAUSE_KEYS, required=("id", "cures", "cites"))
        known, name = vocabulary.load(), str(entry.get("id"))
        if name not in known:
            self.add_fault(f"{key}.id", "unknown cause", got=name, among=known)
        cures = tuple(self._cure(f"{key}.cures[{i}]", c, name) for i, c in enumerate(self._list("cures", entry)))
        basis = str(entry.get("basis", "inference"))
        if basis not in CEILINGS:
            self.add_fault(f"{key}.basis", "unknown basis", got=basis, among=CEILINGS)
        expect = self._condition(f"{key}.expect", entry["expect"]) if entry.get("expect") else None
        supported_by = self._conditions(f"{key}.supported_by", entry.get("supported_by"))
        unless = self._conditions(f"{key}.unless", entry.get("unless"))
        return CandidateCause(name, supported_by, cures, expect, str(entry.get("cites")), basis, unless)

    def _cure(self, key: str, entry: object, cause: str) -> tuple[str, Kind]:
        entry = dict(entry) if isinstance(entry, dict) else {"id": entry}
        self._check_keys(key, entry, ("id", "mitigation", "prevention"), required=("id",))
        name = str(entry.get("id"))
        known = vocabulary.load().get(cause)
        if known and name not in known.cures:
            self.add_fault(key, f"is not a cure of {cause}", got=name, among=known.cures)
        kind: Kind = "mitigation" if entry.get("mitigation") else "prevention" if entry.get("prevention") else "cure"
        return name, kind

    def _examples(self, entry: object) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
        entry = entry if isinstance(entry, dict) else {}
        self._check_keys("examples", entry, ("fires", "silent"), required=("fires", "silent"))
        return self._example_list("fires", entry), self._example_list("silent", entry)

    def _example_list(self, kind: str, entry: Mapping[str, object]) -> tuple[Example, ...]:
        examples: list[Example] = []
        for i, example in enumerate(self._list(kind, entry)):
            if not isinstance(example, dict):
                self.add_fault(f"examples.{kind}[{i}]", "is not a history", got=str(example))
                continue
            try:
                example_history(example)
            except (TypeError, ValueError) as error:
                self.add_fault(f"examples.{kind}[{i}]", f"is not a history ({error})")
            examples.append(example)
        return tuple(examples)


def example_history(example: Example) -> History:
    """Return the history that an example describes: `what` is its title, `facts` are facts, other keys are columns.

    A column is a list of numbers or a string of them (`2.3 1.9 nan`). `val/*` and `train/<metric>` have one value per
    epoch, every other column one per step.
    """
    history = History()
    for name, values in example.items():
        if name == "facts":
            if not isinstance(values, Mapping):
                raise TypeError("facts are not a mapping")
            history.facts.update({fact: float(value) for fact, value in values.items()})
        elif name != "what":
            numbers = np.array(values.split() if isinstance(values, str) else values, np.float64)
            per_epoch = name.startswith("val/") or (name.startswith("train/") and name != "train/loss")
            log = history.log_epoch if per_epoch else history.log_step
            for index, value in enumerate(numbers.tolist()):
                log(index, {name: value})
    return history
