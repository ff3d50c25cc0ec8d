"""The stepper moves weights as `optimizer.step()` does, bit for bit, and hands over whatever it does not know."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from collections.abc import Callable
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

WAYS: dict[str, Make] = {
    "AdamW": lambda groups: AdamW(groups, lr=1e-2, fused=True),
    "Adam": lambda groups: Adam(groups, lr=1e-2, weight_decay=0.1, fused=True),
    "AdamW amsgrad, maximize": lambda groups: AdamW(groups, amsgrad=True, maximize=True, fused=True),
    "SGD": lambda groups: SGD(groups, lr=1e-2, fused=True),
    "SGD momentum": lambda groups: SGD(groups, lr=1e-2, momentum=0.9, nesterov=True, fused=True),
    "AdamW one by one": lambda groups: AdamW(groups, lr=1e-2, foreach=False),
    "SGD one by one": lambda groups: SGD(groups, lr=1e-2, momentum=0.9),
    "RMSprop": lambda groups: torch.optim.RMSprop(groups),
}


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


def gradients(model: nn.Module, step: int) -> None:
    """Gradients that differ from step to step."""
    x = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(step))
    model.zero_grad()
    model(x).square().mean().backward()


def trained(make: Make, permit: TrainPermit | None, change: Change, model: nn.Module, steps: int = 300) -> list[Tensor]:
    """All weights and state after that many updates; with a permit by the stepper, else by torch."""
    optimizer = make(groups_of(model))
    update = Stepper(permit, optimizer) if permit is not None else None
    for number in range(steps):
        gradients(model, number)
        change(number, model, optimizer)
        update() if update is not None else optimizer.step()
    state = [t for s in optimizer.state_dict()["state"].values() for t in s.values() if t is not None]
    return [*(p.detach() for p in model.parameters()), *state]


def same(make: Make, permit: TrainPermit, change: Change = lambda *_: None, model: nn.Module | None = None) -> None:
    model = model or net()
    ours, torchs = (trained(make, p, change, copy.deepcopy(model)) for p in (permit, None))
    assert len(ours) == len(torchs) and all(torch.equal(a, b) for a, b in zip(ours, torchs, strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_three_hundred_updates_are_torchs_to_the_last_bit(way: str, digits_permit: TrainPermit) -> None:
    """Weights and optimizer state are equal, over two groups with their own rates and decays."""
    same(WAYS[way], digits_permit)


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
    ("way", "change"),
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
def test_what_changes_between_two_steps_counts_at_the_next(
    way: str, change: Change, digits_permit: TrainPermit
) -> None:
    """Options, missing gradients, replaced groups and state, and a raised flag are those of the moment."""
    same(WAYS[way], digits_permit, change)


def test_a_parameter_that_never_has_a_gradient_is_left_alone(digits_permit: TrainPermit) -> None:
    """A layer that the forward pass does not use costs no direct call."""
    model = net()
    model[4].register_parameter("idle", nn.Parameter(torch.ones(3)))  # type: ignore[index, operator]
    same(WAYS["AdamW"], digits_permit, model=model)


def test_channels_last_parameters_move_as_torch_moves_them(digits_permit: TrainPermit) -> None:
    """The state has the parameter's layout, so that the kernel reads both alike."""
    same(WAYS["AdamW"], digits_permit, model=channels_last())


def test_state_restored_in_another_layout_is_laid_out_anew(digits_permit: TrainPermit) -> None:
    """A checkpoint's contiguous state beside channels_last weights goes on as if nothing had happened."""

    def contiguous(step: int, model: nn.Module, optimizer: Optimizer) -> None:
        if step == 5:
            for state in optimizer.state.values():
                state.update({name: t.contiguous() for name, t in state.items()})

    models = [channels_last() for _ in range(2)]
    first, second = (
        trained(WAYS["AdamW"], digits_permit, change, model, 10)
        for model, change in zip(models, (contiguous, lambda *_: None), strict=True)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_scheduler_sees_that_updates_are_made(digits_permit: TrainPermit) -> None:
    """torch does not warn that `lr_scheduler.step()` came first, and the new rate counts."""
    model = net()
    optimizer = AdamW(model.parameters(), lr=0.1, fused=True)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.0)
    step = Stepper(digits_permit, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(2):
            before = [p.detach().clone() for p in model.parameters()]
            gradients(model, number)
            step()
            scheduler.step()
    assert step.direct and all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_hooks_are_called(digits_permit: TrainPermit) -> None:
    """With a hook of the optimizer, or of all optimizers, every update goes through `step()`."""
    model, called = net(), []
    optimizer = AdamW(model.parameters(), fused=True)
    step = Stepper(digits_permit, optimizer)
    gradients(model, 0)
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
def test_what_is_not_exactly_known_is_torchs_to_do(
    optimizer: Callable[[Any], Optimizer], digits_permit: TrainPermit
) -> None:
    """Another class, a rate in a tensor, an option that the direct call does not know: `step()` it is."""
    model = net()
    assert not Stepper(digits_permit, optimizer(model.parameters())).direct


def test_a_torch_with_other_kernels_is_not_called_directly(
    digits_permit: TrainPermit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that takes other arguments than ours leaves the update to `step()`."""
    monkeypatch.setitem(stepper.KERNELS, "_fused_adamw_", "self grads something_new")
    assert not Stepper(digits_permit, AdamW(net().parameters(), fused=True)).direct


def test_sparse_gradients_meet_torchs_own_refusal(digits_permit: TrainPermit) -> None:
    """Adam does not take the gradients of a sparse embedding, and says so in torch's words."""
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        Stepper(digits_permit, AdamW(table.parameters(), fused=True))()


def test_no_update_without_a_permit() -> None:
    """The one place that moves weights asks for the permit itself."""
    with pytest.raises(Refused, match="without a TrainPermit"):
        Stepper(None, AdamW(net().parameters()))  # type: ignore[arg-type]


def test_the_compiler_is_hidden_from_only_inside_the_block() -> None:
    """Behind the block torch's methods hide themselves as they did before."""
    with compiler_unloaded():
        optimizer = AdamW(net().parameters(), fused=True)
        optimizer.load_state_dict(optimizer.state_dict())
    methods: list[Any] = [getattr(Optimizer, name).__wrapped__ for name in compiler.HIDDEN]
    assert all(vars(method).get("__dynamo_disable") is not method for method in methods)


@pytest.mark.process
def test_updates_need_no_compiler() -> None:
    """Making an optimizer, its scheduler and an update leaves torch's compiler unloaded, which is a second saved."""
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
