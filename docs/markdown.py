"""Markdown of the generated pages: tables, cells, code and paragraphs."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator

import yaml


def one_line(text: object) -> str:
    return re.sub(r"\s+", " ", str(text)).replace("|", "\\|").strip()


def cell(text: object) -> str:
    """Return a text as one cell of a table; what is no code in it is no HTML either."""
    parts = re.split(r"(`[^`]*`)", one_line(text))
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)


def code(value: object) -> str:
    return f"`{one_line(value)}`" if str(value) else ""


def prose(text: str) -> str:
    """Return a paragraph in lines of at most 120 characters."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False) + "\n"


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> Iterator[str]:
    names = list(header)
    yield "| " + " | ".join(names) + " |"
    yield "| " + " | ".join("---" for _ in names) + " |"
    for row in rows:
        yield "| " + " | ".join(map(str, row)) + " |"
    yield ""


def flow(value: object) -> str:
    """Return a YAML value on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True, sort_keys=False)
    return text.removesuffix("...\n").strip()


def first_paragraph(text: str | None) -> str:
    return re.sub(r"\s+", " ", inspect.cleandoc(text or "").partition("\n\n")[0])
