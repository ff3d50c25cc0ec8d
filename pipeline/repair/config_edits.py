"""Ways to change a config: scale a number, put a value, choose by what is there. Each gives overrides, or none.

An override is an existing dotted key and its new value; a way whose key the config lacks gives nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Config = Mapping[str, Any]
Way = Callable[[Config], list[dict[str, Any]]]  # override sets, smallest change first

_ABSENT: Any = object()


def look(config: Config, key: str) -> Any:
    """The value of a dotted key, or a mark that the config has no such key."""
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return _ABSENT
        node = node[part]
    return node


def scale(key: str, *factors: float) -> Way:
    """The number (or each number of a list) times a factor; integers stay integers, at least 1."""

    def times(value: Any, factor: float) -> Any:
        if isinstance(value, list | tuple):
            return [times(v, factor) for v in value]
        return max(1, round(value * factor)) if isinstance(value, int) else float(f"{value * factor:.6g}")

    def way(config: Config) -> list[dict[str, Any]]:
        value = look(config, key)
        numbers = value if isinstance(value, list | tuple) else [value]
        if not numbers or any(isinstance(n, bool) or not isinstance(n, int | float) or n <= 0 for n in numbers):
            return []
        return _changes(key, value, [times(value, factor) for factor in factors])

    return way


def put(key: str, *values: Any, when: Callable[[Any], bool] = lambda old: True) -> Way:
    """Each of the values that differs from the present one, where `when` holds of that."""

    def way(config: Config) -> list[dict[str, Any]]:
        value = look(config, key)
        return [] if value is _ABSENT or not when(value) else _changes(key, value, list(values))

    return way


def choose(key: str, pick: Callable[[Config, Any], Any]) -> Way:
    """The value that `pick(config, present)` names; none where it gives the present one."""

    def way(config: Config) -> list[dict[str, Any]]:
        value = look(config, key)
        return [] if value is _ABSENT else _changes(key, value, [pick(config, value)])

    return way


def _changes(key: str, old: Any, new: list[Any]) -> list[dict[str, Any]]:
    seen: list[Any] = [old]
    for value in new:
        if value not in seen:
            seen.append(value)
    return [{key: value} for value in seen[1:]]


def below(bound: float) -> Callable[[Any], bool]:
    return lambda old: isinstance(old, int | float) and not isinstance(old, bool) and old < bound


def off(old: Any) -> bool:
    return old in (None, "none", False)


def activation(_: Config, old: Any) -> Any:
    """LeakyReLU for a ReLU that can die, ReLU for all that saturate or do nothing."""
    name = str(old).lower()
    return "LeakyReLU" if name == "relu" else old if name == "leakyrelu" else "ReLU"


def optimizer(_: Config, old: Any) -> Any:
    if not isinstance(old, Mapping) or "_target_" not in old:
        return old
    target = str(old["_target_"])
    adamw = {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 1e-3, "weight_decay": 0.01}
    sgd = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1, "momentum": 0.9, "nesterov": True}
    return sgd if target.endswith(("Adam", "AdamW")) else adamw


_LOSSES = {"classification": "CrossEntropyLoss", "binary": "BCEWithLogitsLoss", "multilabel": "BCEWithLogitsLoss"}
_LOSSES |= {"language_model": "CrossEntropyLoss", "regression": "MSELoss", "autoencoder": "MSELoss"}


def loss(config: Config, old: Any) -> Any:
    name = _LOSSES.get(str(look(config, "task.kind")))
    same = isinstance(old, Mapping) and str(old.get("_target_")).endswith(f".{name}")
    return old if name is None or same else {"_target_": f"torch.nn.{name}"}


def robust_loss(_: Config, old: Any) -> Any:
    mse = isinstance(old, Mapping) and str(old.get("_target_")).endswith(".MSELoss")
    return {"_target_": "torch.nn.HuberLoss", "delta": 1.0} if mse else old


def longer_schedule(config: Config, old: Any) -> Any:
    epochs = look(config, "trainer.max_epochs")
    return epochs if isinstance(old, int) and isinstance(epochs, int) and epochs > old else old


def _values(config: Config) -> bool:
    """Whether inputs are numbers with a scale, as far as a config tells: a stream of tokens is none."""
    tokens = str(look(config, "data._target_")).endswith(".text_windows")
    return not tokens and look(config, "task.kind") != "language_model"


def standardizing(config: Config, old: Any) -> Any:
    """True, unless inputs have no scale or are scaled as images already."""
    return True if _values(config) and look(config, "preprocess.images") == "none" else old


def imputing(config: Config, old: Any) -> Any:
    return "median" if _values(config) and old == "none" else old


def scaled_targets(config: Config, old: Any) -> Any:
    """`standardize` where targets are values and no step compares them on its own."""
    of_values = look(config, "task.kind") in ("regression", "autoencoder")
    return "standardize" if of_values and look(config, "task.step") in (None, _ABSENT) else old


def precision(_: Config, old: Any) -> Any:
    return {"16-mixed": "bf16-mixed", "bf16-mixed": 32}.get(str(old), old)


def shallower(_: Config, old: Any) -> Any:
    return list(old)[:-1] if isinstance(old, list | tuple) and len(old) > 1 else old
