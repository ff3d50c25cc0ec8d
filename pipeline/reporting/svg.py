"""A learning curve as inline SVG that follows the page's colours: classes instead of colours, no script, no style."""

from __future__ import annotations

import math
from collections.abc import Iterator

from markupsafe import Markup

from pipeline.reporting.plots import Panel, kind_of

WIDTH, HEIGHT = 440, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 30

_TEXT = Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>')
_RULE = Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')


class Scale:
    """Maps values to pixels, linearly or by logarithm; `ticks` are round values inside the range."""

    def __init__(self, low: float, high: float, start: float, stop: float, log: bool = False) -> None:
        if low == high:
            low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
        self.low, self.high, self.start, self.stop, self.log = low, high, start, stop, log

    def __call__(self, value: float) -> float:
        low, high, value = (
            (math.log10(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return self.start + (value - low) / (high - low) * (self.stop - self.start)

    def ticks(self) -> Iterator[float]:
        if self.log:
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1,) if len(exponents) > 3 else (1, 2, 5)
            yield from (t for e in exponents for m in steps if self.low <= (t := m * 10.0**e) <= self.high)
            return
        rough = (self.high - self.low) / 5
        unit = 10.0 ** math.floor(math.log10(rough))
        step = unit * next((m for m in (1, 2, 5) if m * unit >= rough), 10)
        first = math.ceil(self.low / step)
        yield from (i * step for i in range(first, math.floor(self.high / step) + 1))


def draw(panel: Panel) -> Markup:
    """One panel as an `<svg>` with a `<title>`; classes: train, val, bound, best, broken, grid, tick."""
    xs = [float(x) for line in panel.lines for x in (line.x[0], line.x[-1])] + list(panel.broken[:1])
    ys = [float(y) for line in panel.lines for y in line.y] + [
        b for b in panel.bounds.values() if not panel.log or b > 0
    ]
    low, high = min(ys, default=0.0), max(ys, default=1.0)
    pad = 0.0 if panel.log else 0.05 * (high - low)
    x = Scale(min(0.0, *xs), max(xs), LEFT, WIDTH - RIGHT) if xs else Scale(0, 1, LEFT, WIDTH - RIGHT)
    y = Scale(low - pad, high + pad, HEIGHT - BOTTOM, TOP, panel.log)
    parts = [*_axes(x, y), *_bounds(panel, y), *_curves(panel, x, y)]
    opening = Markup('<svg viewBox="0 0 {} {}" role="img"><title>{} over epochs</title>')
    return opening.format(WIDTH, HEIGHT, panel.title) + Markup("").join(parts) + Markup("</svg>")


def _axes(x: Scale, y: Scale) -> Iterator[Markup]:
    for tick in y.ticks():
        yield _RULE.format("grid", LEFT, y(tick), WIDTH - RIGHT, y(tick))
        yield _TEXT.format("tick end", LEFT - 6, y(tick) + 4, f"{tick:.4g}")
    for tick in x.ticks():
        yield _TEXT.format("tick middle", x(tick), HEIGHT - BOTTOM + 16, f"{tick:.4g}")


def _bounds(panel: Panel, y: Scale) -> Iterator[Markup]:
    for name, value in panel.bounds.items():
        if y.low <= value <= y.high:
            yield _RULE.format(f"bound {kind_of(name)}", LEFT, y(value), WIDTH - RIGHT, y(value))


def _curves(panel: Panel, x: Scale, y: Scale) -> Iterator[Markup]:
    if panel.best is not None:
        yield _RULE.format("best", x(panel.best), TOP, x(panel.best), HEIGHT - BOTTOM)
    for at in panel.broken[:1]:
        yield _RULE.format("broken", x(at), TOP, x(at), HEIGHT - BOTTOM)
    for line in panel.lines:
        dots = " ".join(f"{x(float(a)):.1f},{y(float(b)):.1f}" for a, b in zip(line.x, line.y, strict=True))
        yield Markup('<polyline class="{}" points="{}"/>').format(line.split, dots)
        if len(line.x) == 1:
            yield Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(
                line.split, x(float(line.x[0])), y(float(line.y[0]))
            )
