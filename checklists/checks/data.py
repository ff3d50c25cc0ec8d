"""Are the data identified and free of leakage, and are the test rows sealed?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pipeline.results import Evidence, Result, counted

if TYPE_CHECKING:
    from pipeline.data.analysis.leakage import SharedGroups, TimeOverlap
    from pipeline.data.analysis.near_duplicates import NearDuplicates


def format_list(values: Iterable[object], most: int = 5) -> str:
    """The first values, separated by commas, with `...` if there are more."""
    texts = [str(value) for value in values]
    return ", ".join(texts[:most]) + (", ..." if len(texts) > most else "")


def splits_disjoint(evidence: Evidence, *, max_shared_fraction: float) -> Result:
    """Passing proves that no row of validation or test (features, byte for byte) is also in another split.

    The value is the larger fraction of shared rows, of validation and of test.
    """
    shared = evidence["shared_fraction"]
    worst = max(shared, key=lambda split: shared[split])
    value = float(shared[worst])
    if value > max_shared_fraction:
        why = f"rows of {worst} are also in another split"
        return Result("failed", value, max_shared_fraction, "of rows", why, cause="data_leakage")
    why = f"{value:.2%} of the rows of {worst} are in another split" if value else "no row is in more than one split"
    return Result("passed", value, max_shared_fraction, "of rows", why)


def near_duplicates(evidence: Evidence, *, max_share: float, max_ratio: float, max_p_value: float) -> Result:
    """Passing proves that validation has no more near duplicates of train rows than chance explains, or only few.

    The value is their share of the validation rows. The check fails if it exceeds `max_share` and `max_ratio` times the
    share that chance explains, and chance gives so many with a probability below `max_p_value`.
    """
    measured: NearDuplicates | None = evidence["quality"]["near_duplicates"]
    if measured is None:
        return Result("not_applicable", why="no floating-point features, or too few rows, to measure distances")
    share, expected = measured["share"], measured["expected"]
    bound = max(max_share, max_ratio * expected)  # the estimate of chance is rough, and few copies are harmless
    if share > bound and measured["p_value"] < max_p_value:
        pairs = ", ".join(f"{val} and train {train}" for val, train in measured["pairs"][:3])
        why = f"validation rows are almost equal to train rows: {pairs}; keep copies of a row in one split"
        return Result("failed", share, bound, "of rows", why, cause="data_leakage")
    sampled = f"compared {measured['sampled']['val']} validation and {measured['sampled']['train']} train rows"
    return Result("passed", share, bound, "of rows", f"by chance: {expected:.2g}; {sampled}")


def test_sealed(evidence: Evidence, *, max_openings: int) -> Result:
    """Passing proves that the test rows are sealed, and that this run has read them at most `max_openings` times."""
    openings = evidence["test_openings"]
    if not evidence["test_sealed"]:
        return Result("failed", why="the test rows are not sealed: they could be read before finalization")
    if openings > max_openings:
        why = "too many models of this run were scored on the test rows: use new test rows and another run.name"
        return Result("failed", openings, max_openings, "models scored on test", why)
    why = f"{evidence['rows']['test']} rows sealed"
    if before := evidence.get("scored_before"):
        why += f"; scored on these rows before: {before}"
    return Result("passed", openings, max_openings, "models scored on test", why)


def splits_independent(evidence: Evidence) -> Result:
    """Passing proves that no declared group is in two splits, and that every split is older than the next.

    The value is the number of groups in two splits, or of rows that are not older than a split they are evaluated on.
    """
    groups: SharedGroups | None = evidence["groups"]
    times: TimeOverlap | None = evidence["times"]
    if groups is None and times is None:
        return Result("not_applicable", why="the data declare no groups and no times")
    if groups is not None and groups["count"]:
        pairs = ", ".join(f"{count} in {pair}" for pair, count in groups["by_pair"].items() if count)
        why = f"of {groups['groups']} groups {groups['count']} are in two splits ({pairs}): "
        why += f"{format_list(groups['shared'])}; split by group (data.group=COLUMN of a table)"
        return Result("failed", groups["count"], 0, "groups", why, cause="data_leakage")
    if times is not None and (newer := sum(times["rows"].values())):
        rows = [f"{s} rows {format_list(first)}" for s, first in times["first_rows"].items() if first]
        spans = ", ".join(f"{s} from {times['earliest'][s]:.10g} to {times['latest'][s]:.10g}" for s in times["latest"])
        why = f"temporal leakage, not older than the rows they are evaluated on: {' and '.join(rows)}; {spans}"
        return Result("failed", newer, 0, "rows", why, cause="data_leakage")
    reasons = [f"{groups['groups']} groups, each in one split"] if groups is not None else []
    reasons += ["train ends before validation begins, and validation before test"] if times is not None else []
    return Result("passed", 0, 0, "groups or rows", "; ".join(reasons))


def data_digests(evidence: Evidence, *, min_rows: int, required: list[str], recommended: list[str]) -> Result:
    """Passing proves that the manifest names the source of the data, and that each split has rows and a digest.

    Entries of `recommended` that the owner left open are named. The value is the number of rows of the smallest split.
    """
    rows, digests, manifest = evidence["rows"], evidence["digests"], evidence["manifest"]
    small = [split for split, count in rows.items() if count < min_rows]
    smallest, unit = min(rows.values()), "rows in the smallest split"
    if small:
        why = f"too few rows in {', '.join(small)}"
        cause = "validation_missing" if "val" in small else None
        return Result("failed", smallest, min_rows, unit, why, cause, relation=">=")
    without_digest = [split for split in rows if not digests.get(split)]
    if without_digest:
        return Result("failed", len(without_digest), 0, "splits", f"no digest for {', '.join(without_digest)}")
    missing, open_entries = ([key for key in keys if not manifest[key]] for keys in (required, recommended))
    if missing:
        do = " ".join(f"data.{key}=..." for key in missing)
        why = f"the {' and '.join(missing)} of the data is not declared; add {do}, or return it with the data"
        return Result("failed", why=why)
    why = f"{', '.join(f'{split} {count}' for split, count in rows.items())}, from {manifest['source']}"
    why += f", {counted(len(manifest['files']), 'file')} by SHA-256" if manifest["files"] else ""
    notes = [f"{key}: {manifest[key]}" for key in recommended if manifest[key]]
    notes += [f"{key} not declared: add data.{key}=..., or return it with the data" for key in open_entries]
    return Result("passed", smallest, min_rows, unit, "; ".join([why, *notes]), relation=">=")


def split_integrity(evidence: Evidence, *, max_shared_fraction: float) -> Result:
    """Passing proves that the splits are, row for row, those that planning froze, and still disjoint."""
    digests = evidence["digests"]
    # Digests are compared, not the rows: the check holds on any machine that has the evidence.
    changed = [split for split, planned in evidence["planned_digests"].items() if digests.get(split) != planned]
    if changed:
        return Result("failed", len(changed), 0, "splits", f"not the planned rows: {', '.join(changed)}")
    return splits_disjoint(evidence, max_shared_fraction=max_shared_fraction)


def test_opened_once(evidence: Evidence, *, max_candidates: int) -> Result:
    """Passing proves that the test rows were read once for this candidate, and by few candidates of all runs."""
    openings, candidates = evidence["openings_for_candidate"], evidence["candidates_that_opened"]
    models, runs = int(evidence.get("models_before", 0)) + 1, evidence.get("runs_before", [])
    if openings != 1:
        why = "this model was scored on the test rows more than once"
        return Result("failed", openings, 1, "times scored", why, relation="==")
    if candidates > max_candidates:
        why = "too many models of this run were scored on the test rows"
        return Result("failed", candidates, max_candidates, "models scored on test", why)
    if models > max_candidates:
        why = f"too many models were scored on these test rows, before it those of {', '.join(runs)}"
        return Result("failed", models, max_candidates, "models scored on test", why)
    why = f"model {max(models, candidates)} of at most {max_candidates} that may be scored on these test rows"
    why += f", after {counted(models - 1, 'model')} of {', '.join(runs)}" if runs else ""
    return Result("passed", openings, 1, "times scored", why, relation="==")


# Named like their checklist items; pytest must not collect them as tests.
test_sealed.__test__ = False  # type: ignore[attr-defined]
test_opened_once.__test__ = False  # type: ignore[attr-defined]
