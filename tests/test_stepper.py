"""The stepper updates weights bit for bit as `optimizer.step()` does, and leaves what it does not know to it."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from pipeline.building import compiler
from pipeline.building.compiler import compiler_unloaded
from pipeline.engine import stepper
from pipeline.engine.stepper import Stepper
from pipeline.errors import Refused
from pipeline.run_store.permits import TrainPermit

Change = Callable[[int, nn.Module, Optimizer], None]
Make = Callable[[list[dict[str, Any]]], Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "AdamW": lambda groups: AdamW(groups, lr=1e-2, fused=True),
    "Adam": lambda groups: Adam(groups, lr=1e-2, weight_decay=0.1, fused=True),
    "AdamW amsgrad, maximize": lambda groups: AdamW(groups, amsgrad=True, maximize=True, fused=True),
    "SGD": lambda groups: SGD(groups, lr=1e-2, fused=True),
    "SGD momentum": lambda groups: SGD(groups, lr=1e-2, momentum=0.9, nesterov=True, fused=True),
    "AdamW not fused": lambda groups: AdamW(groups, lr=1e-2, foreach=False),
    "SGD not fused": lambda groups: SGD(groups, lr=1e-2, momentum=0.9),
    "RMSprop": lambda groups: torch.optim.RMSprop(groups),
}
DIRECT = ("AdamW", "Adam", "AdamW amsgrad, maximize", "SGD", "SGD momentum")  # their kernels are called directly
STEPS = 300


def net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 1))


def channels_last() -> nn.Module:
    model: Any = net()
    return model.to(memory_format=torch.channels_last)  # type: ignore[no-any-return]


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    conv, hidden, head = model[0], model[3], model[4]  # type: ignore[index]
    return [
        {"params": [*conv.parameters(), *hidden.parameters()]},
        {"params": list(head.parameters()), "lr": 1e-3, "weight_decay": 0.2},
    ]


def backward(model: nn.Module, step: int) -> None:
    """Compute gradients that differ from step to step."""
    x = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(step))
    model.zero_grad()
    model(x).square().mean().backward()


@dataclass
class Calls:
    """Counts the calls of `optimizer.step()`, and of fused kernels outside of it."""

    steps: int = 0
    direct_kernels: int = 0
    _inside_step: bool = False

    @contextmanager
    def counted(self, optimizer: Optimizer) -> Iterator[None]:
        """Count inside the block. The class is patched, since a step of its own would make the optimizer unknown."""
        kind, original_step = type(optimizer), type(optimizer).step

        def step(*args: Any, **options: Any) -> Any:
            self.steps, self._inside_step = self.steps + 1, True
            try:
                return original_step(*args, **options)
            finally:
                self._inside_step = False

        def counting(kernel: Callable[..., None]) -> Callable[..., None]:
            def call(*args: Any, **options: Any) -> None:
                self.direct_kernels += not self._inside_step
                kernel(*args, **options)

            return call

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kind, "step", step)
            for name in stepper.KERNELS:
                patch.setattr(torch, name, counting(getattr(torch, name)))
            yield


def train(
    make: Make, permit: TrainPermit | None, change: Change, model: nn.Module, steps: int = STEPS
) -> tuple[list[Tensor], Calls]:
    """Return weights and state after so many updates, by the stepper with a permit and by torch without one."""
    optimizer, calls = make(groups_of(model)), Calls()
    update = Stepper(permit, optimizer) if permit is not None else None
    with calls.counted(optimizer):
        for number in range(steps):
            backward(model, number)
            change(number, model, optimizer)
            update() if update is not None else optimizer.step()
    state = [t for s in optimizer.state_dict()["state"].values() for t in s.values() if t is not None]
    return [*(p.detach() for p in model.parameters()), *state], calls


def assert_same_as_torch(
    make: Make, permit: TrainPermit, change: Change = lambda *_: None, model: nn.Module | None = None
) -> Calls:
    """Assert that the stepper gives the bits of `optimizer.step()`; return the calls that it made."""
    model = model or net()
    expected, _ = train(make, None, change, copy.deepcopy(model))
    tensors, calls = train(make, permit, change, model)
    assert len(tensors) == len(expected) and all(torch.equal(a, b) for a, b in zip(tensors, expected, strict=True))
    return calls


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_stepper_equals_torch_after_300_updates(name: str, digits_permit: TrainPermit) -> None:
    """Weights and state are equal in two groups with their own options; a fused optimizer's kernels are called here."""
    calls = assert_same_as_torch(OPTIMIZERS[name], digits_permit)
    assert calls == (Calls(0, 2 * STEPS) if name in DIRECT else Calls(STEPS, 0))


@pytest.mark.parametrize("name", DIRECT)
def test_stepper_reads_the_groups_once(name: str, digits_permit: TrainPermit) -> None:
    """In a training that replaces nothing, the groups are read in the first update alone."""
    model = net()
    optimizer = OPTIMIZERS[name](groups_of(model))
    frozen = next(model.parameters())
    update, groups = Stepper(digits_permit, optimizer), []
    for step in range(4):
        backward(model, step)
        if "SGD" not in name:  # torch's fused SGD cannot begin with some gradients missing
            frozen.grad = None
        update()
        groups.append(update._groups)

    assert all(read is groups[0] for read in groups)


def _other_options(step: int, model: nn.Module, optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        group["lr"] *= 0.99
        group["weight_decay"] = 0.01 * (step % 3)


def _no_gradient_now_and_then(step: int, model: nn.Module, optimizer: Optimizer) -> None:
    if step % 7 == 3:
        next(model[4].parameters()).grad = None  # type: ignore[index]


def _no_gradient_at_first(step: int, model: nn.Module, optimizer: Optimizer) -> None:
    if step < 2:
        next(model[4].parameters()).grad = None  # type: ignore[index]


def _loaded_in_the_middle(step: int, model: nn.Module, optimizer: Optimizer) -> None:
    if step == 150:
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def _state_replaced(step: int, model: nn.Module, optimizer: Optimizer) -> None:
    if step == 150:
        for state in optimizer.state.values():
            state.update({name: t * 0.5 for name, t in state.items() if t is not None and t.ndim})


def _group_added(step: int, model: nn.Module, optimizer: Optimizer) -> None:
    if step == 10:
        last = optimizer.param_groups[1]["params"].pop()
        optimizer.add_param_group({"params": [last]})


def _flag(step: int, model: nn.Module, optimizer: Any) -> None:
    optimizer.found_inf = torch.tensor(float(step % 5 == 4))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("AdamW", _other_options),
        ("AdamW", _no_gradient_at_first),  # torch's fused SGD itself cannot begin with some gradients missing
        ("AdamW", _no_gradient_now_and_then),
        ("AdamW", _loaded_in_the_middle),
        ("AdamW", _state_replaced),
        ("AdamW", _group_added),
        ("AdamW", _flag),
        ("SGD momentum", _other_options),
        ("SGD momentum", _no_gradient_now_and_then),
        ("SGD momentum", _loaded_in_the_middle),
        ("SGD momentum", _state_replaced),
        ("SGD momentum", _flag),
    ],
)
def test_stepper_uses_current_options_and_state(name: str, change: Change, digits_permit: TrainPermit) -> None:
    """Changed options, missing gradients, replaced groups and state, and a set flag count in the next update."""
    calls = assert_same_as_torch(OPTIMIZERS[name], digits_permit, change)
    groups = 3 * STEPS - 10 if change is _group_added else 2 * STEPS  # the third group comes after ten steps
    assert calls == Calls(0, groups)


def test_stepper_skips_parameter_without_gradient(digits_permit: TrainPermit) -> None:
    """With a layer that the forward pass does not use, the kernels are still called directly."""
    model = net()
    model[4].register_parameter("idle", nn.Parameter(torch.ones(3)))  # type: ignore[index, operator]
    assert assert_same_as_torch(OPTIMIZERS["AdamW"], digits_permit, model=model) == Calls(0, 2 * STEPS)


def test_stepper_updates_channels_last_parameters(digits_permit: TrainPermit) -> None:
    """The state has the layout of its parameter, as the kernel expects."""
    assert assert_same_as_torch(OPTIMIZERS["AdamW"], digits_permit, model=channels_last()) == Calls(0, 2 * STEPS)


def test_stepper_converts_layout_of_restored_state(digits_permit: TrainPermit) -> None:
    """Contiguous state of a checkpoint for channels_last weights does not change the following updates."""

    def contiguous(step: int, model: nn.Module, optimizer: Optimizer) -> None:
        if step == 5:
            for state in optimizer.state.values():
                state.update({name: t.contiguous() for name, t in state.items()})

    models = [channels_last() for _ in range(2)]
    first, second = (
        train(OPTIMIZERS["AdamW"], digits_permit, change, model, 10)[0]
        for model, change in zip(models, (contiguous, lambda *_: None), strict=True)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_stepper_does_not_make_scheduler_warn(digits_permit: TrainPermit) -> None:
    """torch does not warn that `lr_scheduler.step()` came before `optimizer.step()`, and the new rate is used."""
    model = net()
    optimizer = AdamW(model.parameters(), lr=0.1, fused=True)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.0)
    step = Stepper(digits_permit, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(2):
            before = [p.detach().clone() for p in model.parameters()]
            backward(model, number)
            step()
            scheduler.step()
    assert step.direct and all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_stepper_calls_hooks(digits_permit: TrainPermit) -> None:
    """With a hook of the optimizer, or of all optimizers, every update goes through `step()`."""
    model, called = net(), []
    optimizer = AdamW(model.parameters(), fused=True)
    step = Stepper(digits_permit, optimizer)
    backward(model, 0)
    own = optimizer.register_step_post_hook(lambda *_: called.append("own"))
    step()
    own.remove()
    everyones = register_optimizer_step_pre_hook(lambda *_: called.append("everyone's"))
    step()
    everyones.remove()
    step()
    assert called == ["own", "everyone's"] and step.direct


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: AdamW(p),
        lambda p: AdamW(p, lr=torch.tensor(0.1), fused=True),
        lambda p: AdamW(p, fused=True, capturable=True),
        lambda p: type("Mine", (AdamW,), {})(p, fused=True),
        lambda p: SGD(p, lr=0.1),
    ],
)
def test_stepper_leaves_unknown_optimizers_to_torch(
    optimizer: Callable[[Any], Optimizer], digits_permit: TrainPermit
) -> None:
    """Subclasses, learning rates in tensors and options that the direct call does not support go through `step()`."""
    model = net()
    assert not Stepper(digits_permit, optimizer(model.parameters())).direct


def test_stepper_leaves_unknown_kernels_to_torch(digits_permit: TrainPermit, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a kernel has other arguments, the update goes through `step()`."""
    monkeypatch.setitem(stepper.KERNELS, "_fused_adamw_", "self grads something_new")
    assert not Stepper(digits_permit, AdamW(net().parameters(), fused=True)).direct


def test_stepper_raises_torchs_error_for_sparse_gradients(digits_permit: TrainPermit) -> None:
    """Adam does not support the gradients of a sparse embedding; the error is torch's own."""
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        Stepper(digits_permit, AdamW(table.parameters(), fused=True))()


def test_stepper_requires_permit() -> None:
    """The one place that changes weights checks the permit itself."""
    with pytest.raises(Refused, match="needs a TrainPermit"):
        Stepper(None, AdamW(net().parameters()))  # type: ignore[arg-type]


def test_compiler_unloaded_restores_methods() -> None:
    """After the block torch's methods have their former state."""
    with compiler_unloaded():
        optimizer = AdamW(net().parameters(), fused=True)
        optimizer.load_state_dict(optimizer.state_dict())
    methods: list[Any] = [getattr(Optimizer, name).__wrapped__ for name in compiler.HIDDEN]
    assert all(vars(method).get("__dynamo_disable") is not method for method in methods)


@pytest.mark.process
def test_stepper_does_not_load_compiler() -> None:
    """Building an optimizer and a scheduler and making an update do not import torch's compiler, which is slow."""
    code = """
import sys, torch
from pipeline.building import compiler
from pipeline.building.compiler import compiler_unloaded
from pipeline.engine import stepper
stepper.permits.require = lambda permit, kind: permit
model = torch.nn.Linear(2, 1)
with compiler_unloaded():
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    step, scheduler = stepper.Stepper(None, optimizer), torch.optim.lr_scheduler.StepLR(optimizer, 1)
    model(torch.ones(1, 2)).sum().backward()
    step(), scheduler.step(), optimizer.load_state_dict(optimizer.state_dict())
assert step.direct
sys.exit("torch._dynamo" in sys.modules)
"""
    assert not subprocess.run([sys.executable, "-c", code], check=False).returncode
