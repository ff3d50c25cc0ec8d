"""A description of what trains, from which the arms are chosen: modules, widths, outputs, rows and targets."""

from __future__ import annotations

import math
from collections import Counter
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from pipeline.data.dataset import Data
from pipeline.data.splits import class_counts
from pipeline.data.tree import to_device
from pipeline.engine.setup import TrainingComponents
from pipeline.evaluation.evaluate import eval_mode
from pipeline.evaluation.task import loss_name
from pipeline.models.rewiring import last_layer_output
from pipeline.models.surgery import ACTIVATIONS
from pipeline.preprocess.modules import unwrap

USUAL_SPREADS = (0.1, 10.0)  # of the standard deviation of weights over that of torch's own rule
ROWS = 64  # that pass through the model once
EXTREME = 20.0  # robust deviations from the median, which a normal distribution does not reach
MAX_EXTREME_ROWS = 16  # more are not tried one by one


class Description(TypedDict):
    """The model and the rows of a run before its first step.

    `layers` are the widths of its linear and convolution layers. `transforms_output` says whether the model changes the
    output of its last layer, `repeats_output` whether two passes in eval mode agree. `shared_rows` are validation rows
    that are train rows as well. Extremes are distances from the median of a column in robust deviations, scales are
    root mean squares. `extreme_inputs` and `extreme_targets` are the rows with the largest of them and their targets,
    the farthest first; empty where more rows are extreme than can be tried one by one.
    """

    modules: dict[str, int]
    activations: list[str]
    layers: list[int]
    parameters: int
    frozen: int
    unusual_weights: list[str]
    dropout: bool
    batch_norm: bool
    normalized: bool
    transforms_output: bool
    repeats_output: bool
    output_shape: list[int]
    loss: str
    kind: str
    classes: int | None
    class_counts: dict[str, int]
    input_scale: float | None
    column_scale_ratio: float | None
    input_extreme: float | None
    target_extreme: float | None
    target_scale: float | None
    image: bool
    from_dataset: bool
    augmented: bool
    train_rows: int
    val_rows: int
    shared_rows: int
    extreme_inputs: list[tuple[int, float]]
    extreme_targets: list[tuple[int, float]]


def describe(components: TrainingComponents, data: Data) -> Description:
    """Return the description of a training that is built and not begun."""
    model = unwrap(components.model)
    counts = Counter(type(m).__name__ for m in model.modules())
    layers: list[nn.Linear | _ConvNd] = [m for m in model.modules() if isinstance(m, nn.Linear | _ConvNd)]
    widths = [m.out_features if isinstance(m, nn.Linear) else m.out_channels for m in layers]
    rows = data.val.take(torch.arange(min(ROWS, len(data.val))))
    outputs, raw, again = _outputs(components, rows.X)
    norms = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
    X, y = data.train.X, data.train.y
    values = X.float().reshape(len(X), -1) if isinstance(X, Tensor) and X.is_floating_point() else None
    train_rows = set(data.train.row_digests)
    return {
        "modules": dict(counts),
        "activations": [name for name in counts if name in ACTIVATIONS],
        "layers": widths,
        "parameters": components.parameters,
        "frozen": sum(not p.requires_grad for p in model.parameters()),
        "unusual_weights": [
            name for name, m in model.named_modules() if isinstance(m, nn.Linear | _ConvNd) and _has_unusual_weights(m)
        ],
        "dropout": any(isinstance(m, _DropoutNd) and m.p for m in model.modules()),
        "batch_norm": any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()),
        "normalized": any(isinstance(m, norms) for m in model.modules()),
        "transforms_output": raw is not None and outputs is not None and not torch.equal(raw, outputs),
        "repeats_output": outputs is None or again is None or torch.equal(outputs, again),
        "output_shape": [] if outputs is None else list(outputs.shape[1:]),
        "loss": loss_name(components.task.loss),
        "kind": components.task.kind,
        "classes": data.ids(components.task.kind),
        "class_counts": class_counts(y),
        "input_scale": None if values is None else _finite(float(values.square().mean().sqrt())),
        "column_scale_ratio": None if values is None else _finite(_scale_ratio(values)),
        "input_extreme": None if values is None else _finite(_extreme(values)),
        "target_extreme": _finite(_extreme(y.reshape(len(y), -1))) if y.is_floating_point() else None,
        "target_scale": _finite(float(y.float().square().mean().sqrt())) if y.is_floating_point() else None,
        "image": isinstance(X, Tensor) and X.ndim == 4,
        "from_dataset": data.train.dataset is not None,
        "augmented": bool(data.train.augmented),
        "train_rows": len(data.train),
        "val_rows": len(data.val),
        "shared_rows": sum(digest in train_rows for digest in data.val.row_digests),
        "extreme_inputs": [] if values is None else _extreme_rows(values, y),
        "extreme_targets": _extreme_rows(y.reshape(len(y), -1), y) if y.is_floating_point() else [],
    }


def _finite(value: float | None) -> float | None:
    """Return a number, or None where rows with NaN or infinity leave none."""
    return value if value is not None and math.isfinite(value) else None


def _has_unusual_weights(layer: nn.Linear | _ConvNd) -> bool:
    """Whether weights are constant, have equal rows, or are not within a factor of 10 of torch's own scale."""
    weight = layer.weight.detach().float().flatten(1)
    usual = (3 * weight.shape[1]) ** -0.5
    spread = float(weight.std()) / usual if weight.numel() > 1 else 1.0
    equal_rows = len(weight) > 1 and bool((weight == weight[0]).all())
    return equal_rows or not USUAL_SPREADS[0] <= spread <= USUAL_SPREADS[1]


def _extreme(values: Tensor) -> float:
    """Return how far the farthest value is from the median of its column, in robust deviations; 0 without a spread."""
    distances = _distances(values)
    return float(distances.max()) if distances.numel() else 0.0


def _distances(values: Tensor) -> Tensor:
    """Return distances from the median of the column, in robust deviations, of the columns that have a spread."""
    distance = (values - values.nanmedian(0).values).abs()
    spread = 1.4826 * distance.nanmedian(0).values
    return (distance / spread)[:, spread > 0].nan_to_num(0.0, posinf=0.0)


def _extreme_rows(values: Tensor, y: Tensor) -> list[tuple[int, float]]:
    """Return the rows with an extreme value and their targets, if they are few."""
    distances = _distances(values)
    farthest = distances.max(1).values if distances.numel() else torch.zeros(len(values))
    rows = torch.nonzero(farthest > EXTREME).flatten()
    if not 0 < len(rows) <= MAX_EXTREME_ROWS or y.numel() != len(y):
        return []
    rows = rows[farthest[rows].argsort(descending=True)]
    return [(int(row), float(y.reshape(-1)[row])) for row in rows]


def _scale_ratio(values: Tensor) -> float | None:
    """Return the largest standard deviation of a column over the smallest that is not zero."""
    spread = values.std(0)
    spread = spread[torch.isfinite(spread) & (spread > 0)]
    return float(spread.max() / spread.min()) if len(spread) else None


def _outputs(components: TrainingComponents, X: object) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the outputs for some rows, the output of the last layer, and the outputs once more."""
    model, inputs = components.model, to_device(X, components.device)  # type: ignore[type-var]
    with eval_mode(model), last_layer_output(unwrap(model)) as layer:
        outputs = model(inputs)
        raw = layer.output
        again = model(inputs)
    tensors = [value if isinstance(value, Tensor) else None for value in (outputs, again)]
    return tensors[0], raw, tensors[1]
