"""Heat maps of a training: the norm of the gradient, and the size of an update over the weights, by module and step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.history import History
from pipeline.reporting.canvas import BLUE, GREY, NO_DRAWING, ORANGE, RED, Canvas, Margins, drawing, short_label
from pipeline.reporting.tables import number

QUANTITIES = {"grad_norm": ("gradient norm", BLUE), "update_ratio": ("update ratio", ORANGE)}
MAX_MODULES, MAX_COLUMNS = 18, 24  # of one map: a cell stays large enough to point at
ROW_HEIGHT, NAME_CHARS = 17.0, 15
DECADES = 6.0  # below the largest value; what is smaller has the lightest shade
FAINTEST = 0.08

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class HeatMap:
    """One quantity by module (rows) and step (columns); a cell is the median of its steps, NaN where none was measured.

    `left_out` counts the modules that have no row. `low` and `high` are the ends of the scale of shades.
    """

    quantity: str
    modules: tuple[str, ...]
    edges: Floats  # steps, one more than there are columns
    cells: Floats  # [modules, columns]
    left_out: int
    low: float
    high: float
    svg: Markup = NO_DRAWING


def heat_maps(history: History, salt: str) -> list[HeatMap]:
    """Return the maps of what was measured by module; none for a log that has it of the whole model alone."""
    return [heat_map for quantity in QUANTITIES if (heat_map := _heat_map(history, quantity, salt)) is not None]


def _heat_map(history: History, quantity: str, salt: str) -> HeatMap | None:
    prefix = f"{quantity}/"
    names = [name for name in history.step if name.startswith(prefix)]  # in the order of the model
    series = {name.removeprefix(prefix): history.series(name) for name in names}
    series = {name: pair for name, pair in series.items() if len(pair[0])}
    if not series:
        return None
    modules = _shown_modules(list(series))
    edges = _edges(series)
    cells = np.array([_cells(*series[module], edges) for module in modules])
    finite = cells[np.isfinite(cells) & (cells > 0)]
    high = float(finite.max()) if finite.size else 1.0
    low = max(float(finite.min()) if finite.size else 1.0, high / 10**DECADES)
    heat_map = HeatMap(quantity, tuple(modules), edges, cells, len(series) - len(modules), low, high)
    return HeatMap(**{**vars(heat_map), "svg": _draw(heat_map, f"{salt}/{quantity}")})


def _shown_modules(names: Sequence[str]) -> list[str]:
    """Return all modules where there is room, else some at even distances with the first and the last."""
    if len(names) <= MAX_MODULES:
        return list(names)
    chosen = np.unique(np.linspace(0, len(names) - 1, MAX_MODULES).round().astype(int))
    return [names[at] for at in chosen]


def _edges(series: Mapping[str, tuple[NDArray[np.int64], NDArray[np.float32]]]) -> Floats:
    """Return where the columns begin and end: at each measured step where there is room, else at even distances."""
    steps = np.unique(np.concatenate([index for index, _ in series.values()])).astype(np.float64)
    if len(steps) > MAX_COLUMNS:
        return np.linspace(steps[0], steps[-1] + 1, MAX_COLUMNS + 1)
    return np.append(steps, steps[-1] + (steps[-1] - steps[-2] if len(steps) > 1 else 1))


def _cells(index: NDArray[np.int64], values: NDArray[np.float32], edges: Floats) -> Floats:
    """Return the median of each column; infinite where a value of it is not finite, NaN where it has none."""
    columns = np.clip(np.searchsorted(edges, index, side="right") - 1, 0, len(edges) - 2)
    row = np.full(len(edges) - 1, np.nan)
    for column in np.unique(columns):
        measured = values[columns == column].astype(np.float64)
        row[column] = np.median(measured) if np.isfinite(measured).all() else math.inf
    return row


def _shade(value: float, low: float, high: float) -> float:
    """Return how strong the colour of a cell is, from `FAINTEST` to 1 on a logarithmic scale."""
    if value <= low or high <= low:
        return FAINTEST if value < high else 1.0
    return FAINTEST + (1 - FAINTEST) * math.log(value / low) / math.log(high / low)


def _draw(heat_map: HeatMap, salt: str) -> Markup:
    """Return the map: a row per module with its name to the left, a column per step or group of steps."""
    from matplotlib.patches import Rectangle

    label, colour = QUANTITIES[heat_map.quantity]
    columns = len(heat_map.edges) - 1
    labels = [short_label(name, NAME_CHARS) for name in heat_map.modules]
    left = 14 + 8.2 * max(map(len, labels))

    def paint(canvas: Canvas) -> None:
        axes = canvas.axes
        axes.set_xlim(0, columns)
        axes.set_ylim(len(heat_map.modules), 0)
        for (row, column), value in np.ndenumerate(heat_map.cells):
            if math.isnan(value):
                continue
            is_finite = math.isfinite(value)
            shade = _shade(value, heat_map.low, heat_map.high) if is_finite else 1.0
            cell = Rectangle(
                (column + 0.04, row + 0.06), 0.92, 0.88, facecolor=colour if is_finite else RED, alpha=min(shade, 1.0)
            )
            axes.add_patch(cell)
            steps = _steps(heat_map.edges, column)
            shown = number(float(value)) if is_finite else "not finite"
            canvas.hover(cell, f"{heat_map.modules[row]}, {steps}: {label} {shown}")
        axes.set_yticks(np.arange(len(labels)) + 0.5, labels)
        ticks = range(0, columns, max(1, -(-columns // 4)))
        axes.set_xticks([at + 0.5 for at in ticks], [f"{heat_map.edges[at]:.0f}" for at in ticks])
        axes.tick_params(labelcolor=GREY)

    height = 6 + 24 + ROW_HEIGHT * len(labels)
    return drawing(paint, f"{label} by module and step", salt, height, Margins(left, 8, 6, 24))


def _steps(edges: Floats, column: int) -> str:
    first, last = int(edges[column]), math.ceil(edges[column + 1]) - 1
    is_group = len(edges) - 1 == MAX_COLUMNS and last > first
    return f"steps {first} to {last}" if is_group else f"step {first}"
