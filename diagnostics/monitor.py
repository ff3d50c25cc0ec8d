"""The instrument beside a training loop: it reads norms on sampled steps, never masks a NaN and never changes the run.

In a loop of one's own it hangs on the optimizer's step hooks; in this project's engine it is the step observer.
Values stay tensors until a read-back: at once on the CPU, one sample later on an accelerator, where it cannot stall.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from diagnostics.diagnose import diagnose
from diagnostics.diagnosis import Diagnosis
from pipeline.data.tree import tensors
from pipeline.errors import FivegateError, UserError, fault
from pipeline.history import History

FIRST = 3  # the first steps are always sampled: most faults show there


class NonFinite(FivegateError, FloatingPointError):
    """The loss, a gradient or a weight stopped being a number."""


@dataclass(frozen=True)
class Verdict:
    """What is known of the run so far; false once something was not finite."""

    ok: bool = True
    step: int = 0  # of the first non-finite value, or the last step read back
    why: str = ""

    def __bool__(self) -> bool:
        return self.ok


class Monitor:
    """Watches one model and its optimizer.

    `every` n-th step is sampled. `on_nonfinite="raise"` makes `step` raise NonFinite; otherwise it is recorded only.
    Use it as a context manager, or `close` it: afterwards no hook of it is left.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        *,
        every: int = 50,
        on_nonfinite: Literal["record", "raise"] = "record",
    ) -> None:
        if every < 1 or on_nonfinite not in ("record", "raise"):
            raise ValueError(f"every >= 1 and on_nonfinite 'record' or 'raise', got {every} and {on_nonfinite!r}")
        self.every, self._every, self.on_nonfinite = every, every, on_nonfinite
        self.verdict = Verdict()
        self._history = History()
        self._handles: list[Any] = []
        self._pending: list[tuple[int, list[str], Tensor]] = []
        self._gradients: tuple[int, list[str], Tensor] | None = None
        self._before: list[Tensor] = []
        self._batch: dict[str, Any] = {}
        self._own_loop = model is not None and optimizer is not None
        self._taken = 0  # optimizer steps so far
        self._last_loss = -1  # the step of the newest loss
        self._micro: list[Any] = []  # its parts, under accumulation
        self._epochs = 0
        if model is not None and optimizer is not None:
            self.start(model, optimizer, self._history, 0)
            self._handles += [
                optimizer.register_step_pre_hook(self._before_step),
                optimizer.register_step_post_hook(self._after_step),
            ]

    # --- a loop of one's own ------------------------------------------------------------------------------------------

    def step(self, loss: Any, inputs: Any = None, targets: Any = None, outputs: Any = None) -> Verdict:
        """Note the loss of this step; call it after `backward`, before clipping, so that gradients are seen whole.

        After `optimizer.step()` is fine too. Several calls within one step (accumulation) are averaged.
        On an accelerator the verdict lags by at most `every` steps; the step it names is exact all the same.
        """
        loss = loss.detach() if isinstance(loss, Tensor) else float(loss)
        at = self._taken if self._last_loss >= self._taken - 1 else self._taken - 1
        self._batch = {"step": at, "inputs": inputs, "targets": targets, "outputs": outputs}
        self._note_loss(at, loss)
        if at == 0:
            self._note_first_batch()
            self._history.facts.setdefault("loss_at_init", float(loss))
        if at == self._taken and self._sampled(at):
            self._gradients = (at, *self._measure_gradients(outputs))
        if not self.verdict and self.on_nonfinite == "raise":
            raise NonFinite(self.verdict.why)
        return self.verdict

    def validated(
        self, epoch: int | None = None, metrics: Mapping[str, float] | None = None, /, **values: float
    ) -> None:
        """Log validation metrics: `validated(loss=0.3, accuracy=0.9)` becomes `val/loss` and `val/accuracy`.

        Raises UserError where something else than a number stands in the place of the epoch.
        """
        if epoch is not None and not hasattr(epoch, "__int__"):
            what = "the first argument is the epoch"
            words = "validated(loss=..., accuracy=...) or validated(epoch, {'train/loss': ...})"
            raise UserError(fault("Monitor.validated", what, got=type(epoch).__name__, expected=words))
        if not self._own_loop:
            return  # the engine has logged them
        at = int(values.pop("epoch", self._epochs if epoch is None else epoch))
        named = {**(metrics or {}), **values}
        self._history.log_epoch(at, {n if "/" in n else f"val/{n}": float(v) for n, v in named.items()})
        self._epochs = at + 1

    @property
    def history(self) -> History:
        """All that was measured up to now; on an accelerator this waits for the device."""
        self.read_back(everything=True)
        return self._history

    def diagnose(self, config: Mapping[str, Any] | None = None) -> Diagnosis:
        """Judge what was measured up to now."""
        return diagnose(self.history, dict(config) if config else None)

    def close(self) -> None:
        """No hook of the monitor is left on the optimizer, and no tensor is held."""
        self.read_back(everything=True)
        for handle in self._handles:
            handle.remove()
        self._handles, self._before, self._batch, self._gradients = [], [], {}, None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # --- the step observer of the engine ------------------------------------------------------------------------------

    def start(self, model: nn.Module, optimizer: Optimizer, history: History, step: int) -> None:
        """Group the trainable parameters by the module that owns them."""
        self._model, self._optimizer, self._history = model, optimizer, history
        self.every = self._every if self._own_loop or step >= FIRST else 1
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._parameters = [p for _, p in named]
        owners = [name.rpartition(".")[0] or "model" for name, _ in named]
        self._modules = list(dict.fromkeys(owners))
        self._owner = torch.tensor([self._modules.index(owner) for owner in owners], dtype=torch.long)
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
        self._layers = [(o, p) for o, (_, p) in zip(owners, named, strict=True) if p.ndim > 1 and id(p) not in tables]
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        outside = sum(p.numel() for p in model.parameters() if not (id(p) in held and p.requires_grad))
        total = sum(p.numel() for p in model.parameters())
        history.facts.setdefault("parameters", total)
        history.facts.setdefault("share_untrained", outside / total if total else 1.0)

    def before_update(self, step: int, inputs: Any, targets: Any, outputs: Any, loss: Any) -> None:
        """Gradients are whole, weights as the loss saw them."""
        self._batch = {"step": step, "inputs": inputs, "targets": targets, "outputs": outputs}
        if self.every == 1:
            self._note_first_batch()
        self.every = self._every if step >= FIRST else 1
        self._keep_gradients()
        self._gradients = (step, *self._measure_gradients(outputs))
        self._pending.append((step, ["train/loss"], torch.as_tensor(loss).detach().float().reshape(1)))
        self._keep_weights()

    def after_update(self, step: int) -> None:
        """Weights are the new ones."""
        self._measure_update(step)
        self.read_back()

    def settle(self) -> None:
        """Everything measured is in the history."""
        self._keep_gradients()
        self.read_back(everything=True)

    def finish(self) -> None:
        """Everything measured is in the history, and what broke is counted."""
        self.settle()
        broken = [event["step"] for event in self._history.events if event["kind"] == "nonfinite"]
        if broken and self.verdict:  # at a step that was not sampled: the engine has seen it
            self._note_suspects(broken[0])
        self.close()

    # --- measuring ----------------------------------------------------------------------------------------------------

    def _sampled(self, step: int) -> bool:
        return step < FIRST or step % self.every == 0

    def _before_step(self, *_: Any) -> None:
        if self._sampled(self._taken):
            if self._gradients is None or self._gradients[0] != self._taken:
                self._gradients = (self._taken, *self._measure_gradients(None))
            self._keep_weights()
        self._history.log_step(self._taken, {"lr": float(self._optimizer.param_groups[0]["lr"])})

    def _after_step(self, *_: Any) -> None:
        if self._sampled(self._taken):
            self._measure_update(self._taken)
        self._taken += 1

    def _by_module(self, tensors: list[Tensor]) -> Tensor:
        """Norm per module [M], of one tensor per parameter, in one fused pass.

        In double precision where there is one: squares of large finite values must not look infinite.
        """
        device = tensors[0].device
        wide = torch.float32 if device.type == "mps" else torch.float64
        norms = torch.stack([n.to(device) for n in torch._foreach_norm(tensors, 2, dtype=wide)])
        return norms.new_zeros(len(self._modules)).index_add_(0, self._owner.to(device), norms**2).sqrt()

    @torch.no_grad()
    def _measure_gradients(self, outputs: Any) -> tuple[list[str], Tensor]:
        """`grad_norm`, `grad_norm/<module>`, `dead/<module>` and `output_std` as one vector."""
        if not self._parameters:
            return [], torch.zeros(0)
        norms = self._by_module([_dense(p.grad, p) for p in self._parameters])
        names = ["grad_norm", *(f"grad_norm/{module}" for module in self._modules)]
        values = [norms.norm().reshape(1), norms]
        for module, weight in self._layers:
            if weight.grad is not None and not weight.grad.is_sparse:
                names.append(f"dead/{module}")  # units that no row of the batch sends a gradient to
                values.append((weight.grad.flatten(1) == 0).all(1).float().mean().to(norms.device).reshape(1))
        if isinstance(outputs, Tensor) and outputs.ndim > 1 and len(outputs) > 1:
            names.append("output_std")
            values.append(outputs.detach().float().flatten(1).std(0).mean().to(norms.device).reshape(1))
        kept = {name: position for position, name in enumerate(names)}  # the last weight of a module speaks for it
        vector = torch.cat(values)
        return list(kept), vector[torch.tensor(list(kept.values()), device=vector.device)]

    @torch.no_grad()
    def _keep_weights(self) -> None:
        self._before = [p.detach().clone() for p in self._parameters]

    @torch.no_grad()
    def _measure_update(self, step: int) -> None:
        """`update_ratio` is |change| / |weights before|, of all and per module; where before is 0, over after."""
        if not self._parameters or not self._before:
            return
        self._keep_gradients()
        before = self._by_module(self._before)
        after = self._by_module([p.detach() for p in self._parameters])
        change = self._by_module(list(torch._foreach_sub([p.detach() for p in self._parameters], self._before)))
        before, after, change = (torch.cat([x.norm().reshape(1), x]) for x in (before, after, change))
        scale = torch.where(before == 0, after, before)
        ratio = torch.where(scale == 0, torch.zeros_like(scale), change / scale)
        names = ["", *(f"/{module}" for module in self._modules)]
        names = [f"update_ratio{n}" for n in names] + [f"weight_norm{n}" for n in names]
        self._pending.append((step, names, torch.cat([ratio, after])))
        self._before = []

    def _keep_gradients(self) -> None:
        """What was measured of the gradients is on record, also where the engine suppressed the update."""
        if self._gradients is not None:
            self._pending.append(self._gradients)
        self._gradients = None

    # --- reading back -------------------------------------------------------------------------------------------------

    def read_back(self, *, everything: bool = False) -> None:
        """Move what is pending into the history, with one synchronization; the newest step stays on an accelerator."""
        if not self._pending:
            return
        newest = self._pending[-1][0]
        waiting = [] if everything else [p for p in self._pending if p[2].device.type != "cpu" and p[0] == newest]
        ready = [p for p in self._pending if not any(p is w for w in waiting)]
        self._pending = waiting
        if not ready:
            return
        numbers = iter(torch.cat([tensor.to(ready[0][2].device) for _, _, tensor in ready]).tolist())
        for step, names, _ in ready:
            values = {name: next(numbers) for name in names}
            if self._own_loop or names != ["train/loss"]:  # the engine logs its own loss
                self._history.log_step(step, values)
            self._judge(step, values)

    def _judge(self, step: int, values: Mapping[str, float]) -> None:
        """The verdict follows the first value that is not finite, in the order loss, gradient, weights."""
        if not self.verdict:
            return
        self.verdict = Verdict(True, step)
        for name, value in values.items():
            kind, _, module = name.partition("/")
            what = {"train": "loss", "grad_norm": "gradient", "weight_norm": "weights"}.get(kind)
            if what and module and not math.isfinite(value):
                where = "" if what == "loss" else module
                self.verdict = Verdict(False, step, f"step {step}: the {what}{where and f' of {where}'} is {value}")
                if self._own_loop:  # the engine notes its own
                    self._history.event("nonfinite", step, what=what, where=where)
                self._note_suspects(step)
                return

    def _note_loss(self, at: int, loss: Any) -> None:
        """The mean of the losses seen within this optimizer step is its loss; read at once where that is free."""
        near = not isinstance(loss, Tensor) or loss.device.type == "cpu"
        part = float(loss) if near else loss.float().reshape(1)
        self._micro = [*self._micro, part] if at == self._last_loss else [part]
        self._last_loss = at
        mean = sum(self._micro) / len(self._micro)
        if near:
            self.read_back()
            self._history.log_step(at, {"train/loss": mean})
            self._judge(at, {"train/loss": mean})
        else:
            self._pending.append((at, ["train/loss"], mean))
            if at % self.every == 0:
                self.read_back()

    @torch.no_grad()
    def _note_suspects(self, step: int) -> None:
        """Count what is not finite in the batch at hand and in the weights: what broke first is the cause."""
        facts = self._history.facts
        facts["weights_nonfinite"] = sum(float((~p.isfinite()).sum()) for p in self._parameters)
        batch = list(_floats([self._batch.get("inputs"), self._batch.get("targets")]))
        if batch and self._batch.get("step") == step:
            facts["batch_nonfinite"] = sum(float((~t.isfinite()).sum()) for t in batch)

    @torch.no_grad()
    def _note_first_batch(self) -> None:
        """Scales of the first batch, and the loss that guessing would cost where targets are class ids."""
        facts = self._history.facts
        inputs, targets, outputs = (self._batch[name] for name in ("inputs", "targets", "outputs"))
        for name, value in (("input_rms", inputs), ("target_rms", targets)):
            found = list(_floats(value))
            if found:
                facts.setdefault(name, float(torch.cat([t.float().flatten() for t in found]).square().mean().sqrt()))
        if isinstance(targets, Tensor) and targets.ndim:
            facts.setdefault("batch_size", len(targets))
            ids = not targets.is_floating_point() and targets.ndim == 1
            if ids and isinstance(outputs, Tensor) and outputs.ndim == 2 and outputs.shape[1] > 1:
                facts.setdefault("classes", outputs.shape[1])
                facts.setdefault("loss_expected", math.log(outputs.shape[1]))


def _dense(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    """A gradient that `_foreach_norm` can take: none is zero, a sparse one is its values."""
    if gradient is None:
        return torch.zeros(1, device=parameter.device)
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _floats(batch: Any) -> Iterator[Tensor]:
    """Every floating-point tensor in a nested batch."""
    return (tensor for tensor in tensors(batch) if tensor.is_floating_point())
