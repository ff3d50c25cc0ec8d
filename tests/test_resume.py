"""Taking up: a training stopped anywhere goes on to the same bits, and any step of it can be made again."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.checkpoints import generation
from pipeline.checkpoints.weights import weights_digest
from pipeline.engine.fit import fit
from pipeline.engine.progress import Fit
from pipeline.engine.replay import replay
from pipeline.errors import UserError
from pipeline.run_store import permits
from pipeline.run_store.job import Delta, Job
from pipeline.run_store.run import Run
from pipeline.runtime import interrupt
from pipeline.runtime.interrupt import Interrupted
from tests.trainings import Changed, Watcher, blobs, config, permitted, train

__all__ = ["permitted"]

ONE_CYCLE = {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "_partial_": True, "interval": "step"}
PLATEAU = {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", "_partial_": True, "patience": 0}
SCHEDULES = [
    {"_target_": "torch.optim.lr_scheduler.MultiStepLR", "milestones": [2, 3]},
    {"_target_": "torch.optim.lr_scheduler.CosineAnnealingWarmRestarts", "T_0": 2},
]

HARD: Changed = {
    "model__dropout": 0.3,
    "model__normalization": "batch",
    "trainer__accumulate_grad_batches": 2,
    "trainer__gradient_clip_val": 0.5,
    "trainer__max_epochs": 5,
    "trainer__patience": 3,
    "loader__batch_size": 13,
}
CHANGES: dict[str, Changed] = {
    "adamw, a schedule by step": {"scheduler": {**ONE_CYCLE, "max_lr": 0.05, "total_steps": "budget"}},
    "sgd with momentum, a plateau": {
        "optimizer": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1, "momentum": 0.9},
        "scheduler": PLATEAU,
    },
    "milestones": {"scheduler": {**SCHEDULES[0], "_partial_": True}, "loader__sampler": "balanced"},
    "restarts": {
        "optimizer": {"_target_": "torch.optim.Adagrad", "_partial_": True, "lr": 0.1},
        "scheduler": {**SCHEDULES[1], "_partial_": True},
    },
    "rmsprop in bfloat16": {
        "optimizer": {"_target_": "torch.optim.RMSprop", "_partial_": True, "lr": 0.01, "centered": True},
        "trainer__precision": "bf16-mixed",
    },
    "scaled float16": {"trainer__precision": "16-mixed"},
}


class Stop(Watcher):
    """An observer that asks for a stop at a step, by the signal that no shell sets to be ignored."""

    def __init__(self, at: int, number: int = signal.SIGTERM) -> None:
        super().__init__(1)
        self.at, self.number = at, number

    def after_update(self, step: int) -> None:
        if step == self.at:
            os.kill(os.getpid(), self.number)


def everything(folder: Path) -> tuple[Any, ...]:
    """The bits of the last generation: weights, optimizer and schedule, history."""
    last = [p for p in generation.generations(folder) if generation.state_of(p)["role"] == "last"][-1]
    read = generation.read(last)
    assert read.history
    return (
        weights_digest(read.parts["weights"]),
        weights_digest(read.parts["training"]),
        read.state["others"],
        read.state["best"],
        read.history.digest(),
    )


@pytest.mark.parametrize("name", CHANGES)
def test_training_resumes_from_any_step(tmp_path: Path, name: str) -> None:
    """Stopped inside an epoch, at its end and once more later: the same weights, optimizer state and history."""
    body, data = config(**{**HARD, **CHANGES[name]}), blobs()
    (calm := tmp_path / "calm").mkdir()
    done = train(body, data, folder=calm)
    assert done.stop_reason == "done" and done.resumed_at == 0
    for stops in ((1,), (4,), (done.steps - 1,), (2, 3, 7)):
        (folder := tmp_path / "-".join(map(str, stops))).mkdir()
        for at in stops:
            with pytest.raises(Interrupted, match=rf"at step {at} of \d+, epoch \d+; a checkpoint is written"):
                train(body, data, Stop(at), folder=folder)
        again = train(body, data, folder=folder)
        assert again.resumed_at == stops[-1] and again.score == done.score
        assert everything(folder) == everything(calm)


def test_finished_training_is_not_repeated(tmp_path: Path) -> None:
    """The same job in the same folder gives the same result without a step."""
    first = train(config(), blobs(), folder=tmp_path)
    second = train(config(), blobs(), folder=tmp_path)
    assert (first.checkpoint, first.weights_digest) == (second.checkpoint, second.weights_digest)
    assert second.resumed_at == second.steps == first.steps
    assert torch.equal(next(first.model.parameters()), next(second.model.parameters()))


def test_training_with_another_seed_does_not_resume(tmp_path: Path) -> None:
    """Checkpoints are taken up by the training that wrote them, and by no other."""
    with pytest.raises(Interrupted):
        train(config(), blobs(), Stop(5), folder=tmp_path)
    assert train(config(), blobs(), folder=tmp_path, seed_index=1).resumed_at == 0


def test_checkpoints_do_not_change_training(tmp_path: Path) -> None:
    """Every second step or never: the same weights and history; two of them are kept."""
    (often := tmp_path / "often").mkdir()
    (never := tmp_path / "never").mkdir()
    train(config(trainer__checkpoint_steps=2), blobs(), folder=often)
    train(config(trainer__checkpoint_steps=None), blobs(), folder=never)
    assert everything(often) == everything(never)
    roles = [generation.state_of(path)["role"] for path in generation.generations(often)]
    assert roles == ["last", "last", "best"]


def test_sigusr1_writes_checkpoint(tmp_path: Path) -> None:
    """A scheduler's warning leaves a checkpoint of that step; the training ends as if nothing had been."""
    done = train(config(), blobs(), Stop(3, signal.SIGUSR1), folder=tmp_path)
    seen = [generation.state_of(path).get("step") for path in generation.generations(tmp_path)]
    assert 3 in seen and done.stop_reason == "done"
    assert done.weights_digest == train(config(), blobs()).weights_digest


def test_second_stop_request_ends_training_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who insists is let go at once, with what was written before."""
    monkeypatch.setattr(interrupt, "REPEAT_SECONDS", 0.0)

    class Slow(Stop):
        def after_update(self, step: int) -> None:
            if step == self.at:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt) as stopped:
        train(config(), blobs(), Slow(2), folder=tmp_path)
    assert not isinstance(stopped.value, Interrupted)


def test_training_in_thread_ignores_signals(tmp_path: Path) -> None:
    """Signals are the main thread's; elsewhere training just runs."""
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(train(config(), blobs(), folder=tmp_path)))
    thread.start()
    thread.join()
    assert done[0].stop_reason == "done"


def test_training_resumes_after_full_disk(tmp_path: Path) -> None:
    """The message names the file; with room again the training goes on from the checkpoint before."""
    from pipeline.run_store import files

    body = config(trainer__checkpoint_steps=4)

    def full(operation: str, path: Path) -> bool:
        if "checkpoints" in str(path) and ".2." in str(path):
            raise OSError(28, "No space left on device", str(path))
        return False

    with files.fault_points(full), pytest.raises(UserError, match="No space left on device"):
        train(body, blobs(), folder=tmp_path)
    again = train(body, blobs(), folder=tmp_path)
    assert again.resumed_at == 4 and again.weights_digest == train(body, blobs()).weights_digest


class Drawing(nn.Module):
    """Forgets that dropout has a mode, and asks NumPy in validation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = nn.functional.dropout(self.layer(x), 0.5)
        return out if self.training else out + float(np.random.normal())


class Counting(nn.Module):
    """A step of one's own with a buffer that moves."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        outputs = model(batch[0])
        self.seen = self.seen + float(model.training)
        return {"loss": nn.functional.cross_entropy(outputs, batch[1]) * (1 + 0.1 * self.seen), "outputs": outputs}


class Noisy:
    """An augmentation that draws from torch itself."""

    def __call__(self, inputs: Tensor, draws: Any) -> Tensor:
        return inputs + torch.randn_like(inputs)


@pytest.mark.parametrize(
    "changed",
    [
        {"model": {"_target_": "pipeline.models.mlp.Drawing"}},
        {"task__step": {"_target_": "pipeline.models.mlp.Counting"}},
        {"loader__augment": [{"_target_": "pipeline.models.mlp.Noisy"}]},
    ],
)
def test_training_with_random_numbers_or_counters_resumes(monkeypatch: Any, tmp_path: Path, changed: Changed) -> None:
    """Models that draw in validation, steps with a memory, augmentations that ask torch: the same bits."""
    for kind in (Drawing, Counting, Noisy):
        monkeypatch.setattr(f"pipeline.models.mlp.{kind.__name__}", kind, raising=False)
        monkeypatch.setattr(kind, "__module__", "pipeline.models.mlp")
    (calm := tmp_path / "calm").mkdir()
    (stopped := tmp_path / "stopped").mkdir()
    train(config(**changed), blobs(), folder=calm)
    for at in (3, 7, 14):
        with pytest.raises(Interrupted):
            train(config(**changed), blobs(), Stop(at), folder=stopped)
    train(config(**changed), blobs(), folder=stopped)
    assert everything(stopped) == everything(calm)


def test_training_refuses_state_that_cannot_be_stored(tmp_path: Path) -> None:
    """A scheduler that keeps a lock is refused with its path, and nothing was trained."""
    watcher = Watcher(1)
    made = config(scheduler={"_target_": "torch.optim.lr_scheduler.StepLR", "_partial_": True, "step_size": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.optim.lr_scheduler.StepLR.state_dict", lambda self: {"lock": threading.Lock()})
        with pytest.raises(UserError, match=r"schedule\.lock: cannot be stored in a checkpoint, got 'lock'"):
            train(made, blobs(), watcher, folder=tmp_path)
    assert 1 not in watcher.seen


# --- replay -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def made(digits_permit: permits.TrainPermit) -> tuple[Run, Fit]:
    """The planned digits, trained in the place where a baseline trains."""
    run = digits_permit.run
    folder = run.inside("baseline")
    folder.mkdir(exist_ok=True)
    return run, fit(digits_permit, Job(digits_permit.plan.digest, "baseline"), folder=folder)


class Weights(Watcher):
    """Remembers the weights behind each step."""

    def __init__(self) -> None:
        super().__init__(1)
        self.after: dict[int, str] = {}

    def after_update(self, step: int) -> None:
        self.after[step] = weights_digest(self.model.state_dict())


@pytest.mark.parametrize("step", [1, 17, 18, 30])
def test_replay_repeats_any_step(made: tuple[Run, Fit], digits_permit: permits.TrainPermit, step: int) -> None:
    """Weights before and behind it, its loss and its rows are those of the training."""
    run, done = made
    seen = Weights()
    fit(digits_permit, Job(digits_permit.plan.digest, "baseline"), [seen])
    again = replay(run, step)
    assert again.weights_after == seen.after[step] and again.origin is None
    assert step == 1 or again.weights_before == seen.after[step - 1]
    at = done.history.series("train/loss")[0].tolist().index(step)
    assert again.loss == pytest.approx(float(done.history.series("train/loss")[1][at]))
    assert len(again.rows) == (64 if step % 17 else 1077 - 16 * 64)


def test_replay_starts_from_nearest_checkpoint(digits_permit: permits.TrainPermit) -> None:
    """A checkpoint before the step shortens the way, one at or behind it does not count."""
    run, job = digits_permit.run, Job(digits_permit.plan.digest, "baseline")
    (folder := run.inside("baseline")).mkdir(exist_ok=True)
    with pytest.raises(Interrupted):
        fit(digits_permit, job, [Stop(20)], folder=folder)
    late, early = replay(run, 25), replay(run, 20)
    assert (late.resumed_at, early.resumed_at) == (20, 0)
    seen = Weights()
    fit(digits_permit, job, [seen])
    assert (late.weights_after, early.weights_after) == (seen.after[25], seen.after[20])


def test_replay_has_no_time_limit(digits_permit: permits.TrainPermit) -> None:
    """A step of a training that the clock would have stopped before is made again all the same."""
    job = Job(digits_permit.plan.digest, "trial", Delta(overrides={"trainer.max_minutes": 1e-9}))
    assert replay(digits_permit.run, 5, job).step == 5


def test_replay_shows_observers_one_step(made: tuple[Run, Fit]) -> None:
    """Hooks of one's own are shown the one step."""
    watcher = Watcher(1)
    replay(made[0], 9, observers=[watcher])
    assert watcher.seen == ["start", 9]


@pytest.mark.parametrize("step", [0, 10_000])
def test_replay_refuses_missing_step(made: tuple[Run, Fit], step: int) -> None:
    """The steps that there are stand in the message."""
    with pytest.raises(UserError, match=r"step: is not a step of this training, got '?-?\d+'?; expected 1 to 51"):
        replay(made[0], step)


def test_replay_names_module_of_first_nonfinite_tensor(digits_permit: permits.TrainPermit) -> None:
    """A rate that throws the weights to the edge of float32: the next step overflows in the layer that multiplies."""
    job = Job(digits_permit.plan.digest, "trial", Delta(overrides={"optimizer.lr": 1e36}))
    done = fit(digits_permit, job)
    assert done.stop_reason == "nonfinite"
    again = replay(digits_permit.run, done.steps, job)
    assert again.origin and again.origin.what == "output" and again.origin.module.startswith(("body.", "head"))
    assert again.origin.rows and set(again.origin.rows) <= set(again.rows)
    assert again.weights_before == again.weights_after == weights_digest(done.model.state_dict())


PACKAGE = """
import numpy as np

def rows():
    draw = np.random.default_rng(0)
    y = draw.integers(0, 3, 300)
    X = (draw.normal(size=(300, 4)) + np.eye(4)[y]).astype("float32")
    X[77, 2] = np.nan
    return {"train": (X[:200], y[:200]), "val": (X[200:250], y[200:250]), "test": (X[250:], y[250:])}
"""
EXPERIMENT = """# @package _global_
# python -m pipeline phase=baseline --config-dir conf experiment=holed trust=[holed]
defaults: [override /data: null]
seed: 1
data: {_target_: holed.rows}
model: {in_features: 4, out_features: 3}
task: {target: 0.5}
plan: {purpose: to break, population: any, assumptions: [none], risks: [none], limits: {size_mb: 1}, owner: nobody}
phases: {baseline: {sanity_check_steps: 20, reproducibility_steps: 0, folds: 0}}
tracking: {kind: none}
"""


def test_baseline_names_nonfinite_row(own_folder: Path, cli: Any) -> None:
    """The row with the hole is named on the way, in the evidence and in the incident."""
    (own_folder / "conf" / "experiment").mkdir(parents=True)
    (own_folder / "holed.py").write_text(PACKAGE)
    (own_folder / "conf" / "experiment" / "holed.yaml").write_text(EXPERIMENT)
    code, out, _ = cli("phase=diagnostics", "--config-dir", "conf", "experiment=holed", "trust=[holed]")
    assert code in (2, 3)  # there is no run yet
    cli("phase=planning", "--config-dir", "conf", "experiment=holed", "trust=[holed]")
    why = ("--who", "Ada", "--why", "to see what training makes of it", "--expires", "9999-12-31")
    assert cli("waive", "holed", "data_finite", *why)[0] == 0
    code, out, _ = cli("phase=baseline", "--config-dir", "conf", "experiment=holed", "trust=[holed]")
    assert "the first tensor that is not finite: inputs, train rows 77" in out
    run = Run(own_folder / "runs" / "holed")
    found = json.loads((run.path / run.state().finished["baseline"]["evidence"]["path"]).read_text())["values"]
    assert found["first_nonfinite"]["rows"] == [77]
    cli("phase=diagnostics", "run.name=holed")
    told = json.loads((run.path / "diagnostics" / "1" / "diagnosis.json").read_text())
    assert "the first non-finite tensor is inputs, in train rows 77" in told["confidence_statement"]
