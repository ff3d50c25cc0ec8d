"""Figures of a comparison: the features that differ most, reference beside live rows, as PNG."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from pipeline.drift.compare import Comparison, FeatureDrift, Live
from pipeline.drift.features import Array
from pipeline.drift.reference import Reference
from pipeline.escaping import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREY = "#2563eb", "#ea580c", "#6b7280"
PANELS, ACROSS = 12, 3
BINS = 30
MAX_BARS = 15
LABEL_CHARS = 34


def draw(reference: Reference, live: Live, comparison: Comparison, names: dict[str, list[str]]) -> bytes:
    """Return a PNG with up to twelve features: those that drifted first, then by effect.

    `names` are the texts of the codes of a category, by feature.
    """
    import matplotlib
    from matplotlib.figure import Figure

    values = _values(reference, live)
    rows = [row for row in comparison["features"] if row["feature"] in values]
    rows = sorted(rows, key=lambda row: (not row["drifted"], -row["effect"] / row["bound"]))[:PANELS]
    across = min(ACROSS, len(rows))
    down = -(-len(rows) // across)
    with matplotlib.rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(4.2 * across, 2.9 * down + 0.5), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False).reshape(-1)
        for row, axes in zip(rows, panels, strict=False):
            first, second, category = values[row["feature"]]
            (_bars if category else _steps)(axes, first, second, names.get(row["feature"], []))
            _titled(axes, row)
        for axes in panels[len(rows) :]:
            axes.set_visible(False)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _values(reference: Reference, live: Live) -> dict[str, tuple[Array, Array, bool]]:
    """Return the values of both samples, and whether they are codes, by feature."""
    pairs = [(reference.inputs, live.inputs), (reference.outputs, live.outputs)]
    return {
        feature.name: (first.values[:, at], second.values[:, at], feature.kind == "category")
        for first, second in pairs
        if first is not None and second is not None
        for at, feature in enumerate(first.features)
    }


def _titled(axes: Axes, row: FeatureDrift) -> None:
    name = visible(row["feature"])
    name = name if len(name) <= LABEL_CHARS else f"{name[: LABEL_CHARS - 1]}…"
    distance = f", {row['distance']:.2g} sd apart" if row["distance"] is not None else ""
    mark = "drifted" if row["drifted"] else "no drift"
    title = f"{name}\n{mark}: effect {row['effect']:.2g}, bound {row['bound']:g}{distance}"
    axes.set_title(title, fontsize=9, loc="left", color=ORANGE if row["drifted"] else GREY)
    axes.set_ylabel("share of rows", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _steps(axes: Axes, first: Array, second: Array, names: list[str]) -> None:
    """Histograms over the range that holds 99 % of each sample; what is outside is in the outer bins."""
    known = [values[~np.isnan(values)].astype(np.float64) for values in (first, second)]
    some = [values for values in known if len(values)]
    if not some:
        return
    low = min(np.quantile(values, 0.005) for values in some)
    high = max(np.quantile(values, 0.995) for values in some)
    edges = _edges(np.unique(np.clip(np.concatenate(known), low, high)))
    labels = ("reference", "live")
    for values, all_values, label, colour in zip(known, (first, second), labels, (BLUE, ORANGE), strict=True):
        counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
        missing = 1 - len(values) / len(all_values)
        axes.stairs(counts / len(all_values), edges, label=label, color=colour, linewidth=1.5)
        if missing:
            text = f"{missing:.0%} of {label} missing"
            axes.text(0.98, 0.95 if label == "live" else 0.86, text, transform=axes.transAxes, ha="right", va="top",
                      fontsize=8, color=colour)  # fmt: skip
    axes.set_ylim(bottom=0)


def _edges(values: Array) -> Array:
    """Return the limits of bins: one for each of a few distinct values, so that no bin between them is empty."""
    if len(values) > BINS:
        return np.linspace(values[0], values[-1], BINS + 1)
    if len(values) == 1:
        return np.array([values[0] - 0.5, values[0] + 0.5])
    middles = (values[1:] + values[:-1]) / 2
    return np.array([2 * values[0] - middles[0], *middles, 2 * values[-1] - middles[-1]])


def _bars(axes: Axes, first: Array, second: Array, names: list[str]) -> None:
    codes, counts = np.unique(np.concatenate([first, second]), return_counts=True)
    codes = np.sort(codes[np.argsort(-counts, kind="stable")[:MAX_BARS]])
    places = np.arange(len(codes))
    for offset, values, label, colour in ((-0.2, first, "reference", BLUE), (0.2, second, "live", ORANGE)):
        shares = [np.isnan(values).mean() if np.isnan(code) else (values == code).mean() for code in codes]
        axes.bar(places + offset, shares, 0.4, label=label, color=colour)
    texts = [_name(code, names) for code in codes]
    rotated = max(map(len, texts)) * len(texts) > 30
    axes.set_xticks(places, texts, rotation=45 if rotated else 0, ha="right" if rotated else "center")


def _name(code: float, names: list[str]) -> str:
    if np.isnan(code):
        return "missing"
    text = visible(names[int(code)]) if 0 <= int(code) < len(names) else f"{code:.0f}"
    return text if len(text) <= 14 else f"{text[:13]}…"
