"""The table of cures: what a kind of change means in words and in code, and the edits that make it.

An edit lists several values where one step may be too small; trials compare them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.repair import config_edits
from pipeline.repair.config_edits import Edit, below, choose, off, scale, set_value


@dataclass(frozen=True)
class Cure:
    """What a cure does in words and in code, and its edits and surgery steps if there are any (one remedy each).

    Surgery is for models whose config lacks `key`. If the config has it and no edit applies, the change exists.
    """

    summary: str
    code: str
    edits: tuple[Edit, ...] = ()
    surgery: tuple[Mapping[str, Any], ...] = ()
    key: str = ""


DROPOUT = set_value("model.dropout", 0.2, 0.5, when=below(0.2))
DECAY = set_value("optimizer.weight_decay", 0.1, when=below(0.1))
NARROWER = scale("model.width", 0.5, 0.25), scale("model.hidden", 0.5, 0.25)  # if a config has both, the width counts

CURES: dict[str, Cure] = {
    # data
    "drop_or_impute_rows": Cure(
        "Drop or impute rows with NaN or infinity",
        "keep = np.isfinite(X).all(1); X, y = X[keep], y[keep]",
        (choose("preprocess.impute", config_edits.impute),),
    ),
    "standardize_inputs": Cure(
        "Standardize every feature to zero mean and unit variance",
        "mean, std = X_train.mean(0), X_train.std(0) + 1e-8; X = (X - mean) / std  # statistics of the train rows only",
        (choose("preprocess.standardize", config_edits.standardize),),
    ),
    "normalize_once": Cure(
        "Scale the features once",
        "remove the second scaling: scale in the data set or in the model, not in both",
    ),
    "mend_features": Cure(
        "Use features that carry signal",
        "check that X.std(0).min() > 0, and that the features of a row belong to its target",
    ),
    "standardize_targets": Cure(
        "Standardize targets to zero mean and unit variance",
        "y = (y - y_train.mean()) / y_train.std()  # and invert it for predictions",
        (choose("preprocess.targets", config_edits.standardize_targets),),
    ),
    "reencode_labels": Cure("Encode the classes as 0..C-1", "classes, y = np.unique(y, return_inverse=True)"),
    "realign_labels": Cure(
        "Restore the pairing of rows and labels",
        "order = rng.permutation(len(X)); X, y = X[order], y[order]  # the same order for both",
    ),
    "clean_labels": Cure(
        "Inspect the rows with the largest loss and correct their labels",
        "worst = torch.topk(losses, 50).indices  # inspect these rows",
    ),
    "robust_loss": Cure(
        "Use a loss that a few wrong targets do not dominate",
        "loss = nn.HuberLoss() or nn.CrossEntropyLoss(label_smoothing=0.1)",
        (choose("loss", config_edits.robust_loss), set_value("loss.label_smoothing", 0.1, when=below(0.1))),
    ),
    "clip_or_drop_outliers": Cure(
        "Clip extreme values",
        "low, high = np.quantile(X_train, [0.001, 0.999], axis=0); X = X.clip(low, high)",
    ),
    "class_weights": Cure(
        "Give rare classes more weight in the loss",
        "nn.CrossEntropyLoss(weight=n / (C * counts))",
        (set_value("task.class_weights", "balanced"),),
    ),
    "balanced_sampler": Cure(
        "Sample every class equally often",
        "WeightedRandomSampler(1 / counts[y], len(y))",
        (set_value("loader.sampler", "balanced"),),
    ),
    "drop_leak": Cure("Drop the feature that leaks the target", "X = np.delete(X, leaking_columns, axis=1)"),
    "resplit": Cure(
        "Split again, with identical and related rows in the same split",
        "GroupShuffleSplit(test_size=0.2, random_state=seed).split(X, y, groups)",
    ),
    "same_preprocessing": Cure(
        "Apply the same preprocessing to all splits",
        "fit one function on train rows and apply it to all splits",
    ),
    "weaken_augmentation": Cure(
        "Weaken the augmentation",
        "halve the strength of every random transform and inspect some samples",
    ),
    "shuffle": Cure(
        "Shuffle the train rows every epoch",
        "DataLoader(..., shuffle=True)",
        (set_value("loader.shuffle", True),),
    ),
    "more_data": Cure(
        "Collect more rows, or augment the existing ones", "collect rows like those with the largest validation error"
    ),
    # model
    "smaller_model": Cure("Make the model smaller", "halve the width of the hidden layers", NARROWER),
    "enlarge_model": Cure(
        "Make the model larger",
        "double the width of the hidden layers",
        (scale("model.width", 2, 4), scale("model.hidden", 2, 4)),
        ({"widen": {"factor": 4}},),
    ),
    "shrink_depth": Cure(
        "Remove a layer",
        "remove the last hidden layer",
        (choose("model.hidden", config_edits.shallower),),
    ),
    "regularize": Cure(
        "Regularize the model",
        "dropout of 0.2 after hidden activations, weight decay 0.1",
        (DROPOUT, DECAY),
        ({"set_dropout": {"p": 0.2}},),
    ),
    "dropout": Cure(
        "Add dropout",
        "nn.Dropout(0.2) after each hidden activation",
        (DROPOUT,),
        ({"set_dropout": {"p": 0.2}},),
    ),
    "match_output_activation": Cure(
        "Match the output activation to the targets",
        "no activation for classes and unbounded values; sigmoid only with nn.BCELoss",
        surgery=({"replace_output_activation": {"to": "none"}},),
    ),
    "drop_output_activation": Cure(
        "Pass logits to the loss",
        "remove softmax or sigmoid after the last layer",
        surgery=({"replace_output_activation": {"to": "none"}},),
    ),
    "resize_output": Cure(
        "Use one output per class or target",
        "surgery: [{resize_output: {out_features: C}}]",
    ),
    "swap_activation": Cure(
        "Swap the hidden activation",
        "nn.LeakyReLU() for nn.ReLU(); nn.ReLU() for nn.Sigmoid() and nn.Tanh()",
        (choose("model.activation", config_edits.activation),),
        ({"swap_activation": {"from": "ReLU", "to": "LeakyReLU"}},),
    ),
    "insert_normalization": Cure(
        "Normalize the hidden layers",
        "nn.LayerNorm(width) after each hidden layer",
        (set_value("model.normalization", "layer", when=off),),
        ({"insert_normalization": {"kind": "layer"}},),
        "model.normalization",
    ),
    "reinitialize": Cure(
        "Reinitialize the weights at a scale that fits the activation",
        "for m in model.modules(): getattr(m, 'reset_parameters', lambda: None)()",
        surgery=({"reinitialize": {"scheme": "default"}},),
    ),
    "mend_normalization": Cure(
        "Correct the normalization",
        "use nn.LayerNorm for small batches, momentum 0.1, and place it before the activation",
    ),
    "mend_axes": Cure(
        "Put the batch on the first axis of every tensor",
        "nn.LSTM(..., batch_first=True); x.transpose(0, 1) instead of x.reshape(...) where axes are exchanged",
    ),
    "mend_attention": Cure(
        "Use the attention of the library, with its scale and the mask of the task",
        "F.scaled_dot_product_attention(q, k, v, is_causal=True)  # divides by sqrt(width) and masks what comes later",
    ),
    # loss
    "match_loss": Cure(
        "Use a loss that fits the task",
        "nn.CrossEntropyLoss for classes, nn.BCEWithLogitsLoss for 0/1, nn.MSELoss for values",
        (choose("loss", config_edits.loss),),
    ),
    "mend_loss": Cure(
        "Average the loss over rows, with the correct sign and axis",
        "loss = per_row.mean()  # to be minimized",
        (choose("loss", config_edits.loss),),
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
        "Clip the gradient norm",
        "nn.utils.clip_grad_norm_(model.parameters(), 1.0)",
        (set_value("trainer.gradient_clip_val", 1.0, when=off), scale("trainer.gradient_clip_val", 0.1)),
    ),
    "loosen_clip": Cure(
        "Clip gradients less",
        "nn.utils.clip_grad_norm_(model.parameters(), 10 * the current bound)",
        (scale("trainer.gradient_clip_val", 10, 100), set_value("trainer.gradient_clip_val", None)),
    ),
    "warmup": Cure(
        "Warm up the learning rate",
        "LinearLR(optimizer, start_factor=0.01, total_iters=200)",
        (scale("scheduler.warmup_steps", 2, 5), scale("scheduler.warmup_epochs", 2)),
    ),
    "swap_optimizer": Cure(
        "Change the optimizer",
        "torch.optim.AdamW(model.parameters(), lr=1e-3)",
        (choose("optimizer", config_edits.optimizer),),
    ),
    "mend_scheduler": Cure(
        "Decay the learning rate later",
        "CosineAnnealingLR(optimizer, T_max=epochs)",
        (choose("scheduler.T_max", config_edits.longer_schedule), set_value("scheduler", None)),
    ),
    "smaller_batch": Cure(
        "Use smaller batches",
        "DataLoader(..., batch_size=batch_size // 2)",
        (scale("loader.batch_size", 0.5, 0.25),),
    ),
    "larger_batch": Cure(
        "Use larger batches",
        "DataLoader(..., batch_size=2 * batch_size)",
        (scale("loader.batch_size", 2, 4),),
    ),
    "more_epochs": Cure("Train longer", "epochs *= 2", (scale("trainer.max_epochs", 2, 4),)),
    "early_stopping": Cure(
        "Stop when validation stops improving",
        "stop after 5 epochs without a better val/loss and keep the best weights",
        (set_value("trainer.patience", 5, when=off), scale("trainer.patience", 0.5)),
    ),
    "weight_decay": Cure("Increase weight decay", "torch.optim.AdamW(..., weight_decay=0.1)", (DECAY,)),
    "less_regularization": Cure(
        "Regularize less",
        "halve dropout, divide weight decay by 10",
        (scale("model.dropout", 0.5, 0.0), scale("optimizer.weight_decay", 0.1, 0.0)),
        ({"set_dropout": {"p": 0.1}},),
    ),
    # loop
    "unscale_before_clip": Cure(
        "Unscale the gradients before they are clipped",
        "scaler.unscale_(optimizer); nn.utils.clip_grad_norm_(model.parameters(), 1.0); scaler.step(optimizer)",
    ),
    "divide_accumulated_loss": Cure(
        "Divide each loss by the number of batches that are accumulated",
        "(loss / accumulated_batches).backward()",
    ),
    "restore_sampler_state": Cure(
        "Continue the data order where the interrupted run stopped",
        "sampler.set_epoch(epoch); batches = itertools.islice(loader, batches_done, None)",
    ),
    "restore_training_state": Cure(
        "Restore the whole state of the training, not the weights alone",
        "for name, part in parts.items(): part.load_state_dict(checkpoint[name])  # optimizer, scheduler, scaler",
    ),
    "zero_grad": Cure(
        "Zero the gradients before each backward pass",
        "optimizer.zero_grad(); loss.backward(); optimizer.step()",
    ),
    "train_all_parameters": Cure(
        "Train every parameter",
        "optimizer = AdamW(model.parameters()) after all layers exist, without detach()",
        surgery=({"unfreeze": {"match": "*"}},),
    ),
    "freeze_parameters": Cure(
        "Freeze the parameters that should not train",
        "surgery: [{freeze: {match: 'body.*'}}]",
    ),
    "eval_mode": Cure("Validate in evaluation mode", "model.eval(); with torch.no_grad(): ...; model.train()"),
    "match_metric": Cure(
        "Use a metric that fits the task",
        "task.metric: balanced_accuracy or f1_macro for rare classes, r2 or rmse for values",
    ),
    "seed_workers": Cure(
        "Seed every data-loader worker",
        "DataLoader(..., worker_init_fn=lambda i: np.random.seed(torch.initial_seed() % 2**32), generator=g)",
    ),
    "load_after_init": Cure(
        "Load the checkpoint last",
        "model.load_state_dict(state) after every initialization, before the optimizer is created",
    ),
    "rehearsal": Cure("Mix in rows of the earlier task", "a tenth of each batch from the earlier task"),
    "diversity_term": Cure(
        "Add a term for the diversity or the entropy of the outputs to the loss",
        "loss = loss - 0.01 * outputs.std(0).mean()  # or the entropy of the predicted probabilities",
    ),
    "rebalance_adversaries": Cure(
        "Balance generator and discriminator",
        "fewer discriminator steps, or a lower learning rate for it",
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
        "Load data in more worker processes",
        "DataLoader(..., num_workers=4)",
        (set_value("loader.num_workers", 4, when=below(4)),),
    ),
    "cache_data": Cure("Cache preprocessed rows", "preprocess once, save as .npy, read with mmap_mode='r'"),
    "deterministic_mode": Cure(
        "Use deterministic kernels",
        "torch.use_deterministic_algorithms(True)",
        (set_value("trainer.deterministic", True),),
    ),
    "mend_replication": Cure(
        "Keep the replicas identical",
        "DistributedDataParallel(model) before the optimizer is created; broadcast buffers",
    ),
}
