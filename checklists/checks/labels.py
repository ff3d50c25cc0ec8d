"""Are the labels right, and are there enough of each?"""

from __future__ import annotations

from typing import Any

from pipeline.results import Evidence, Result

NO_CLASSES = "the targets are no classes"


def _few(codes: list[int]) -> str:
    return ", ".join(map(str, codes[:5])) + (", ..." if len(codes) > 5 else "")


def label_codes(evidence: Evidence, *, max_unused: int) -> Result:
    """Passing proves that every code below the number of classes is borne by some row, as ids counted from 0 are.

    Also that validation and train do not each have classes that the other lacks. The value is the number of codes that
    no row bears.
    """
    labels = evidence["quality"]["labels"]
    if labels is None:
        return Result("not_applicable", why=NO_CLASSES)
    unused, classes = labels["unused"], labels["classes"]
    if len(unused) > max_unused:
        why = f"no row of any split bears {_few(unused)} of the codes 0 .. {classes - 1}: shifted or divided labels?"
        return Result("failed", len(unused), max_unused, "codes", why, cause="labels_misencoded")
    foreign, unseen = labels["unlearned"]["val"], labels["unseen"]
    if foreign and unseen:
        why = f"validation has classes that train has not ({_few(foreign)}), and the other way round ({_few(unseen)})"
        return Result("failed", len(foreign), 0, "codes", f"{why}: one code for both?", cause="labels_misencoded")
    return Result("passed", len(unused), max_unused, "codes", f"{classes} classes, each with rows")


def labels_consistent(evidence: Evidence, *, max_share: float) -> Result:
    """Passing proves that few rows have another with equal features and another label in their split.

    The value is the larger share of such rows, of train and of validation.
    """
    found = evidence["quality"]["contradictions"]
    if found is None:
        return Result("not_applicable", why=NO_CLASSES)
    worst = max(found, key=lambda split: float(found[split]["share"]))
    share, rows = found[worst]["share"], found[worst]["rows"]
    pairs = ", ".join(f"{a} and {b}" for a, b in found[worst]["examples"][:3])
    if share > max_share:
        why = f"{rows} {worst} rows contradict rows with equal features: {pairs}"
        return Result("failed", share, max_share, "of rows", why, cause="label_noise")
    why = f"{rows} {worst} rows contradict each other: {pairs}" if rows else "equal rows bear equal labels"
    return Result("passed", share, max_share, "of rows", why)


def imbalance_treated(evidence: Evidence, *, max_ratio: float, blind: list[str]) -> Result:
    """Passing proves that the classes of train are balanced, or that the plan names what is done about rare ones.

    A treatment is the balanced sampler, weights of the classes, or a deciding metric that is not one of the `blind`, to
    which a rare class hardly matters. The value is that of the largest class over the smallest.
    """
    labels = evidence["quality"]["labels"]
    if labels is None:
        return Result("not_applicable", why=NO_CLASSES)
    ratio = labels["ratio"]
    sizes = f"{labels['largest']} is the commonest class, {labels['smallest']} the rarest"
    if ratio <= max_ratio:
        return Result("passed", ratio, max_ratio, "to 1", sizes)
    named = list(evidence["treatments"]["imbalance"])
    if evidence["metric"] not in blind:
        named.append(f"task.metric={evidence['metric']}")
    if named:
        return Result("passed", ratio, max_ratio, "to 1", f"{sizes}; treated by {', '.join(named)}")
    do = "loader.sampler=balanced, task.class_weights=balanced or task.metric=balanced_accuracy"
    return Result("failed", ratio, max_ratio, "to 1", f"{sizes}; name a treatment: {do}", cause="class_imbalance")


def enough_rows(
    evidence: Evidence, *, min_rows: int, min_class_rows: int, min_slice_rows: int, sure_class_rows: int
) -> Result:
    """Passing proves that no split is tiny, and no class or declared slice too rare in one to be learned or judged.

    Classes count that have a row anywhere. Those with fewer than `sure_class_rows` in validation or test are named,
    slices too. A slice that cannot be judged leaves it open. The value is the number of rows of the smallest split, or
    of the rarest class or slice in one.
    """
    rows, labels = evidence["rows"], evidence["quality"]["labels"]
    small = min(rows, key=lambda split: int(rows[split]))
    if rows[small] < min_rows:
        return Result("failed", rows[small], min_rows, "rows", f"{small} is tiny", cause=_lack(small))
    slices = [(of[s], s, f"slice {name}") for name, of in evidence["slices"].items() for s in ("val", "test")]
    if slices and (rarest := min(slices))[0] < min_slice_rows:
        n, split, name = rarest
        why = f"{name} has too few rows in {split} to be judged; declare it otherwise, or bring more rows"
        return Result("inconclusive", n, min_slice_rows, "rows of a slice", why, cause="validation_missing")
    if labels is None:
        why = f"{small} is the smallest split; {NO_CLASSES}"
        why += f"; {_coarse(slices, sure_class_rows)}" if slices else ""
        return Result("passed", rows[small], min_rows, "rows", why)
    support = [(n, split, name) for split, of in labels["counts"].items() for name, n in of.items()]
    n, split, name = min(support, key=lambda one: one[0])
    unlearned = [code for codes in labels["unlearned"].values() for code in codes]
    if unlearned:
        why = f"train has no row of a class that validation or test have: {_few(sorted(set(unlearned)))}"
        return Result("failed", 0, min_class_rows, "rows of a class", why, cause="split_shift")
    if n < min_class_rows:
        why = f"class {name} has too few rows in {split}"
        return Result("failed", n, min_class_rows, "rows of a class", why, cause=_lack(split))
    return Result("passed", n, min_class_rows, "rows of a class", _coarse([*support, *slices], sure_class_rows))


def _lack(split: str) -> str:
    return "too_little_data" if split == "train" else "validation_missing"


def _coarse(support: list[Any], sure: int) -> str:
    """The classes and slices whose figures will be coarse, with their support."""
    few = sorted((n, split, name) for n, split, name in support if n < sure and split != "train")
    if not few:
        return f"every class and slice has {sure} rows or more to be judged by"
    shown = ", ".join(f"{name} in {split} ({n})" for n, split, name in few[:3])
    return f"figures will be coarse for {shown}" + (f" and {len(few) - 3} more" if len(few) > 3 else "")
