"""Does a model in eval mode give equal outputs for equal rows? Where it does not, no exported file can equal it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from pipeline.export.exported import Batch, ExportSource, named_leaves


def random_module(source: ExportSource) -> str:
    """Return the name of the first module whose outputs differ in a second run, or ""."""
    with torch.random.fork_rng(devices=[]):
        first, second = _outputs(source), _outputs(source)
    for (name, one), (_, other) in zip(first, second, strict=False):
        if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(one, other, strict=True)):
            return name
    return ""


def _outputs(source: ExportSource) -> list[tuple[str, list[torch.Tensor]]]:
    """Return the outputs of every module in the order in which the modules return them."""
    returned: list[tuple[str, list[torch.Tensor]]] = []
    names = {module: name for name, module in source.model.named_modules()}

    def keep(module: nn.Module, inputs: object, outputs: object) -> None:
        called = f"{names[module].removeprefix('model').lstrip('.') or 'forward'} ({type(module).__name__})"
        returned.append((called, _tensors(outputs)))

    hooks = [module.register_forward_hook(keep) for module in source.model.modules() if module is not source.model]
    try:
        source.model(source.batch)
    finally:
        for hook in hooks:
            hook.remove()
    return returned


def _tensors(outputs: object) -> list[torch.Tensor]:
    """Return copies of the tensors of what a module returned."""
    if isinstance(outputs, torch.Tensor):
        return [outputs.detach().clone()]
    if isinstance(outputs, Mapping | tuple | list):
        nested: Batch = outputs if isinstance(outputs, Mapping) else list(outputs)
        leaves = named_leaves(nested).values()
        return [leaf.detach().clone() for leaf in leaves if isinstance(leaf, torch.Tensor)]
    return []
