"""What is inspected: a model before its first step, with one batch and what autograd recorded of its forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.data.tree import Tree, tensors
from pipeline.evaluation.task import Task

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module without inner modules, with the tensors that it got and gave (detached), and its mode."""

    name: str
    module: nn.Module
    inputs: Tensor
    outputs: Tensor
    training: bool = True


Seen = tuple[Any, Tensor | None, tuple[Call, ...], dict[str, Tensor]]  # outputs, loss, calls, gradients


@dataclass(frozen=True, eq=False)
class Subject:
    """A model with one batch [B, ...] and its forward pass; nothing of the training has changed.

    `targets` are as the loss gets them. `loss` and `outputs` have their autograd graph. `kind` is that of the task,
    empty where no task is known, as in a training loop of the user's own. `calls` are in the order of the pass.
    """

    model: nn.Module
    inputs: Tree
    targets: Tree
    outputs: Tensor | None
    loss: Tensor | None
    optimizer: Optimizer | None = None
    kind: str = ""
    task: Task | None = None
    calls: tuple[Call, ...] = ()
    gradients: dict[str, Tensor] = field(default_factory=dict)

    @property
    def class_ids(self) -> bool:
        """Whether the targets are one class id per row."""
        known = self.kind in ("classification", "binary") or (not self.kind and self.outputs is not None)
        targets = self.targets
        return known and isinstance(targets, Tensor) and not targets.is_floating_point() and targets.ndim == 1


def observe(model: nn.Module, task: Task, inputs: Tree, targets: Tree, optimizer: Optimizer | None) -> Subject:
    """Pass a batch through model and loss once, with gradients, and return what was seen.

    Normalization works on the batch, as in training; dropout is off, so that activations are those of the whole model.
    """
    outputs, loss, calls, gradients = pass_once(model, lambda: task.forward(model, inputs, targets))
    return Subject(model, inputs, targets, outputs, loss, optimizer, task.kind, task, calls, gradients)


def pass_once(model: nn.Module, forward: Callable[[], tuple[Any, Tensor | None]]) -> Seen:
    """Return outputs and loss of a forward pass, the calls of modules in it, and the gradients of the loss.

    The model is in training mode without dropout, and is afterwards as it was.
    """
    calls: list[Call] = []
    with untouched(model), recording(model, calls):
        model.train()
        for module in model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.eval()
        outputs, loss = forward()
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        computed: tuple[Tensor | None, ...] = ()
        if loss is not None and loss.requires_grad and named:
            computed = torch.autograd.grad(loss, list(named.values()), allow_unused=True, retain_graph=True)
    gradients = {name: g for name, g in zip(named, computed, strict=False) if g is not None}
    return outputs, loss, tuple(calls), gradients


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Give every module its mode and the model its buffers back at the end; random numbers go on as before."""
    modes = {module: module.training for module in model.modules()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers.get(name, buffer))


@contextmanager
def recording(model: nn.Module, calls: list[Call]) -> Iterator[None]:
    """Append a `Call` for every call of a module without inner modules."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def record(module: nn.Module, arguments: tuple[Any, ...], result: Any) -> None:
            given, returned = next(tensors(arguments), None), next(tensors(result), None)
            if given is not None and returned is not None:
                calls.append(Call(name, module, given.detach(), returned.detach(), module.training))

        return record

    leaves = [(n, m) for n, m in model.named_modules() if not any(m.children()) or isinstance(m, nn.MultiheadAttention)]
    handles = [module.register_forward_hook(hook(name)) for name, module in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
