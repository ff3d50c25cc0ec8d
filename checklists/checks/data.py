"""Are the data what they are said to be, and is the evaluation on them honest?"""

from __future__ import annotations

from pipeline.records import Evidence, Result


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


def test_sealed(evidence: Evidence, *, max_openings: int) -> Result:
    """Passing proves that the test rows are behind the seal, and that this run looked at them at most so often."""
    opened, sealed = evidence["test_opened"], evidence["test_sealed"]
    if not sealed:
        return Result("failed", False, True, why="the test rows can be read without a key")
    if opened > max_openings:
        why = "the test rows were read too often in this run: take fresh test rows and another run.name"
        return Result("failed", opened, max_openings, "openings", why)
    return Result("passed", opened, max_openings, "openings", f"{evidence['rows']['test']} rows sealed")


def data_digests(evidence: Evidence, *, min_rows: int) -> Result:
    """Passing proves that each split has rows, and a digest over all of them that later phases can compare."""
    rows, digests = evidence["rows"], evidence["digests"]
    small = [s for s, n in rows.items() if n < min_rows]
    if small:
        why = f"too few rows in {', '.join(small)}"
        cause = "validation_missing" if "val" in small else None
        return Result("failed", min(rows.values()), min_rows, "rows", why, cause)
    missing = [s for s in rows if not digests.get(s)]
    if missing:
        return Result("failed", len(missing), 0, "splits", f"no digest for {', '.join(missing)}")
    return Result("passed", sum(rows.values()), min_rows, "rows", ", ".join(f"{s} {n}" for s, n in rows.items()))


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
