"""What the Monitor sees of a training loop beside its numbers: what was cleared, trained, evaluated and repeated.

Everything is seen in the first updates and in sampled ones; in the others one attribute is read per forward pass.
Values stay tensors until the diagnosis reads them, so that the loop never waits for the device.
"""

from __future__ import annotations

import multiprocessing
import weakref
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from diagnostics.loops.freezing import FrozenParts
from diagnostics.loops.memory import LoopMemory
from diagnostics.loops.output_gradient import Batch, Pass, ScaleOfLosses, ShownTargets, gradient_scale
from diagnostics.loops.schedules import Schedules
from diagnostics.measurements import float_tensors
from pipeline.data.tree import tensors

FIRST_UPDATES = 3
PROBES = 3  # parameters whose gradients are looked at
FIRST_BATCHES = 16  # that are compared with each other
SAMPLE = 256  # values of a batch that tell it from others
MOST_OUTPUTS = 2**22  # values of outputs that are kept until their targets are known
MOST_SCALES = 16  # updates whose losses are scaled against a mean loss: the code of a loop does not change
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
    """Records the facts of one loop that `loop_findings` judges, and gives the memory what passes through the model."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, memory: LoopMemory | None = None) -> None:
        self.model, self.optimizer, self._body = model, optimizer, _body(model)
        self._memory, self._last_pass, self._shown_targets = memory, Pass(), ShownTargets()
        trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self.trained = [(name, p) for name, p in trainable if id(p) in optimized]
        self.left_out = [(name, p, p._version) for name, p in trainable if id(p) not in optimized]
        self.last = next((name for name, p in reversed(trainable) if p.ndim > 1), "")
        self.frozen = FrozenParts(model, optimized)
        self.schedules = Schedules(optimizer)
        stride = max(1, len(self.trained) // PROBES)
        self._probes = [p for _, p in self.trained[::stride]][:PROBES]
        self._modal = [m for m in model.modules() if isinstance(m, MODAL) and getattr(m, "p", 1) > 0]
        self.started_empty = not optimizer.state
        # How often each parameter was written in place: once by its layer, once by a checkpoint, ...
        self.writes = min((p._version for p in model.parameters()), default=0)
        self.epochs: list[int] = []
        self.leftovers: list[list[Tensor]] = []  # per interval and backward: gradient still there / of the last step
        self.silent: list[set[str]] = []  # per update: parameters without a gradient
        self.evaluations = [0, 0]  # validations whose forward passes were all in training mode, and the others
        self.scales: dict[int, list[Tensor]] = {}  # per update: scale of the loss of each backward
        self._scale_of_losses = ScaleOfLosses()
        self.calls: dict[int, int] = {}  # per update: how often the loop gave a loss
        self.norms: dict[int, Tensor] = {}  # per update: of the gradient that the optimizer got
        self.missing_values: list[tuple[int, Tensor]] = []  # per step: NaN in the batch
        self.batches: list[Tensor] = []  # some values of each of the first batches
        self.workers = 0
        self.last_inputs: object = None  # of the latest forward pass with gradients
        self._passes = [0, 0]  # forward passes without gradients since the last update: in training mode, in eval mode
        self._unused = [0, 0]  # with gradients that no backward pass used; counted from the second epoch on
        self._last_norms: list[Tensor] = []
        self._window: list[RemovableHandle] = []
        self._update, self._measures_scale = 0, True
        self._waiting: tuple[int, Tensor, Tensor] | None = None  # outputs and their gradient, whose targets are to come
        self._targets: Tensor | None = None  # of a loop that gives them before its backward pass
        self._keeps_inputs, self._counts_unused = False, False
        self._always: list[RemovableHandle] = []
        if self._modal or memory is not None:
            self._watch_passes()

    # --- one update ---------------------------------------------------------------------------------------------------

    def begin(self, update: int, sampled: bool = True) -> None:
        """Watch the forward and backward passes of the update to come: all of it, or only what the memory keeps."""
        self._end_window()
        self._update, self._measures_scale = update, sampled and len(self.calls) < MOST_SCALES
        this = weakref.ref(self)
        self._window.append(self._body.register_forward_hook(_OutputHook(partial(_on_outputs, this))))
        if 0 < update < FIRST_UPDATES and self._last_norms:
            self.leftovers.append([])
            self._window += [
                probe.register_hook(partial(_on_gradient, this, number)) for number, probe in enumerate(self._probes)
            ]

    @torch.no_grad()
    def before_update(self, update: int, closure: bool) -> None:
        """Look at the gradients that the optimizer is about to apply."""
        self._passes, self._unused = [0, 0], [0, 0]
        if closure:  # the passes are still to come
            return
        if update == 0:
            self.schedules.find()
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
        self.frozen.before_update()

    def after_update(self) -> None:
        """Look for parameters that are frozen and that the optimizer has changed."""
        self.frozen.after_update()
        self._end_window()

    @property
    def fills_memory(self) -> bool:
        """Whether batches are still kept for experiments."""
        return self._memory is not None and not self._memory.full

    def complete(self, inputs: object, targets: object, outputs: object, loss: Tensor | float) -> Batch:
        """Return what the loop gives of the latest pass and what the pass itself shows, and keep it in the memory."""
        batch = self._last_pass.complete(inputs, targets, outputs, loss, self._shown_targets)
        self._last_pass = Pass()
        if self._memory is not None and not self._memory.full:
            self._memory.keep(*batch, loss)
        return batch

    def loss_given(self, update: int, inputs: object, targets: object, sampled: bool) -> None:
        """Count the losses of an update, and look at its batch."""
        if sampled:
            if self._measures_scale:
                self._measure_scale(targets if isinstance(targets, Tensor) else None)
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

    def validated(self, epoch: int, updates: int) -> None:
        """Note the epoch, what the schedules have done, and in which mode the model was evaluated."""
        self.epochs.append(epoch)
        passes = self._passes if any(self._passes) else self._unused
        if any(passes):
            self.evaluations[int(passes[1] > 0)] += 1
        elif self._modal and not self._counts_unused:
            self._counts_unused = True
            unused = _OutputHook(partial(_on_pass_with_gradients, weakref.ref(self)))
            self._always.append(self._body.register_forward_hook(unused))
        self._passes, self._unused = [0, 0], [0, 0]
        if self._memory is not None and self._memory.validation:
            self._memory.validation_seen = True
            if not self._modal and not self._keeps_inputs:
                self._remove(self._always)
        self.schedules.validated(len(self.epochs), updates)

    def close(self) -> None:
        """Remove all hooks."""
        self._end_window()
        self._remove(self._always)
        self.last_inputs = self._waiting = self._targets = None
        self._last_pass = Pass()

    def inputs_of_pass(self) -> object:
        """Return the inputs of the latest forward pass, for a loop that gives none; from now on they are kept."""
        if not self._keeps_inputs:
            self._keeps_inputs = True
            if not self._always:
                self._watch_passes()
        return self.last_inputs

    def _watch_passes(self) -> None:
        self._always.append(self._body.register_forward_pre_hook(_Hook(partial(_on_forward, weakref.ref(self)))))

    # --- what the hooks call ------------------------------------------------------------------------------------------

    def forward_begun(self, inputs: object) -> None:
        if torch.is_grad_enabled():
            self.last_inputs = inputs if self._keeps_inputs else None
            return
        if self._modal:
            self._passes[self._mode] += 1
        if self._memory is not None and not self._memory.validation_seen and self._update:
            self._memory.keep_validation(inputs[0] if isinstance(inputs, tuple) and len(inputs) == 1 else inputs)

    @property
    def _mode(self) -> int:
        return 0 if any(module.training for module in self._modal) else 1

    def passed_with_gradients(self, result: object) -> None:
        outputs, mode = _outputs_of(result), self._mode
        if outputs is not None:
            self._unused[mode] += 1
            outputs.register_hook(partial(_on_use, weakref.ref(self), self._unused, mode))

    def outputs_given(self, inputs: object, result: object) -> None:
        self.last_inputs = inputs
        outputs = _outputs_of(result)
        if outputs is not None:
            self._last_pass = Pass(inputs, outputs.detach())
            outputs.register_hook(partial(_on_output, weakref.ref(self), self._update, self._last_pass))

    def output_gradient(self, update: int, seen: Pass, gradient: Tensor) -> None:
        """Measure the scale of a loss, at once if the targets are known or if the outputs are too large to be kept."""
        outputs = seen.outputs
        if outputs is None:
            return
        seen.gradient = gradient if outputs.numel() <= MOST_OUTPUTS else None
        if not self._measures_scale:
            return
        if self._waiting is not None:  # of another backward pass, whose targets are not known
            self._measure_scale(None)
        self._waiting = (update, outputs, gradient)
        if self._targets is not None or outputs.numel() > MOST_OUTPUTS:
            self._measure_scale(self._targets)

    def _measure_scale(self, targets: Tensor | None) -> None:
        if self._waiting is None:
            self._targets = targets
            return
        (update, outputs, gradient), self._waiting, self._targets = self._waiting, None, None
        scale = None
        if targets is not None and outputs.numel() <= MOST_OUTPUTS:
            scale = self._scale_of_losses.measure(outputs, gradient, targets)
        scale = gradient_scale(outputs, gradient) if scale is None else scale
        if scale is not None:
            self.scales.setdefault(update, []).append(scale)

    def gradient_given(self, number: int) -> None:
        gradient = self._probes[number].grad
        if self.leftovers and number < len(self._last_norms) and (gradient is None or not gradient.is_sparse):
            last = self._last_norms[number]
            self.leftovers[-1].append(
                torch.zeros_like(last) if gradient is None else gradient.detach().float().norm() / last
            )

    def _end_window(self) -> None:
        self._remove(self._window)

    @staticmethod
    def _remove(handles: list[RemovableHandle]) -> None:
        for handle in handles:
            handle.remove()
        handles.clear()


class _OutputHook(_Hook):
    """The same for a hook that gets the outputs too."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        return nullcontext().__exit__  # takes the three arguments and returns None

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")


def _body(model: nn.Module) -> nn.Module:
    """Return the module that a wrapper calls: of a Lightning module, whose own `forward` is not called, its network."""
    parameters = {id(p) for p in model.parameters()}
    while not isinstance(model, nn.Sequential) and parameters:
        inner = [child for child in model.children() if any(True for _ in child.parameters())]
        if len(inner) != 1 or {id(p) for p in inner[0].parameters()} != parameters:
            break
        model = inner[0]
    return model


def _outputs_of(result: object) -> Tensor | None:
    """Return the outputs [B, ...] of a model that returns them alone or as `logits`; None without a gradient."""
    known = result.get("logits") if isinstance(result, Mapping) else getattr(result, "logits", result)
    if isinstance(known, Tensor) and known.requires_grad and known.is_floating_point():
        return known
    return None


def _on_forward(watch: weakref.ref[LoopWatch], _module: nn.Module, inputs: object) -> None:
    if (seen := watch()) is not None:
        seen.forward_begun(inputs)


def _on_pass_with_gradients(watch: weakref.ref[LoopWatch], _module: nn.Module, _inputs: object, result: object) -> None:
    if torch.is_grad_enabled() and (seen := watch()) is not None:
        seen.passed_with_gradients(result)


def _on_use(watch: weakref.ref[LoopWatch], counts: list[int], mode: int, _: Tensor) -> None:
    if watch() is not None:
        counts[mode] -= 1


def _on_outputs(watch: weakref.ref[LoopWatch], _module: nn.Module, inputs: object, result: object) -> None:
    if torch.is_grad_enabled() and (seen := watch()) is not None:
        seen.outputs_given(inputs, result)


def _on_gradient(watch: weakref.ref[LoopWatch], number: int, _: Tensor) -> None:
    if (seen := watch()) is not None:
        with torch.no_grad():
            seen.gradient_given(number)


def _on_output(watch: weakref.ref[LoopWatch], update: int, seen: Pass, gradient: Tensor) -> None:
    if (known := watch()) is not None:
        known.output_gradient(update, seen, gradient)
