"""Edits of a config: scale a number, set a value, choose a value by the config. Each returns sets of overrides.

An override is an existing dotted key with its new value; an edit whose key is not in the config returns no overrides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.config.conf_dir import LOSSES, loss_target

Config = Mapping[str, object]
Edit = Callable[[Config], list[dict[str, object]]]  # alternative sets of overrides, smallest change first

MISSING = object()  # what `get` returns for an absent key: a value of a config may be None

# Hydra reads such text as a string without quotes, unless it is one of the literals.
UNQUOTED = re.compile(r"[A-Za-z_./][\w./-]*")
LITERALS = ("null", "true", "false", "nan", "inf")


def format_override_value(value: object) -> str:
    """Return a value as it is written after `key=` on the command line."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{format_override_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(format_override_value, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str) and (not UNQUOTED.fullmatch(value) or value.lower() in LITERALS):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return str(value)


def get(config: Config, key: str) -> Any:
    """Return the value of a dotted key; `MISSING`, which equals no value, where the config has no such key."""
    node: object = config
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return MISSING
        node = node[part]
    return node


def scale(key: str, *factors: float) -> Edit:
    """Multiply a number, or each number of a list, by each factor; integers stay integers of at least 1."""

    def times(value: object, factor: float) -> object:
        if isinstance(value, list | tuple):
            return [times(item, factor) for item in value]
        if isinstance(value, int):
            return max(1, round(value * factor))
        assert isinstance(value, float)
        return float(f"{value * factor:.6g}")  # without binary rounding: 0.3 and not 0.30000000000000004

    def edit(config: Config) -> list[dict[str, object]]:
        value = get(config, key)
        numbers = value if isinstance(value, list | tuple) else [value]
        if not numbers or any(isinstance(n, bool) or not isinstance(n, int | float) or n <= 0 for n in numbers):
            return []
        return _overrides(key, value, [times(value, factor) for factor in factors])

    return edit


def set_value(key: str, *values: object, when: Callable[[object], bool] = lambda old: True) -> Edit:
    """Set each of the values that differs from the current one, if `when` is true of the current one."""

    def edit(config: Config) -> list[dict[str, object]]:
        value = get(config, key)
        return [] if value is MISSING or not when(value) else _overrides(key, value, values)

    return edit


def choose(key: str, pick: Callable[[Config, object], object]) -> Edit:
    """Set the value that `pick(config, current)` returns; no override if it returns the current one."""

    def edit(config: Config) -> list[dict[str, object]]:
        value = get(config, key)
        return [] if value is MISSING else _overrides(key, value, [pick(config, value)])

    return edit


def _overrides(key: str, old: object, new: Sequence[object]) -> list[dict[str, object]]:
    """One set of overrides per new value, without repetitions."""
    values = [old]  # a list: values may be dicts and lists, which cannot be in a set
    for value in new:
        if value not in values:
            values.append(value)
    return [{key: value} for value in values[1:]]


def below(bound: float) -> Callable[[object], bool]:
    """Return a condition: the current value is a number less than the bound."""
    return lambda old: isinstance(old, int | float) and not isinstance(old, bool) and old < bound


def off(old: object) -> bool:
    """Whether the current value turns an option off."""
    return old in (None, "none", False)


def activation(_: Config, old: object) -> object:
    """LeakyReLU instead of ReLU, whose units can die; ReLU instead of one that saturates or is linear."""
    name = str(old).lower()  # configs may write relu as well as ReLU
    return "LeakyReLU" if name == "relu" else old if name == "leakyrelu" else "ReLU"


def optimizer(_: Config, old: object) -> object:
    """SGD instead of Adam or AdamW, AdamW instead of any other optimizer; both with usual settings."""
    if not isinstance(old, Mapping) or "_target_" not in old:
        return old
    target = str(old["_target_"])
    # A whole section: the arguments of the old optimizer would not fit the new one.
    adamw = {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 1e-3, "weight_decay": 0.01}
    sgd = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1, "momentum": 0.9, "nesterov": True}
    return sgd if target.endswith(("Adam", "AdamW")) else adamw


def loss(config: Config, old: object) -> object:
    """The usual loss of the task kind."""
    kind = str(get(config, "task.kind"))
    if kind not in LOSSES:
        return old
    target = loss_target(kind)
    same = isinstance(old, Mapping) and str(old.get("_target_")).endswith(f".{target.rpartition('.')[2]}")
    return old if same else {"_target_": target}


def robust_loss(_: Config, old: object) -> object:
    """Huber loss instead of the mean squared error."""
    mse = isinstance(old, Mapping) and str(old.get("_target_")).endswith(".MSELoss")
    return {"_target_": "torch.nn.HuberLoss", "delta": 1.0} if mse else old


def longer_schedule(config: Config, old: object) -> object:
    """The number of epochs if the schedule ends before them."""
    epochs = get(config, "trainer.max_epochs")
    return epochs if isinstance(old, int) and isinstance(epochs, int) and epochs > old else old


def _inputs_have_a_scale(config: Config) -> bool:
    """Whether inputs are values and not token ids, as far as the config tells."""
    tokens = str(get(config, "data._target_")).endswith(".text_windows")
    return not tokens and get(config, "task.kind") != "language_model"


def standardize(config: Config, old: object) -> object:
    """True, unless inputs have no scale or are already scaled as images."""
    return True if _inputs_have_a_scale(config) and get(config, "preprocess.images") == "none" else old


def impute(config: Config, old: object) -> object:
    """The median, unless inputs have no scale or missing values are already imputed."""
    return "median" if _inputs_have_a_scale(config) and old == "none" else old


def standardize_targets(config: Config, old: object) -> object:
    """`standardize`, if targets are values and no `task.step` computes the loss."""
    has_values = get(config, "task.kind") in ("regression", "autoencoder")
    return "standardize" if has_values and get(config, "task.step") in (None, MISSING) else old


def precision(_: Config, old: object) -> object:
    """bfloat16 instead of float16, whose range is small; float32 instead of bfloat16."""
    return {"16-mixed": "bf16-mixed", "bf16-mixed": 32, "bf16": 32}.get(str(old), old)


def shallower(_: Config, old: object) -> object:
    """The hidden layers without the last one."""
    return list(old)[:-1] if isinstance(old, list | tuple) and len(old) > 1 else old
