"""The stepper: the only place of this project where an optimizer moves weights.

`Optimizer.step` is Python around one fused kernel, and on a small model costs ten times what the kernel does; its first
call also loads torch's compiler, a second in every process. For torch's own fused Adam, AdamW and SGD the kernel is
called directly, with the lists and the arguments that torch would give it; everything else goes through `step()`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim import optimizer as torch_optimizer

from pipeline.run_store import permits

_ADAM = (
    "self grads exp_avgs exp_avg_sqs max_exp_avg_sqs state_steps "
    "lr beta1 beta2 weight_decay eps amsgrad maximize grad_scale found_inf"
)
_SGD = (
    "self grads momentum_buffer_list weight_decay momentum lr dampening nesterov maximize is_first_step "
    "grad_scale found_inf"
)
KERNELS = {"_fused_adam_": _ADAM, "_fused_adamw_": _ADAM, "_fused_sgd_": _SGD}  # private to torch: looked at before use


class Stepper:
    """One update from the gradients in `.grad` per call, bit for bit that of `optimizer.step()`.

    Learning rates and all other options are read from the groups at every call. State that was restored in another
    memory layout than its parameter's (a checkpoint of a channels_last model) is laid out anew, since the kernels
    read both as if they were alike. Raises Refused without a permit.
    """

    def __init__(self, permit: permits.TrainPermit, optimizer: Optimizer) -> None:
        permits.require(permit, permits.TrainPermit)
        self.optimizer: Any = optimizer
        self._kind = _kind(optimizer)
        self._groups: list[_Group] = []
        self._seen: tuple[Any, Any] = (None, None)  # the optimizer's groups and state that `_groups` was read from
        self._states = -1
        self._no_grad = torch.no_grad()

    @property
    def direct(self) -> bool:
        """Whether the kernel would be called directly now."""
        optimizer, kind = self.optimizer, self._kind
        if kind is None or _watched(optimizer) or getattr(optimizer, "grad_scale", None) is not None:
            return False
        return all(map(kind.plain, optimizer.param_groups))

    def __call__(self) -> None:
        """Move the weights once."""
        optimizer = self.optimizer
        if self.direct:
            found = getattr(optimizer, "found_inf", None)
            with self._no_grad:
                gradients = self._current() or self._read(found)
                if gradients is not None:
                    optimizer._opt_called = True  # what a learning rate scheduler wants to see
                    for group, tensors in zip(self._groups, gradients, strict=True):
                        if tensors:
                            group.update(tensors, found)
                    return
        optimizer.step()

    def _current(self) -> list[list[Tensor]] | None:
        """The gradients of every group; None where anything was replaced since the lists were read."""
        optimizer, (groups, state) = self.optimizer, self._seen
        if optimizer.param_groups is not groups or optimizer.state is not state or len(state) != self._states:
            return None
        if len(groups) != len(self._groups):
            return None
        gradients = []
        for group in self._groups:
            found = group.gradients()
            if found is None:
                return None
            gradients.append(found)
        return gradients

    def _read(self, found: Tensor | None) -> list[list[Tensor]] | None:
        """The lists are read anew; the gradients of every group, None where an update is torch's to make."""
        optimizer, self._seen = self.optimizer, (None, None)
        override = optimizer.__dict__.get("step")
        if self._kind is None or (override is not None and not hasattr(override, "_wrapped_by_lr_sched")):
            return None
        self._groups = [self._kind(optimizer, group) for group in optimizer.param_groups]
        if not all(group.alike(found) for group in self._groups):
            return None
        self._seen, self._states = (optimizer.param_groups, optimizer.state), len(optimizer.state)
        return [[p.grad for p in group.params] for group in self._groups]


def _kind(optimizer: Optimizer) -> type[_Group] | None:
    """How to call the kernel of an optimizer directly; None for all but torch's own, as this torch has them."""
    kinds: dict[type[Optimizer], tuple[type[_Group], tuple[str, ...]]] = {
        Adam: (_AdamGroup, ("_fused_adam_", "_fused_adamw_")),
        AdamW: (_AdamGroup, ("_fused_adam_", "_fused_adamw_")),
        SGD: (_SGDGroup, ("_fused_sgd_",)),
    }
    kind, kernels = kinds.get(type(optimizer), (None, ()))
    return kind if kind is not None and all(map(_known, kernels)) else None


def _known(kernel: str) -> bool:
    """Whether this torch has the kernel, with the arguments that we give it."""
    packet = getattr(torch.ops.aten, kernel, None) if hasattr(torch, kernel) else None
    return packet is not None and " ".join(a.name for a in packet.default._schema.arguments) == KERNELS[kernel]


def _watched(optimizer: Any) -> bool:
    """Whether somebody waits for `step()` to be called: hooks of the optimizer, or of all optimizers."""
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or torch_optimizer._global_optimizer_pre_hooks
        or torch_optimizer._global_optimizer_post_hooks
    )


class _Group:
    """One parameter group as its kernel takes it: the parameters that have a gradient, and their state."""

    names: tuple[str, ...] = ()  # state tensors that lie in memory as their parameter does

    def __init__(self, optimizer: Any, group: dict[str, Any]) -> None:
        self.group, self.held, self.count = group, group["params"], len(group["params"])
        self.stateful = self.prepare(optimizer)
        self.params: list[Any] = [p for p in self.held if p.grad is not None]
        self.idle = [p for p in self.held if p.grad is None]
        self.states: list[dict[str, Any]] = [optimizer.state[p] for p in self.params] if self.stateful else []
        for p, state in zip(self.params, self.states, strict=False):
            _lay_out(p, state, self.names)
        self.read_state()

    def prepare(self, optimizer: Any) -> bool:
        """Whether an update needs state; what torch makes of it at its first step is there."""
        raise NotImplementedError

    def read_state(self) -> None:
        """The lists of state tensors, and what they were read from."""
        self.kept = [(s, name, tensor) for s in self.states for name, tensor in s.items() if isinstance(tensor, Tensor)]
        self.state: dict[str, list[Any]] = {name: [s.get(name) for s in self.states] for name in (*self.names, "step")}

    @staticmethod
    def plain(group: Mapping[str, Any]) -> bool:
        """Whether these options are known here; all else is for torch."""
        raise NotImplementedError

    def update(self, gradients: list[Tensor], found: Tensor | None) -> None:
        """One call of the kernel; a raised flag `found` makes it do nothing."""
        raise NotImplementedError

    def alike(self, found: Tensor | None) -> bool:
        """Whether one call of one kernel takes them all: real, dense, of one device and type, state laid out alike."""
        kinds = {(t.device, t.dtype) for p in self.params for t in (p, p.grad)}
        laid = all(
            tensor.stride() == p.stride() and tensor.shape == p.shape
            for name in self.names
            for p, tensor in zip(self.params, self.state[name], strict=False)
            if tensor is not None
        )
        real = all(p.is_floating_point() and p.grad.layout == torch.strided for p in self.params)
        return laid and real and len(kinds) < 2 and (found is None or all(found.device == d for d, _ in kinds))

    def gradients(self) -> list[Tensor] | None:
        """This step's gradients; None where torch would make other lists now than those kept here."""
        params = self.group["params"]
        if params is not self.held or len(params) != self.count:
            return None
        for p in self.idle:
            if p.grad is not None:
                return None
        gradients = [p.grad for p in self.params]
        for gradient in gradients:
            if gradient is None:
                return None
        for state, name, tensor in self.kept:
            if state.get(name) is not tensor:
                return None
        return gradients


class _AdamGroup(_Group):
    names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")

    def prepare(self, optimizer: Any) -> bool:
        optimizer._init_group(self.group, [], [], [], [], [], [])
        return True

    @staticmethod
    def plain(group: Mapping[str, Any]) -> bool:
        if not group["fused"] or group["capturable"] or group["differentiable"] or group["foreach"]:
            return False
        beta1, beta2 = group["betas"]
        return not (isinstance(group["lr"], Tensor) or isinstance(beta1, Tensor) or isinstance(beta2, Tensor))

    def update(self, gradients: list[Tensor], found: Tensor | None) -> None:
        group, state = self.group, self.state
        kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
        beta1, beta2 = group["betas"]
        torch._foreach_add_(state["step"], 1)
        kernel(
            self.params,
            gradients,
            state["exp_avg"],
            state["exp_avg_sq"],
            state["max_exp_avg_sq"] if group["amsgrad"] else [],
            state["step"],
            amsgrad=group["amsgrad"],
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
            grad_scale=None,
            found_inf=found,
        )
        if found is not None:
            withheld: Any = [found] * len(state["step"])
            torch._foreach_sub_(state["step"], withheld)


class _SGDGroup(_Group):
    names = ("momentum_buffer",)

    def prepare(self, optimizer: Any) -> bool:
        return bool(self.group["momentum"] != 0)

    @staticmethod
    def plain(group: Mapping[str, Any]) -> bool:
        return bool(group["fused"]) and not (group["differentiable"] or isinstance(group["lr"], Tensor))

    def alike(self, found: Tensor | None) -> bool:
        missing = {tensor is None for tensor in self.state["momentum_buffer"]}
        return super().alike(found) and len(missing) < 2  # the kernel wants all buffers or none

    def gradients(self) -> list[Tensor] | None:
        return super().gradients() if (self.group["momentum"] != 0) is self.stateful else None

    def update(self, gradients: list[Tensor], found: Tensor | None) -> None:
        group = self.group
        first = self.stateful and self.state["momentum_buffer"][0] is None
        if first:
            for p, state in zip(self.params, self.states, strict=True):
                state["momentum_buffer"] = torch.empty_like(p)
            self.read_state()
        torch._fused_sgd_(
            self.params,
            gradients,
            self.state["momentum_buffer"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            is_first_step=first,
            grad_scale=None,
            found_inf=found,
        )


def _lay_out(p: Tensor, state: dict[str, Any], names: tuple[str, ...]) -> None:
    """State tensors lie in memory as their parameter does, with the same values."""
    for name in names:
        tensor = state.get(name)
        if isinstance(tensor, Tensor) and tensor.shape == p.shape and tensor.stride() != p.stride():
            state[name] = torch.empty_like(p, dtype=tensor.dtype).copy_(tensor)
