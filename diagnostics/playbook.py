"""Playbooks: one Markdown file per symptom, front matter for the machine and five headings for the reader.

A new playbook is a new file in this folder; nothing else is edited. Loading validates the whole file at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from diagnostics.conditions import Condition
from diagnostics.confidence import CEILINGS
from diagnostics.signals import SIGNALS, curves_wanted
from pipeline.errors import UserError, fault
from pipeline.history import History
from pipeline.repair import causes as vocabulary

Kind = Literal["cure", "mitigation", "prevention"]
Severity = Literal["blocking", "advisory"]

HEADINGS = ("Meaning", "Evidence", "Causes", "Remedies", "Prevention")
_KEYS = ("symptom", "severity", "when", "causes", "examples")
_CONDITION = ("signal", "of", "last", "above", "below")
_CAUSE = ("id", "supported_by", "cures", "expect", "cites", "basis")


@dataclass(frozen=True)
class CandidateCause:
    """A cause that a playbook proposes, what would support it, and the cures in the order to try them.

    The first support is what the cause cannot do without: measured and not holding, it rules the cause out.
    """

    id: str
    supported_by: tuple[Condition, ...]
    cures: tuple[tuple[str, Kind], ...]
    expect: Condition | None
    cites: str
    basis: str


@dataclass(frozen=True)
class Playbook:
    """One symptom: the conditions that define it, the causes behind it, and curves that prove the file right."""

    id: str
    symptom: str
    severity: Severity
    when: tuple[Condition, ...]
    causes: tuple[CandidateCause, ...]
    fires: tuple[Mapping[str, Any], ...]
    silent: tuple[Mapping[str, Any], ...]
    sections: Mapping[str, str]


def names() -> list[str]:
    """The ids of the playbooks that lie in this folder now, whatever was read of it before."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.md"))


@cache
def load_all(folder: Path | None = None) -> tuple[Playbook, ...]:
    """Every playbook in the folder, sorted by id. Raises UserError with all faults of the first bad file."""
    folder = folder or Path(__file__).parent
    return tuple(parse(path.stem, path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.md")))


def parse(name: str, text: str) -> Playbook:
    """The playbook in a file's text. Raises UserError with every fault of it."""
    from omegaconf import OmegaConf  # not yaml: that reads 1e-4 as a string

    where = f"diagnostics/{name}.md"
    match = re.match(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL)
    if not match:
        raise UserError(fault(where, "no front matter", expected="YAML between two lines of ---"))
    try:
        front = OmegaConf.to_container(OmegaConf.create(match[1]))
    except Exception as error:  # the YAML parser has many, and each is a fault of this file
        raise UserError(fault(where, f"front matter cannot be read: {error}")) from None
    if not isinstance(front, dict):
        raise UserError(fault(where, "front matter is no mapping", expected=", ".join(_KEYS)))
    reader = _Reader(where)
    playbook = reader.playbook(name, {str(k): v for k, v in front.items()}, match[2])
    if reader.faults:
        raise UserError(*reader.faults)
    return playbook


class _Reader:
    """Reads one file and collects its faults; what it returns is used only when there were none."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.faults: list[str] = []

    def complain(self, key: str, what: str, **more: Any) -> None:
        self.faults.append(fault(f"{self.where}: {key}", what, **more))

    def playbook(self, name: str, front: dict[str, Any], body: str) -> Playbook:
        self._keys("front matter", front, _KEYS, needed=_KEYS)
        if front.get("severity") not in get_args(Severity):
            self.complain("severity", "unknown severity", got=front.get("severity"), among=get_args(Severity))
        when = self._conditions("when", front.get("when"))
        causes = tuple(self._cause(f"causes[{i}]", entry) for i, entry in enumerate(self._list("causes", front)))
        fires, silent = self._examples(front.get("examples"))
        parts = re.split(r"^## +(.+?) *$", body, flags=re.MULTILINE)
        sections = {title: text.strip() for title, text in zip(parts[1::2], parts[2::2], strict=True)}
        if tuple(sections) != HEADINGS or not all(sections.values()):
            got = ", ".join(t if sections[t] else f"{t} (empty)" for t in sections) or "none"
            self.complain("headings", "do not fit", got=got, expected=", ".join(f"## {h}" for h in HEADINGS))
        title, severity = str(front.get("symptom")), front.get("severity", "advisory")
        return Playbook(name, title, severity, when, causes, fires, silent, sections)

    def _keys(self, key: str, entry: Mapping[str, Any], known: Iterable[str], needed: Iterable[str] = ()) -> None:
        for k in entry:
            if k not in known:
                self.complain(key, "unknown key", got=str(k), among=known)
        for k in needed:
            if not entry.get(k):
                self.complain(key, f"'{k}' is missing or empty")

    def _list(self, key: str, entry: Mapping[str, Any]) -> list[Any]:
        value = entry.get(key) or []
        if not isinstance(value, list):
            self.complain(key, "is no list", got=str(value))
            return []
        return value

    def _conditions(self, key: str, entries: Any) -> tuple[Condition, ...]:
        return tuple(self.condition(f"{key}[{i}]", e) for i, e in enumerate(self._list(key, {key: entries})))

    def condition(self, key: str, entry: Any) -> Condition:
        if not isinstance(entry, dict):
            self.complain(key, "is no condition", got=str(entry), expected="{signal, of, above or below}")
            return Condition("", ())
        self._keys(key, entry, _CONDITION, needed=("signal", "of"))
        of = entry.get("of", [])
        of = (of,) if isinstance(of, str) else tuple(of or ())
        signal = str(entry.get("signal"))
        if signal not in SIGNALS:
            self.complain(f"{key}.signal", "unknown signal", got=signal, among=SIGNALS)
        else:
            least, most = curves_wanted(signal)
            if not max(1, least) <= len(of) <= most:
                self.complain(f"{key}.of", f"{signal} takes {max(1, least)} to {most} curves", got=len(of))
        numbers = {k: entry[k] for k in ("last", "above", "below") if entry.get(k) is not None}
        for k, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                self.complain(f"{key}.{k}", "is no number", got=str(value))
                return Condition(signal, of)
        if not {"above", "below"} & set(numbers):
            self.complain(key, "has no bound", expected="above, below or both")
        if not 0 < numbers.get("last", 1) <= 1:
            self.complain(f"{key}.last", "is no share of the run", got=numbers["last"], expected="above 0, at most 1")
        return Condition(signal, of, **{k: float(v) for k, v in numbers.items()})

    def _cause(self, key: str, entry: Any) -> CandidateCause:
        entry = entry if isinstance(entry, dict) else {"id": entry}
        self._keys(key, entry, _CAUSE, needed=("id", "cures", "cites"))
        known, name = vocabulary.load(), str(entry.get("id"))
        if name not in known:
            self.complain(f"{key}.id", "unknown cause", got=name, among=known)
        cures = tuple(self._cure(f"{key}.cures[{i}]", c, name) for i, c in enumerate(self._list("cures", entry)))
        basis = str(entry.get("basis", "inference"))
        if basis not in CEILINGS:
            self.complain(f"{key}.basis", "unknown basis", got=basis, among=CEILINGS)
        expect = self.condition(f"{key}.expect", entry["expect"]) if entry.get("expect") else None
        supported_by = self._conditions(f"{key}.supported_by", entry.get("supported_by"))
        return CandidateCause(name, supported_by, cures, expect, str(entry.get("cites")), basis)

    def _cure(self, key: str, entry: Any, cause: str) -> tuple[str, Kind]:
        entry = dict(entry) if isinstance(entry, dict) else {"id": entry}
        self._keys(key, entry, ("id", "mitigation", "prevention"), needed=("id",))
        name = str(entry.get("id"))
        known = vocabulary.load().get(cause)
        if known and name not in known.cures:
            self.complain(key, f"is no cure of {cause}", got=name, among=known.cures)
        kind: Kind = "mitigation" if entry.get("mitigation") else "prevention" if entry.get("prevention") else "cure"
        return name, kind

    def _examples(self, entry: Any) -> tuple[tuple[Mapping[str, Any], ...], tuple[Mapping[str, Any], ...]]:
        entry = entry if isinstance(entry, dict) else {}
        self._keys("examples", entry, ("fires", "silent"), needed=("fires", "silent"))
        found = {kind: tuple(self._list(kind, entry)) for kind in ("fires", "silent")}
        for kind, examples in found.items():
            for i, example in enumerate(examples):
                try:
                    example_history(example)
                except (TypeError, ValueError, AttributeError) as error:
                    self.complain(f"examples.{kind}[{i}]", f"is no history ({error})")
        return found["fires"], found["silent"]


def example_history(example: Mapping[str, Any]) -> History:
    """The history that an example stands for: `what` says what it shows, `facts` are facts, the rest are columns.

    A column is a list of numbers, or one line of them (`2.3 1.9 nan`). `val/*` and `train/<metric>` are per epoch.
    """
    history = History()
    for name, values in example.items():
        if name == "facts":
            history.facts.update({k: float(v) for k, v in values.items()})
        elif name != "what":
            numbers = np.array(values.split() if isinstance(values, str) else values, np.float64)
            epoch = name.startswith("val/") or (name.startswith("train/") and name != "train/loss")
            log = history.log_epoch if epoch else history.log_step
            for at, value in enumerate(numbers.tolist()):
                log(at, {name: value})
    return history
