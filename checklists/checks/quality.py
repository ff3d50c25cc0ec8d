"""Are the values fit to be trained on?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.results import Evidence, Result


def _listed(what: Sequence[Any], most: int = 5) -> str:
    return ", ".join(map(str, what[:most])) + (", ..." if len(what) > most else "")


def data_finite(evidence: Evidence, *, max_rows: int) -> Result:
    """Passing proves that train and validation hold no value that is missing or infinite in more than so many rows.

    Missing features are let pass where the model as built answered such rows with finite numbers; infinite ones and
    targets never are. The value is the number of rows.
    """
    found = evidence["quality"]["nonfinite"]
    worst = max(found, key=lambda split: found[split]["rows"])
    rows, holes = found[worst]["rows"], found[worst]
    if not rows:
        return Result("passed", 0, max_rows, "rows", "every value of train and validation is finite")
    where = f"{worst} rows {_listed(holes['first_rows'])} in {_listed(holes['columns'])}"
    said = f"{holes['missing']} missing and {holes['infinite']} infinite values: {where}"
    treatable = not any(of["infinite"] or of["targets"] for of in found.values())
    if treatable and evidence["treatments"]["missing"]:
        return Result("passed", rows, max_rows, "rows", f"{said}; the model answers rows with holes by finite numbers")
    if rows > max_rows:
        do = "preprocess.impute=median, or drop the rows" if treatable else "drop or mend the rows"
        return Result("failed", rows, max_rows, "rows", f"{said}; {do}", cause="nonfinite_inputs")
    return Result("passed", rows, max_rows, "rows", said)


def values_plausible(
    evidence: Evidence, *, max_distance: float, few: float, max_weight: float, min_gap: float, many_twice: float
) -> Result:
    """Passing proves that something varies, and that no column is dominated by a few of its rows.

    A column is when its farthest row lies over `max_distance` usual distances from the median, and a share below `few`
    of the rows bears more than `max_weight` of the squared distances and lies `min_gap` times as far as all others.
    Constant features, duplicate rows (more than a share of `many_twice` first of all) and the scale of targets close
    nothing and are said. The value is the largest distance.
    """
    quality = evidence["quality"]
    same, features = quality["constant"]["count"], quality["constant"]["of"]
    if quality["constant"]["targets"]:
        why = f"every train row has the same target: {_listed(quality['constant']['targets'])}"
        return Result("failed", len(quality["constant"]["targets"]), 0, "targets", why, cause="inputs_uninformative")
    if features and same == features:
        why = "no feature says anything: each has one value in all train rows"
        return Result("failed", same, features - 1, "constant features", why, cause="inputs_uninformative")
    columns = [{**one, "split": split} for split, found in quality["outliers"].items() for one in found]
    far = [
        c
        for c in columns
        if c["distance"] > max_distance and c["share"] <= few and c["weight"] > max_weight and c["gap"] >= min_gap
    ]
    if far:
        worst = max(far, key=lambda c: float(c["distance"]))
        why = f"{worst['column']}: {worst['split']} rows {_listed(worst['first_rows'])} bear {worst['weight']:.0%} of "
        why += "all squared distances from the median; clip, mend or drop them"
        return Result("failed", worst["distance"], max_distance, "usual distances", why, cause="outliers")
    largest = max((c["distance"] for c in columns), default=0.0)
    return Result(
        "passed", largest, max_distance, "usual distances", "; ".join(_asides(evidence, many_twice)) or "all vary"
    )


def _asides(evidence: Evidence, many_twice: float) -> list[str]:
    """What closes no gate and is good to know."""
    quality, found = evidence["quality"], []
    constant = quality["constant"]
    twice = {split: n for split, n in quality["duplicates"].items() if n}
    rows = evidence["rows"]
    many = [f"{split} {n / rows[split]:.0%}" for split, n in twice.items() if n > many_twice * rows[split]]
    if many:
        found.append(f"many rows only repeat others and weigh as much again: {', '.join(many)}")
    if constant["count"]:
        found.append(f"{constant['count']} constant features ({_listed(constant['columns'])})")
    if twice:
        found.append(f"rows that stand twice: {', '.join(f'{n} in {split}' for split, n in twice.items())}")
    scale = constant["targets_std"]
    if scale is not None and not 0.1 <= float(scale) <= 10 and not evidence["treatments"]["targets"]:
        found.append(f"targets spread by {float(scale):.3g} (targets_not_scaled: preprocess.targets=standardize)")
    return found
