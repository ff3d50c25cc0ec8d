"""Error attribution: an exception of the user's code names the part, the user's file and the line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline import error_attribution
from pipeline.batching.source import batch_source
from pipeline.building.builder import Schedule
from pipeline.engine.loop import Training
from pipeline.engine.setup import TrainingComponents
from pipeline.error_attribution import attributed_to, is_internal
from pipeline.errors import UserError
from pipeline.import_guard import IMPORT_ROOT, NAMES
from pipeline.run_store.job import Job
from tests.trainings import PERMIT, Watcher, blobs, components_of, config, permitted, run

__all__ = ["permitted"]

FILES = [str(path) for name in NAMES for path in sorted((IMPORT_ROOT / name).rglob("*.py"))]
CPU = torch.device("cpu")


class Failure:
    """The user's code that fails: it passes its first argument through until its third call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, value: Any = None, *_: Any) -> Any:
        self.calls += 1
        if self.calls > 2:
            raise KeyError("a mistake of the user")
        return value


LINE = rf"{__file__}:{Failure.__call__.__code__.co_firstlineno + 3} \(KeyError: 'a mistake of the user'\)"


# --- which files are ours --------------------------------------------------------------------------------------------


def test_every_file_but_the_bundled_parts_is_internal() -> None:
    """Models and augmentations that a config may name count as the user's code; all other files are ours."""
    user_code = {Path(path).relative_to(IMPORT_ROOT).as_posix() for path in FILES if not is_internal(path)}
    models = {path.relative_to(IMPORT_ROOT).as_posix() for path in (IMPORT_ROOT / "pipeline" / "models").glob("*.py")}
    assert user_code == {*models, "pipeline/data/augmentations.py"}
    assert not is_internal(__file__) and not is_internal(np.__file__)


def test_named_files_exist() -> None:
    """A file that attribution knows by its path cannot be moved without this test."""
    named = (*error_attribution.BUNDLED, error_attribution.BACKWARD, error_attribution.STEPPER)
    assert [path for path in named if not Path(path).exists()] == []


def run_as(path: str, code: str, **names: Any) -> None:
    """Run code whose frame belongs to this source file."""
    exec(compile(code, path, "exec"), names)


def test_attributed_to_passes_over_every_file_of_ours() -> None:
    """A frame of an internal file is never the place of the error, also where it is the deepest but for torch's."""
    layer, x = nn.Linear(9, 3), torch.zeros(2, 4)
    for path in (path for path in FILES if not path.startswith(error_attribution.BUNDLED)):
        for code in ("raise KeyError('a mistake of the user')", "layer(x)"):
            with pytest.raises(UserError, match=f"^model: fails at {__file__}") as caught, attributed_to("model"):
                run_as(path, code, layer=layer, x=x)
            assert path not in str(caught.value)


# --- parts of a training ---------------------------------------------------------------------------------------------


class FailingHead(nn.Module):
    """The last layer of a user's model."""

    def __init__(self, layer: nn.Module, failure: Failure) -> None:
        super().__init__()
        self.layer, self.failure = layer, failure

    def forward(self, x: Tensor) -> Tensor:
        return self.failure(self.layer(x))


class FailingOptimizer(torch.optim.SGD):
    """A user's optimizer."""

    def step(self, closure: Any = None) -> Any:
        failure()
        return super().step(closure)


class FailingBackward(torch.autograd.Function):
    """An operation of a user's model whose backward pass fails."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return failure(gradients[0])


class FailingObserver(Watcher):
    """An observer, which is not the user's code."""

    def before_update(self, step: int, *_: Any) -> None:
        failure()


failure = Failure()


def with_model(components: TrainingComponents) -> TrainingComponents:
    components.model.head = FailingHead(components.model.head, failure)  # type: ignore[arg-type]
    return components


def with_backward(components: TrainingComponents) -> TrainingComponents:
    components.model.register_forward_hook(lambda module, inputs, out: FailingBackward.apply(out))
    return components


def with_loss(components: TrainingComponents) -> TrainingComponents:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return failure(nn.functional.cross_entropy(outputs, targets))

    return replace(components, task=replace(components.task, loss=loss))


def with_step(components: TrainingComponents) -> TrainingComponents:
    def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        outputs = model(batch[0])
        return failure({"loss": nn.functional.cross_entropy(outputs, batch[1]), "outputs": outputs})

    return replace(components, task=replace(components.task, step=step))


def with_metric(components: TrainingComponents) -> TrainingComponents:
    metric = replace(components.task.metric, function=lambda targets, predictions: failure(0.5), users_own=True)
    return replace(components, task=replace(components.task, metrics=(metric,)))


def with_predict(components: TrainingComponents) -> TrainingComponents:
    return replace(components, task=replace(components.task, predict=lambda outputs: failure(outputs.argmax(1))))


def with_optimizer(components: TrainingComponents) -> TrainingComponents:
    return replace(components, optimizer=FailingOptimizer(components.model.parameters(), lr=0.1))


def with_scheduler(components: TrainingComponents) -> TrainingComponents:
    class FailingScheduler(torch.optim.lr_scheduler.ConstantLR):
        def step(self, epoch: Any = None) -> None:
            failure()

    failure.calls = -1  # a scheduler steps once when it is made
    return replace(components, schedule=Schedule(FailingScheduler(components.optimizer), every_step=True))


def with_augmentation(components: TrainingComponents) -> TrainingComponents:
    order, batch = (lambda epoch: np.arange(100)), components.budget.batch_size
    failing = [lambda inputs, draws: failure(inputs)]
    source = batch_source(components.train, order, seed=3, batch=batch, accumulate=1, device=CPU, augment=failing)
    return replace(components, batches=source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_model, "model: fails at "),
        (with_backward, "model or loss: fails in the backward pass at "),
        (with_loss, "loss: fails at "),
        (with_step, "task.step: fails at "),
        (with_metric, r"task\.metric: 'accuracy' fails at "),
        (with_predict, "task.predict: fails at "),
        (with_optimizer, "optimizer: fails at "),
        (with_scheduler, "scheduler: fails at "),
        (with_augmentation, r"loader\.augment\[0\]: fails at "),
    ],
)
def test_training_names_the_part_and_the_users_line(change: Callable[..., TrainingComponents], message: str) -> None:
    """Wherever the user's code fails in a training, the message holds its part, its file and its line."""
    failure.calls, job = 0, Job("", "trial")
    body = config(trainer__max_epochs=4)
    components = change(components_of(body, blobs(), job))
    with pytest.raises(UserError, match=f"^{message}{LINE}$"):
        run(Training(PERMIT[0], components, job))


def test_training_passes_on_the_error_of_an_observer() -> None:
    """An observer's own error is not attributed to the user's code."""
    failure.calls, job = 2, Job("", "trial")
    training = Training(PERMIT[0], components_of(config(), blobs(), job), job)
    with pytest.raises(KeyError, match="a mistake of the user"):
        run(training, FailingObserver(1))
