"""The table of the fault benchmark as Markdown, and what became better or worse since the last one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cases import HERE
from omegaconf import OmegaConf

COUNTS = {
    "detected": "detected",
    "main": "main cause first",
    "first": "accepted cause first",
    "top3": "in first 3",
    "precision": "accusations right",
    "false_alarms": "false alarms",
}
NOTE = """Exact 95 % intervals in brackets, as if cases were independent; those of one family are not, and logs are of
trainings that stand among the loops too. A flaw that is there and does no harm counts neither way; a second name for a
fault that was already named is no accusation. Brier score of the first cause's confidence, in brackets that of always
saying the share that was right, over so many answers; p: Spiegelhalter's test that the confidences are probabilities.
Seconds of a case without imports: median, most. The target that an experiment tells the product is the bound of its
truth, so that a healthy one is known by reaching it; in the row that was not told the curves speak alone."""


def _count(found: Mapping[str, Any]) -> str:
    return f"{found['k']}/{found['n']} ({found['low']:.2f}-{found['high']:.2f})" if found["n"] else "-"


def _brier(found: Mapping[str, Any]) -> str:
    if not found["n"]:
        return "-"
    p = "-" if found["p"] is None else f"{found['p']:.2g}"
    return f"{found['brier']:.3f} ({found['constant']:.3f}) of {found['n']}, p {p}"


def _seconds(found: Mapping[str, Any] | None) -> str:
    return f"{found['median']:.1f} ({found['most']:.1f})" if found and found["most"] else "-"


def _lines(heads: tuple[str, ...], rows: Iterator[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{' --- |' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def markdown(table: Mapping[str, Any]) -> str:
    """The counts, what a repair without a diagnosis mends, and what others published of other programs."""
    rows = (
        [name, *(_count(row[key]) for key in COUNTS), _brier(row["calibration"]), _seconds(row["seconds"])]
        for name, row in table["rows"].items()
    )
    parts = [
        f"# {table['cases']['faulty']} faulty and {table['cases']['healthy']} healthy trainings",
        "\n".join(_lines(("", *COUNTS.values(), "Brier", "seconds"), rows)),
        NOTE,
    ]
    answers = table["answers"].items()
    broken = [name for name, answer in answers if answer["error"]]
    if broken:
        parts.append(f"The product broke, and is wrong by definition, on: {', '.join(broken)}.")
    strange = [name for name, answer in answers if not answer["as_verified"]]
    if strange:
        parts.append(f"Trained otherwise than their truth says this time: {', '.join(strange)}.")
    if table["repairs"]:
        ways = (f"{way.replace('_', ' ')} {_count(table['repairs'][way])}" for way in ("rerun", "random_search"))
        parts.append(
            f"Mended without a diagnosis, of the failing experiments: {', '.join(ways)}; "
            f"{table['repairs']['broke']} broke and count for nothing."
        )
    others: Any = OmegaConf.to_container(OmegaConf.load(HERE / "anchors.yaml"))
    told = (
        [str(row[key] or "-") for key in ("system", "detected", "first_or_any", "source")] for row in others["rows"]
    )
    parts.append(f"Published by others; {others['note']}:")
    parts.append("\n".join(_lines(("system", "detected", "cause named", "source"), told)))
    return "\n\n".join(parts)


def compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Every count that differs from the last table, and the cases of the tuning part that are no longer as right.

    Those that are held out are only counted: nobody tunes on what is not seen.
    """
    for row in [name for name in before["rows"] if name in after["rows"]]:
        for key, head in COUNTS.items():
            old, new = (_count(table["rows"][row][key]) for table in (before, after))
            if old != new:
                yield f"{row}, {head}: {old}, now {new}"
    hidden = {"worse": 0, "better": 0}
    for name in sorted(before["answers"].keys() & after["answers"].keys()):
        was, now = (_right(table["answers"][name]) for table in (before, after))
        word = "worse" if was else "better"
        if was != now and after["answers"][name]["part"] == "held_out":
            hidden[word] += 1
        elif was != now:
            yield f"{word} {name}"
    yield f"held out: {hidden['worse']} worse, {hidden['better']} better"


def _right(answer: Mapping[str, Any]) -> bool:
    ids = [c for c, _, by in answer["accused"] if by != "blind" and c not in answer["harmless"]]
    if answer["error"]:
        return False
    return bool(set(ids[:1]) & set(answer["truth"])) if answer["truth"] else not ids
