"""The backward pass of a scalar loss: what `Tensor.backward` does, without the questions it asks before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Private to torch, hence behind a look: one call of it is what `loss.backward()` comes to, 20 µs later.
_ENGINE: Any = getattr(getattr(torch.autograd, "Variable", None), "_execution_engine", None)
_RUN: Any = getattr(_ENGINE, "run_backward", None)
_ONE = torch.ones(())


def backward(loss: Tensor) -> None:
    """Gradients of the loss are added to `.grad`, bit for bit those of `loss.backward()`."""
    if _RUN is None or loss.dtype is not torch.float32 or loss.device.type != "cpu" or loss.ndim:
        loss.backward()
    else:
        _RUN((loss,), (_ONE,), False, False, (), allow_unreachable=True, accumulate_grad=True)
