"""The backward pass of a scalar loss, without the argument checks of `Tensor.backward`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Private to torch, so it may be missing. `loss.backward()` makes the same call after 20 µs of checks.
_ENGINE: Any = getattr(getattr(torch.autograd, "Variable", None), "_execution_engine", None)
_RUN_BACKWARD: Any = getattr(_ENGINE, "run_backward", None)
_ONE = torch.ones(())


def backward(loss: Tensor) -> None:
    """Add the gradients of a scalar loss to `.grad`, bit for bit as `loss.backward()` does."""
    if _RUN_BACKWARD is None or loss.dtype is not torch.float32 or loss.device.type != "cpu" or loss.ndim:
        loss.backward()
    else:
        _RUN_BACKWARD((loss,), (_ONE,), False, False, (), allow_unreachable=True, accumulate_grad=True)
