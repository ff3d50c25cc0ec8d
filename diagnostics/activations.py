"""What the Monitor measures of the outputs of a model's modules in the forward pass of one sampled step.

Hooks exist only while a sampled step runs, so that the steps between two samples cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from diagnostics.measurements import Measurement, std_over_rows

MAX_MODULES = 64  # of a model with more, at most so many are measured, at equal distances
# Of a larger output only some rows are measured, at equal distances, so that images and texts cost little.
MAX_VALUES, FEWEST_ROWS = 1 << 15, 8
# Outside of these limits an activation is saturated: its gradient is below a tenth of the largest one.
SATURATED = {nn.Tanh: (-0.95, 0.95), nn.Sigmoid: (0.026, 0.974), nn.Hardtanh: (-0.999, 0.999), nn.Softsign: (-0.9, 0.9)}
RECTIFIERS = (nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Identity, nn.Flatten, nn.Dropout)


class ActivationStatistics:
    """Scale, spread and saturation of the outputs of the modules that have no modules of their own.

    Of outputs with many values some rows of the batch are measured.

    `activation_rms/<module>` is the root mean square of the outputs, `activation_std/<module>` their standard deviation
    over the rows of the batch as a share of that: 0 if every row has the same output. `saturated/<module>` is the share
    of outputs at the ends of a bounded activation, `zeros/<module>` that of a rectifier's units that are zero for every
    row. `output_entropy` is the entropy of the mean class probabilities, as a share of the largest possible one: 0 if
    the model answers one class.
    """

    def __init__(self, model: nn.Module) -> None:
        leaves = [
            (name, module)
            for name, module in model.named_modules()
            if name and not any(module.children()) and not isinstance(module, CONTAINERS)
        ]
        self._modules = leaves[:: max(1, math.ceil(len(leaves) / MAX_MODULES))]
        self._handles: list[RemovableHandle] = []
        self._values: dict[str, Tensor] = {}

    def watch(self) -> None:
        """Measure the next forward pass; of several (gradient accumulation), the last one counts."""
        self._values.clear()
        for name, module in self._modules:
            self._handles.append(module.register_forward_hook(self._hook(name)))

    def measure(self, step: int, outputs: object) -> Measurement | None:
        """Remove the hooks and return what they measured; None if no module was called."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if isinstance(outputs, Tensor) and outputs.ndim == 2 and outputs.shape[1] > 1:
            probabilities = outputs.detach().float().softmax(1).mean(0).clamp_min(1e-12)
            entropy = -(probabilities * probabilities.log()).sum() / math.log(outputs.shape[1])
            self._values["output_entropy"] = entropy
        if not self._values:
            return None
        names = list(self._values)
        device = self._values[names[0]].device
        return Measurement(step, names, torch.stack([self._values[name].to(device) for name in names]))

    def _hook(self, name: str) -> Callable[[nn.Module, object, object], None]:
        @torch.no_grad()
        def hook(module: nn.Module, _: object, output: object) -> None:
            if not isinstance(output, Tensor) or not output.is_floating_point() or output.ndim < 2 or len(output) < 2:
                return
            values = _some_rows(output.detach()).float()
            rms = torch.linalg.vector_norm(values) / math.sqrt(values.numel())
            self._values[f"activation_rms/{name}"] = rms
            self._values[f"activation_std/{name}"] = std_over_rows(values) / rms.clamp_min(1e-30)
            for kind, (low, high) in SATURATED.items():
                if isinstance(module, kind):
                    self._values[f"saturated/{name}"] = ((values < low) | (values > high)).float().mean()
            if isinstance(module, RECTIFIERS):
                self._values[f"zeros/{name}"] = (values.amax([0, *range(2, values.ndim)]) <= 0).float().mean()

        return hook


def _some_rows(values: Tensor) -> Tensor:
    """Return rows [R, ...] of outputs [B, ...], as many as have about 32 thousand values, and at least 8."""
    rows = max(FEWEST_ROWS, MAX_VALUES // max(1, values.numel() // len(values)))
    return values if len(values) <= rows else values[:: -(-len(values) // rows)]
