"""Runs and what their gates said as HTML for notebooks; every text is escaped."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Protocol

from pipeline.escaping import visible

COLOURS = {
    "open": "#1a7f37", "released": "#1a7f37", "closed": "#cf222e", "exhausted": "#cf222e", "pending": "#0969da",
}  # fmt: skip
GREY = "#6e7781"


class _Item(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def ask(self) -> str: ...
    @property
    def outcome(self) -> str: ...
    @property
    def why(self) -> str: ...


def outcome(headline: str, status: str, items: Sequence[_Item], lines: Sequence[str]) -> str:
    """Return the outcome of a phase: a headline, the checks that are not satisfied as a table, and further lines."""
    rows = [(item.id, item.ask, item.outcome, item.why) for item in items]
    table = _table(("check", "question", "outcome", "why"), rows)
    return f"<p>{_badge(status)} {_text(headline)}</p>{table}{_list(lines)}"


def run(name: str, gates: Mapping[str, str], lines: Sequence[str]) -> str:
    """Return a run: its name, its gates as a table, and further lines."""
    cells = "".join(f"<td>{_badge(label)}</td>" for label in gates.values())
    head = "".join(f"<th>{_text(phase)}</th>" for phase in gates)
    return f"<p><b>{_text(name)}</b></p><table><tr>{head}</tr><tr>{cells}</tr></table>{_list(lines)}"


def _badge(label: str) -> str:
    return f'<b style="color:{COLOURS.get(label, GREY)}">{_text(label)}</b>'


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{_text(line)}</li>' for line in lines)}</ul>" if lines else ""


def _text(text: object) -> str:
    return html.escape(visible(text))
