"""Whether the owner's part of the documents is complete, and the rendered documents have all their sections."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypedDict

# What the last gate asks the owner to declare, by key of the plan.
DECLARED = ("purpose", "intended_use", "out_of_scope", "population", "assumptions", "risks", "owner")
CARD_SECTIONS = (  # Mitchell et al., Model Cards for Model Reporting, 2019
    "Model details", "Intended use", "Factors", "Metrics", "Evaluation data", "Training data",
    "Quantitative analyses", "Ethical considerations", "Caveats and recommendations",
)  # fmt: skip
SHEET_SECTIONS = (  # Gebru et al., Datasheets for Datasets, 2021
    "Motivation", "Composition", "Collection process", "Preprocessing, cleaning and labelling", "Uses", "Distribution",
    "Maintenance",
)  # fmt: skip
MIN_WORDS = 3  # of a declared text: fewer say nothing
_PLACEHOLDER = re.compile(
    r"\b(?:TODO|TBD|FIXME|XXX|tba|lorem ipsum|to be (?:done|written|defined|determined|filled)|fill (?:this )?in|"
    r"placeholder|changeme|change me|your text here)\b|<[a-z][a-z _-]*>|\?{3}|\.{4,}",
    re.IGNORECASE,
)


class Completeness(TypedDict):
    """What is missing in the documents, as sentences; the sections that each document lacks."""

    missing: list[str]
    placeholders: list[str]
    sections: list[str]


def declared_faults(card: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the keys of the plan that the owner left empty or nearly so, and the placeholders in the others."""
    missing = [f"plan.{key}" for key in DECLARED if not card.get(key)]
    missing += [
        f"plan.{key} has fewer than {MIN_WORDS} words"
        for key, text in _texts(card)
        if key != "owner" and 0 < len(text.split()) < MIN_WORDS
    ]
    placeholders = [f"plan.{key}: {found.group()}" for key, text in _texts(card) for found in _found(text)]
    return missing, placeholders


def section_faults(text: str, sections: tuple[str, ...], name: str) -> list[str]:
    """Return the sections that a document lacks, has in another order, or has without content."""
    headings = [line[3:].strip() for line in text.splitlines() if line.startswith("## ")]
    bodies = dict(_bodies(text))
    faults = [f"{name} lacks the section {section}" for section in sections if section not in headings]
    faults += [f"{name} has an empty section {s}" for s in sections if s in bodies and not bodies[s].strip()]
    known = [heading for heading in headings if heading in sections]
    ordered = known == [section for section in sections if section in known]
    return faults if ordered else [*faults, f"{name} has its sections in another order"]


def _texts(card: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key in DECLARED:
        value = card.get(key) or ""
        yield from ((key, text) for text in value) if isinstance(value, list | tuple) else [(key, str(value))]


def _found(text: str) -> Iterator[re.Match[str]]:
    yield from _PLACEHOLDER.finditer(text)


def _bodies(text: str) -> Iterator[tuple[str, str]]:
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        yield heading.strip(), body
