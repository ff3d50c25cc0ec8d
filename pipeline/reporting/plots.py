"""Figures of a run, drawn by matplotlib: learning curve and confusion matrix as PNG and SVG, one panel as inline SVG.

matplotlib is imported when a figure is drawn: commands that draw nothing start without it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import ArrayLike

from pipeline.escaping import visible
from pipeline.history import History
from pipeline.reporting.panels import Panel, panels, reference_kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY, RED, GREEN, PURPLE = "#2563eb", "#ea580c", "#6b7280", "#dc2626", "#15803d", "#7c3aed"
GRID = "#e3e6eb"
CSS_COLOURS = {  # in the report a colour is a variable of the page, which has a light and a dark value
    BLUE: "var(--train)",
    ORANGE: "var(--val)",
    GREY: "var(--soft)",
    RED: "var(--bad)",
    GREEN: "var(--good)",
    PURPLE: "var(--baseline)",
    GRID: "var(--line)",
}
REFERENCES = {"target": (GREEN, "--"), "trivial": (GREY, ":"), "initial": (GREY, ":"), "baseline": (PURPLE, "-.")}
NAMED_PAIRS = 3  # pairs of confused classes in the title of a confusion matrix; all of them have a frame
LABEL_CHARS = 32  # of a name in a figure; a longer name would leave no room for the figure itself
MARKED_POINTS = 12  # a curve with at most this many points has a marker at each of them
PANEL_SIZE = (400 / 72, 225 / 72)  # inches; at matplotlib's 72 points per inch, the viewBox is 400 by 225


def learning_curve(history: History) -> dict[str, bytes]:
    """Return the loss and the metrics over epochs as `png` and `svg` bytes."""
    from matplotlib.figure import Figure

    shown = panels(history)
    with _style():
        figure = Figure(figsize=(5.2 * max(1, len(shown)), 4.4), layout="constrained")
        for panel, axes in zip(shown, figure.subplots(1, max(1, len(shown)), squeeze=False)[0], strict=False):
            _plot(panel, axes)
            axes.set(title=_label(panel.title), xlabel=panel.unit)
            # Below the axes, where no curve can run through it.
            axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
            axes.spines[["top", "right"]].set_visible(False)
        return _image_files(figure)


def inline_svg(panel: Panel, salt: str) -> Markup:
    """Return one panel as an `<svg>` element for the report: numbers and curves only, in the page's colours.

    Names stand in the page's own caption. Ids derive from `salt`, which must differ between the figures of one page.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with _style(), rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.size": 12}):
        figure = Figure(figsize=PANEL_SIZE, layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.subplots()
        axes.patch.set_visible(False)
        _plot(panel, axes)
        axes.spines[:].set_visible(False)
        axes.grid(True, axis="y", color=GRID)
        axes.set_axisbelow(True)
        axes.tick_params(which="both", left=False, bottom=False, labelcolor=GREY)
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _for_page(buffer.getvalue(), f"{visible(panel.title)} over {panel.unit}s")


def _for_page(document: str, label: str) -> Markup:
    """Return the `<svg>` element of a document without what would reach beyond it in a page, with CSS colours."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)  # a style sheet for the whole page
    svg = re.sub(r'<g id="[\w.]+">', "<g>", svg)  # names such as axes_1, which every figure has again
    svg = re.sub(r"font-size: [^;]+; font-family: [^;]+; ", "", svg)  # the page has its own font, larger when narrow
    view_box = re.search(r'viewBox="[\d. ]+"', svg)
    assert view_box
    svg = f'<svg {view_box.group()} role="img" aria-label="{escape(label)}">' + svg[svg.index(">") + 1 :]
    for colour, variable in CSS_COLOURS.items():
        svg = svg.replace(f": {colour}", f": {variable}")
    return Markup(svg)


def _plot(panel: Panel, axes: Axes) -> None:
    """Draw the curves, reference lines and marked epochs of a panel, with their labels, and set its scales."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    for line in panel.lines:
        colour, marker = (BLUE if line.split == "train" else ORANGE), ("o" if len(line.x) <= MARKED_POINTS else None)
        axes.plot(line.x, line.y, label=_label(line.name), color=colour, linewidth=1.8, marker=marker, markersize=4)
    for name, value in panel.references.items():
        colour, style = REFERENCES[reference_kind(name)]
        label = f"{visible(name.replace('_', ' '))} {value:.4g}"
        axes.axhline(value, color=colour, linestyle=style, linewidth=1.2, label=label)
    if panel.best_epoch is not None:
        label = f"best epoch {panel.best_epoch:.0f}"
        axes.axvline(panel.best_epoch, color=ORANGE, linestyle=":", linewidth=1.2, label=label)
    for epoch in panel.nonfinite[:1]:
        axes.axvline(epoch, color=RED, linewidth=1.2, label="not finite from here")
    for epoch in panel.onsets:
        axes.axvline(epoch, color=RED, linestyle="--", linewidth=1.2, label="a symptom since here")
    if panel.log:
        axes.set_yscale("log")
        # Within three decades the powers of ten alone would leave one or two ticks.
        span = np.ptp(np.log10(_values(panel)))
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if span < 3 else (1.0,)))
        axes.yaxis.set_minor_locator(NullLocator())
    last = max([1.0, *(line.x[-1] for line in panel.lines)])
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=last > 2))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:.4g}")  # matplotlib's own needs math text on a log axis


def _values(panel: Panel) -> list[float]:
    return [*(value for line in panel.lines for value in line.y), *panel.references.values()]


def confusion_matrix(matrix: ArrayLike, class_names: Sequence[str]) -> dict[str, bytes]:
    """Return a figure of counts of true class (rows) against predicted class (columns) as `png` and `svg` bytes.

    The shade is the share of the row. The most confused pairs have a frame, and the first of them are named above.
    Raises ValueError when the matrix is not [C, C] for C names.
    """

    from matplotlib.figure import Figure

    counts, class_names = np.asarray(matrix), [_label(name) for name in class_names]
    classes = len(class_names)
    if counts.shape != (classes, classes):
        raise ValueError(f"a confusion matrix of {classes} classes is [{classes}, {classes}], got {list(counts.shape)}")
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = min(12.0, 2.6 + 0.42 * classes)
    with _style():
        figure = Figure(figsize=(size + 0.8, size + 0.6), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        if classes <= 30:
            for row, column in np.ndindex(classes, classes):
                if counts[row, column]:
                    colour = "white" if share[row, column] > 0.5 else "black"
                    axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", color=colour, fontsize=8)
        ticks = range(0, classes, 1 + (classes - 1) // 40)
        rotated = max(map(len, class_names), default=0) > 3
        rotation, alignment = (45, "right") if rotated else (0, "center")
        axes.set_xticks(ticks, [class_names[i] for i in ticks], rotation=rotation, ha=alignment)
        axes.set_yticks(ticks, [class_names[i] for i in ticks])
        axes.set(xlabel="predicted", ylabel="true")
        _frame_worst_pairs(axes, counts, class_names)
        figure.colorbar(image, label="share of the true class", shrink=0.8)
        return _image_files(figure)


def _label(name: str) -> str:
    """Return a name as a figure has room for it."""
    shown = visible(name)
    return shown if len(shown) <= LABEL_CHARS else shown[: LABEL_CHARS - 1] + "…"


def _frame_worst_pairs(axes: Axes, counts: np.ndarray, class_names: Sequence[str]) -> None:
    from matplotlib.patches import Rectangle

    from pipeline.evaluation.per_class import worst_pairs  # brings torch, which a learning curve does not need

    pairs = worst_pairs(counts, range(len(class_names)))
    for pair in pairs:
        corner = (pair["predicted"] - 0.5, pair["true"] - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=RED, linewidth=1.5))
    named = [
        f"{class_names[p['true']]} → {class_names[p['predicted']]}: {p['count']} ({p['share']:.0%})"
        for p in pairs[:NAMED_PAIRS]
    ]
    title = "\n".join(["framed, true → predicted:", *named]) if named else "no class is confused with another"
    axes.set_title(title, fontsize=8, loc="left", color=GREY)


@contextmanager
def _style() -> Iterator[None]:
    """Draw and save text as it is: a `$` in a class name is not mathematics, and equal figures have equal bytes."""
    import matplotlib

    # Text objects read the setting when they are made, so that it must hold while drawing, not only while saving.
    with matplotlib.rc_context({"text.parse_math": False, "svg.hashsalt": "fivegate"}):
        yield


def _image_files(figure: Figure) -> dict[str, bytes]:
    """Return the figure as `png` and `svg` bytes that depend on nothing but the figure."""
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=144, metadata={"Software": None})
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return {"png": png.getvalue(), "svg": svg.getvalue()}
