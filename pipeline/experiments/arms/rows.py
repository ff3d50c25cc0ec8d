"""Arms that change rows: scaled and clipped inputs and targets, balanced classes, a feature left out."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.experiments.arms.arm import Arm, Reason, Subject
from pipeline.experiments.describe import EXTREME
from pipeline.run_store.job import Delta

SCALES = (0.2, 5.0)  # root mean squares of inputs and targets that need no scaling
UNLIKE_COLUMNS = 20.0  # largest standard deviation of a column over the smallest
IMBALANCED = 3.0  # rows of the commonest class over those of the rarest


def scaling(subject: Subject) -> Iterator[Arm]:
    """Standardized inputs and targets, and both with extreme values clipped."""
    about, scale = subject.description, subject.description["input_scale"]
    unscaled = subject.value("preprocess.standardize") is False and subject.value("preprocess.images") == "none"
    ids = subject.value("model.vocabulary") is not None  # which an encoder takes as floats too
    if unscaled and not ids and scale is not None and about["kind"] != "language_model":
        cause = "inputs_normalized_twice" if scale < SCALES[0] else "inputs_not_normalized"
        usual = SCALES[0] <= scale <= SCALES[1] and (about["column_scale_ratio"] or 1.0) < UNLIKE_COLUMNS
        reason: Reason = "suspicion" if usual else "unusual"
        standardized = {"preprocess.standardize": True}
        yield Arm("standardized_inputs", (cause,), "inputs standardized", Delta(standardized), reason=reason)
        if (about["input_extreme"] or 0.0) > EXTREME:
            change = Delta(standardized, train_rows={"inputs": "clipped"})
            text = "extreme inputs clipped, then standardized"
            yield Arm("clipped_inputs", ("outliers",), text, change, reason="unusual")
    target_scale = about["target_scale"]
    if target_scale is None or about["kind"] not in ("regression", "autoencoder") or subject.value("task.step"):
        return
    if subject.value("preprocess.targets") == "none":
        change = Delta({"preprocess.targets": "standardize"})
        reason = "suspicion" if SCALES[0] <= target_scale <= SCALES[1] else "unusual"
        yield Arm("standardized_targets", ("targets_not_scaled",), "targets standardized", change, reason=reason)
    if (about["target_extreme"] or 0.0) > EXTREME:
        change = Delta(train_rows={"targets": "clipped"})
        yield Arm("clipped_targets", ("outliers",), "extreme targets clipped", change, reason="unusual")


def without_feature(subject: Subject) -> Iterator[Arm]:
    """Without the feature that alone tells the target, which may be a leak."""
    feature = subject.telling_feature
    if feature is not None:
        change = Delta(surgery=({"mask_features": {"features": [feature]}},))
        yield Arm("without_feature", ("data_leakage",), f"without feature {feature}", change, reason="unusual")


def balance(subject: Subject) -> Iterator[Arm]:
    """Every class sampled equally often, where some are rare."""
    counts = [count for count in subject.description["class_counts"].values() if count]
    if len(counts) > 1 and max(counts) >= IMBALANCED * min(counts) and subject.value("loader.sampler") == "none":
        change = Delta({"loader.sampler": "balanced"})
        text = "every class sampled equally often"
        yield Arm("balanced_classes", ("class_imbalance",), text, change, reason="unusual")
