"""The table of the fault benchmark as Markdown, and what became better or worse since the last one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cases import HERE
from omegaconf import OmegaConf

COUNTS = ("detected", "first", "top3", "precision", "false_alarms")
HEADS = (
    "",
    "detected",
    "first cause",
    "in the first 3",
    "accusations right",
    "false alarms",
    "Brier (constant)",
    "s (most)",
)


NOTE = """Exact 95 % intervals in brackets. p: Spiegelhalter's test that the confidences of the first causes are
probabilities; the constant always says the share that was right. Seconds of a case without imports: median, most."""


def _count(found: Mapping[str, Any]) -> str:
    if not found["n"]:
        return "-"
    return f"{found['k']}/{found['n']} ({found['low']:.2f}-{found['high']:.2f})"


def _brier(found: Mapping[str, Any]) -> str:
    return f"{found['brier']:.3f} ({found['constant']:.3f}), p {found['p']:.2g}" if found["n"] else "-"


def _seconds(found: Mapping[str, Any] | None) -> str:
    return f"{found['median']:.1f} ({found['most']:.1f})" if found and found["most"] else "-"


def _lines(heads: tuple[str, ...], rows: Iterator[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{' --- |' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def markdown(table: Mapping[str, Any]) -> str:
    """Counts with exact 95 % intervals; what others published stands below, since it is of other programs."""
    rows = (
        [name, *(_count(row[key]) for key in COUNTS), _brier(row["calibration"]), _seconds(row["seconds"])]
        for name, row in table["rows"].items()
    )
    parts = [
        f"# {table['cases']['faulty']} faulty and {table['cases']['healthy']} healthy trainings",
        "\n".join(_lines(HEADS, rows)),
        NOTE,
    ]
    broken = [name for name, answer in table["answers"].items() if answer["error"]]
    if broken:
        parts.append(f"The product broke, and counts as having said nothing, on: {', '.join(broken)}.")
    if table["repairs"]:
        mended = (f"{way.replace('_', ' ')} {_count(table['repairs'][way])}" for way in ("rerun", "random_search"))
        parts.append(f"Mended without a diagnosis, of the failing experiments: {', '.join(mended)}.")
    others: Any = OmegaConf.to_container(OmegaConf.load(HERE / "anchors.yaml"))
    told = (
        [str(row[key] or "-") for key in ("system", "detected", "first_or_any", "source")] for row in others["rows"]
    )
    parts.append(f"Published by others; {others['note']}:")
    parts.append("\n".join(_lines(("system", "detected", "cause named", "source"), told)))
    return "\n\n".join(parts)


def compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """The counts of both tables side by side, and every case whose first cause is not as right as it was."""
    for key in COUNTS:
        for row in before["rows"].keys() & after["rows"].keys():
            old, new = (_count(table["rows"][row][key]) for table in (before, after))
            if old != new:
                yield f"{row}, {key}: {old}, now {new}"
    for name in sorted(before["answers"].keys() & after["answers"].keys()):
        was, now = (_right(table["answers"][name]) for table in (before, after))
        if was != now:
            yield f"{'worse ' if was else 'better'} {name}"


def _right(answer: Mapping[str, Any]) -> bool:
    ids = [cause for cause, *_ in answer["accused"]]
    return bool(set(ids[:1]) & set(answer["truth"])) if answer["truth"] else not set(ids) - set(answer["harmless"])
