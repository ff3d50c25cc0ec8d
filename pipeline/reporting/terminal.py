"""What the commands print with: a console, tables and JSON that show any text as text.

The console knows no markup, so that `[/foo]` in a name is printed as it is. Colours come from `styled`, whose template
has markup and whose values have none.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from pipeline.escaping import visible, visible_lines
from pipeline.results import plain

_PLACEHOLDER = re.compile(r"\{(\w+)\}")


class _Console(Console):
    """A console that prints no control character but its own, whoever wrote the text."""

    def on_broken_pipe(self) -> None:
        raise  # rich calls this inside its `except BrokenPipeError`; the command line handles a closed pipe

    def render_str(self, text: str, **options: Any) -> Text:  # type: ignore[override]  # the parameters of rich, as they are
        """Return a string as rich lays it out: escaped here, so that the width of a table's column is right."""
        return super().render_str(visible_lines(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of anything that is printed; what is not a string is escaped here."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            if control or (text.isascii() and text.isprintable()):
                yield segment
            else:
                yield Segment(visible_lines(text), style)


class TextTable(Table):
    """A table whose cells are text, each of one line before it is wrapped, and never markup."""

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Add a row; a string is shown as it is, a `Text` may have colours."""
        super().add_row(*(Text(visible(cell)) if isinstance(cell, str) else cell for cell in cells), **options)

    def add_column(self, header: RenderableType = "", *args: Any, **options: Any) -> None:
        """Add a column; a string as its header is shown as it is."""
        super().add_column(Text(visible(header)) if isinstance(header, str) else header, *args, **options)


def console(stderr: bool = False) -> Console:
    """Return the console; output to a file is 120 columns wide unless COLUMNS is set."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else 120
    return _Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=False, width=width)


def watchers(screen: Console) -> tuple[Callable[..., Any], Callable[..., Any] | None]:
    """Return what shows a training on a screen, and what shows the trials in other processes, on a terminal only.

    Both import torch, which a command that trains nothing does not need.
    """

    def show_progress(training: str, metric: Any) -> Any:
        from pipeline.reporting.progress import TrainingProgress

        return TrainingProgress(screen, training, metric)

    def show_trials(rows: Any) -> Any:
        from pipeline.reporting.progress import live_trials

        return live_trials(screen, rows)

    return show_progress, show_trials if screen.is_terminal and not screen.is_dumb_terminal else None


def styled(template: str, **values: object) -> Text:
    """Return the template, which is rich markup, with each `{name}` replaced by its value, which is text.

    A value that is a `Text` keeps its colours; any other is shown on one line, as `visible` returns it.
    """
    text, shown, position = Text.from_markup(template, emoji=False), Text(), 0
    for match in _PLACEHOLDER.finditer(text.plain):
        value = values[match.group(1)]
        inserted = value.copy() if isinstance(value, Text) else Text(visible(value))
        for span in text.spans:
            if span.start <= match.start() < span.end:
                inserted.stylize_before(span.style)
        shown = shown.append_text(text[position : match.start()]).append_text(inserted)
        position = match.end()
    return shown.append_text(text[position:])


def new_table(*columns: str) -> Table:
    """Return a table without borders; a long cell continues on the next line."""
    table = TextTable(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=name in ("run", "check", "outcome"))
    return table


def print_json(value: object, indent: int | None = None) -> None:
    """Print a value as JSON in ASCII, where each control character is its escape."""
    print(json.dumps(plain(value), indent=indent, allow_nan=False).replace("\x7f", "\\u007f"))


def print_lines(text: str, stderr: bool = False) -> None:
    """Print a text of one or more lines that is not laid out, as an explanation or a path."""
    print(visible_lines(text), file=sys.stderr if stderr else sys.stdout, flush=True)
