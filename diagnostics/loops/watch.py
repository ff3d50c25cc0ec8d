"""What the Monitor sees of a training loop beside its numbers: what was cleared, trained, evaluated and repeated.

Everything is seen in the first updates and in sampled ones; in the others one attribute is read per forward pass.
Values stay tensors until the diagnosis reads them, so that the loop never waits for the device.
"""

from __future__ import annotations

import gc
import multiprocessing
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.hooks import RemovableHandle

from diagnostics.loops.gradient_scale import gradient_scale
from diagnostics.measurements import float_tensors
from pipeline.data.tree import tensors

FIRST_UPDATES = 3
PROBES = 3  # parameters whose gradients are looked at
FIRST_BATCHES = 16  # that are compared with each other
SAMPLE = 256  # values of a batch that tell it from others
MODAL = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)


class _Hook:
    """A hook on the model that copies and files of the model leave behind."""

    def __init__(self, call: Callable[..., None]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> None:
        self._call(*arguments)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        return {}.get  # gives the arguments of a forward pass back as they are

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, ({}, "get")


class LoopWatch:
    """Records the facts of one loop that `loop_findings` judges."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.model, self.optimizer, self._body = model, optimizer, _body(model)
        trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self.trained = [(name, p) for name, p in trainable if id(p) in optimized]
        self.left_out = [(name, p, p._version) for name, p in trainable if id(p) not in optimized]
        self.last = next((name for name, p in reversed(trainable) if p.ndim > 1), "")
        self._frozen = [(n, p) for n, p in model.named_parameters() if not p.requires_grad and id(p) in optimized]
        stride = max(1, len(self.trained) // PROBES)
        self._probes = [p for _, p in self.trained[::stride]][:PROBES]
        self._modal = [m for m in model.modules() if isinstance(m, MODAL) and getattr(m, "p", 1) > 0]
        self.started_empty = not optimizer.state
        # How often each parameter was written in place: once by its layer, once by a checkpoint, ...
        self.writes = min((p._version for p in model.parameters()), default=0)
        self.resting: list[str] = []  # schedules that have not moved at the third validation
        self.epochs: list[int] = []
        self.leftovers: list[
            list[Tensor]
        ] = []  # per interval and backward: gradient still there / that of the last step
        self.silent: list[set[str]] = []  # per update: parameters without a gradient
        self.frozen_changed: set[str] = set()
        self.frozen_moving: set[str] = set()  # frozen batch normalization whose statistics move on
        self.evaluations = [0, 0]  # validations whose forward passes were all in training mode, and the others
        self.scales: dict[int, list[Tensor]] = {}  # per update: scale of the loss of each backward
        self.calls: dict[int, int] = {}  # per update: how often the loop gave a loss
        self.norms: dict[int, Tensor] = {}  # per update: of the gradient that the optimizer got
        self.missing_values: list[tuple[int, Tensor]] = []  # per step: NaN in the batch
        self.batches: list[Tensor] = []  # some values of each of the first batches
        self.workers = 0
        self._passes = [0, 0]  # forward passes without gradients since the last update: in training mode, in eval mode
        self._last_norms: list[Tensor] = []
        self._versions: dict[str, int] = {}
        self._window: list[RemovableHandle] = []
        self._update = 0
        this = weakref.ref(self)
        self._mode: RemovableHandle | None = None
        if self._modal:
            self._mode = self._body.register_forward_pre_hook(_Hook(partial(_on_forward, this)))

    # --- one update ---------------------------------------------------------------------------------------------------

    def begin(self, update: int) -> None:
        """Watch the forward and backward passes of the update to come."""
        self._end_window()
        self._update = update
        this = weakref.ref(self)
        self._window.append(self._body.register_forward_hook(_WindowHook(this)))
        if 0 < update < FIRST_UPDATES and self._last_norms:
            self.leftovers.append([])
            self._window += [
                probe.register_hook(partial(_on_gradient, this, number)) for number, probe in enumerate(self._probes)
            ]

    @torch.no_grad()
    def before_update(self, update: int, closure: bool) -> None:
        """Look at the gradients that the optimizer is about to apply."""
        self._passes = [0, 0]
        if closure:  # the passes are still to come
            return
        self._end_window()
        present = [p.grad for p in self._probes if p.grad is not None and not p.grad.is_sparse]
        if len(present) == len(self._probes) and present:
            self._last_norms = [gradient.detach().float().norm() for gradient in present]
        else:
            self._last_norms = []
        gradients = [p.grad for _, p in self.trained if p.grad is not None and not p.grad.is_sparse]
        if gradients:
            norms = torch._foreach_norm(gradients)
            self.norms[update] = torch.stack([norm.float().to(norms[0].device) for norm in norms]).norm()
        if update < FIRST_UPDATES:
            self.silent.append({name for name, p in self.trained if p.grad is None})
        self._versions = {name: p._version for name, p in self._frozen}
        for name, module in self.model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and module.track_running_stats:
                own = list(module.parameters(recurse=False))
                if own and not any(p.requires_grad for p in own):
                    self.frozen_moving.add(name)

    def after_update(self) -> None:
        """Look for parameters that are frozen and that the optimizer has changed."""
        frozen = {name: p for name, p in self._frozen if not p.requires_grad}
        self.frozen_changed |= {
            n for n, version in self._versions.items() if n in frozen and frozen[n]._version > version
        }
        self._versions = {}
        self._end_window()

    @torch.no_grad()
    def loss_given(self, update: int, inputs: object, targets: object, sampled: bool) -> None:
        """Count the losses of an update, and look at its batch."""
        if sampled:
            self.calls[update] = self.calls.get(update, 0) + 1
            values = [*float_tensors(inputs), *float_tensors(targets)]
            self.missing_values += [(update, value.isnan().any()) for value in values]
        first = next(tensors(inputs), None)
        if first is not None and self.keeps_batches:
            self.workers = max(self.workers, len(multiprocessing.active_children()))
            flat = first.detach().flatten()
            self.batches.append(flat[:: max(1, len(flat) // SAMPLE)][:SAMPLE].clone())

    @property
    def keeps_batches(self) -> bool:
        """Whether `loss_given` still compares the first batches with each other."""
        return len(self.batches) < FIRST_BATCHES

    def validated(self, epoch: int) -> None:
        """Note the epoch, and in which mode the model was evaluated since the last update."""
        self.epochs.append(epoch)
        if any(self._passes):
            self.evaluations[int(self._passes[1] > 0)] += 1
        self._passes = [0, 0]
        if len(self.epochs) == FIRST_UPDATES:
            self.resting = [
                type(schedule).__name__ for schedule in _schedules_of(self.optimizer) if not schedule.last_epoch
            ]

    def close(self) -> None:
        """Remove all hooks."""
        self._end_window()
        if self._mode is not None:
            self._mode.remove()

    # --- what the hooks call ------------------------------------------------------------------------------------------

    def forward_without_gradients(self) -> None:
        self._passes[0 if any(module.training for module in self._modal) else 1] += 1

    def outputs_given(self, result: object) -> None:
        outputs = getattr(result, "logits", result)
        if isinstance(outputs, Tensor) and outputs.requires_grad and outputs.is_floating_point():
            outputs.register_hook(partial(_on_output, weakref.ref(self), self._update, outputs.detach()))

    def gradient_given(self, number: int) -> None:
        gradient = self._probes[number].grad
        if self.leftovers and number < len(self._last_norms) and (gradient is None or not gradient.is_sparse):
            last = self._last_norms[number]
            self.leftovers[-1].append(
                torch.zeros_like(last) if gradient is None else gradient.detach().float().norm() / last
            )

    def _end_window(self) -> None:
        for handle in self._window:
            handle.remove()
        self._window = []


class _WindowHook(_Hook):
    """The hook on the outputs of a sampled step; a copy of the model does nothing with it."""

    def __init__(self, watch: weakref.ref[LoopWatch]) -> None:
        super().__init__(partial(_on_outputs, watch))

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        return _WindowHook(lambda: None)  # type: ignore[arg-type]

    def __reduce__(self) -> tuple[Any, ...]:
        return _silent_window_hook, ()


def _body(model: nn.Module) -> nn.Module:
    """Return the module that a wrapper calls: of a Lightning module, whose own `forward` is not called, its network."""
    parameters = {id(p) for p in model.parameters()}
    while not isinstance(model, nn.Sequential) and parameters:
        inner = [child for child in model.children() if any(True for _ in child.parameters())]
        if len(inner) != 1 or {id(p) for p in inner[0].parameters()} != parameters:
            break
        model = inner[0]
    return model


def _schedules_of(optimizer: Optimizer) -> list[LRScheduler]:
    """Return the schedules of an optimizer, which does not know them itself."""
    holders = [*gc.get_referrers(optimizer)]
    holders += [owner for holder in holders if type(holder) is dict for owner in gc.get_referrers(holder)]
    schedules = {id(holder): holder for holder in holders if isinstance(holder, LRScheduler)}
    return [schedule for schedule in schedules.values() if schedule.optimizer is optimizer]


def _silent_window_hook() -> _WindowHook:
    return _WindowHook(lambda: None)  # type: ignore[arg-type]


def _on_forward(watch: weakref.ref[LoopWatch], *_: object) -> None:
    if not torch.is_grad_enabled() and (seen := watch()) is not None:
        seen.forward_without_gradients()


def _on_outputs(watch: weakref.ref[LoopWatch], _module: nn.Module, _inputs: object, result: object) -> None:
    if torch.is_grad_enabled() and (seen := watch()) is not None:
        seen.outputs_given(result)


def _on_gradient(watch: weakref.ref[LoopWatch], number: int, _: Tensor) -> None:
    if (seen := watch()) is not None:
        with torch.no_grad():
            seen.gradient_given(number)


def _on_output(watch: weakref.ref[LoopWatch], update: int, outputs: Tensor, gradient: Tensor) -> None:
    if (seen := watch()) is not None:
        scale = gradient_scale(outputs, gradient)
        if scale is not None:
            seen.scales.setdefault(update, []).append(scale)
