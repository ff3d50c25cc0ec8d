"""Config values that are `auto` and follow from the data; planning freezes what they are.

`in_features` and `out_features`, of `model` or of a part of it (`model.encoder.in_features`), are the widths that data,
task and loss ask for. `preprocess.integers` says whether integer features stay integers, as an embedding needs them, or
become float32, as every other layer does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.build import build, section_of
from pipeline.data.dataset import Data
from pipeline.data.load import load
from pipeline.error_attribution import needs_integers, reraise_stop
from pipeline.errors import UserError, fault
from pipeline.evaluation.step import build_step
from pipeline.preprocess.wrap import wrap_model
from pipeline.run_store.plan import with_resolved
from pipeline.runtime.seeds import seeded

AUTO = "auto"
WIDTHS = ("in_features", "out_features")
TWO_OUTPUTS = ("CrossEntropyLoss", "cross_entropy", "NLLLoss", "nll_loss", "MultiMarginLoss")  # also of a binary task
ROWS = 2  # that are given to a model; batch normalization needs two


def load_resolved(
    config: Mapping[str, Any], trust: Sequence[str], log: Callable[[str], None]
) -> tuple[Data, dict[str, object]]:
    """Load the data of a config; return them with the value of every key that is `auto` and follows from them."""
    data = load(config, trust)
    resolved = auto_integers(config, data, trust)
    integers = resolved.get("preprocess.integers")
    if integers == "keep":
        data = load(with_resolved(config, {"resolved": resolved}), trust)
        log("planning: integer features stay integers, as the model takes them (preprocess.integers: keep)")
    elif integers == "float32" and data.integer_features:
        log("planning: integer features become float32, as the model takes them (preprocess.integers: float32)")
    resolved |= auto_widths(config, data)
    if widths := [f"{key} {value}" for key, value in resolved.items() if key.startswith("model.")]:
        log(f"planning: from the data: {', '.join(widths)}")
    return data, resolved


def auto_widths(config: Mapping[str, Any], data: Data) -> dict[str, object]:
    """Return the value of each `in_features` and `out_features` in the section `model` that is `auto`, by its key.

    Raises UserError for one that the data do not determine.
    """
    widths: dict[str, object] = {}
    for key, target in _auto_keys(section_of(config, "model"), "model"):
        find = _out_features if key.endswith(".out_features") else partial(_in_features, target)
        widths[key] = find(config, data, key)
    return widths


def model_node(config: Mapping[str, Any], data: Data) -> dict[str, object]:
    """Return a copy of the section `model` in which the widths that are `auto` are those of the data."""
    return section_of(with_resolved(config, {"resolved": auto_widths(config, data)}), "model")


def _auto_keys(node: object, key: str) -> Iterator[tuple[str, object]]:
    """Yield the key of every width that is `auto`, with the `_target_` that gets it."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            if name in WIDTHS and value == AUTO:
                yield f"{key}.{name}", node.get("_target_")
            yield from _auto_keys(value, f"{key}.{name}")
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _auto_keys(value, f"{key}.{i}")


def _in_features(target: object, config: Mapping[str, Any], data: Data, key: str) -> int:
    """Return the numbers per row that reach the model, after `preprocess`; for torch's own layers the last axis."""
    if not isinstance(data.train.X, Tensor):
        raise UserError(fault(key, "auto is not known for nested features", expected="a number"))
    inputs_only = {**config, "preprocess": {**section_of(config, "preprocess"), "targets": "none"}}
    with torch.no_grad():
        rows = wrap_model(nn.Identity(), inputs_only, data).eval()(data.train.X[:ROWS])
    if str(target).startswith("torch.nn."):
        return int(rows.shape[-1])
    return math.prod(rows.shape[1:])


def _out_features(config: Mapping[str, Any], data: Data, key: str) -> int:
    """Return one output per class, label, token id or value; 1 for a binary task, 2 if its loss takes two logits."""
    kind, y = section_of(config, "task")["kind"], data.train.y
    if kind == "binary":
        loss = str(section_of(config, "loss").get("_target_")).rpartition(".")[2]
        return 2 if loss in TWO_OUTPUTS else 1
    if kind in ("classification", "language_model"):
        count = data.ids(kind)
    elif y.is_floating_point():
        count = math.prod(y.shape[1:])
    else:
        count = data.classes
    if count is None:
        got = f"targets of shape {['N', *y.shape[1:]]} in a {kind} task".replace("'", "")
        raise UserError(fault(key, "auto is not known", got=got, expected="a number"))
    return count


def auto_integers(config: Mapping[str, Any], data: Data, trust: Sequence[str]) -> dict[str, object]:
    """Return `preprocess.integers` if it is `auto`: `keep` if the model takes rows as integers and not as float32.

    `data` are as float32. The model and a step of the user's own are tried on two rows.
    """
    if section_of(config, "preprocess").get("integers") != AUTO:
        return {}
    X = data.train.X
    if not data.integer_features or not isinstance(X, Tensor):
        return {"preprocess.integers": "float32"}
    batch = X[:ROWS], data.train.y[:ROWS]
    of_floats = _failure(config, data, trust, batch)
    keeps = of_floats is not None and (
        needs_integers(of_floats) or _failure(config, data, trust, (batch[0].long(), batch[1])) is None
    )
    return {"preprocess.integers": "keep" if keeps else "float32"}


def _failure(
    config: Mapping[str, Any], data: Data, trust: Sequence[str], batch: tuple[Tensor, Tensor]
) -> BaseException | None:
    """Return why the model, or the step with the model, does not run on these rows; planning reports it later."""
    node = model_node(config, data)
    node.pop("init_from", None)
    try:
        with seeded(0), torch.no_grad():
            model: Any = build(node, trust=trust, where="model")
            step = build_step(section_of(config, "task"), model, trust)
            wrapped = wrap_model(model, config, data) if batch[0].is_floating_point() else model
            if step is None:
                wrapped(batch[0])
            else:
                step(wrapped, (batch[0], batch[1][:, None] if data.column_targets else batch[1]))
    except BaseException as error:  # a user's model may fail in any way
        reraise_stop(error)
        return error
    return None
