"""Are the labels encoded correctly and consistently, and are there enough rows of each class?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from checklists.checks.data import format_list
from pipeline.results import Evidence, Result

if TYPE_CHECKING:
    from pipeline.data.analysis.labels import Contradictions, LabelStatistics

NO_CLASSES = "the targets are not classes"

Support = tuple[int, str, str]  # rows, split, and the name of a class or slice


def label_codes(evidence: Evidence, *, max_unused: int) -> Result:
    """Passing proves that every code below the number of classes occurs in some row, as it does for ids from 0.

    Also that it is not the case that train and validation each have classes that the other lacks. The value is the
    number of codes that do not occur.
    """
    labels: LabelStatistics | None = evidence["quality"]["labels"]
    if labels is None:
        return Result("not_applicable", why=NO_CLASSES)
    unused, classes = labels["unused"], labels["classes"]
    if len(unused) > max_unused:
        why = f"no row of any split has class index {format_list(unused)} of 0 to {classes - 1}: "
        why += "are labels shifted or scaled?"
        return Result("failed", len(unused), max_unused, "unused class indices", why, cause="labels_misencoded")
    # A class that only one of both has may be rare; two classes that each has alone point to two encodings.
    only_val, only_train = labels["missing_in_train"]["val"], labels["missing_in_val"]
    if only_val and only_train:
        why = f"validation has classes that train lacks ({format_list(only_val)}), and train has classes that "
        why += f"validation lacks ({format_list(only_train)}): do both use one encoding?"
        return Result("failed", len(only_val), 0, "classes that only validation has", why, cause="labels_misencoded")
    return Result("passed", len(unused), max_unused, "unused class indices", f"{classes} classes")


def labels_consistent(evidence: Evidence, *, max_share: float) -> Result:
    """Passing proves that few rows have another row with equal features and another label in their split.

    The value is the larger share of such rows, of train and of validation.
    """
    measured: dict[str, Contradictions] | None = evidence["quality"]["contradictions"]
    if measured is None:
        return Result("not_applicable", why=NO_CLASSES)
    worst = max(measured, key=lambda split: float(measured[split]["share"]))
    share, rows = measured[worst]["share"], measured[worst]["rows"]
    pairs = ", ".join(f"{a} and {b}" for a, b in measured[worst]["examples"][:3])
    if share > max_share:
        why = f"{rows} {worst} rows contradict rows with equal features: {pairs}"
        return Result("failed", share, max_share, "of rows", why, cause="label_noise")
    why = f"{rows} {worst} rows contradict each other: {pairs}" if rows else "equal rows have equal labels"
    return Result("passed", share, max_share, "of rows", why)


def imbalance_treated(evidence: Evidence, *, max_ratio: float, insensitive_metrics: list[str]) -> Result:
    """Passing proves that the classes of train are balanced, or that the plan has a treatment of rare classes.

    A treatment is the balanced sampler, class weights, or a deciding metric that is not one of `insensitive_metrics`,
    which rare classes hardly change. The value is the number of rows of the largest class over the smallest.
    """
    labels: LabelStatistics | None = evidence["quality"]["labels"]
    if labels is None:
        return Result("not_applicable", why=NO_CLASSES)
    ratio = labels["imbalance_ratio"]
    sizes = f"{labels['largest_class']} is the most frequent class, {labels['smallest_class']} the rarest"
    if ratio <= max_ratio:
        return Result("passed", ratio, max_ratio, "to 1", sizes)
    treatments = list(evidence["treatments"]["imbalance"])
    if evidence["metric"] not in insensitive_metrics:
        treatments.append(f"task.metric={evidence['metric']}")
    if treatments:
        return Result("passed", ratio, None, "to 1", f"{sizes}; treated by {', '.join(treatments)}")
    do = "loader.sampler=balanced, task.class_weights=balanced or task.metric=balanced_accuracy"
    return Result("failed", ratio, max_ratio, "to 1", f"{sizes}; choose a treatment: {do}", cause="class_imbalance")


def enough_rows(
    evidence: Evidence, *, min_rows: int, min_class_rows: int, min_slice_rows: int, reliable_rows: int
) -> Result:
    """Passing proves that no split is tiny, and that every class and declared slice has enough rows in each split.

    Classes are those that occur in any split. A slice with too few rows makes the item inconclusive. Classes and slices
    with fewer than `reliable_rows` in validation or test are named. The value is the number of rows of the smallest
    split, or of the rarest class or slice in a split.
    """
    rows = evidence["rows"]
    labels: LabelStatistics | None = evidence["quality"]["labels"]
    smallest = min(rows, key=lambda split: int(rows[split]))
    if rows[smallest] < min_rows:
        return Result(
            "failed", rows[smallest], min_rows, "rows", f"{smallest} is tiny", _cause(smallest), relation=">="
        )
    slices: list[Support] = [
        (counts[split], split, f"slice {name}")
        for name, counts in evidence["slices"].items()
        for split in ("val", "test")
    ]
    if slices and (rarest := min(slices))[0] < min_slice_rows:
        count, split, name = rarest
        why = f"{name} has too few rows in {split} to be evaluated; declare it differently, or add rows"
        return Result(
            "inconclusive", count, min_slice_rows, "rows of a slice", why, "validation_missing", relation=">="
        )
    if labels is None:
        why = f"{smallest} is the smallest split; {NO_CLASSES}"
        why += f"; {_format_unreliable(slices, reliable_rows)}" if slices else ""
        return Result("passed", rows[smallest], min_rows, "rows", why, relation=">=")
    # The checks go from the coarsest fault to the finest: split, slice, class.
    classes: list[Support] = [
        (count, split, name) for split, counts in labels["counts"].items() for name, count in counts.items()
    ]
    count, split, name = min(classes, key=lambda support: support[0])
    not_in_train = {code for codes in labels["missing_in_train"].values() for code in codes}
    if not_in_train:
        why = f"train has no row of a class that validation or test have: {format_list(sorted(not_in_train))}"
        return Result("failed", 0, min_class_rows, "rows of a class", why, "split_shift", relation=">=")
    if count < min_class_rows:
        why = f"class {name} has too few rows in {split}"
        return Result("failed", count, min_class_rows, "rows of a class", why, _cause(split), relation=">=")
    why = _format_unreliable([*classes, *slices], reliable_rows)
    return Result("passed", count, min_class_rows, "rows of the rarest class", why, relation=">=")


def _cause(split: str) -> str:
    return "too_little_data" if split == "train" else "validation_missing"


def _format_unreliable(support: list[Support], reliable_rows: int) -> str:
    """The classes and slices with too few rows for reliable scores."""
    unreliable = sorted(s for s in support if s[0] < reliable_rows and s[1] != "train")
    if not unreliable:
        return f"validation and test have at least {reliable_rows} rows of every class and slice, as recommended"
    shown = ", ".join(f"{name} in {split} ({count})" for count, split, name in unreliable[:3])
    more = f" and {len(unreliable) - 3} more" if len(unreliable) > 3 else ""
    return f"scores will be unreliable for {shown}{more}"
