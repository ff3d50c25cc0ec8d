"""The one table cure × config → remedies: what a kind of change means for this very config.

Overrides where the config has the key, else surgery on the model, else a printed suggestion. An override names an
existing key and its new value (never `+`), so that a remedy can be trained, compared and undone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import nearest
from pipeline.repair import causes, config_edits
from pipeline.repair.config_edits import Config, Way, below, choose, look, off, put, scale


@dataclass(frozen=True)
class Remedy:
    """A cure resolved against one config: exactly one of overrides, surgery and code says how."""

    cure: str
    description: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    surgery: tuple[Mapping[str, Any], ...] = ()
    code: str | None = None


@dataclass(frozen=True)
class Cure:
    """What a cure does in words, in code, and where they exist as overrides or surgery (one remedy each).

    Surgery is for models whose config has no such `key`; where it has, and no way is left, the change is made already.
    """

    does: str
    code: str
    ways: tuple[Way, ...] = ()
    surgery: tuple[Mapping[str, Any], ...] = ()
    key: str = ""


def _swap(source: str, to: str) -> dict[str, Any]:
    return {"swap_activation": {"from": source, "to": to}}


DROPOUT = put("model.dropout", 0.2, 0.5, when=below(0.2))
DECAY = put("optimizer.weight_decay", 0.1, when=below(0.1))
NARROWER = scale("model.width", 0.5, 0.25), scale("model.hidden", 0.5, 0.25)  # where both are said, the width counts

CURES: dict[str, Cure] = {
    # data
    "drop_or_impute_rows": Cure(
        "Drop or impute rows that hold NaN or infinity",
        "keep = np.isfinite(X).all(1); X, y = X[keep], y[keep]",
        (choose("preprocess.impute", config_edits.imputing),),
    ),
    "standardize_inputs": Cure(
        "Bring every feature to zero mean and unit scale",
        "mean, std = X_train.mean(0), X_train.std(0) + 1e-8; X = (X - mean) / std  # statistics of the train rows only",
        (choose("preprocess.standardize", config_edits.standardizing),),
    ),
    "normalize_once": Cure(
        "Scale the features once",
        "remove the second scaling: either in the data set or in the model, not in both",
    ),
    "mend_features": Cure(
        "Feed features that carry signal",
        "X.std(0).min() > 0 and the features of a row belong to its target",
    ),
    "standardize_targets": Cure(
        "Bring targets to zero mean and unit scale",
        "y = (y - y_train.mean()) / y_train.std()  # and undo it on predictions",
        (choose("preprocess.targets", config_edits.scaled_targets),),
    ),
    "reencode_labels": Cure("Number the classes 0..C-1", "classes, y = np.unique(y, return_inverse=True)"),
    "realign_labels": Cure(
        "Pair every row with its own label again",
        "order = rng.permutation(len(X)); X, y = X[order], y[order]  # one order for both",
    ),
    "clean_labels": Cure(
        "Look at the rows with the largest loss and mend their labels",
        "worst = torch.topk(losses, 50).indices  # look at these rows",
    ),
    "robust_loss": Cure(
        "Use a loss that a few wrong targets do not dominate",
        "loss = nn.HuberLoss() or nn.CrossEntropyLoss(label_smoothing=0.1)",
        (choose("loss", config_edits.robust_loss), put("loss.label_smoothing", 0.1, when=below(0.1))),
    ),
    "clip_or_drop_outliers": Cure(
        "Clip extreme values",
        "low, high = np.quantile(X_train, [0.001, 0.999], axis=0); X = X.clip(low, high)",
    ),
    "class_weights": Cure(
        "Weigh rare classes up in the loss",
        "nn.CrossEntropyLoss(weight=n / (C * counts))",
        (put("task.class_weights", "balanced"),),
    ),
    "balanced_sampler": Cure(
        "Draw every class equally often",
        "WeightedRandomSampler(1 / counts[y], len(y))",
        (put("loader.sampler", "balanced"),),
    ),
    "drop_leak": Cure("Drop the feature that knows the answer", "X = np.delete(X, leaking_columns, axis=1)"),
    "resplit": Cure(
        "Split again, identical and related rows on one side",
        "GroupShuffleSplit(test_size=0.2, random_state=seed).split(X, y, groups)",
    ),
    "same_preprocessing": Cure(
        "Prepare validation rows as train rows are prepared",
        "one function, fitted on train rows, applied to all splits",
    ),
    "weaken_augmentation": Cure(
        "Weaken the augmentation",
        "halve the strength of every random transform and look at some samples",
    ),
    "shuffle": Cure(
        "Shuffle the train rows every epoch",
        "DataLoader(..., shuffle=True)",
        (put("loader.shuffle", True),),
    ),
    "more_data": Cure("Collect more rows, or augment those there are", "collect rows where validation errs most"),
    # model
    "smaller_model": Cure("Make the model smaller", "halve the width of the hidden layers", NARROWER),
    "enlarge_model": Cure(
        "Make the model larger",
        "double the width of the hidden layers",
        (scale("model.width", 2, 4), scale("model.hidden", 2, 4)),
    ),
    "shrink_depth": Cure(
        "Remove a layer",
        "remove the last hidden layer",
        (choose("model.hidden", config_edits.shallower),),
    ),
    "regularize": Cure(
        "Regularize",
        "dropout of 0.2 behind hidden activations, weight decay 0.1",
        (DROPOUT, DECAY),
        ({"set_dropout": {"p": 0.2}},),
    ),
    "dropout": Cure(
        "Drop hidden units in training",
        "nn.Dropout(0.2) behind each hidden activation",
        (DROPOUT,),
        ({"set_dropout": {"p": 0.2}},),
    ),
    "match_output_activation": Cure(
        "Let the last layer produce what the targets are",
        "no activation for classes and unbounded values; sigmoid only with nn.BCELoss",
        surgery=({"replace_output_activation": {"to": "none"}},),
    ),
    "drop_output_activation": Cure(
        "Give the loss logits",
        "remove softmax or sigmoid behind the last layer",
        surgery=({"replace_output_activation": {"to": "none"}},),
    ),
    "resize_output": Cure(
        "Give the output one unit per class or target",
        "surgery: [{resize_output: {out_features: C}}]",
    ),
    "swap_activation": Cure(
        "Swap the hidden activation",
        "nn.LeakyReLU() for nn.ReLU(); nn.ReLU() for nn.Sigmoid() and nn.Tanh()",
        (choose("model.activation", config_edits.activation),),
        (_swap("ReLU", "LeakyReLU"),),
    ),
    "insert_normalization": Cure(
        "Normalize the hidden layers",
        "nn.LayerNorm(width) behind each hidden layer",
        (put("model.normalization", "layer", when=off),),
        ({"insert_normalization": {"kind": "layer"}},),
        "model.normalization",
    ),
    "reinitialize": Cure(
        "Draw the weights anew, on a scale that fits the activation",
        "for m in model.modules(): getattr(m, 'reset_parameters', lambda: None)()",
        surgery=({"reinitialize": {"scheme": "default"}},),
    ),
    "mend_normalization": Cure(
        "Mend the normalization",
        "nn.LayerNorm for small batches; momentum 0.1; before the activation",
    ),
    # loss
    "match_loss": Cure(
        "Use the loss of the task",
        "nn.CrossEntropyLoss for classes, nn.BCEWithLogitsLoss for 0/1, nn.MSELoss for values",
        (choose("loss", config_edits.loss),),
    ),
    "mend_loss": Cure(
        "Average the loss over rows, with the right sign and axis",
        "loss = per_row.mean()  # to be minimized",
    ),
    "stable_loss": Cure(
        "Use the numerically stable form of the loss",
        "F.logsigmoid(x), torch.logsumexp(x, 1), x.clamp(min=1e-6).log()",
        (choose("loss", config_edits.loss),),
    ),
    # optimization
    "lower_lr": Cure(
        "Lower the learning rate",
        "for group in optimizer.param_groups: group['lr'] *= 0.1",
        (scale("optimizer.lr", 0.1, 0.01, 0.001),),
    ),
    "raise_lr": Cure(
        "Raise the learning rate",
        "for group in optimizer.param_groups: group['lr'] *= 10",
        (scale("optimizer.lr", 10, 100, 1000),),
    ),
    "clip_gradients": Cure(
        "Clip the norm of the gradient",
        "nn.utils.clip_grad_norm_(model.parameters(), 1.0)",
        (put("trainer.gradient_clip_val", 1.0, when=off), scale("trainer.gradient_clip_val", 0.1)),
    ),
    "loosen_clip": Cure(
        "Clip less",
        "nn.utils.clip_grad_norm_(model.parameters(), 10 * the present bound)",
        (scale("trainer.gradient_clip_val", 10, 100), put("trainer.gradient_clip_val", None)),
    ),
    "warmup": Cure(
        "Start with a small learning rate",
        "LinearLR(optimizer, start_factor=0.01, total_iters=200)",
        (scale("scheduler.warmup_steps", 2, 5), scale("scheduler.warmup_epochs", 2)),
    ),
    "swap_optimizer": Cure(
        "Change the optimizer",
        "torch.optim.AdamW(model.parameters(), lr=1e-3)",
        (choose("optimizer", config_edits.optimizer),),
    ),
    "mend_scheduler": Cure(
        "Let the learning rate last as long as the loss falls",
        "CosineAnnealingLR(optimizer, T_max=epochs)",
        (choose("scheduler.T_max", config_edits.longer_schedule), put("scheduler", None)),
    ),
    "smaller_batch": Cure(
        "Take smaller batches",
        "DataLoader(..., batch_size=batch_size // 2)",
        (scale("loader.batch_size", 0.5, 0.25),),
    ),
    "larger_batch": Cure(
        "Take larger batches",
        "DataLoader(..., batch_size=2 * batch_size)",
        (scale("loader.batch_size", 2, 4),),
    ),
    "more_epochs": Cure("Train longer", "epochs *= 2", (scale("trainer.max_epochs", 2, 4),)),
    "early_stopping": Cure(
        "Stop when validation stops improving",
        "stop after 5 epochs without a better val/loss and keep the best weights",
        (put("trainer.patience", 5, when=off), scale("trainer.patience", 0.5)),
    ),
    "weight_decay": Cure("Pull the weights towards zero", "torch.optim.AdamW(..., weight_decay=0.1)", (DECAY,)),
    "less_regularization": Cure(
        "Regularize less",
        "halve dropout, divide weight decay by 10",
        (scale("model.dropout", 0.5, 0.0), scale("optimizer.weight_decay", 0.1, 0.0)),
        ({"set_dropout": {"p": 0.1}},),
    ),
    # loop
    "zero_grad": Cure(
        "Clear gradients before each backward pass",
        "optimizer.zero_grad(); loss.backward(); optimizer.step()",
    ),
    "train_all_parameters": Cure(
        "Train every parameter",
        "optimizer = AdamW(model.parameters()) after all layers exist, without detach()",
        surgery=({"unfreeze": {"match": "*"}},),
    ),
    "freeze_parameters": Cure(
        "Keep the parameters fixed that are meant to be",
        "surgery: [{freeze: {match: 'body.*'}}]",
    ),
    "eval_mode": Cure("Validate in evaluation mode", "model.eval(); with torch.no_grad(): ...; model.train()"),
    "match_metric": Cure(
        "Measure what the task is about",
        "task.metric: balanced_accuracy or f1_macro for rare classes, r2 or rmse for values",
    ),
    "seed_workers": Cure(
        "Seed every data-loader worker",
        "DataLoader(..., worker_init_fn=lambda i: np.random.seed(torch.initial_seed() % 2**32), generator=g)",
    ),
    "load_after_init": Cure(
        "Load the checkpoint last",
        "model.load_state_dict(state) after every initialization, before the optimizer is made",
    ),
    "rehearsal": Cure("Mix rows of the earlier task in", "a tenth of each batch from the earlier task"),
    "rebalance_adversaries": Cure(
        "Bring the two adversaries back into balance",
        "fewer discriminator steps, or a lower rate for it",
    ),
    # system
    "bf16_or_loss_scaling": Cure(
        "Use a number format that does not overflow",
        "torch.autocast('cuda', torch.bfloat16), or float16 with torch.amp.GradScaler",
        (choose("trainer.precision", config_edits.precision),),
    ),
    "accumulate_gradients": Cure(
        "Accumulate gradients over smaller batches",
        "(loss / k).backward() k times before optimizer.step()",
        (scale("trainer.accumulate_grad_batches", 2, 4),),
    ),
    "more_workers": Cure(
        "Read ahead in more processes",
        "DataLoader(..., num_workers=4)",
        (put("loader.num_workers", 4, when=below(4)),),
    ),
    "cache_data": Cure("Keep prepared rows in memory", "prepare once, save as .npy, read with mmap_mode='r'"),
    "deterministic_mode": Cure(
        "Use deterministic kernels",
        "torch.use_deterministic_algorithms(True)",
        (put("trainer.deterministic", True),),
    ),
    "mend_replication": Cure(
        "Keep the replicas equal",
        "DistributedDataParallel(model) before the optimizer is made; broadcast buffers",
    ),
}


def resolve(cure: str, cause: str, config: Config | None) -> list[Remedy]:
    """What the cure means for this config, smallest change first; at least one remedy, whatever the config.

    Raises ValueError for a cause that causes.yaml does not know, or a cure that it does not name for the cause.
    """
    known = causes.load()
    if cause not in known or cure not in known[cause].cures:
        close = nearest(cure, known[cause].cures if cause in known else known)
        raise ValueError(f"{cure} is no cure of {cause} in causes.yaml; did you mean '{close}'?")
    entry, config = CURES[cure], config or {}
    remedies = [_override(cure, entry, config, change) for way in entry.ways for change in way(config)]
    if not remedies and "surgery" in config and not isinstance(look(config, entry.key), str):
        done = list(config["surgery"] or [])
        remedies = [_surgery(cure, entry, step) for step in entry.surgery if step not in done]
    return remedies or [Remedy(cure, f"{entry.does}: {entry.code}", code=entry.code)]


def _override(cure: str, entry: Cure, config: Config, change: dict[str, Any]) -> Remedy:
    told = ", ".join(f"{key} {_told(look(config, key))} → {_told(value)}" for key, value in change.items())
    return Remedy(cure, f"{entry.does}: {told}", overrides=change)


def _surgery(cure: str, entry: Cure, step: Mapping[str, Any]) -> Remedy:
    ((name, arguments),) = step.items()
    told = ", ".join(f"{key} {value}" for key, value in arguments.items())
    return Remedy(cure, f"{entry.does}: surgery {name} ({told})", surgery=(step,))


def _told(value: Any) -> str:
    """A value as a sentence can hold it; an object by its class."""
    if isinstance(value, Mapping):
        return str(value.get("_target_", dict(value))).rpartition(".")[2]
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
