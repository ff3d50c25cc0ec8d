"""A drawing area for the page: matplotlib draws it, and the page gives it its colours, its font and its hover titles.

Every drawing is `WIDTH` units wide, so that the page can keep its text readable at any width of its column. A colour of
`CSS_COLOURS` becomes a variable of the page, which has a light and a dark value.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup, escape

from pipeline.escaping import visible

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

BLUE, ORANGE, GREY, RED, GREEN, PURPLE = "#2563eb", "#ea580c", "#6b7280", "#dc2626", "#15803d", "#7c3aed"
GRID, INK = "#e3e6eb", "#16181d"
CSS_COLOURS = {
    BLUE: "var(--train)",
    ORANGE: "var(--val)",
    GREY: "var(--soft)",
    RED: "var(--bad)",
    GREEN: "var(--good)",
    PURPLE: "var(--baseline)",
    GRID: "var(--line)",
    INK: "var(--ink)",
}
NO_DRAWING = Markup("")
WIDTH = 400.0  # units of every drawing
LABEL_CHARS = 44  # of a name in a drawing; a longer one would leave its area
_TAG, _DECIMALS = re.compile(r"<[^>]+>"), re.compile(r"(\d\.\d{2})\d+")
_TITLE = re.compile(r'<g id="hover-(\d+)">')


class Margins(NamedTuple):
    """Units around the axes."""

    left: float = 46.0
    right: float = 12.0
    top: float = 8.0
    bottom: float = 26.0


ROW_MARGINS = Margins(left=8.0, right=14.0, top=12.0, bottom=24.0)
ROW_HEIGHT = 36.0  # units of a row with its name above


def rows_height(number: int) -> float:
    """Return the height of a drawing of so many rows."""
    return ROW_MARGINS.top + ROW_MARGINS.bottom + ROW_HEIGHT * number


class Marked(NamedTuple):
    """A value that a drawing marks by a line, such as the target."""

    name: str
    value: float


def marked_target(target: float | None) -> Marked | None:
    """Return the target as a value to mark; None without one."""
    return None if target is None or not math.isfinite(target) else Marked("target", target)


class Canvas:
    """The axes of one drawing, and what hovering over its marks says."""

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        self.titles: list[str] = []

    def hover(self, artist: Artist, title: str) -> None:
        """Show this text where the pointer is over the artist."""
        artist.set_gid(f"hover-{len(self.titles)}")
        self.titles.append(visible(title))

    def rows(self, names: Sequence[str], ends: Iterable[float], marked: Marked | None = None) -> None:
        """Set up one row per name, from top to bottom at y = 0, 1, ..., over one scale that contains all `ends`.

        The name stands above its row, so that it has the whole width. `marked` is a value with a line of its own.
        """
        from matplotlib.ticker import MaxNLocator

        finite = [end for end in [*ends, *([marked.value] if marked else [])] if math.isfinite(end)] or [0.0]
        low, high = min(finite), max(finite)
        margin = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
        self.axes.set_xlim(low - margin, high + margin)
        self.axes.set_ylim(len(names) - 0.55, -0.75)
        self.axes.set_yticks([])
        self.axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        self.axes.xaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
        for at, name in enumerate(names):
            self.axes.axhline(at, color=GRID, linewidth=0.8, zorder=1)
            self.note(at, 0, "left", short_label(name), INK)
        if marked is not None and math.isfinite(marked.value):
            self.mark_rows(len(names), marked.value, GREEN, f"{marked.name} {marked.value:.4g}")

    def mark_rows(self, number: int, x: float, colour: str, title: str) -> None:
        """Mark one value in every row, below its name, which a line over all rows would cross."""
        marks = self.axes.vlines([x] * number, [at - 0.17 for at in range(number)], [at + 0.3 for at in range(number)])
        marks.set(color=colour, linewidth=1.6, zorder=2)
        self.hover(marks, title)

    def note(self, y: float, x: float, side: str, text: str, colour: str) -> None:
        """Write a text above a row, at its left (x = 0) or right end (x = 1)."""
        self.axes.annotate(
            text, (x, y), (0, 7), xycoords=("axes fraction", "data"), textcoords="offset points",
            color=colour, ha=side, va="bottom", annotation_clip=False,
        )  # fmt: skip


def drawing(paint: Callable[[Canvas], None], label: str, salt: str, height: float, margins: Margins) -> Markup:
    """Return what `paint` draws as an `<svg>` element, `WIDTH` by `height` units, described by `label`.

    Ids derive from `salt`, which must differ between the drawings of one page.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with style(), rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.size": 12}):
        figure = Figure(figsize=(WIDTH / 72, height / 72))  # at 72 points per inch, a unit is a point
        figure.patch.set_visible(False)
        box = (WIDTH - margins.left - margins.right, height - margins.top - margins.bottom)
        axes = figure.add_axes((margins.left / WIDTH, margins.bottom / height, box[0] / WIDTH, box[1] / height))
        canvas = Canvas(plain_axes(axes))
        paint(canvas)
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return for_page(buffer.getvalue(), label, canvas.titles)


def plain_axes(axes: Axes) -> Axes:
    """Return the axes without a frame and ticks, over the page's own background."""
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", left=False, bottom=False, labelcolor=GREY)
    return axes


def for_page(document: str, label: str, titles: list[str]) -> Markup:
    """Return the `<svg>` element of a document without what would reach beyond it in a page, with CSS colours."""
    svg = _TAG.sub(_with_short_numbers, document[document.index("<svg") :])
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)  # a style sheet for the whole page
    svg = _TITLE.sub(lambda match: f"<g><title>{escape(titles[int(match.group(1))])}</title>", svg)
    svg = re.sub(r'<g id="[\w.]+">', "<g>", svg)  # names such as axes_1, which every figure has again
    svg = re.sub(r"font-size: [^;]+; font-family: [^;]+; ", "", svg)  # the page has its own font, larger when narrow
    svg = re.sub(r">\s+<", "><", svg)
    view_box = re.search(r'viewBox="[\d. ]+"', svg)
    assert view_box
    svg = f'<svg {view_box.group()} role="img" aria-label="{escape(visible(label))}">' + svg[svg.index(">") + 1 :]
    for colour, variable in CSS_COLOURS.items():
        svg = svg.replace(f": {colour}", f": {variable}")
    return Markup(svg)


def _with_short_numbers(tag: re.Match[str]) -> str:
    """Return a tag with two decimals per number: a hundredth of a unit is less than a pixel."""
    return _DECIMALS.sub(r"\1", tag.group())


def short_label(name: str, most: int = LABEL_CHARS) -> str:
    """Return a name as a drawing has room for it."""
    shown = visible(name)
    return shown if len(shown) <= most else shown[: most - 1] + "…"


@contextmanager
def style() -> Iterator[None]:
    """Draw and save text as it is: a `$` in a class name is not mathematics, and equal figures have equal bytes."""
    import matplotlib

    # Text objects read the setting when they are made, so that it must hold while drawing, not only while saving.
    with matplotlib.rc_context({"text.parse_math": False, "svg.hashsalt": "fivegate"}):
        yield
