"""The report on a log as one self-contained HTML file: its curves with the onset of each symptom, and its text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from pipeline.escaping import visible
from pipeline.reporting.panels import RunCurves, panels
from pipeline.reporting.tables import number

TEMPLATE = "log_report.html.j2"


def render_log_page(title: str, text: str, runs: Sequence[RunCurves]) -> str:
    """Return the page. `text` is the report in Markdown, in which HTML stays text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markdown_it import MarkdownIt

    from pipeline.reporting.plots import inline_svg

    templates = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=templates, autoescape=True, finalize=_shown, undefined=StrictUndefined)
    environment.filters["number"] = number
    curves = [
        (run.name or "Curves", [(p, inline_svg(p, f"{run.name}/{p.title}")) for p in panels(run.history, run.onsets)])
        for run in runs
    ]
    body = Markup(MarkdownIt("commonmark", {"html": False}).render(text))
    return environment.get_template(TEMPLATE).render(title=title, text=body, curves=[c for c in curves if c[1]])


def _shown(value: object) -> object:
    """Return a value as the page prints it: text that is not ours without control characters."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
