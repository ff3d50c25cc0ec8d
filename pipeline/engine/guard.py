"""The guard: withholds the update of a step whose loss or gradient is not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

# Private to torch: the check of its gradient scaler. It inspects every number and is cheaper than a norm.
NONFINITE_CHECK: Any = getattr(torch, "_amp_foreach_non_finite_check_and_unscale_", None)
READ_EVERY = 50  # steps between reads of the device's flag, each of which waits for the device


@dataclass(frozen=True)
class NonfiniteStep:
    """The first step that was not finite, whether its loss or only its gradient was, and the measured loss."""

    step: int
    what: Literal["loss", "gradient"]
    loss: float


class Guard:
    """Allows finite updates, clipped to the norm `clip`; withholds the first that is not finite and all later ones.

    On the CPU every step is checked at once. With `deferred`, on a GPU, the flag stays on the device: a fused optimizer
    reads it as `found_inf` and skips the update by itself, and the host reads it every 50 steps.
    """

    def __init__(self, optimizer: Optimizer, clip: float | None, *, deferred: bool) -> None:
        self.clip = clip
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.deferred = deferred
        self.losses: list[Tensor | float] = []
        kinds = {(p.dtype, p.device.type, p.layout) for p in self.parameters}
        self.use_fast_check = NONFINITE_CHECK is not None and kinds == {(torch.float32, "cpu", torch.strided)}
        self.nonfinite_flag, self.unit_scale = torch.zeros(()), torch.ones(())
        self.losses_read = 0  # steps whose losses were read by `read_losses`
        if deferred:
            self.found_inf = torch.zeros((), device=self.parameters[0].device)
            self.finite_steps = torch.zeros((), dtype=torch.int64, device=self.found_inf.device)
            flagged: Any = optimizer  # torch's own gradient scaler sets this attribute, too
            flagged.found_inf = self.found_inf

    def resume_at(self, step: int) -> None:
        """Count steps from here, since a resumed training made `step` steps before."""
        self.losses_read = step
        if self.deferred:
            self.finite_steps.fill_(step)

    def zero_grad(self) -> None:
        """Remove all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def gradients(self) -> list[Tensor]:
        """Return the gradients of all parameters that have one."""
        return [p.grad for p in self.parameters if p.grad is not None]

    def check_and_clip(self, loss: Tensor) -> bool:
        """Clip the gradients; return whether the optimizer may step. With `deferred` the answer is always True."""
        gradients = self.gradients()
        needed = self.deferred or self.clip is not None or not self.use_fast_check
        dense = [g.coalesce().values() if g.is_sparse else g for g in gradients] if needed else ()
        norms = torch._foreach_norm(list(dense)) if dense else ()
        if self.deferred:
            self._flag(loss, norms)
        else:
            value = loss.item()
            self.losses.append(value)
            if not math.isfinite(value) or not (self._fast_check(gradients, norms) or self._all_finite(gradients)):
                return False
        if self.clip is not None:
            total = torch.linalg.vector_norm(torch.stack(norms))
            if not self.deferred and not math.isfinite(total.item()):  # the sum of squares overflows float32
                total = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(dense), 2, torch.float64)))
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip, total)
        return True

    def _fast_check(self, gradients: list[Tensor], norms: Sequence[Tensor]) -> bool:
        """Whether the gradients are finite, by the cheapest check; False can be a false alarm, True cannot."""
        if norms:
            return all(math.isfinite(n.item()) for n in norms)
        self.nonfinite_flag.zero_()
        try:
            NONFINITE_CHECK(gradients, self.nonfinite_flag, self.unit_scale)
        except RuntimeError:  # a sparse gradient; norms are used from now on
            self.use_fast_check = False
            return False
        return not self.nonfinite_flag.item()

    @staticmethod
    def _all_finite(gradients: list[Tensor]) -> bool:
        """The exact check, needed when a norm is not finite: finite numbers of 1e20 overflow their norm."""
        return all(bool(torch.isfinite(g.coalesce().values() if g.is_sparse else g).all()) for g in gradients)

    def _flag(self, loss: Tensor, norms: tuple[Tensor, ...]) -> None:
        """Set the flag on the device, where it stays set, and count the steps before it."""
        finite = torch.isfinite(torch.stack(norms)).all() & torch.isfinite(loss)
        self.found_inf.copy_(torch.maximum(self.found_inf, (~finite).to(self.found_inf.dtype)))
        self.finite_steps.add_((self.found_inf == 0).to(torch.int64))
        self.losses.append(loss.detach())

    def read_due(self, step: int) -> bool:
        """Whether the flag on the device should be read after this step."""
        return self.deferred and step % READ_EVERY == 0

    def has_withheld(self) -> bool:
        """Whether the device withheld an update; waits for the device."""
        return bool(self.found_inf.item()) if self.deferred else False

    def read_losses(self, withheld: bool) -> tuple[list[float], NonfiniteStep | None]:
        """Return the losses since the last call, up to and including the first withheld step, and that step.

        The loss of a withheld step is NaN even if only its gradient was not finite, since the step changed nothing.
        """
        if not self.losses:
            return [], None
        if self.deferred:
            # One transfer for all losses since the last call, since each transfer waits for the device.
            losses = torch.stack([t for t in self.losses if isinstance(t, Tensor)]).tolist()
            if withheld:
                losses = losses[: int(self.finite_steps.item()) - self.losses_read + 1]
        else:
            losses = [float(v) for v in self.losses]
        self.losses.clear()
        self.losses_read += len(losses)
        if not withheld:
            return losses, None
        measured = losses[-1]
        if not math.isfinite(measured):
            return losses, NonfiniteStep(self.losses_read, "loss", measured)
        return [*losses[:-1], math.nan], NonfiniteStep(self.losses_read, "gradient", measured)
