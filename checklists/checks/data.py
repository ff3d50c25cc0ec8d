"""Are the data what they are said to be, and is the evaluation on them honest?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.results import Evidence, Result


def splits_disjoint(evidence: Evidence, *, max_shared_fraction: float) -> Result:
    """Passing proves that no row of validation or test (features, byte for byte) stands in another split too.

    The value is the larger of the two shares of shared rows, a fraction of the rows of validation or test.
    """
    shared = evidence["shared_fraction"]
    worst = max(shared, key=lambda split: shared[split])
    value = float(shared[worst])
    if value > max_shared_fraction:
        why = f"rows of {worst} also stand in another split"
        return Result("failed", value, max_shared_fraction, "of rows", why, cause="data_leakage")
    return Result("passed", value, max_shared_fraction, "of rows", "identical rows stand on one side")


def near_duplicates(evidence: Evidence, *, max_share: float, max_ratio: float, max_p: float) -> Result:
    """Passing proves that no more validation rows nearly stand in train than chance would put there, or only few.

    The value is their share of the validation rows; failing needs more than `max_share` of them, `max_ratio` times as
    many as chance explains, and that chance makes so many with a probability below `max_p`.
    """
    found = evidence["quality"]["near_duplicates"]
    if found is None:
        return Result("not_applicable", why="no floating features, or too few rows, to measure distances in")
    share, expected = found["share"], found["expected"]
    bound = max(max_share, max_ratio * expected)
    sampled = f"{found['sampled']['val']} validation and {found['sampled']['train']} train rows looked at"
    if share > bound and found["p_value"] < max_p:
        pairs = ", ".join(f"{val} and train {train}" for val, train in found["pairs"][:3])
        why = f"validation rows stand in train but for a trifle: {pairs}; keep copies of a row on one side"
        return Result("failed", share, bound, "of rows", why, cause="data_leakage")
    return Result("passed", share, bound, "of rows", f"chance alone: {expected:.2g}; {sampled}")


def test_sealed(evidence: Evidence, *, max_openings: int) -> Result:
    """Passing proves that the test rows are behind the seal, and that this run looked at them at most so often."""
    opened, sealed = evidence["test_opened"], evidence["test_sealed"]
    if not sealed:
        return Result("failed", False, True, why="the test rows can be read without a key")
    if opened > max_openings:
        why = "the test rows were read too often in this run: take fresh test rows and another run.name"
        return Result("failed", opened, max_openings, "openings", why)
    return Result("passed", opened, max_openings, "openings", f"{evidence['rows']['test']} rows sealed")


def sides_independent(evidence: Evidence) -> Result:
    """Passing proves that no given group stands on two sides, and that every side lies in the past of the next.

    The value is the number of groups that stand on two sides, or of rows that are not older than the side they are
    judged by.
    """
    groups, times = evidence["groups"], evidence["times"]
    if groups is None and times is None:
        return Result("not_applicable", why="the data name no groups and no times")
    if groups is not None and groups["count"]:
        sides = ", ".join(f"{n} in {pair}" for pair, n in groups["sides"].items() if n)
        why = (
            f"of {groups['groups']} groups {groups['count']} stand on two sides ({sides}): {_listed(groups['shared'])}"
        )
        why += "; split by group (data.group=COLUMN of a table)"
        return Result("failed", groups["count"], 0, "groups", why, cause="data_leakage")
    if times is not None and (late := sum(times["rows"].values())):
        named = [f"{s} rows {_listed(rows)}" for s, rows in times["first_rows"].items() if rows]
        spans = ", ".join(f"{s} from {times['earliest'][s]:.10g} to {times['latest'][s]:.10g}" for s in times["latest"])
        why = f"they stand in the future of what they are judged by: {' and '.join(named)}; {spans}"
        return Result("failed", late, 0, "rows", why, cause="data_leakage")
    said = [f"{groups['groups']} groups, each on one side"] if groups is not None else []
    said += ["train ends before validation begins, and validation before test"] if times is not None else []
    return Result("passed", 0, 0, "groups or rows", "; ".join(said))


def data_digests(evidence: Evidence, *, min_rows: int, must: list[str], should: list[str]) -> Result:
    """Passing proves that the manifest says where the data are from, that each split has rows, and a digest of them.

    What of `should` the owner left open is named. The value is the number of rows.
    """
    rows, digests, manifest = evidence["rows"], evidence["digests"], evidence["manifest"]
    small = [s for s, n in rows.items() if n < min_rows]
    if small:
        why = f"too few rows in {', '.join(small)}"
        cause = "validation_missing" if "val" in small else None
        return Result("failed", min(rows.values()), min_rows, "rows", why, cause)
    missing = [s for s in rows if not digests.get(s)]
    if missing:
        return Result("failed", len(missing), 0, "splits", f"no digest for {', '.join(missing)}")
    lacking, left = ([key for key in keys if not manifest[key]] for keys in (must, should))
    if lacking:
        do = " ".join(f"data.{key}=..." for key in lacking)
        why = f"nobody said the {' and '.join(lacking)} of the data; add {do}, or return it with them"
        return Result("failed", sum(rows.values()), min_rows, "rows", why)
    why = f"{', '.join(f'{s} {n}' for s, n in rows.items())}, from {manifest['source']}"
    why += f", {len(manifest['files'])} file(s) by SHA-256" if manifest["files"] else ""
    said = [f"{key}: {manifest[key]}" for key in should if manifest[key]]
    said += [f"{key} not said: add data.{key}=..., or return it with the data" for key in left]
    return Result("passed", sum(rows.values()), min_rows, "rows", "; ".join([why, *said]))


def _listed(what: Sequence[Any], most: int = 5) -> str:
    return ", ".join(map(str, what[:most])) + (", ..." if len(what) > most else "")


def split_integrity(evidence: Evidence, *, max_shared_fraction: float) -> Result:
    """Passing proves that the splits are, row for row, those that planning froze, and still disjoint."""
    changed = [s for s, d in evidence["planned_digests"].items() if evidence["digests"].get(s) != d]
    if changed:
        return Result("failed", len(changed), 0, "splits", f"not the planned rows: {', '.join(changed)}")
    return splits_disjoint(evidence, max_shared_fraction=max_shared_fraction)


def test_opened_once(evidence: Evidence, *, max_candidates: int) -> Result:
    """Passing proves that the test rows were read once for this candidate, and by few candidates in all."""
    mine, candidates = evidence["openings_for_candidate"], evidence["candidates_that_opened"]
    if mine != 1:
        return Result("failed", mine, 1, "openings", "the test rows were read more than once for this candidate")
    if candidates > max_candidates:
        return Result("failed", candidates, max_candidates, "candidates", "too many models have seen the test rows")
    return Result("passed", mine, 1, "openings", f"candidate {candidates} of at most {max_candidates}")


test_sealed.__test__ = False  # type: ignore[attr-defined]  # named as the checklist's item, no case for pytest
test_opened_once.__test__ = False  # type: ignore[attr-defined]
