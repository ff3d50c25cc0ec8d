"""Precision: mixed-precision passes with float32 weights, an exact loss scale, and refusal of what cannot run."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.building import probe
from pipeline.config.sections import require_built
from pipeline.errors import UserError
from pipeline.evaluation.task import Task, build_task
from pipeline.runtime.precision import GROWTH_INTERVAL, INITIAL_SCALE, LossScale, autocast
from pipeline.runtime.seeds import reseed, seeded

CPU = torch.device("cpu")


def task(model: nn.Module, loss: Any = None) -> Task:
    section = {"kind": "classification", "metric": "accuracy", "target": 1, "predict": "auto"}
    return build_task({"task": section}, loss or nn.CrossEntropyLoss(), model)


ROWS = torch.randn(2, 4), torch.tensor([0, 2])


# --- autocast --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "dtype"), [(32, torch.float32), ("bf16-mixed", torch.bfloat16), ("16-mixed", torch.float16)]
)
def test_autocast_sets_dtype_of_outputs(precision: Any, dtype: torch.dtype) -> None:
    """Outputs have the requested precision; weights, gradients and the loss stay float32."""
    model = nn.Linear(4, 3)
    with autocast(precision, CPU)():
        outputs, loss = task(model).forward(model, *ROWS)
    loss.backward()
    assert outputs.dtype == dtype and loss.dtype == torch.float32
    assert model.weight.grad is not None and model.weight.grad.dtype == model.weight.dtype == torch.float32


def test_autocast_is_null_context_for_32() -> None:
    """For 32 the context is `nullcontext`."""
    assert autocast(32, CPU) is autocast("32", CPU) is contextlib.nullcontext


# --- the loss scale --------------------------------------------------------------------------------------------------


def test_loss_scale_keeps_gradient_bits() -> None:
    """Multiplying and dividing by a power of two is exact."""
    scale, weight = LossScale(), torch.randn(50, requires_grad=True)
    loss = (weight**2).sum()
    (plain,) = torch.autograd.grad(loss, weight, retain_graph=True)
    scale.scaled(loss).backward()
    assert weight.grad is not None and not torch.equal(weight.grad, plain)
    scale.unscale_([weight.grad])
    assert torch.equal(weight.grad, plain)


def test_loss_scale_preserves_small_gradients() -> None:
    """A gradient of 1e-9 is zero in float16 without a loss scale."""
    model, small = nn.Linear(4, 1, bias=False), torch.full((1, 4), 1e-3)

    def gradient(scale: LossScale | None) -> Tensor:
        model.weight.grad = None
        with autocast("16-mixed", CPU)():
            loss = model(small).float().sum() * 1e-5
        (scale.scaled(loss) if scale else loss).backward()
        assert model.weight.grad is not None
        if scale:
            scale.unscale_([model.weight.grad])
        return model.weight.grad

    assert float(gradient(None).abs().max()) < 5e-9
    assert torch.allclose(gradient(LossScale()), torch.full((1, 4), 1e-8), rtol=1e-2)


def test_loss_scale_adapts_to_gradients() -> None:
    """The scale is halved after an overflow, doubled after 2000 finite steps, and never below 1."""
    scale = LossScale()
    scale.update(False)
    assert (scale.value, scale.can_decrease) == (INITIAL_SCALE / 2, True)
    for _ in range(GROWTH_INTERVAL):
        scale.update(True)
    assert (scale.value, scale.finite_steps) == (INITIAL_SCALE, 0)
    for _ in range(40):
        scale.update(False)
    assert (scale.value, scale.can_decrease) == (1.0, False)


def test_loss_scale_restores_state() -> None:
    """The state is plain numbers, and a scale restored from it behaves like the original."""
    scale, other = LossScale(), LossScale(2.0)
    for finite in (False, True, True):
        scale.update(finite)
    other.restore(scale.state())
    assert scale.state() == other.state() == {"value": INITIAL_SCALE / 2, "finite_steps": 2}


# --- unsupported -----------------------------------------------------------------------------------------------------


class Sorts(nn.Module):
    """A model that runs in float32 only, as many do: it scatters into zeros of another dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), 3).scatter(1, torch.tensor([[2, 1, 0]] * len(x)), self.layer(x))


def test_probe_names_precision_that_does_not_run() -> None:
    """The probe names the precision only if the model runs in float32."""
    model = Sorts()
    probe.probe_rows(model, task(model), *ROWS, 3, precision=32)
    with pytest.raises(
        UserError, match=r"^trainer.precision: this model does not run in 16-mixed on the cpu \(model: "
    ) as caught:
        probe.probe_rows(model, task(model), *ROWS, 3, precision="16-mixed")
    assert str(caught.value).endswith("Do: trainer.precision=32")
    narrow = nn.Linear(5, 3)
    with pytest.raises(UserError, match=r"^model: fails in Linear"):
        probe.probe_rows(narrow, task(narrow), *ROWS, 3, precision="bf16-mixed")


@pytest.mark.parametrize(
    ("section", "key", "value", "built"),
    [
        ("trainer", "precision", "bf16-mixed", True),
        ("trainer", "precision", "16-mixed", True),
        ("trainer", "compile", True, True),
        ("trainer", "accelerator", "mps", True),
        ("loader", "num_workers", 7, True),
        ("trainer", "devices", 2, False),
        ("trainer", "strategy", "ddp", False),
        ("trainer", "on_nonfinite", "stop", True),
        ("trainer", "on_nonfinite", "skip", False),
        ("trainer", "on_spike", "none", True),
        ("trainer", "on_spike", "skip", True),
        ("trainer", "on_spike", "rollback", True),
    ],
)
def test_require_built_refuses_unsupported_values(section: str, key: str, value: Any, built: bool) -> None:
    """An unsupported value is refused with its key, never ignored."""
    config: dict[str, Any] = {"trainer": {}, "loader": {}}
    config[section][key] = value
    with contextlib.nullcontext() if built else pytest.raises(UserError, match=rf"{section}\.{key}: is not built"):
        require_built(config)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is an Apple GPU here")
def test_device_for_reports_missing_mps() -> None:
    """`mps` is refused where there is none, and `auto` never chooses it then."""
    with pytest.raises(UserError, match=r"\.accelerator: no Apple GPU is available, got 'mps'; expected auto or cpu"):
        probe.device_for("mps")
    assert probe.device_for("auto").type in ("cpu", "cuda") and probe.device_for("cpu") == CPU


# --- random generators -----------------------------------------------------------------------------------------------

NOISES = {
    "nothing": lambda x: x,
    "torch": lambda x: x + torch.rand(()),
    "python": lambda x: x + random.random(),
    "numpy": lambda x: x + float(np.random.rand()),
}


@pytest.mark.parametrize("source", NOISES)
@pytest.mark.parametrize("where", ["model", "loss"])
def test_probe_reports_random_generators(source: str, where: str) -> None:
    """The probe reports which generators model and loss draw from, and restores all of them."""
    noisy, quiet = NOISES[source], NOISES["nothing"]
    model = nn.Linear(4, 3)
    model.register_forward_hook(lambda module, inputs, out: (noisy if where == "model" else quiet)(out))
    cross = nn.CrossEntropyLoss()
    loss = lambda outputs, y: (noisy if where == "loss" else quiet)(cross(outputs, y))  # noqa: E731
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()  # type: ignore[index, union-attr]

    seen = probe.probe_rows(model, task(model, loss), *ROWS, 3)

    assert (seen.stochastic, seen.uses_global_rng) == (source == "torch", source in ("python", "numpy"))
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    assert before[2] == np.random.get_state()[1].tobytes()  # type: ignore[index, union-attr]


def test_reseed_seeds_global_generators_on_request() -> None:
    """With `global_rng` Python's and NumPy's generators are seeded, too; without it they continue."""

    def draws(global_rng: bool) -> tuple[float, float, float]:
        reseed(2**62 + 5, CPU, global_rng)
        return float(torch.rand(())), random.random(), float(np.random.rand())

    with seeded(0):
        first, second, third = draws(True), draws(True), draws(False)
    assert first == second and first[0] == third[0] and first[1] != third[1] and first[2] != third[2]
