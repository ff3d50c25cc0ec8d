"""Settings that a log states between its rows: `dtype = float16`, `Namespace(lr=0.1, batch_size=32)`, ..."""

from __future__ import annotations

import re

SETTINGS = {
    **dict.fromkeys(("dtype", "precision", "mixed_precision", "torch_dtype", "amp_dtype", "autocast_dtype"), "dtype"),
    **dict.fromkeys(("amp", "fp16", "half"), "fp16"),
    "bf16": "bf16",
    **dict.fromkeys(("lr", "learning_rate", "lr0", "base_lr", "max_lr"), "lr"),
    **dict.fromkeys(("batch_size", "batch", "per_device_train_batch_size", "train_batch_size"), "batch_size"),
    **dict.fromkeys(("optimizer", "optim"), "optimizer"),
    **dict.fromkeys(("weight_decay", "wd"), "weight_decay"),
    "dropout": "dropout",
    "momentum": "momentum",
    **dict.fromkeys(("clip_grad", "grad_clip", "max_grad_norm", "gradient_clip_val"), "gradient_clip_val"),
    **dict.fromkeys(("gradient_accumulation_steps", "accumulate_grad_batches"), "accumulate_grad_batches"),
    **dict.fromkeys(("num_classes", "n_classes"), "classes"),
}
OPTIMIZERS = re.compile(r"\b(AdamW?|SGD|RMSprop|Adagrad|Adadelta|NAdam|RAdam|Lion|Adafactor|LAMB)\b(?!\.)")
HALF = ("float16", "torch.float16", "fp16", "half", "16", "16-mixed")
FULL = ("float32", "torch.float32", "fp32", "32", "no")
_SETTING = re.compile(
    r"(?<![\w.])['\"]?(" + "|".join(sorted(SETTINGS, key=len, reverse=True)) + r")['\"]?\s*[=:]\s*['\"]?([\w.+-]+)",
    re.IGNORECASE,
)


def settings_in(text: str) -> dict[str, str]:
    """Return the settings that a line states, by Fivegate's names, as text."""
    settings = {SETTINGS[name.lower()]: value for name, value in _SETTING.findall(text)}
    if "optimizer" not in settings and (named := OPTIMIZERS.search(text)):
        settings["optimizer"] = named[1]
    return settings


def facts_of(header: dict[str, str]) -> dict[str, float]:
    """Return the facts of a history that the settings state: rate, batch size, bits of the number format, ..."""
    facts: dict[str, float] = {}
    for name in ("batch_size", "weight_decay", "dropout", "gradient_clip_val", "classes"):
        try:
            facts[name] = float(header[name])
        except (KeyError, ValueError):
            continue
    dtype = header.get("dtype", "").lower()
    half = dtype in HALF or header.get("fp16", "").lower() in ("true", "1", "o1", "o2")
    if half or dtype in FULL:
        facts["precision_bits"] = 16.0 if half else 32.0
    return facts
