"""The drawings of the quality section that are no intervals: curves over severity, latency, confusion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.reporting.canvas import (
    BLUE,
    GREEN,
    GREY,
    GRID,
    INK,
    ORANGE,
    PURPLE,
    RED,
    ROW_MARGINS,
    Canvas,
    Margins,
    drawing,
    rows_height,
    short_label,
)
from pipeline.reporting.tables import number

CURVE_COLOURS = ((BLUE, "train"), (ORANGE, "val"), (PURPLE, "baseline"), (GREEN, "good"), (GREY, "soft"), (INK, "ink"))
COUNT_CLASSES, MAX_CLASSES = 12, 24  # classes up to which a matrix has its counts, and up to which it is drawn

Points = Mapping[str, Sequence[tuple[float, float]]]


def key(curves: Points) -> list[tuple[str, str]]:
    """Return the key of the curves: the class of each colour, and the name."""
    return [(CURVE_COLOURS[at % len(CURVE_COLOURS)][1], name) for at, name in enumerate(curves)]


def curves(points: Points, axis: str, trivial: float, salt: str) -> Markup:
    """Return one line per name; `trivial` is drawn as a dotted line where it is finite."""

    def paint(canvas: Canvas) -> None:
        from matplotlib.ticker import MaxNLocator

        for at, (name, line) in enumerate(points.items()):
            colour = CURVE_COLOURS[at % len(CURVE_COLOURS)][0]
            canvas.axes.plot(*zip(*line, strict=True), color=colour, linewidth=1.8)
            for x, y in line:
                (dot,) = canvas.axes.plot([x], [y], "o", color=colour, markersize=5)
                canvas.hover(dot, f"{name}, {axis} {x:g}: {number(y)}")
        if math.isfinite(trivial):
            line_artist = canvas.axes.axhline(trivial, color=GREY, linestyle=":", linewidth=1.2)
            canvas.hover(line_artist, f"trivial prediction {number(trivial)}")
        canvas.axes.grid(True, axis="y", color=GRID)
        canvas.axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for scale in (canvas.axes.xaxis, canvas.axes.yaxis):
            scale.set_major_formatter(lambda value, _: f"{value:.4g}")

    return drawing(paint, f"score over {axis}", salt, 200.0, Margins())


def latency(points: Mapping[str, Sequence[float]], limit: float | None, salt: str) -> Markup:
    """Return a row per format: median, 95th and 99th percentile in milliseconds, with the limit as a line."""
    names = ("p50", "p95", "p99")

    def paint(canvas: Canvas) -> None:
        ends = [math.log10(value) for values in points.values() for value in values]
        canvas.rows(list(points), ends + ([math.log10(limit)] if limit else []))
        for at, (format_, values) in enumerate(points.items()):
            xs = [math.log10(value) for value in values]
            canvas.axes.plot(xs, [at] * 3, color=BLUE, linewidth=2, alpha=0.4)
            for x, value, name, size in zip(xs, values, names, (9, 7, 5), strict=True):
                (dot,) = canvas.axes.plot([x], [at], "o", color=BLUE, markersize=size)
                canvas.hover(dot, f"{format_}: {name} {number(value)} ms")
            canvas.note(at, 1, "right", f"{values[0]:.2g} to {values[-1]:.2g} ms", BLUE)
        if limit:
            canvas.mark_rows(len(points), math.log10(limit), RED, f"limit {limit:g} ms")
        low, high = canvas.axes.get_xlim()
        canvas.axes.set_xticks([at for at in range(math.ceil(low), math.floor(high) + 1)])
        canvas.axes.xaxis.set_major_formatter(lambda value, _: f"{10.0**value:.4g}")

    return drawing(paint, "milliseconds for one row", salt, rows_height(len(points)), ROW_MARGINS)


def confusion(matrix: NDArray[np.int64], classes: Sequence[str], salt: str) -> Markup:
    """Return counts of true class (rows) against predicted class (columns); the shade is the share of the row."""
    from matplotlib.patches import Rectangle

    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    size = len(classes)
    labels = [short_label(name, 9) for name in classes]
    left = 18 + 7.5 * max(map(len, labels))
    side = (400 - left - 8) / size

    def paint(canvas: Canvas) -> None:
        axes = canvas.axes
        axes.set_xlim(0, size)
        axes.set_ylim(size, 0)
        for (true, predicted), count in np.ndenumerate(matrix):
            is_right = true == predicted
            if not count and not is_right:
                continue
            colour = BLUE if is_right else RED
            cell = Rectangle(
                (predicted + 0.04, true + 0.04), 0.92, 0.92, facecolor=colour, alpha=0.12 + 0.6 * share[true, predicted]
            )
            axes.add_patch(cell)
            canvas.hover(
                cell, f"{classes[true]} predicted as {classes[predicted]}: {count} ({share[true, predicted]:.1%})"
            )
            if size <= COUNT_CLASSES:
                axes.text(predicted + 0.5, true + 0.5, str(count), color=INK, ha="center", va="center")
        step = 1 + (size - 1) // COUNT_CLASSES
        ticks = range(0, size, step)
        axes.set_yticks([at + 0.5 for at in ticks], [labels[at] for at in ticks])
        rotation = 0 if max(map(len, labels)) <= 3 else 45
        axes.set_xticks([at + 0.5 for at in ticks], [labels[at] for at in ticks], rotation=rotation)
        axes.tick_params(labelcolor=GREY)

    bottom = 24.0 if max(map(len, labels)) <= 3 else 24.0 + 5.5 * max(map(len, labels))
    return drawing(paint, "true against predicted class", salt, 6 + side * size + bottom, Margins(left, 8, 6, bottom))
