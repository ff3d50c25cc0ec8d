"""`callbacks`: objects of the user's own that watch a training, with the methods of the engine's step observer.

They watch: what they draw, compute or keep does not change the training. One that changes a weight or a gradient is
refused with its name, since a plan says nothing of it; so is one that leaves a module in eval mode within an epoch.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.data.tree import Tree
from pipeline.error_attribution import attributed_to
from pipeline.errors import UserError, fault, user_error
from pipeline.history import History
from pipeline.runtime.seeds import seeded

OF_STEPS = ("before_forward", "before_update", "after_update")
METHODS = ("start", *OF_STEPS, "validated", "flush", "finish")


class OwnCallback:
    """A step observer that calls the methods which an object has, and checks that the training is left as it was.

    `every` is the object's; without one it is 1 where the object has a method of a step. Exceptions of the classes in
    `lets_through` reach the training, every other one becomes a UserError with the user's line.
    """

    def __init__(self, where: str, callback: object, lets_through: tuple[type[Exception], ...] = ()) -> None:
        self.where, self.callback, self.lets_through = where, callback, lets_through
        self.model: nn.Module | None = None
        self.every = self._every()

    def _every(self) -> int:
        watches_steps = any(hasattr(self.callback, name) for name in OF_STEPS)
        return int(getattr(self.callback, "every", 1 if watches_steps else sys.maxsize))

    def start(self, model: nn.Module, optimizer: Optimizer, history: History, step: int) -> None:
        self.model = model
        self._call("start", model, optimizer, history, step)

    def before_forward(self, step: int) -> None:
        with seeded(step):  # what it draws is not taken from the dropout of this step
            self._call("before_forward", step)

    def before_update(self, step: int, inputs: Tree, targets: Tree, outputs: Tree, loss: Tensor) -> None:
        self._call("before_update", step, inputs, targets, outputs, loss)

    def after_update(self, step: int) -> None:
        self._call("after_update", step)

    def validated(self, epoch: int, metrics: Mapping[str, float], /) -> None:
        self._call("validated", epoch, metrics)

    def flush(self) -> None:
        self._call("flush")

    def finish(self) -> None:
        self._call("finish")

    def _call(self, name: str, *arguments: Any) -> None:
        method = getattr(self.callback, name, None)
        if method is None:
            return
        before, modes, passed = self._versions(), self._modes(), None
        with attributed_to(self.where, f"fails in {name}"):
            try:
                method(*arguments)
            except self.lets_through as error:
                passed = error
        changed = [key for key, version in self._versions().items() if before.get(key, version) != version]
        if name in OF_STEPS:  # every epoch begins in training mode again
            changed += [f"mode of {key}" for key, mode in self._modes().items() if modes.get(key, mode) != mode]
        self.every = self._every()
        if changed:
            do = "return the change from task.step, or from an optimizer or augmentation of your own"
            if changed[0].startswith("mode of "):
                do = "put the model back in training mode after model.eval()"
            what = f"{name} changes the training, and a callback only watches it"
            raise UserError(fault(self.where, what, got=f"another {changed[0]}", do=do))
        if passed is not None:
            raise passed

    def _modes(self) -> dict[str, bool]:
        """Whether each module is in training mode; for one in eval mode, dropout is off and batch norm stands still."""
        return {name or "the model": m.training for name, m in self.model.named_modules()} if self.model else {}

    def _versions(self) -> dict[str, int]:
        """How often torch changed each weight, each gradient and the statistics of each batch norm in place."""
        named = list(self.model.named_parameters()) if self.model is not None else []
        weights = {name: parameter._version for name, parameter in named}
        gradients = {f"gradient of {name}": p.grad._version for name, p in named if p.grad is not None}
        modules = self.model.named_modules() if self.model is not None else ()
        norms = [(name, m) for name, m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        statistics = {
            f"running statistics of {name}": norm.num_batches_tracked._version
            for name, norm in norms
            if norm.num_batches_tracked is not None
        }
        return weights | gradients | statistics


def build_callbacks(
    config: Mapping[str, Any], trust: Sequence[str] = (), lets_through: tuple[type[Exception], ...] = ()
) -> tuple[OwnCallback, ...]:
    """Build the `callbacks` of a config, in order. Raises UserError naming every one that is not a callback."""
    from pipeline.config.build import build

    faults, callbacks, failed = list[str](), list[OwnCallback](), list[UserError]()
    for i, node in enumerate(config.get("callbacks") or ()):
        where = f"callbacks[{i}]"
        try:
            callback = build(dict(node), trust=trust, where=where)
        except UserError as error:
            faults += error.faults
            failed.append(error)
            continue
        if any(hasattr(callback, name) for name in METHODS):
            callbacks.append(OwnCallback(where, callback, lets_through))
        else:
            expected = f"an object with one of {', '.join(METHODS)} (hooks of other libraries are not called)"
            faults.append(fault(where, "is not a callback", got=node["_target_"], expected=expected))
    if faults:
        raise user_error(faults, failed)
    return tuple(callbacks)
