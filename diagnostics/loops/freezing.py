"""Which parameters a loop means to freeze, and whether they stay as they are."""

from __future__ import annotations

from collections.abc import Collection
from difflib import SequenceMatcher

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

ALIKE = 0.8  # similarity from which on an attribute was meant to be `requires_grad`


class FrozenParts:
    """The frozen parameters of a model, those that an attribute only seems to freeze, and what became of them."""

    def __init__(self, model: nn.Module, optimized: Collection[int]) -> None:
        self._model = model
        parameters = list(model.named_parameters())
        self._frozen = [(name, p) for name, p in parameters if not p.requires_grad and id(p) in optimized]
        self._trained = [(name, p, p._version) for name, p in parameters if p.requires_grad and id(p) in optimized]
        self._norms = [(n, m) for n, m in model.named_modules() if isinstance(m, BatchNorm) and m.track_running_stats]
        self._means = {name: (module, _mean(module).clone()) for name, module in self._frozen_norms()}
        self._versions: dict[str, int] = {}
        self._looked = False
        self.changed: set[str] = set()  # frozen parameters that the optimizer has changed
        self.thawed: list[str] = []  # parameters that were frozen and are trained from the first update on
        self.moving: set[str] = set()  # frozen batch normalization whose statistics move on

    def before_update(self) -> None:
        """Note the frozen parameters before an update."""
        self._versions = {name: p._version for name, p in self._frozen}
        if not self._looked:
            self.thawed = [name for name, p in self._frozen if p.requires_grad]
            self._looked = True
        self.moving |= {name for name, module in self._frozen_norms() if module.training}

    def after_update(self) -> None:
        """Note the frozen parameters that an update has changed."""
        frozen = {name: p for name, p in self._frozen if not p.requires_grad}
        self.changed |= {n for n, version in self._versions.items() if n in frozen and frozen[n]._version > version}
        self._versions = {}

    def _frozen_norms(self) -> list[tuple[str, BatchNorm]]:
        """Return the batch normalizations whose weights are frozen now."""
        affine = [(name, m) for name, m in self._norms if m.affine]
        return [(name, m) for name, m in affine if not any(p.requires_grad for p in m.parameters(recurse=False))]

    def seemingly_frozen(self) -> tuple[str, list[str]]:
        """Return an attribute that freezes nothing, as written, and the names of the parameters that train despite it.

        `module.requires_grad = False` sets an attribute of the module, which none of its parameters knows, and so does
        a misspelled attribute of a parameter.
        """
        moved = {id(p): name for name, p, version in self._trained if p.requires_grad and p._version > version}
        attribute, names = "", list[str]()
        for path, module in self._model.named_modules():
            if vars(module).get("requires_grad") is False:
                trained = [moved[id(p)] for p in module.parameters() if id(p) in moved]
                names += [name for name in trained if name not in names]
                attribute = attribute or (f"{path or 'model'}.requires_grad = False" if trained else "")
        for name, p, _ in self._trained:
            wrong = [key for key, value in vars(p).items() if value is False and _is_misspelled(key)]
            if wrong and id(p) in moved and name not in names:
                names.append(name)
                attribute = attribute or f"{name}.{wrong[0]} = False"
        return attribute, names

    @torch.no_grad()
    def shift(self) -> float:
        """Return by how many standard deviations the mean of a frozen normalization has moved at most."""
        shifts = []
        for name in self.moving & self._means.keys():
            module, before = self._means[name]
            spread = module.running_var.sqrt().mean().clamp_min(1e-12)  # type: ignore[union-attr, operator]
            shifts.append(float((_mean(module) - before).abs().mean() / spread))
        return max(shifts, default=0.0)


def _mean(module: BatchNorm) -> Tensor:
    assert module.running_mean is not None, "only of a module that tracks its statistics"
    return module.running_mean


def _is_misspelled(key: str) -> bool:
    return SequenceMatcher(None, key.strip("_"), "requires_grad").ratio() >= ALIKE
