"""Finds where a loss or step of the user's own broadcasts outputs against targets, which no error or warning shows.

Outputs [B, 1] minus targets [B] are [B, B]: every output is compared with every target, and the model learns the mean.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from pipeline.data.tree import tensors
from pipeline.error_attribution import is_users_code

# torch's losses that broadcast their two arguments, and reduce the result before anybody sees its shape.
_ELEMENTWISE = (
    "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "kl_div", "poisson_nll_loss", "gaussian_nll_loss",
    "soft_margin_loss", "hinge_embedding_loss", "margin_ranking_loss",
)  # fmt: skip


class Broadcast(NamedTuple):
    """Shapes of outputs, targets and their combination, and the user's line that combines them."""

    outputs: tuple[int, ...]
    targets: tuple[int, ...]
    result: tuple[int, ...]
    place: str


class BroadcastDetector(TorchFunctionMode):
    """Follows outputs and targets through every operation inside the block; `broadcast` is the first that expands both.

    Only shapes with different numbers of axes count: [B, 1] with [1, B] says that every pair is meant.
    """

    def __init__(self, targets: object, outputs: object = None, model: nn.Module | None = None) -> None:
        super().__init__()
        self.broadcast: Broadcast | None = None
        self._alive: dict[int, Tensor] = {}  # an id stays that of one tensor only while the tensor is referenced
        self._outputs, self._targets = set[int](), set[int]()
        self._model = model
        self._hook: RemovableHandle | None = None
        self._add(self._targets, targets)
        self._add(self._outputs, outputs)

    def __enter__(self) -> BroadcastDetector:
        if self._model is not None:
            self._hook = self._model.register_forward_hook(lambda module, args, out: self._add(self._outputs, out))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._hook is not None:
            self._hook.remove()
        super().__exit__(*error)

    def _add(self, marked: set[int], values: object) -> None:
        for tensor in tensors(values):
            self._alive[id(tensor)] = tensor
            marked.add(id(tensor))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        operands = list(tensors([*args, *(kwargs or {}).values()]))
        from_outputs = [t for t in operands if id(t) in self._outputs]
        from_targets = [t for t in operands if id(t) in self._targets]
        if from_outputs and from_targets and self.broadcast is None:
            only_outputs = [t for t in from_outputs if id(t) not in self._targets]
            only_targets = [t for t in from_targets if id(t) not in self._outputs]
            self.broadcast = _expansion(func, only_outputs, only_targets, result)
        if from_outputs:
            self._add(self._outputs, result)
        if from_targets:
            self._add(self._targets, result)
        return result


def _expansion(
    func: Callable[..., Any], outputs: Sequence[Tensor], targets: Sequence[Tensor], result: object
) -> Broadcast | None:
    """Return how one output and one target were expanded to a shape that neither has; None if none were."""
    for one in outputs:
        for other in targets:
            if one.ndim == other.ndim or not (one.ndim and other.ndim):
                continue
            try:
                shape = torch.broadcast_shapes(one.shape, other.shape)
            except RuntimeError:
                continue
            expands = shape not in (one.shape, other.shape)
            reduced = getattr(func, "__name__", "") in _ELEMENTWISE
            if expands and (reduced or (isinstance(result, Tensor) and result.shape == shape)):
                return Broadcast(tuple(one.shape), tuple(other.shape), tuple(shape), _place())
    return None


def _place() -> str:
    """` at file:line`, the innermost line of the user's code on the stack; empty if there is none."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and not is_users_code(frame.f_code.co_filename):
        frame = frame.f_back
    return "" if frame is None else f" at {frame.f_code.co_filename}:{frame.f_lineno}"
