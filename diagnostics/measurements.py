"""What the Monitor measures of a model at one step: norms per module, dead units, scales of a batch.

Results stay tensors on the device, so that measuring never waits for an accelerator; the Monitor reads them back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.data.tree import tensors


@dataclass(frozen=True)
class Measurement:
    """The values of one step [len(names)], on the device, with the name of the column of each."""

    step: int
    names: list[str]
    values: Tensor


@dataclass(eq=False, slots=True)  # not frozen: one is made in every step, and a frozen one takes three times as long
class Batch:
    """The batch of one step, as the loop passes it: tensors, or mappings and sequences of them."""

    step: int
    inputs: object = None
    targets: object = None
    outputs: object = None


class ParameterStatistics:
    """Norms of the gradients, weights and updates of the trainable parameters of one model, grouped by module."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        owners = [name.rpartition(".")[0] or "model" for name, _ in trainable]
        embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
        self.parameters = [p for _, p in trainable]
        self.modules = list(dict.fromkeys(owners))
        self._module_index = torch.tensor([self.modules.index(owner) for owner in owners], dtype=torch.long)
        # Weights whose first axis is units. Rows of an embedding are words: most are not in a batch and not dead.
        self._unit_weights = [
            (owner, p)
            for owner, (_, p) in zip(owners, trainable, strict=True)
            if p.ndim > 1 and id(p) not in embeddings
        ]
        optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
        untrained = sum(p.numel() for p in model.parameters() if not (id(p) in optimized and p.requires_grad))
        self.parameter_count = sum(p.numel() for p in model.parameters())
        self.share_untrained = untrained / self.parameter_count if self.parameter_count else 1.0

    @torch.no_grad()
    def gradients(self, step: int, outputs: object) -> Measurement:
        """Measure `grad_norm`, `grad_norm/<module>`, `dead/<module>` and `output_std` (mean over units of the std)."""
        if not self.parameters:
            return Measurement(step, [], torch.zeros(0))
        norms = self._module_norms([_dense_gradient(p) for p in self.parameters])
        names = ["grad_norm", *(f"grad_norm/{module}" for module in self.modules)]
        values = [norms.norm().reshape(1), norms]
        for module, weight in self._unit_weights:
            if weight.grad is not None and not weight.grad.is_sparse:
                names.append(f"dead/{module}")  # share of units that get no gradient from any row of the batch
                values.append((weight.grad.flatten(1) == 0).all(1).float().mean().to(norms.device).reshape(1))
        if isinstance(outputs, Tensor) and outputs.ndim > 1 and len(outputs) > 1:
            names.append("output_std")
            values.append(std_over_rows(outputs.detach().float().flatten(1)).to(norms.device).reshape(1))
        # A module with several weights (as in nn.MultiheadAttention) gives one name twice: its last weight counts.
        last = {name: position for position, name in enumerate(names)}
        vector = torch.cat(values)
        return Measurement(step, list(last), vector[torch.tensor(list(last.values()), device=vector.device)])

    @torch.no_grad()
    def copy_weights(self) -> list[Tensor]:
        """Return a copy of the weights, for `update`."""
        return [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int, weights_before: list[Tensor]) -> Measurement:
        """Measure `update_ratio` and `weight_norm`, in total and per module.

        `update_ratio` is |change| / |weights before|, or |change| / |weights after| where the weights before are 0.
        """
        weights = [p.detach() for p in self.parameters]
        before = _with_total(self._module_norms(weights_before))
        after = _with_total(self._module_norms(weights))
        change = _with_total(self._module_norms(list(torch._foreach_sub(weights, weights_before))))
        scale = torch.where(before == 0, after, before)
        ratio = torch.where(scale == 0, torch.zeros_like(scale), change / scale)
        suffixes = ["", *(f"/{module}" for module in self.modules)]
        names = [f"update_ratio{s}" for s in suffixes] + [f"weight_norm{s}" for s in suffixes]
        return Measurement(step, names, torch.cat([ratio, after]))

    def _module_norms(self, values: list[Tensor]) -> Tensor:
        """Return the norm per module [modules] of one tensor per parameter, in one fused pass.

        Norms are computed in double precision where the device has it: the squares of large finite float32 values
        would overflow, and a large weight would be reported as infinite.
        """
        device = values[0].device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        norms = torch.stack([norm.to(device) for norm in torch._foreach_norm(values, 2, dtype=dtype)])
        return norms.new_zeros(len(self.modules)).index_add_(0, self._module_index.to(device), norms**2).sqrt()


def std_over_rows(values: Tensor) -> Tensor:
    """Return the mean over units of the standard deviation over the rows of values [B, ...]; B is at least 2."""
    squares = (values - values.mean(0)).square_().sum(0)  # `std(0)` takes ten times as long on a CPU
    return squares.sqrt_().mean() / math.sqrt(len(values) - 1)


def nonfinite_count(values: Iterable[Tensor]) -> float:
    """Return how many elements of the tensors are NaN or infinite."""
    return sum(float((~value.isfinite()).sum()) for value in values)


def float_tensors(batch: object) -> list[Tensor]:
    """Return every floating-point tensor in a nested batch."""
    return [tensor for tensor in tensors(batch) if tensor.is_floating_point()]


@torch.no_grad()
def batch_facts(batch: Batch) -> dict[str, float]:
    """Return the scales of a batch and, if targets are class ids, the number of classes and the loss of guessing.

    `input_rms` and `target_rms` are root mean squares over all elements; `loss_expected` is the cross-entropy of
    uniform probabilities, log(classes).
    """
    facts: dict[str, float] = {}
    for name, values in (("input_rms", float_tensors(batch.inputs)), ("target_rms", float_tensors(batch.targets))):
        if values:
            facts[name] = float(torch.cat([value.float().flatten() for value in values]).square().mean().sqrt())
    targets, outputs = batch.targets, batch.outputs
    if isinstance(targets, Tensor) and targets.ndim:
        facts["batch_size"] = len(targets)
        class_ids = not targets.is_floating_point() and targets.numel() == len(targets)
        if class_ids and isinstance(outputs, Tensor) and outputs.ndim == 2 and outputs.shape[1] > 1:
            facts["classes"] = outputs.shape[1]
            facts["loss_expected"] = math.log(outputs.shape[1])
    return facts


def _with_total(norms: Tensor) -> Tensor:
    """Return the norm over all modules, followed by the norm of each."""
    return torch.cat([norms.norm().reshape(1), norms])


def _dense_gradient(parameter: nn.Parameter) -> Tensor:
    """Return a gradient that `_foreach_norm` accepts: zero if there is none, the values of a sparse one."""
    gradient = parameter.grad
    if gradient is None:
        return torch.zeros(1, device=parameter.device)
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def without_graph(loss: Tensor | float) -> Tensor | float:
    """Return a loss as a number, or as a tensor without its graph where reading it would wait for a device."""
    if not isinstance(loss, Tensor):
        return float(loss)
    return loss.item() if loss.device.type == "cpu" else loss.detach()


def record_batch_facts(facts: dict[str, float], batch: Batch) -> None:
    """Add the facts of the first batch to those of a history, which may know them already."""
    measured = batch_facts(batch)
    if "train_rows" in facts:  # the engine knows the loss, and recorded what to expect of it
        measured.pop("loss_expected", None)
    for name, value in measured.items():
        facts.setdefault(name, value)


@torch.no_grad()
def count_nonfinite(facts: dict[str, float], parameters: Iterable[Tensor], batch: Batch, step: int) -> None:
    """Count non-finite values in the weights and in the batch of the step; they tell bad data from divergence."""
    facts["weights_nonfinite"] = nonfinite_count(parameters)
    values = [*float_tensors(batch.inputs), *float_tensors(batch.targets)]
    if values and batch.step == step:
        facts["batch_nonfinite"] = nonfinite_count(values)
