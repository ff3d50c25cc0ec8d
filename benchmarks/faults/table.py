"""The table of the fault benchmark as Markdown, and its differences from the stored table."""

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
    "shown3": "named or considered in first 3",
    "precision": "correct accusations",
    "false_alarms": "false alarms",
}
NOTE = """Brackets contain exact 95 % intervals that treat cases as independent, although the cases of one family are
not, and the logs are those of loops that are cases too. Harmless flaws, and a second name for a fault that is already
named, count neither way. Brier: the Brier score of the first cause's confidence, in brackets that of always predicting
the share that was right, then the number of answers; p: Spiegelhalter's test that the confidences are probabilities.
Seconds: median and maximum per case, without imports. The target in an experiment's config is the bound of its truth,
so that Fivegate recognizes a healthy training by its reached target; two rows do without the target. The learned
classifier is a random forest, trained on the tuning part without the family of the case."""


def _format_count(count: Mapping[str, Any]) -> str:
    return f"{count['k']}/{count['n']} ({count['low']:.2f}-{count['high']:.2f})" if count["n"] else "-"


def _format_calibration(calibration: Mapping[str, Any]) -> str:
    if not calibration["n"]:
        return "-"
    p = "-" if calibration["p"] is None else f"{calibration['p']:.2g}"
    return f"{calibration['brier']:.3f} ({calibration['constant']:.3f}) of {calibration['n']}, p {p}"


def _format_seconds(seconds: Mapping[str, Any] | None) -> str:
    return f"{seconds['median']:.1f} ({seconds['most']:.1f})" if seconds and seconds["most"] else "-"


def _earned_rows(earned: Mapping[str, Mapping[str, int]]) -> Iterator[list[str]]:
    for name, count in sorted(earned["any"].items(), key=lambda item: (-item[1], item[0])):
        yield [name, str(count), str(earned["alone"].get(name, 0))]


def _table_lines(headings: tuple[str, ...], rows: Iterator[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"|{' --- |' * len(headings)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def markdown(table: Mapping[str, Any]) -> str:
    """Return the page: the counts, the repairs without a diagnosis, and published results of other programs."""
    rows = (
        [
            name,
            *(_format_count(row[key]) for key in COUNTS),
            _format_calibration(row["calibration"]),
            _format_seconds(row["seconds"]),
        ]
        for name, row in table["rows"].items()
    )
    parts = [
        f"# {table['cases']['faulty']} faulty and {table['cases']['healthy']} healthy trainings",
        "\n".join(_table_lines(("", *COUNTS.values(), "Brier", "seconds"), rows)),
        NOTE,
    ]
    if table.get("earned"):
        parts.append(
            "Evidence of the first causes that are right, and the number of cases that no other evidence earned:"
        )
        parts.append("\n".join(_table_lines(("evidence", "cases", "alone"), _earned_rows(table["earned"]))))
    answers = table["answers"].items()
    broken = [name for name, answer in answers if answer["error"]]
    if broken:
        parts.append(f"Fivegate raised an error, which counts as wrong, on: {', '.join(broken)}.")
    deviating = [name for name, answer in answers if not answer["as_verified"]]
    if deviating:
        parts.append(f"This time these trainings did not do what their truth says: {', '.join(deviating)}.")
    if table["repairs"]:
        ways = (f"{way.replace('_', ' ')} {_format_count(table['repairs'][way])}" for way in ("rerun", "random_search"))
        parts.append(
            f"Failing experiments that were repaired without a diagnosis: {', '.join(ways)}; "
            f"{table['repairs']['broke']} raised an error and are not counted."
        )
    published: Any = OmegaConf.to_container(OmegaConf.load(HERE / "anchors.yaml"))
    rows = (
        [str(row[key] or "-") for key in ("system", "detected", "first_or_any", "source")] for row in published["rows"]
    )
    parts.append(f"Published results of other systems; {published['note']}:")
    parts.append("\n".join(_table_lines(("system", "detected", "cause named", "source"), rows)))
    return "\n\n".join(parts)


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Yield every count that differs, and the cases of the tuning part whose answer became right or wrong.

    Cases of the held-out part are only counted, so that they cannot be used for tuning.
    """
    for row in [name for name in before["rows"] if name in after["rows"]]:
        for key, heading in COUNTS.items():
            if key not in before["rows"][row]:
                continue
            old, new = (_format_count(table["rows"][row][key]) for table in (before, after))
            if old != new:
                yield f"{row}, {heading}: {old}, now {new}"
    hidden = {"worse": 0, "better": 0}
    for name in sorted(before["answers"].keys() & after["answers"].keys()):
        was, now = (_is_right(table["answers"][name]) for table in (before, after))
        change = "worse" if was else "better"
        if was != now and after["answers"][name]["part"] == "held_out":
            hidden[change] += 1
        elif was != now:
            yield f"{change} {name}"
    yield f"held out: {hidden['worse']} worse, {hidden['better']} better"


def _is_right(answer: Mapping[str, Any]) -> bool:
    ids = [c for c, _, by in answer["accused"] if by != "blind" and c not in answer["harmless"]]
    if answer["error"]:
        return False
    return bool(set(ids[:1]) & set(answer["truth"])) if answer["truth"] else not ids
