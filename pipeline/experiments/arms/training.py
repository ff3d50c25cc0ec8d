"""Arms that change how the model is trained: learning rate, optimizer, batches and regularization."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.experiments.arms.arm import USUAL_BATCH, Arm, Reason, Subject, combined
from pipeline.run_store.job import Delta

USUAL: dict[str, tuple[object, ...]] = {  # values of an optimizer's options that no fault comes from
    "betas": ([0.9, 0.999], [0.9, 0.99], [0.9, 0.98], [0.9, 0.95]),
    "eps": (1e-8, 1e-7, 1e-9, 1e-10, 1e-6),
    "momentum": (0, 0.5, 0.8, 0.9, 0.95),
    "alpha": (0.9, 0.99),
    "rho": (0.9, 0.95),
    "dampening": (0,),
    "lr_decay": (0,),
    "momentum_decay": (0.004,),
    "maximize": (False,),
}
REFERENCE_OPTIMIZER = {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 3e-3, "weight_decay": 0.01}
FACTORS = {
    "rate_divided_by_10": 0.1,
    "rate_times_10": 10.0,
    "rate_divided_by_100": 0.01,
    "rate_times_100": 100.0,
}
SMALL_UPDATE, LARGE_UPDATE = 1e-4, 3e-2  # norms of an update over that of the weights; about 1e-3 is normal
SMALL_BATCH = 8  # rows: a smaller batch is unusual
FEW_BATCHES = 16  # of an epoch, below which a smaller batch gives many more updates
USUAL_DECAY = 0.05  # a larger weight decay is unusual


def learning_rate(subject: Subject) -> Iterator[Arm]:
    """The rate times 10, 1/10, 100 and 1/100, from the initial weights, and a constant one.

    Where updates are far too small or too large for the weights, the other direction is left to a suspicion.
    """
    rate, ratio = subject.number("optimizer.lr"), subject.update_ratio
    peak = subject.number("scheduler.max_lr")
    for name, factor in FACTORS.items():
        if rate is None or rate <= 0:
            break
        overrides: dict[str, object] = {"optimizer.lr": float(f"{rate * factor:.6g}")}
        if peak is not None:
            overrides["scheduler.max_lr"] = float(f"{peak * factor:.6g}")
        wrong_way = ratio < SMALL_UPDATE if factor < 1 else ratio > LARGE_UPDATE
        far = factor in (0.01, 100.0) and SMALL_UPDATE <= ratio <= LARGE_UPDATE
        reason: Reason = "suspicion" if wrong_way or far else "general"
        cause = "learning_rate_too_high" if factor < 1 else "learning_rate_too_low"
        yield Arm(name, (cause,), f"learning rate {rate:g} → {rate * factor:g}", Delta(overrides), reason=reason)
    if subject.value("scheduler"):
        per_step = subject.value("scheduler.interval") == "step"
        cause = "scheduler_misstepped" if per_step and peak is None else "scheduler_decays_too_early"
        yield Arm("constant_rate", (cause,), "a constant learning rate", Delta({"scheduler": None}), reason="unusual")


def optimizer(subject: Subject) -> Iterator[Arm]:
    """Clipping off, the optimizer's other options at their defaults, and the reference optimizer."""
    if subject.number("trainer.gradient_clip_val") is not None:
        change = Delta({"trainer.gradient_clip_val": None})
        yield Arm("no_clipping", ("gradient_clip_too_tight",), "no gradient clipping", change, reason="unusual")
    section = subject.value("optimizer")
    if not isinstance(section, dict):
        return
    unusual = sorted(key for key, value in section.items() if key in USUAL and value not in USUAL[key])
    if unusual and str(section.get("_target_")).startswith("torch.optim."):
        text = f"default options, without {', '.join(f'{key}={section[key]}' for key in unusual)}"
        change = Delta({"optimizer": {key: value for key, value in section.items() if key not in unusual}})
        yield Arm("optimizer_defaults", ("optimizer_mismatch",), text, change, reason="unusual")
    overrides: dict[str, Any] = {
        "optimizer": dict(REFERENCE_OPTIMIZER),
        "scheduler": None,
        "trainer.gradient_clip_val": None,
    }
    change = Delta({key: value for key, value in overrides.items() if subject.has(key)})
    text = "AdamW with rate 0.003, without schedule and clipping"
    yield Arm("reference_optimizer", ("optimizer_mismatch",), text, change, kind="context", reason="general")


def batches(subject: Subject) -> Iterator[Arm]:
    """Smaller and larger batches, shuffled rows, single precision, rows from memory."""
    epochs, batch = int(subject.config["trainer"]["max_epochs"]), subject.batch_size
    if batch > USUAL_BATCH:
        change = Delta({"loader.batch_size": USUAL_BATCH, "trainer.accumulate_grad_batches": 1})
        text = f"batches of {USUAL_BATCH} rows instead of {batch}"
        reason: Reason = "unusual" if subject.rows / batch < FEW_BATCHES else "suspicion"
        yield Arm("smaller_batch", ("batch_size_too_large",), text, change, reason=reason)
    if batch < SMALL_BATCH <= subject.rows:
        longer = epochs * USUAL_BATCH // batch
        change = Delta({"loader.batch_size": USUAL_BATCH, "trainer.max_epochs": longer})
        text = f"batches of {USUAL_BATCH} rows instead of {batch}, with as many updates"
        yield Arm("larger_batch", ("batch_size_too_small",), text, change, reason="unusual")
    if subject.value("loader.shuffle") is False:
        change = Delta({"loader.shuffle": True})
        yield Arm("shuffled", ("data_not_shuffled",), "rows shuffled every epoch", change, reason="unusual")
    if "16" in str(subject.value("trainer.precision")):
        change = Delta({"trainer.precision": 32})
        yield Arm("precision_32", ("precision_overflow",), "single precision", change, reason="unusual")
    if subject.stopped == "clock" and subject.description["from_dataset"]:
        change = Delta(train_rows={"read": "memory"})
        text = "train rows from memory"
        yield Arm("rows_in_memory", ("input_pipeline_bottleneck",), text, change, reason="unusual")


def regularization(subject: Subject) -> Iterator[Arm]:
    """Without weight decay and dropout, without augmentation; with dropout turned off in evaluation alone."""
    decay, smoothing = subject.number("optimizer.weight_decay"), subject.number("loss.label_smoothing")
    random_in_eval = not subject.description["repeats_output"]
    dropout = subject.description["dropout"] or random_in_eval
    overrides: dict[str, object] = {"optimizer.weight_decay": 0.0} if decay else {}
    overrides |= {"loss.label_smoothing": 0.0} if smoothing else {}
    skip: Any = ({"skip_dropout": {}},) if dropout else ()
    parts = [text for text, on in (("weight decay", decay), ("dropout", dropout), ("label smoothing", smoothing)) if on]
    if parts:
        strong = dropout or smoothing or (decay or 0.0) > USUAL_DECAY
        reason: Reason = "unusual" if strong else "suspicion"
        text, change = f"without {' and '.join(parts)}", Delta(overrides, skip)
        yield Arm("no_regularization", ("regularization_too_strong",), text, change, reason=reason)
    elif subject.has("optimizer.weight_decay"):
        change = Delta({"optimizer.weight_decay": 0.1}, ({"set_dropout": {"p": 0.3}},))
        yield Arm("regularized", ("regularization_missing",), "dropout of 0.3 and weight decay of 0.1", change)
    if random_in_eval:
        change = Delta(surgery=({"skip_dropout": {"eval_only": True}},))
        yield Arm("eval_without_dropout", ("eval_mode_missing",), "no dropout in evaluation", change, reason="unusual")
    if subject.value("loader.augment"):
        change = Delta({"loader.augment": []})
        yield Arm("no_augmentation", ("augmentation_too_strong",), "no augmentation", change, reason="unusual")
    elif subject.description["augmented"]:
        change = Delta(train_rows={"read": "memory"})
        text = "every row as it was read once, without new augmentation"
        yield Arm("no_augmentation", ("augmentation_too_strong",), text, change, reason="unusual")


def without_randomness(subject: Subject) -> Iterator[Arm]:
    """The run with its randomness switched off source by source: the order of rows, then augmentation, then dropout.

    Each arm leaves off what the one before it left off. What remains random are the first weights, which differ from
    one control to the next.
    """
    sources = list[tuple[str, str, Delta]]()
    if subject.value("loader.shuffle") and subject.value("loader.sampler") in (None, "none"):
        sources.append(("fixed_order", "rows in a fixed order", Delta({"loader.shuffle": False})))
    if subject.value("loader.augment"):
        sources.append(("fixed_rows", "no augmentation", Delta({"loader.augment": []})))
    elif subject.description["augmented"]:
        sources.append(("fixed_rows", "every row as it was read once", Delta(train_rows={"read": "memory"})))
    if subject.description["dropout"]:
        sources.append(("fixed_units", "no dropout", Delta(surgery=({"skip_dropout": {}},))))
    delta, texts = Delta(), list[str]()
    for name, text, change in sources:
        delta, texts = combined(delta, change), [*texts, text]
        yield Arm(name, (), " and ".join(texts), delta, kind="context", reason="general")
