"""Preprocessing as modules around the user's model, so that it is saved, exported and moved with the model.

Fitted statistics are buffers: float32 values that were computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pipeline.config.override_keys import command
from pipeline.data.tree import Tree
from pipeline.errors import UserError, fault

Loss = Callable[[Tensor, Tensor], Tensor]


class PreprocessedModel(nn.Module):
    """The user's model between `prepare`, which takes raw inputs, and `restore`, which gives outputs in target units.

    Its parameters have the prefix `model.`; `unwrap` returns the user's model with the user's own names.
    """

    def __init__(self, prepare: nn.Module | None, model: nn.Module, restore: InverseTargetScale | None) -> None:
        super().__init__()
        self.prepare, self.model, self.restore = prepare, model, restore

    def forward(self, inputs: Tree) -> Tree:
        outputs = self.model(inputs if self.prepare is None else self.prepare(inputs))
        return outputs if self.restore is None else self.restore(outputs)


class ImputeAndScale(nn.Module):
    """Fill missing values of numbers [N, ...], subtract the mean and multiply by the inverse deviation, per column.

    A step whose buffer is None is left out. Filling comes first: a missing value filled with the mean becomes 0.
    """

    fill: Tensor | None
    mean: Tensor | None
    inverse: Tensor | None

    def __init__(self, fill: Tensor | None, mean: Tensor | None, inverse: Tensor | None) -> None:
        super().__init__()
        for name, value in (("fill", fill), ("mean", mean), ("inverse", inverse)):
            self.register_buffer(name, value)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.fill is not None:
            inputs = torch.where(torch.isnan(inputs), self.fill, inputs)
        if self.mean is not None:
            # Two operations, which round alike in every exported form; one fused operation would not.
            inputs = inputs - self.mean
        return inputs if self.inverse is None else inputs * self.inverse


class OneHot(nn.Module):
    """Replace the code columns of rows [N, F] by indicators: value columns come first, then a 0 or 1 for every code.

    The indicators of one column are adjacent and begin with code 0, the unknown category. Codes that are not in the
    train rows, codes that are too high, negative codes and NaN are unknown.
    """

    values: Tensor  # indices of the value columns
    columns: Tensor  # indices of the K code columns [K]
    last: Tensor  # the highest code of each code column [K]
    first: Tensor  # position of its first indicator [K]
    known: Tensor  # for each of the T indicators, its code if it is in the train rows, else 0 [T]
    owner: Tensor  # for each indicator, which of the K columns it belongs to [T]
    code: Tensor  # for each indicator, its code [T]

    def __init__(self, features: int, categories: dict[int, int], train_codes: dict[int, set[int]]) -> None:
        super().__init__()
        columns, sizes = list(categories), list(categories.values())
        slots = [(k, code) for k, size in enumerate(sizes) for code in range(size)]
        indices = {
            "values": [f for f in range(features) if f not in categories],
            "columns": columns,
            "first": [sum(sizes[:k]) for k in range(len(sizes))],
            "owner": [k for k, _ in slots],
        }
        codes = {
            "last": [size - 1 for size in sizes],
            "known": [code if code in train_codes[columns[k]] else 0 for k, code in slots],
            "code": [code for _, code in slots],
        }
        for name, numbers in indices.items():
            self.register_buffer(name, torch.tensor(numbers, dtype=torch.int64))
        for name, numbers in codes.items():
            self.register_buffer(name, torch.tensor(numbers, dtype=torch.float32))

    def forward(self, inputs: Tensor) -> Tensor:
        raw = inputs.index_select(1, self.columns)
        in_range = torch.where(raw >= 0, raw, torch.zeros_like(raw)).minimum(self.last)  # NaN is not >= 0
        known = self.known[in_range.long() + self.first]
        codes = torch.where(known == raw, known, torch.zeros_like(known))
        indicators = (codes.index_select(1, self.owner) == self.code).to(inputs.dtype)
        return torch.cat([inputs.index_select(1, self.values), indicators], 1)


class InverseTargetScale(nn.Module):
    """Convert outputs of unit scale to target units; `standardize` is the inverse."""

    mean: Tensor  # one number, or one per target [D]
    std: Tensor
    inverse: Tensor
    shift: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.register_buffer("inverse", 1 / std)
        self.register_buffer("shift", -mean / std)

    def forward(self, outputs: object) -> object:
        if not isinstance(outputs, Tensor):
            return outputs  # the probe reports outputs that are not tensors
        if self.mean.ndim and outputs.shape[1:] != self.mean.shape:
            expected = f"[B, {len(self.mean)}], one output per target"
            resize = f"surgery=[{{resize_output: {{out_features: {len(self.mean)}}}}}]"
            do = f"fix the model's last layer, or: {command(resize)}"
            got = f"shape [{', '.join(['B', *map(str, outputs.shape[1:])])}]"
            raise UserError(fault("model", "outputs do not fit the targets", got=got, expected=expected, do=do))
        return torch.addcmul(
            self.mean, outputs.to(self.mean.dtype), self.std
        )  # float32 also after a model in half precision

    def standardize(self, values: Tensor) -> Tensor:
        """Convert values in target units to unit scale, on the device of the values."""
        return torch.addcmul(self.shift.to(values.device), values, self.inverse.to(values.device))


class ScaledLoss(nn.Module):
    """A loss of standardized outputs and targets, so that its gradients do not depend on the units of the targets."""

    def __init__(self, loss: Loss, restore: InverseTargetScale) -> None:
        super().__init__()
        self.loss = loss
        self.reduction = getattr(loss, "reduction", "mean")
        # The module belongs to the model, which moves and saves it. In a tuple it is not registered here a second time.
        self._restore = (restore,)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss(self.standardize(outputs), self.standardize(targets))

    def standardize(self, values: Tensor) -> Tensor:
        return self._restore[0].standardize(values)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the user's own model without its preprocessing."""
    return model.model if isinstance(model, PreprocessedModel) else model


def without_preprocessing(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the user's own model, with its own names, from those of a preprocessed model."""
    return {name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.")}


def scale_loss(model: nn.Module | None, loss: Loss) -> Loss:
    """Return the loss of standardized targets if the model restores target units, else the loss itself."""
    if isinstance(model, PreprocessedModel) and model.restore is not None and not isinstance(loss, ScaledLoss):
        return ScaledLoss(loss, model.restore)
    return loss


def unscaled(loss: Loss) -> Loss:
    """Return the user's own loss."""
    return loss.loss if isinstance(loss, ScaledLoss) else loss


@torch.no_grad()
def preprocess_batch(
    model: nn.Module, inputs: Tree, targets: Tree, outputs: Tensor | None
) -> tuple[Tree, Tree, Tensor | None]:
    """Return inputs, targets and outputs on the scale of the user's own model, for observers of their scale."""
    if not isinstance(model, PreprocessedModel):
        return inputs, targets, outputs
    if model.prepare is not None:
        inputs = model.prepare(inputs)
    if model.restore is not None:
        targets = model.restore.standardize(targets)
        outputs = None if outputs is None else model.restore.standardize(outputs.detach())
    return inputs, targets, outputs
