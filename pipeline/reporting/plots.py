"""Figures of a run, drawn by matplotlib: learning curve and confusion matrix as PNG and SVG, one panel as inline SVG.

matplotlib is imported when a figure is drawn: commands that draw nothing start without it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike

from pipeline.escaping import visible
from pipeline.history import History
from pipeline.reporting.canvas import (
    BLUE,
    GREEN,
    GREY,
    GRID,
    ORANGE,
    PURPLE,
    RED,
    Canvas,
    Margins,
    drawing,
    short_label,
    style,
)
from pipeline.reporting.panels import Line, Panel, panels, reference_kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REFERENCES = {"target": (GREEN, "--"), "trivial": (GREY, ":"), "initial": (GREY, ":"), "baseline": (PURPLE, "-.")}
NAMED_PAIRS = 3  # pairs of confused classes in the title of a confusion matrix; all of them have a frame
LABEL_CHARS = 32  # of a name in a figure; a longer name would leave no room for the figure itself
MARKED_POINTS = 12  # a curve with at most this many points has a marker at each of them
PANEL_HEIGHT = 225.0


def learning_curve(history: History) -> dict[str, bytes]:
    """Return the loss and the metrics over epochs as `png` and `svg` bytes."""
    from matplotlib.figure import Figure

    shown = panels(history)
    with style():
        figure = Figure(figsize=(5.2 * max(1, len(shown)), 4.4), layout="constrained")
        for panel, axes in zip(shown, figure.subplots(1, max(1, len(shown)), squeeze=False)[0], strict=False):
            _plot(panel, axes)
            axes.set(title=_label(panel.title), xlabel=panel.unit)
            # Below the axes, where no curve can run through it.
            axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
            axes.spines[["top", "right"]].set_visible(False)
        return _image_files(figure)


def arm_curves(
    control: Sequence[History], change: Sequence[History], metric: str, target: float, name: str
) -> dict[str, bytes]:
    """Return the validation curves of two arms in one figure as `png` and `svg` bytes, a line per seed.

    The left panel has the metric, the right one the loss; `name` is that of the change in the legend.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with style():
        figure = Figure(figsize=(10.4, 4.4), layout="constrained")
        for axes, series in zip(figure.subplots(1, 2), (f"val/{metric}", "val/loss"), strict=True):
            for arm, colour, label in ((control, GREY, "control: no change"), (change, ORANGE, f"{name}: the change")):
                drawn = [(x, y) for x, y in (history.series(series) for history in arm) if len(x)]
                for i, (x, y) in enumerate(drawn):
                    axes.plot(x, y, color=colour, linewidth=1.2, alpha=0.8, label=label if i == 0 else None)
            if series != "val/loss":
                axes.axhline(target, color=GREEN, linestyle="--", linewidth=1.2, label=f"target {target:.4g}")
            axes.set(title=_label(series), xlabel="epoch")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
            if axes.get_legend_handles_labels()[0]:
                axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
            axes.spines[["top", "right"]].set_visible(False)
        return _image_files(figure)


def inline_svg(panel: Panel, salt: str) -> Markup:
    """Return one panel as an `<svg>` element for the report: numbers and curves only, in the page's colours.

    Names stand in the page's own caption. Ids derive from `salt`, which must differ between the figures of one page.
    """

    def paint(canvas: Canvas) -> None:
        axes = canvas.axes
        _plot(panel, axes)
        for line, artist in zip(panel.lines, axes.get_lines(), strict=False):
            canvas.hover(artist, _line_title(panel, line))
        for at, symptom in zip(panel.onsets, panel.symptoms, strict=True):
            (mark,) = axes.plot(
                [at], [1], "v", color=RED, markersize=8, transform=axes.get_xaxis_transform(), clip_on=False
            )
            canvas.hover(mark, f"since {panel.unit} {at:.4g}: {symptom or 'a symptom'}")
        axes.grid(True, axis="y", color=GRID)

    return drawing(paint, f"{visible(panel.title)} over {panel.unit}s", salt, PANEL_HEIGHT, Margins())


def _line_title(panel: Panel, line: Line) -> str:
    """Return what hovering over a curve says: its last value, and where its extremes are."""
    low, high = int(np.argmin(line.y)), int(np.argmax(line.y))
    ends = [
        f"{name} {line.y[at]:.4g} at {panel.unit} {line.x[at]:.4g}" for name, at in (("lowest", low), ("highest", high))
    ]
    return f"{line.name}: last {line.y[-1]:.4g}, {', '.join(ends)}"


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
        axes.axvline(epoch, color=RED, linestyle="--", linewidth=1.0, alpha=0.7, label="a symptom since here")
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
    with style():
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
    return short_label(name, LABEL_CHARS)


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


def _image_files(figure: Figure) -> dict[str, bytes]:
    """Return the figure as `png` and `svg` bytes that depend on nothing but the figure."""
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=144, metadata={"Software": None})
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return {"png": png.getvalue(), "svg": svg.getvalue()}
