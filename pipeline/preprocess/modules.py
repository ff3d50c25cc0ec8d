"""Preprocessing as modules around somebody's model, so that it is saved, exported and moved with it.

What was fitted are buffers: float32 values of statistics that were computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import UserError, fault


class Prepared(nn.Module):
    """A model between `prepare`, from inputs as the data have them, and `restore`, to outputs in the targets' units.

    Whoever asks for the user's own names of parameters and modules looks at `unwrap`.
    """

    def __init__(self, prepare: nn.Module | None, model: nn.Module, restore: InverseTargetScale | None) -> None:
        super().__init__()
        self.prepare, self.model, self.restore = prepare, model, restore

    def forward(self, inputs: Any) -> Any:
        outputs = self.model(inputs if self.prepare is None else self.prepare(inputs))
        return outputs if self.restore is None else self.restore(outputs)


class Columns(nn.Module):
    """Numbers [N, ...] with holes filled, shifted and scaled, each number of a row by what was fitted for its place.

    What is None is not done. Filled first: a mean of train fills what is then centred to 0.
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
            inputs = inputs - self.mean  # two operations that round alike in every exported form; a fused one does not
        return inputs if self.inverse is None else inputs * self.inverse


class OneHot(nn.Module):
    """Rows [N, F] in which columns of codes became indicators: the values first, then a 0 or 1 for every code.

    The indicators of one column stand together, that of 0, the unknown, first. A code that train did not have, one
    that is too high, and what is no code at all are unknown.
    """

    values: Tensor  # numbers of the columns that hold values
    columns: Tensor  # numbers of the columns that hold codes [K]
    last: Tensor  # the highest code of each [K]
    first: Tensor  # where each begins among the indicators [K]
    known: Tensor  # of each indicator, its code if train had it, else 0 [T]
    owner: Tensor  # of each indicator, which of the K it belongs to [T]
    code: Tensor  # of each indicator, its code [T]

    def __init__(self, features: int, categories: dict[int, int], seen: dict[int, set[int]]) -> None:
        super().__init__()
        columns, sizes = list(categories), list(categories.values())
        slots = [(k, code) for k, size in enumerate(sizes) for code in range(size)]
        whole = {
            "values": [f for f in range(features) if f not in categories],
            "columns": columns,
            "first": [sum(sizes[:k]) for k in range(len(sizes))],
            "owner": [k for k, _ in slots],
        }
        floats = {
            "last": [size - 1 for size in sizes],
            "known": [code if code in seen[columns[k]] else 0 for k, code in slots],
            "code": [code for _, code in slots],
        }
        for name, numbers in whole.items():
            self.register_buffer(name, torch.tensor(numbers, dtype=torch.int64))
        for name, numbers in floats.items():
            self.register_buffer(name, torch.tensor(numbers, dtype=torch.float32))

    def forward(self, inputs: Tensor) -> Tensor:
        given = inputs.index_select(1, self.columns)
        inside = torch.where(given >= 0, given, torch.zeros_like(given)).minimum(self.last)  # NaN is not >= 0
        found = self.known[inside.long() + self.first]
        codes = torch.where(found == given, found, torch.zeros_like(found))
        hot = (codes.index_select(1, self.owner) == self.code).to(inputs.dtype)
        return torch.cat([inputs.index_select(1, self.values), hot], 1)


class InverseTargetScale(nn.Module):
    """Outputs of unit scale as values in the targets' own units; `scaled` is the way back."""

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

    def forward(self, outputs: Any) -> Any:
        if not isinstance(outputs, Tensor):
            return outputs  # the probe says what is wrong with it
        if self.mean.ndim and outputs.shape[1:] != self.mean.shape:
            expected = f"[B, {len(self.mean)}], one output per target"
            do = f"surgery=[{{resize_output: {{out_features: {len(self.mean)}}}}}], or mend the model's last layer"
            got = f"shape [{', '.join(['B', *map(str, outputs.shape[1:])])}]"
            raise UserError(fault("model", "outputs do not fit the targets", got=got, expected=expected, do=do))
        return torch.addcmul(self.mean, outputs.to(self.mean.dtype), self.std)  # half precision ends here

    def scaled(self, values: Tensor) -> Tensor:
        """Values in the targets' units as numbers of unit scale, on the values' own device."""
        return torch.addcmul(self.shift.to(values.device), values, self.inverse.to(values.device))


class ScaledLoss(nn.Module):
    """A loss of outputs and targets brought to unit scale, so that its gradients are of unit scale, too."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor], restore: InverseTargetScale) -> None:
        super().__init__()
        self.loss = loss
        self.reduction = getattr(loss, "reduction", "mean")
        self._restore = (restore,)  # the model's own, which moves and is saved with it: no part of the loss's state

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss(self.scaled(outputs), self.scaled(targets))

    def scaled(self, values: Tensor) -> Tensor:
        return self._restore[0].scaled(values)


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own model, without what is around it."""
    return model.model if isinstance(model, Prepared) else model


def without_preprocessing(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the user's own model, by its own names, among those of a prepared one."""
    return {name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.")}


def scaled_as(model: nn.Module | None, loss: Any) -> Any:
    """The loss on the scale on which the model learns: the loss itself, unless the model restores units."""
    if isinstance(model, Prepared) and model.restore is not None and not isinstance(loss, ScaledLoss):
        return ScaledLoss(loss, model.restore)
    return loss


def unscaled(loss: Any) -> Any:
    """The user's own loss."""
    return loss.loss if isinstance(loss, ScaledLoss) else loss


@torch.no_grad()
def preprocess_batch(model: nn.Module, inputs: Any, targets: Any, outputs: Any) -> tuple[Any, Any, Any]:
    """Inputs, targets and outputs as the user's own model meets them, for whoever judges their scale."""
    if not isinstance(model, Prepared):
        return inputs, targets, outputs
    if model.prepare is not None:
        inputs = model.prepare(inputs)
    if model.restore is not None:
        targets = model.restore.scaled(targets)
        outputs = None if outputs is None else model.restore.scaled(outputs.detach())
    return inputs, targets, outputs
