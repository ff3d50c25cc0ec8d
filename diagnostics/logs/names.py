"""What the name of a column in a log means: an index, a loss or a metric of one split, a rate, a norm."""

from __future__ import annotations

import re
from functools import lru_cache

SPLITS = {
    **dict.fromkeys(("train", "training", "tr", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "eval", "evaluation", "dev", "heldout"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
INDEX = {
    **dict.fromkeys(
        ("step", "steps", "global_step", "iteration", "iterations", "iter", "iters", "it", "batch", "batch_idx"), "step"
    ),
    **dict.fromkeys(
        (
            "num_updates",
            "n_updates",
            "total_timesteps",
            "update",
            "updates",
            "train_step",
            "training_step",
            "trainer_global_step",
            "n_iter",
        ),
        "step",
    ),
    "global_step_max_steps": "step",  # ms-swift writes 10/1600
    **dict.fromkeys(("epoch", "epochs", "ep", "current_epoch", "train_epoch", "epoch_num"), "epoch"),
}
METRICS = {
    **dict.fromkeys(("acc", "accuracy", "acc_1", "top_1", "acc1", "top1", "acc_top1", "accuracy_top1"), "accuracy"),
    **dict.fromkeys(("err", "error", "error_rate"), "error"),
    **dict.fromkeys(("ppl", "perplexity"), "perplexity"),
    **{name: name for name in ("f1", "auc", "rmse", "mae", "mse", "r2", "iou", "miou", "dice", "map", "bleu", "wer")},
}
LOSSES = ("loss", "losses", "cost", "nll", "logloss")
GRADIENT_NORMS = ("grad_norm", "gradient_norm", "gradnorm", "gnorm", "total_norm", "global_grad_norm")
# Words that say how a value was averaged, or that belong to a sentence, and not what was measured.
FILLERS = frozenset(
    ("avg", "average", "mean", "total", "running", "overall", "final", "current", "cur", "smooth", "smoothed", "score",
     "epoch", "step", "set", "the", "is", "was", "metrics", "metric", "of", "at", "a", "on", "lm",
     "value", "batch")
)  # fmt: skip
UNMEASURED = frozenset(
    (
        "py",
        "cpp",
        "cc",
        "loader",
        "dataloader",
        "time",
        "runtime",
        "samples",
        "second",
        "seconds",
        "memory",
        "speed",
        "flos",
        "tokens",
        "eta",
        "wall",
        "elapsed",
    )
)
# A name that holds none of these, in any case of its letters, means nothing.
WORDS = frozenset((*SPLITS, *INDEX, *METRICS, *LOSSES, *GRADIENT_NORMS, "lr", "learning", "metrics", "norm", "top"))


@lru_cache(maxsize=4096)
def canonical_name(name: str) -> str | None:
    """Return what a column measures: `train/loss` for "Training Loss", `val/accuracy` for "val_acc", `step`, `lr`, ...

    A loss that is one part of several keeps its own name, as in `train/box_loss`. Returns None for a name that means
    nothing here, such as `mfu` or `eval_runtime`.
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "_", re.sub(r"\([A-Za-z]\)\s*$", "", name.strip()))
    plain = re.sub(r"[^a-z0-9]+", "_", spaced.lower()).strip("_")
    if plain in INDEX:
        return INDEX[plain]
    words = plain.split("_")
    splits = [SPLITS[word] for word in words if word in SPLITS]
    rest = [word for word in words if word not in SPLITS]
    if splits and "_".join(rest) in INDEX:
        return INDEX["_".join(rest)]
    split = splits[0] if splits else ""
    if rest[:1] == ["lr"] or rest[:2] == ["learning", "rate"] or "_".join(rest) in ("learningrate", "base_lr"):
        return "lr"
    if "_".join(rest).removesuffix("_total") in GRADIENT_NORMS:
        return "grad_norm"
    if not split and words[0] == "metrics":
        split = "val"  # ultralytics computes `metrics/...` on validation images
    rest = [word for word in rest if word not in FILLERS] or rest
    measured = "_".join(rest)
    if not measured or UNMEASURED & set(rest) or measured in ("loss_scale", "scale_loss", "loss_scaling"):
        return None
    if measured in LOSSES:
        return f"{split or 'train'}/loss"
    if set(rest) & set(LOSSES):
        return f"{split or 'train'}/{_component(rest)}"
    if measured in METRICS:
        return f"{split or 'train'}/{METRICS[measured]}"
    return f"{split}/{measured}" if split else None


def splits_in(name: str) -> list[str]:
    """Return the splits that a name states, as `val` for "valid_loss"."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "_", name)
    return [SPLITS[word] for word in re.split(r"[^a-z0-9]+", spaced.lower()) if word in SPLITS]


def _component(words: list[str]) -> str:
    """Return the name of one of several losses, always with `loss` at its end: `loss_cls` and `cls_loss` are one."""
    return "_".join([*(word for word in words if word not in LOSSES), "loss"])
