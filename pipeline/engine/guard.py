"""The guard: a step whose loss or gradient is not finite moves no weight, and is known by its number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

# Private to torch: what its gradient scaler looks with. It sees each number, and needs no norm.
LOOK: Any = getattr(torch, "_amp_foreach_non_finite_check_and_unscale_", None)
READ_EVERY = 50  # steps between read-backs where reading would stall the device


@dataclass(frozen=True)
class Nonfinite:
    """The first step that was not finite, what of it, and the loss that was measured."""

    step: int
    what: Literal["loss", "gradient"]
    loss: float


class Guard:
    """Lets finite updates pass, clipped to the norm `clip`; withholds the first that is not and all after it.

    On the CPU every step is looked at. On a card the flag stays there: a fused optimizer reads it as `found_inf` and
    skips on its own, and the host looks every 50 steps; any other optimizer there is looked at every step too.
    """

    def __init__(self, optimizer: Optimizer, clip: float | None, *, deferred: bool) -> None:
        self.clip = clip
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.deferred = deferred
        self.losses: list[Tensor | float] = []
        alike = {(p.dtype, p.device.type, p.layout) for p in self.parameters}
        self.looks = LOOK is not None and alike == {(torch.float32, "cpu", torch.strided)}
        self.bad, self.one = torch.zeros(()), torch.ones(())
        self.seen = 0  # steps whose losses were handed over already
        if deferred:
            self.found = torch.zeros((), device=self.parameters[0].device)
            self.good = torch.zeros((), dtype=torch.int64, device=self.found.device)
            flagged: Any = optimizer  # an attribute that torch's own gradient scaler sets too
            flagged.found_inf = self.found

    def start(self, step: int) -> None:
        """Steps are counted from here: so many were made before, by the training that is taken up."""
        self.seen = step
        if self.deferred:
            self.good.fill_(step)

    def clear(self) -> None:
        """No parameter has a gradient."""
        for parameter in self.parameters:
            parameter.grad = None

    def gradients(self) -> list[Tensor]:
        """Those that there are."""
        return [p.grad for p in self.parameters if p.grad is not None]

    def allows(self, loss: Tensor) -> bool:
        """Whether the optimizer may step on these gradients, which are clipped now; with a deferred flag always."""
        gradients = self.gradients()
        needed = self.deferred or self.clip is not None or not self.looks
        dense = [g.coalesce().values() if g.is_sparse else g for g in gradients] if needed else ()
        norms = torch._foreach_norm(list(dense)) if dense else ()
        if self.deferred:
            self._flag(loss, norms)
        else:
            value = loss.item()
            self.losses.append(value)
            if not math.isfinite(value) or not (self._normal(gradients, norms) or self._finite(gradients)):
                return False
        if self.clip is not None:
            total = torch.linalg.vector_norm(torch.stack(norms))
            if not self.deferred and not math.isfinite(total.item()):  # finite numbers whose squares are not
                total = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(dense), 2, torch.float64)))
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip, total)
        return True

    def _normal(self, gradients: list[Tensor], norms: Sequence[Tensor]) -> bool:
        """Whether they are finite, by the cheapest look; a False may be mistaken."""
        if norms:
            return all(math.isfinite(n.item()) for n in norms)
        self.bad.zero_()
        try:
            LOOK(gradients, self.bad, self.one)
        except RuntimeError:  # a sparse gradient; from now on norms tell
            self.looks = False
            return False
        return not self.bad.item()

    @staticmethod
    def _finite(gradients: list[Tensor]) -> bool:
        """The exact question, asked when a norm is not finite: finite numbers of 1e20 overflow their norm."""
        return all(bool(torch.isfinite(g.coalesce().values() if g.is_sparse else g).all()) for g in gradients)

    def _flag(self, loss: Tensor, norms: tuple[Tensor, ...]) -> None:
        """Raise the flag on the device, for good; count the steps before it."""
        finite = torch.isfinite(torch.stack(norms)).all() & torch.isfinite(loss)
        self.found.copy_(torch.maximum(self.found, (~finite).to(self.found.dtype)))
        self.good.add_((self.found == 0).to(torch.int64))
        self.losses.append(loss.detach())

    def due(self, step: int) -> bool:
        """Whether it is time to read the flag back."""
        return self.deferred and step % READ_EVERY == 0

    def raised(self) -> bool:
        """Whether an update was withheld; waits for the device."""
        return bool(self.found.item()) if self.deferred else False

    def drain(self, withheld: bool) -> tuple[list[float], Nonfinite | None]:
        """The losses since the last call, up to and with the first that was withheld; one read-back.

        A withheld step's loss is NaN also where only its gradient was not finite: nothing was learnt from it.
        """
        if not self.losses:
            return [], None
        if self.deferred:
            losses = torch.stack([t for t in self.losses if isinstance(t, Tensor)]).tolist()
            if withheld:
                losses = losses[: int(self.good.item()) - self.seen + 1]
        else:
            losses = [float(v) for v in self.losses]
        self.losses.clear()
        self.seen += len(losses)
        if not withheld:
            return losses, None
        measured = losses[-1]
        if not math.isfinite(measured):
            return losses, Nonfinite(self.seen, "loss", measured)
        return [*losses[:-1], math.nan], Nonfinite(self.seen, "gradient", measured)
