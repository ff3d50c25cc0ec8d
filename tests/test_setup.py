"""Before the first step: parts that do not fit are named, and components are built as the config says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.building import builder, probe
from pipeline.checkpoints import generation, weights
from pipeline.checkpoints.generation import Snapshot
from pipeline.data.dataset import Data
from pipeline.engine.loop import Training
from pipeline.errors import UserError
from pipeline.evaluation.task import build_task
from pipeline.run_store.job import Delta, Job
from tests.trainings import PERMIT, REGRESSION, Changed, Watcher, blobs, components_of, config, permitted, run, train

CPU = torch.device("cpu")
__all__ = ["permitted"]


# --- parts that do not fit -------------------------------------------------------------------------------------------


class Broken(nn.Module):
    """A user's model that fails in a given way."""

    def __init__(self, way: Callable[[Tensor], Any], trained: bool = True) -> None:
        super().__init__()
        self.way, self.layer = way, nn.Linear(4, 3)
        self.requires_grad_(trained)

    def forward(self, x: Tensor) -> Any:
        return self.way(self.layer(x))


def probe_error(model: nn.Module, body: Changed, data: Data, loss: Any = None) -> str:
    loss = loss or builder.build_loss(body)
    task = build_task(body, loss, model)
    with pytest.raises(UserError) as caught:
        probe.probe_rows(model, task, data.train.X[:2], data.train.y[:2], data.classes)
    return str(caught.value)


@pytest.mark.parametrize(
    ("way", "message"),
    [
        (lambda out: out[:, :2], r"model: outputs do not fit the classes, got 'shape [B, 2]'; expected [B, 3]"),
        (lambda out: out[..., None], "got 'shape [B, 3, 1]'"),
        (lambda out: out.sum(), "outputs have no batch dimension"),
        (lambda out: out[:1], "got 'shape (1, 3) for 2 rows'"),
        (lambda out: (out, out), "does not return a tensor, got 'tuple'"),
        (lambda out: out.detach(), "loss: does not depend on a trainable parameter"),
        (lambda out: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda out: out @ out, "RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)"),
    ],
)
def test_probe_names_outputs_that_do_not_fit(way: Callable[[Tensor], Any], message: str) -> None:
    """One message names the shapes, or the user's own line and error."""
    error = probe_error(Broken(way), config(), blobs())
    assert message in error and "\n" not in error
    assert "Error" not in message or f"{__file__}:" in error


def test_probe_refuses_model_without_trainable_parameters() -> None:
    """The message has the number of frozen parameters."""
    assert "2 parameters, none of which requires a gradient" in probe_error(
        Broken(lambda x: x, False), config(), blobs()
    )


def test_probe_names_layer_with_wrong_input_width() -> None:
    """If no line belongs to the user, the message names the layer."""
    error = probe_error(nn.Sequential(nn.Linear(9, 3)), config(), blobs())
    assert error.startswith("model: fails in Linear(in_features=9") and "shapes cannot be multiplied" in error


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nn.CrossEntropyLoss(reduction="none"), "does not return a scalar, got 'shape (2,)'"),
        (lambda out, y: 3.0, "does not return a scalar, got 'float'"),
        (nn.BCEWithLogitsLoss(), "loss: fails in BCEWithLogitsLoss()"),
        (lambda out, y: out.nonsense, "AttributeError: 'Tensor' object has no attribute 'nonsense'"),
    ],
)
def test_probe_names_loss_that_does_not_fit(loss: Any, message: str) -> None:
    """The message names the loss for its own result and its own exception."""
    assert message in probe_error(Broken(lambda x: x), config(), blobs(), loss)


class OwnLoss:
    """A user's loss that fails from its third call on."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        return nn.functional.cross_entropy(outputs, targets if self.calls < 3 else targets[:1])


class Odd(torch.optim.SGD):
    """An optimizer whose `step` fails."""

    def step(self, closure: Any = None) -> Any:
        raise ValueError("no step today")


class Doubled(torch.autograd.Function):
    """An operation whose backward pass fails."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise RuntimeError("no way back")


class Curious(Watcher):
    """An observer that fails."""

    def before_update(self, step: int, *_: Any) -> None:
        raise KeyError("an observer's own fault")


def test_training_names_part_that_fails() -> None:
    """Loss, optimizer and backward pass are named; the error of an observer is raised unchanged."""
    data, job = blobs(), Job("", "trial")

    def failing(**changed: Any) -> Training:
        return Training(PERMIT[0], replace(components_of(config(), data, job), **changed), job)

    components = components_of(config(), data, job)
    with pytest.raises(UserError, match=rf"loss: fails at {__file__}"):
        run(failing(task=replace(components.task, loss=OwnLoss())))
    with pytest.raises(UserError, match=r"optimizer: fails at .*no step today"):
        run(failing(optimizer=Odd(components.model.parameters(), lr=0.1)))
    back = failing()
    back.model.register_forward_hook(lambda module, inputs, out: Doubled.apply(out))
    with pytest.raises(UserError, match=r"model or loss: fails in the backward pass at .*no way back"):
        run(back)
    with pytest.raises(KeyError, match="an observer's own fault"):
        run(failing(), Curious(1))


def test_training_names_line_of_late_failure() -> None:
    """The message of an exception at a later step has the user's line."""

    def late(module: nn.Module, inputs: Any, out: Tensor) -> Tensor:
        calls.append(len(out))
        return out if len(calls) < 8 else out.nonsense  # type: ignore[no-any-return, attr-defined]

    calls: list[int] = []
    job, data, body = Job("", "trial"), blobs(), config()
    components = components_of(body, data, job)
    components.model.register_forward_hook(late)
    training = Training(PERMIT[0], components, job)
    with pytest.raises(UserError, match=rf"model: fails at {__file__}:\d+ \(AttributeError"):
        run(training)


def test_probe_leaves_model_unchanged() -> None:
    """Running statistics and gradients are the same before and after the probe."""
    body = config(model__normalization="batch")
    model = builder.build_model(body, (), 3, blobs())
    before = weights.weights_digest(model.state_dict())
    data = blobs()
    seen = probe.probe_rows(
        model, build_task(body, nn.CrossEntropyLoss(), model), data.train.X[:2], data.train.y[:2], 3
    )
    assert before == weights.weights_digest(model.state_dict()) and not seen.stochastic
    assert all(p.grad is None for p in model.parameters())


def test_probe_checks_whole_config() -> None:
    """The probe counts the parameters, and refuses a config that cannot train."""
    assert probe.ConfigProbe(67, ()) == probe.probe(config(), blobs())
    with pytest.raises(UserError, match="outputs do not fit"):
        probe.probe(config(model__out_features=2), blobs())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"trainer__strategy": "ddp"}, r"trainer\.strategy"),
        ({"trainer__devices": 2}, r"trainer\.devices"),
        ({"trainer__accelerator": "mps"}, r"trainer\.accelerator"),
        ({"task__kind": "clasification"}, "did you mean 'classification'"),
        ({"task__step": {"_target_": "x.y"}}, r"task\.step\._target_: is not allowed"),
        ({"task__predict": "argmax"}, r"task\.predict: unknown"),
        ({"task__class_weights": "equal"}, r"task\.class_weights: unknown"),
        ({"optimizer__groups": [{"match": "haed.*", "lr": 1}]}, r"groups\[0\]\.match: matches no remaining parameter"),
        ({"optimizer": {"_target_": "torch.nn.Linear"}}, r"optimizer: "),
        ({"model": {"_target_": "torch.nn.functional.relu", "_partial_": True}}, r"model: is not a torch\.nn\.Module"),
        ({"model__init_from": "nowhere.safetensors"}, r"model\.init_from: there is no such file"),
        ({"scheduler": {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 0}}, "scheduler"),
    ],
)
def test_build_components_names_wrong_key(changed: Changed, message: str) -> None:
    """Options that are not built and parts that cannot be built are named by their key."""
    with pytest.raises(UserError, match=message):
        train(config(**changed), blobs())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the card that must be missing")
def test_device_for_reports_missing_cuda() -> None:
    """A device that this machine does not have is an error of the user's input."""
    with pytest.raises(UserError, match=r"trainer\.accelerator: no CUDA device is available"):
        train(config(trainer__accelerator="cuda"), blobs())


# --- building --------------------------------------------------------------------------------------------------------


def test_build_model_depends_on_seed_alone() -> None:
    """The same seed gives the same model, whatever was drawn before."""
    first = weights.weights_digest(builder.build_model(config(), (), 3, blobs()).state_dict())
    torch.rand(9)
    assert first == weights.weights_digest(builder.build_model(config(), (), 3, blobs()).state_dict())
    assert first != weights.weights_digest(builder.build_model(config(), (), 4, blobs()).state_dict())


def test_build_model_loads_init_from(tmp_path: Path) -> None:
    """Training starts from the weights of a file; weights that do not fit are refused with names and shapes."""
    model = builder.build_model(config(), (), 9, blobs())
    saved = (
        generation.write(tmp_path, Snapshot({"role": "best"}, {"weights": weights.tensors_of(model.state_dict())}))
        / generation.WEIGHTS
    )
    again = builder.build_model(config(model__init_from=str(saved)), (), 3, blobs())
    assert weights.weights_digest(model.state_dict()) == weights.weights_digest(again.state_dict())
    with pytest.raises(UserError, match=r"head.weight is \[3, 8\], the model's \[5, 8\]"):
        builder.build_model(config(model__init_from=str(saved), model__out_features=5), (), 3, blobs())


def test_surgery_changes_built_model() -> None:
    """The config's list changes the model, and a job's list is appended to it."""
    body = config(surgery=[{"swap_activation": {"from": "ReLU", "to": "Tanh"}}])
    fit_result = train(body, blobs(), delta=Delta(surgery=({"set_dropout": {"p": 0.1}},)))
    assert {"Tanh", "Dropout"} <= {type(m).__name__ for m in fit_result.model.modules()}


def test_build_optimizer_fuses_by_default() -> None:
    """torch's Adam, AdamW and SGD are fused unless the config sets an implementation; others are left alone."""
    model = nn.Linear(2, 2)
    assert builder.build_optimizer(config(), model).defaults["fused"]
    assert not builder.build_optimizer(config(optimizer__fused=False), model).defaults["fused"]
    assert not builder.build_optimizer(config(optimizer__foreach=True), model).defaults["fused"]
    sgd, rmsprop = ({"_target_": f"torch.optim.{name}", "lr": 0.1} for name in ("SGD", "RMSprop"))
    assert builder.build_optimizer(config(optimizer=sgd), model).defaults["fused"]
    assert "fused" not in builder.build_optimizer(config(optimizer=rmsprop), model).defaults


def test_build_optimizer_groups_parameters_by_name() -> None:
    """The first pattern that matches takes a parameter; frozen parameters are in no group."""
    body = config(optimizer__groups=[{"match": "head.*", "lr": 0.5}], surgery=[{"freeze": {"match": "*.bias"}}])
    optimizer = builder.build_optimizer(body, builder.build_model(body, (), 3, blobs()))
    assert [0.5, 0.02] == [g["lr"] for g in optimizer.param_groups]
    assert [(3, 8), (8, 4)] == [tuple(p.shape) for g in optimizer.param_groups for p in g["params"]]


@pytest.mark.parametrize(
    ("loss", "asked", "expected"),
    [("CrossEntropyLoss", "balanced", [2.0, 2 / 3]), ("NLLLoss", [1, 3], [1, 3]), ("CrossEntropyLoss", "none", None)],
)
def test_build_loss_sets_class_weights(loss: str, asked: Any, expected: list[float] | None) -> None:
    """Balanced weights are rows / (classes · rows of the class); a list is used as it is."""
    body = config(loss={"_target_": f"torch.nn.{loss}"}, task__class_weights=asked)
    weight = builder.build_loss(body, (), {"0": 25, "1": 75}).weight
    assert expected == (None if weight is None else pytest.approx(weight.tolist()))


def test_build_loss_weights_binary_loss_and_refuses_others() -> None:
    """In a binary loss the weight applies to the positive class; a loss without weights is refused."""
    binary = config(loss={"_target_": "torch.nn.BCEWithLogitsLoss"}, task__class_weights="balanced")
    assert 4.0 == pytest.approx(float(builder.build_loss(binary, (), {"0": 80, "1": 20}).pos_weight))
    with pytest.raises(UserError, match="this loss takes no weights, got 'MSELoss'"):
        builder.build_loss(config(loss={"_target_": "torch.nn.MSELoss"}, task__class_weights=[1, 2]))


def test_probe_refuses_regression_outputs_of_wrong_width() -> None:
    """Without the check torch would broadcast them silently."""
    error = probe_error(Broken(lambda x: x), config(**REGRESSION), blobs(kind="regression"))
    assert "model: outputs do not fit the targets, got 'shape [B, 3]'" in error


class Growing(nn.Module):
    """A model with a buffer that keeps every row."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("seen", torch.zeros(0, 4))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = torch.cat([self.seen, x.detach()])
        out: Tensor = self.layer(x)
        return out


def test_probe_refuses_growing_buffer() -> None:
    """A buffer that no checkpoint could restore is refused before the first step."""
    error = probe_error(Growing(), config(), blobs())
    assert "model: buffer seen changes its shape in a step, got '[0, 4], then [2, 4]'" in error
