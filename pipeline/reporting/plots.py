"""Pictures of a run: learning curve and confusion matrix, as PNG and SVG bytes.

`panels` decides what a learning curve shows, for matplotlib here and for the report's own SVG.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.per_class import TOLD, worst_pairs
from pipeline.history import History

Floats = NDArray[np.float64]

BLUE, ORANGE, GREY, RED, GREEN, PURPLE = "#2563eb", "#ea580c", "#6b7280", "#dc2626", "#15803d", "#7c3aed"
LOG_RATIO = 30.0  # what falls by more than this is read on a logarithmic axis, unless it is a share
SMOOTH = 50  # a long train curve is shown as this many means
FEW = 12  # points of a curve that are marked one by one
BAR = "bar/"  # facts that hold what a simple model reaches: `bar/ridge`
DECIDES = "decides/"  # the fact that names the metric that decides: `decides/accuracy`, 1 for more is better, else -1
BOUNDS = {"target": (GREEN, "--"), "trivial": (GREY, ":"), "start": (GREY, ":"), "bar": (PURPLE, "-.")}


@dataclass(frozen=True)
class Line:
    """One curve over epochs; `split` is train or val."""

    name: str
    split: str
    x: Floats
    y: Floats


@dataclass(frozen=True)
class Panel:
    """One picture: curves, horizontal bounds by name, and the epochs at which a value was NaN or infinite.

    `best` is the epoch whose weights were kept, None where none is known.
    """

    title: str
    lines: tuple[Line, ...]
    bounds: dict[str, float]
    broken: tuple[float, ...]
    log: bool
    best: float | None = None


def kind_of(bound: str) -> str:
    """What a bound is: target | trivial | start (the loss before the first step) | bar (of a simple model)."""
    return {"target": "target", "trivial": "trivial", "at init": "start"}.get(bound, "bar")


def panels(history: History) -> list[Panel]:
    """What the learning curve shows: the loss on train and val, then every other metric that val was measured by.

    x counts epochs from their start; loops that number from 0 and those that number from 1 look the same. Non-finite
    values are left out of the curves and listed.
    """
    metrics = [n.split("/", 1)[1] for n in history.names() if n.startswith("val/") and n != "val/loss"]
    facts = {name: value for name, value in history.facts.items() if np.isfinite(value)}
    bounds: dict[str, float] = {name: facts[name] for name in ("target", "trivial") if name in facts}
    bounds |= {name.removeprefix(BAR): value for name, value in sorted(facts.items()) if name.startswith(BAR)}
    start = {"at init": facts["loss_at_init"]} if "loss_at_init" in facts else {}
    deciding = next((metric for metric in metrics if DECIDES + metric in facts), metrics[0] if metrics else "")
    metrics.sort(key=lambda metric: metric != deciding)
    found = [_panel(history, "loss", start)]
    found += [_panel(history, metric, bounds if metric == deciding else {}) for metric in metrics]
    return [panel for panel in found if panel.lines or panel.broken]


def _panel(history: History, metric: str, bounds: dict[str, float]) -> Panel:
    lines, broken = [], set()
    for split in ("train", "val"):
        name = f"{split}/{metric}"
        x, y = _epochs(history, name)
        good = np.isfinite(y)
        broken |= {float(x[~good].min())} if (~good).any() else set()
        if good.any():
            lines.append(Line(name, split, *_smooth(x[good], y[good])))
    best = history.facts.get("best_epoch")
    return Panel(metric, tuple(lines), bounds, tuple(sorted(broken)), _logarithmic(lines, bounds), best)


def _logarithmic(lines: Sequence[Line], bounds: dict[str, float]) -> bool:
    """Whether the values lie so far apart that a linear axis would show one of them; shares stay linear."""
    values = np.array([*(value for line in lines for value in line.y), *bounds.values()])
    positive = bool(values.size) and bool((values > 0).all())
    return positive and float(values.max()) > 1 and float(values.max() / values.min()) > LOG_RATIO


def _epochs(history: History, name: str) -> tuple[Floats, Floats]:
    """A series over epochs, whichever table it stands in."""
    index, values = history.series(name)
    columns, per_epoch = history.epoch, 1.0
    if history.table(name) == "step":
        columns, per_epoch = history.step, _steps_per_epoch(history)
    first = min((column.index[0] for column in columns.values() if column.index), default=0)
    return (index.astype(np.float64) + (first == 0)) / per_epoch, values.astype(np.float64)


def _steps_per_epoch(history: History) -> float:
    if history.facts.get("steps_per_epoch", 0) > 0:
        return history.facts["steps_per_epoch"]
    steps = max((column.index[-1] + 1 for column in history.step.values() if column.index), default=1)
    epochs = max((column.index[-1] + 1 for column in history.epoch.values() if column.index), default=1)
    return max(1.0, steps / epochs)


def _smooth(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """At most `SMOOTH` means of consecutive values; a short series as it is."""
    if len(x) <= 2 * SMOOTH:
        return x, y
    groups = np.array_split(np.arange(len(x)), SMOOTH)
    return np.array([x[g].mean() for g in groups]), np.array([y[g].mean() for g in groups])


def learning_curve(history: History) -> dict[str, bytes]:
    """Loss and metrics over epochs, as `png` and `svg`."""
    from matplotlib.figure import Figure

    shown = panels(history)
    figure = Figure(figsize=(5.2 * max(1, len(shown)), 4.4), layout="constrained")
    for panel, axes in zip(shown, figure.subplots(1, max(1, len(shown)), squeeze=False)[0], strict=False):
        _draw(panel, axes)
    return _picture(figure)


def _draw(panel: Panel, axes: Any) -> None:
    """One panel; the legend stands below it, where no curve runs."""
    from matplotlib.ticker import MaxNLocator

    for line in panel.lines:
        colour, marker = (BLUE if line.split == "train" else ORANGE), ("o" if len(line.x) <= FEW else None)
        axes.plot(line.x, line.y, label=line.name, color=colour, linewidth=1.8, marker=marker, markersize=4)
    for name, value in panel.bounds.items():
        colour, style = BOUNDS[kind_of(name)]
        label = f"{name.replace('_', ' ')} {value:.4g}"
        axes.axhline(value, color=colour, linestyle=style, linewidth=1.2, label=label)
    if panel.best is not None:
        axes.axvline(panel.best, color=ORANGE, linestyle=":", linewidth=1.2, label=f"best epoch {panel.best:.0f}")
    for at in panel.broken[:1]:
        axes.axvline(at, color=RED, linewidth=1.2, label="not finite from here")
    if panel.log:
        axes.set_yscale("log")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=max([1.0, *(line.x[-1] for line in panel.lines)]) > 2))
    axes.set(title=panel.title, xlabel="epoch")
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
    axes.spines[["top", "right"]].set_visible(False)


def confusion_matrix(matrix: Any, class_names: Sequence[str]) -> dict[str, bytes]:
    """Counts of true class (rows) against predicted class (columns), shaded by the share of their row; `png` and `svg`.

    The pairs confused most are framed, and named below. Raises ValueError when the matrix is not [C, C] for C names.
    """
    from matplotlib.figure import Figure

    counts = np.asarray(matrix)
    classes = len(class_names)
    if counts.shape != (classes, classes):
        raise ValueError(f"a confusion matrix of {classes} classes is [{classes}, {classes}], got {list(counts.shape)}")
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(12.0, 2.6 + 0.42 * classes)
    figure = Figure(figsize=(side + 0.8, side + 0.6), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if classes <= 30:
        for row, column in np.ndindex(classes, classes):
            if counts[row, column]:
                colour = "white" if share[row, column] > 0.5 else "black"
                axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", color=colour, fontsize=8)
    ticks = range(0, classes, 1 + (classes - 1) // 40)
    turned = max(map(len, class_names), default=0) > 3
    axes.set_xticks(
        ticks, [class_names[i] for i in ticks], rotation=45 if turned else 0, ha="right" if turned else "center"
    )
    axes.set_yticks(ticks, [class_names[i] for i in ticks])
    axes.set(xlabel="predicted", ylabel="true")
    _mark(axes, worst_pairs(counts, range(classes)), class_names)
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    return _picture(figure)


def _mark(axes: Any, worst: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> None:
    """The pairs confused most have a frame; the first of them stand in the title."""
    from matplotlib.patches import Rectangle

    for pair in worst:
        corner = (pair["predicted"] - 0.5, pair["true"] - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=RED, linewidth=1.5))
    named = [
        f"{class_names[p['true']]} → {class_names[p['predicted']]}: {p['count']} ({p['share']:.0%})" for p in worst
    ]
    title = "framed, true → predicted:\n" + "\n".join(named[:TOLD]) if named else "no class is taken for another"
    axes.set_title(title, fontsize=8, loc="left", color=GREY)


def _picture(figure: Any) -> dict[str, bytes]:
    """The figure as bytes that depend on nothing but the figure."""
    import matplotlib

    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=144, metadata={"Software": None})
    with matplotlib.rc_context({"svg.hashsalt": "fivegate"}):
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return {"png": png.getvalue(), "svg": svg.getvalue()}
