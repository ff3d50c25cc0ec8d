"""The stepper: the only place of this project where an optimizer changes weights.

`Optimizer.step` is Python code around one fused kernel, and for a small model it takes ten times as long as the kernel.
Its first call also imports torch's compiler, which takes a second in every process. For torch's own fused Adam, AdamW
and SGD the kernel is called directly, with the arguments that torch would pass; everything else goes through `step()`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypedDict

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
KERNELS = {"_fused_adam_": _ADAM, "_fused_adamw_": _ADAM, "_fused_sgd_": _SGD}  # private to torch: checked before use


class Stepper:
    """Makes one update from the gradients in `.grad` per call, bit for bit as `optimizer.step()` does.

    Learning rates and all other options are read from the groups at every call. State that was restored in another
    memory layout than its parameter's (a checkpoint of a channels_last model) is converted, since the kernels read both
    by position in memory. Raises Refused without a permit.
    """

    def __init__(self, permit: permits.FitPermit, optimizer: Optimizer) -> None:
        permits.require(permit, permits.FitPermit)
        self.optimizer: Any = optimizer
        self._group_type = _group_type(optimizer)
        self._groups: list[_Group] = []
        # The optimizer's groups and state that `_groups` was read from: objects that were replaced are read again.
        self._source: tuple[Any, Any] = (None, None)
        self._state_count = -1
        self._no_grad = torch.no_grad()

    @property
    def direct(self) -> bool:
        """Whether the kernel would be called directly now."""
        optimizer, group_type = self.optimizer, self._group_type
        if group_type is None or _has_hooks(optimizer) or getattr(optimizer, "grad_scale", None) is not None:
            return False
        return all(map(group_type.has_known_options, optimizer.param_groups))

    def __call__(self) -> None:
        """Make one update."""
        optimizer = self.optimizer
        if self.direct:
            found_inf = getattr(optimizer, "found_inf", None)
            with self._no_grad:
                gradients = self._current_gradients() or self._read_groups(found_inf)
                if gradients is not None:
                    optimizer._opt_called = True  # learning rate schedulers warn if this is not set
                    for group, tensors in zip(self._groups, gradients, strict=True):
                        if tensors:
                            kernel, lists, options = group.kernel_call(tensors)
                            kernel(*lists, **options, grad_scale=None, found_inf=found_inf)
                            if found_inf is not None:
                                group.take_back_step(found_inf)
                    return
        optimizer.step()

    def _current_gradients(self) -> list[list[Tensor]] | None:
        """Return the gradients of every group; None if anything was replaced since the groups were read."""
        optimizer, (groups, state) = self.optimizer, self._source
        if optimizer.param_groups is not groups or optimizer.state is not state or len(state) != self._state_count:
            return None
        if len(groups) != len(self._groups):
            return None
        gradients = []
        for group in self._groups:
            of_group = group.gradients()
            if of_group is None:
                return None
            gradients.append(of_group)
        return gradients

    def _read_groups(self, found_inf: Tensor | None) -> list[list[Tensor]] | None:
        """Read the groups again and return their gradients; None if `optimizer.step()` has to make the update."""
        optimizer, self._source = self.optimizer, (None, None)
        override = optimizer.__dict__.get("step")
        # A scheduler wraps `step` only to see that it is called; any other override may do something else.
        if self._group_type is None or (override is not None and not hasattr(override, "_wrapped_by_lr_sched")):
            return None
        self._groups = [self._group_type(optimizer, group) for group in optimizer.param_groups]
        if not all(group.fits_one_call(found_inf) for group in self._groups):
            return None
        self._source, self._state_count = (optimizer.param_groups, optimizer.state), len(optimizer.state)
        return [[p.grad for p in group.params] for group in self._groups]


def _group_type(optimizer: Optimizer) -> type[_Group] | None:
    """Return how the optimizer's kernel is called; None for other optimizers and for a torch with other kernels."""
    types: dict[type[Optimizer], tuple[type[_Group], tuple[str, ...]]] = {
        Adam: (_AdamGroup, ("_fused_adam_", "_fused_adamw_")),
        AdamW: (_AdamGroup, ("_fused_adam_", "_fused_adamw_")),
        SGD: (_SGDGroup, ("_fused_sgd_",)),
    }
    group_type, kernels = types.get(type(optimizer), (None, ()))
    return group_type if group_type is not None and all(map(_has_known_schema, kernels)) else None


def _has_known_schema(kernel: str) -> bool:
    """Whether this torch has the kernel with exactly the arguments that are passed here."""
    packet = getattr(torch.ops.aten, kernel, None) if hasattr(torch, kernel) else None
    return packet is not None and " ".join(a.name for a in packet.default._schema.arguments) == KERNELS[kernel]


def _has_hooks(optimizer: Any) -> bool:
    """Whether `step()` has hooks, of this optimizer or of all optimizers."""
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or torch_optimizer._global_optimizer_pre_hooks
        or torch_optimizer._global_optimizer_post_hooks
    )


class ParamGroup(TypedDict, total=False):
    """The keys of torch's parameter groups that are read here."""

    params: list[Any]
    lr: float | Tensor
    weight_decay: float
    maximize: bool
    fused: bool | None
    foreach: bool | None
    differentiable: bool
    capturable: bool
    # Adam and AdamW
    betas: tuple[float | Tensor, float | Tensor]
    eps: float
    amsgrad: bool
    decoupled_weight_decay: bool
    # SGD
    momentum: float
    dampening: float
    nesterov: bool


class _KernelCall(NamedTuple):
    """A kernel, its lists of tensors and its options; the caller adds `grad_scale` and `found_inf`."""

    kernel: Callable[..., None]
    lists: tuple[Sequence[Any], ...]
    options: dict[str, float | Tensor]


class _Group:
    """One parameter group in the form that its kernel takes: the parameters that have a gradient, and their state."""

    names: tuple[str, ...] = ()  # state tensors that have the memory layout of their parameter

    def __init__(self, optimizer: Any, group: ParamGroup) -> None:
        self.group, self.all_params, self.count = group, group["params"], len(group["params"])
        self.has_state = self.init_state(optimizer)
        self.params: list[Any] = [p for p in self.all_params if p.grad is not None]
        self.without_grad = [p for p in self.all_params if p.grad is None]
        self.states: list[dict[str, Tensor | None]] = (
            [optimizer.state[p] for p in self.params] if self.has_state else []
        )
        for p, state in zip(self.params, self.states, strict=False):
            _match_layout(p, state, self.names)
        self.read_state()

    def init_state(self, optimizer: Any) -> bool:
        """Create the state that torch creates in its first step; return whether an update needs state."""
        raise NotImplementedError

    def read_state(self) -> None:
        """Read the lists of state tensors, and remember which tensors they hold."""
        self.read_tensors = [(s, name, t) for s in self.states for name, t in s.items() if isinstance(t, Tensor)]
        self.state: dict[str, list[Any]] = {name: [s.get(name) for s in self.states] for name in (*self.names, "step")}

    @staticmethod
    def has_known_options(group: ParamGroup) -> bool:
        """Whether the direct call supports the options of this group."""
        raise NotImplementedError

    def kernel_call(self, gradients: list[Tensor]) -> _KernelCall:
        """Return the call that updates the group, with the options of now."""
        raise NotImplementedError

    def take_back_step(self, found_inf: Tensor) -> None:
        """Undo the step count if the flag made the kernel skip the update."""

    def fits_one_call(self, found_inf: Tensor | None) -> bool:
        """Whether one kernel takes all tensors: real, dense, of one device and dtype, state in the same layout."""
        kinds = {(t.device, t.dtype) for p in self.params for t in (p, p.grad)}
        same_layout = all(
            tensor.stride() == p.stride() and tensor.shape == p.shape
            for name in self.names
            for p, tensor in zip(self.params, self.state[name], strict=False)
            if tensor is not None
        )
        real = all(p.is_floating_point() and p.grad.layout == torch.strided for p in self.params)
        same_device = found_inf is None or all(found_inf.device == device for device, _ in kinds)
        return same_layout and real and len(kinds) < 2 and same_device

    def gradients(self) -> list[Tensor] | None:
        """Return this step's gradients; None if the lists that were read are no longer the ones torch would use."""
        params = self.group["params"]
        if params is not self.all_params or len(params) != self.count:
            return None
        # A parameter with its first gradient belongs in the lists from now on.
        for p in self.without_grad:
            if p.grad is not None:
                return None
        gradients = [p.grad for p in self.params]
        for gradient in gradients:
            if gradient is None:
                return None
        for state, name, tensor in self.read_tensors:
            if state.get(name) is not tensor:
                return None
        return gradients


class _AdamGroup(_Group):
    names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")

    def init_state(self, optimizer: Any) -> bool:
        # torch's own initialization; it also fills lists, which are not needed here.
        optimizer._init_group(self.group, [], [], [], [], [], [])
        return True

    @staticmethod
    def has_known_options(group: ParamGroup) -> bool:
        if not group["fused"] or group["capturable"] or group["differentiable"] or group["foreach"]:
            return False
        beta1, beta2 = group["betas"]
        return not (isinstance(group["lr"], Tensor) or isinstance(beta1, Tensor) or isinstance(beta2, Tensor))

    def kernel_call(self, gradients: list[Tensor]) -> _KernelCall:
        group, state = self.group, self.state
        beta1, beta2 = group["betas"]
        torch._foreach_add_(state["step"], 1)
        return _KernelCall(
            torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_,
            (
                self.params,
                gradients,
                state["exp_avg"],
                state["exp_avg_sq"],
                state["max_exp_avg_sq"] if group["amsgrad"] else [],
                state["step"],
            ),
            {
                "amsgrad": group["amsgrad"],
                "lr": group["lr"],
                "beta1": beta1,
                "beta2": beta2,
                "weight_decay": group["weight_decay"],
                "eps": group["eps"],
                "maximize": group["maximize"],
            },
        )

    def take_back_step(self, found_inf: Tensor) -> None:
        withheld: Any = [found_inf] * len(self.state["step"])
        torch._foreach_sub_(self.state["step"], withheld)


class _SGDGroup(_Group):
    names = ("momentum_buffer",)

    def init_state(self, optimizer: Any) -> bool:
        return bool(self.group["momentum"] != 0)

    @staticmethod
    def has_known_options(group: ParamGroup) -> bool:
        return bool(group["fused"]) and not (group["differentiable"] or isinstance(group["lr"], Tensor))

    def fits_one_call(self, found_inf: Tensor | None) -> bool:
        missing = {tensor is None for tensor in self.state["momentum_buffer"]}
        return super().fits_one_call(found_inf) and len(missing) < 2  # the kernel takes all buffers or none

    def gradients(self) -> list[Tensor] | None:
        return super().gradients() if (self.group["momentum"] != 0) is self.has_state else None

    def kernel_call(self, gradients: list[Tensor]) -> _KernelCall:
        group = self.group
        # The first step writes the momentum buffers instead of reading them.
        first = self.has_state and self.state["momentum_buffer"][0] is None
        if first:
            for p, state in zip(self.params, self.states, strict=True):
                state["momentum_buffer"] = torch.empty_like(p)
            self.read_state()
        return _KernelCall(
            torch._fused_sgd_,
            (self.params, gradients, self.state["momentum_buffer"]),
            {
                "weight_decay": group["weight_decay"],
                "momentum": group["momentum"],
                "lr": group["lr"],
                "dampening": group["dampening"],
                "nesterov": group["nesterov"],
                "maximize": group["maximize"],
                "is_first_step": first,
            },
        )


def _match_layout(p: Tensor, state: dict[str, Tensor | None], names: tuple[str, ...]) -> None:
    """Convert state tensors to the memory layout of their parameter, with the same values."""
    for name in names:
        tensor = state.get(name)
        if isinstance(tensor, Tensor) and tensor.shape == p.shape and tensor.stride() != p.stride():
            state[name] = torch.empty_like(p, dtype=tensor.dtype).copy_(tensor)
