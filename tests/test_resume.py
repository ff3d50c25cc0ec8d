"""Resuming: a training that was stopped at any step ends with the same bits, and any step can be repeated."""

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
from pipeline.engine import resume
from pipeline.engine.fit import fit
from pipeline.engine.loop import Training
from pipeline.engine.progress import Fit
from pipeline.engine.replay import replay
from pipeline.errors import UserError
from pipeline.run_store import permits
from pipeline.run_store.job import Delta, Job
from pipeline.run_store.run import Run
from pipeline.runtime import interrupt
from pipeline.runtime.interrupt import Interrupted
from tests.ledger_fixtures import LATER
from tests.trainings import PERMIT, Changed, Watcher, blobs, components_of, config, permitted, train

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
    """An observer that sends a signal at a step: SIGTERM, which no shell sets to be ignored."""

    def __init__(self, at: int, number: int = signal.SIGTERM) -> None:
        super().__init__(1)
        self.at, self.number = at, number

    def after_update(self, step: int) -> None:
        if step == self.at:
            os.kill(os.getpid(), self.number)


def last_generation_digests(folder: Path) -> tuple[Any, ...]:
    """Return digests of the last generation: weights, optimizer and scheduler, history."""
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
    """Stopped inside an epoch, at its end and repeatedly, training gives the same weights, state and history."""
    body, data = config(**{**HARD, **CHANGES[name]}), blobs()
    (undisturbed := tmp_path / "undisturbed").mkdir()
    fit_result = train(body, data, folder=undisturbed)
    assert fit_result.stop_reason == "done" and fit_result.resumed_at == 0
    for stops in ((1,), (4,), (fit_result.steps - 1,), (2, 3, 7)):
        (folder := tmp_path / "-".join(map(str, stops))).mkdir()
        for at in stops:
            with pytest.raises(Interrupted, match=rf"at step {at} of \d+, epoch \d+; a checkpoint is written"):
                train(body, data, Stop(at), folder=folder)
        again = train(body, data, folder=folder)
        assert again.resumed_at == stops[-1] and again.score == fit_result.score
        assert last_generation_digests(folder) == last_generation_digests(undisturbed)


def test_finished_training_is_not_repeated(tmp_path: Path) -> None:
    """The same job in the same folder gives the same result without a step."""
    first = train(config(), blobs(), folder=tmp_path)
    second = train(config(), blobs(), folder=tmp_path)
    assert (first.checkpoint, first.weights_digest) == (second.checkpoint, second.weights_digest)
    assert second.resumed_at == second.steps == first.steps
    assert torch.equal(next(first.model.parameters()), next(second.model.parameters()))


def test_training_with_another_seed_does_not_resume(tmp_path: Path) -> None:
    """Only the training that wrote a checkpoint resumes from it."""
    with pytest.raises(Interrupted):
        train(config(), blobs(), Stop(5), folder=tmp_path)
    assert train(config(), blobs(), folder=tmp_path, seed_index=1).resumed_at == 0


def test_checkpoints_do_not_change_training(tmp_path: Path) -> None:
    """Checkpoints at every second step or never give the same weights and history; two are kept."""
    (often := tmp_path / "often").mkdir()
    (never := tmp_path / "never").mkdir()
    train(config(trainer__checkpoint_steps=2), blobs(), folder=often)
    train(config(trainer__checkpoint_steps=None), blobs(), folder=never)
    assert last_generation_digests(often) == last_generation_digests(never)
    roles = [generation.state_of(path)["role"] for path in generation.generations(often)]
    assert roles == ["last", "last", "best"]


def test_sigusr1_writes_checkpoint(tmp_path: Path) -> None:
    """SIGUSR1, which a cluster sends as a warning, leaves a checkpoint, and training continues."""
    fit_result = train(config(), blobs(), Stop(3, signal.SIGUSR1), folder=tmp_path)
    seen = [generation.state_of(path).get("step") for path in generation.generations(tmp_path)]
    assert 3 in seen and fit_result.stop_reason == "done"
    assert fit_result.weights_digest == train(config(), blobs()).weights_digest


def test_second_stop_request_ends_training_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second request raises KeyboardInterrupt without another checkpoint."""
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
    """Only the main thread receives signals; in another thread training runs normally."""
    fit_result: list[Any] = []
    thread = threading.Thread(target=lambda: fit_result.append(train(config(), blobs(), folder=tmp_path)))
    thread.start()
    thread.join()
    assert fit_result[0].stop_reason == "done"


def test_training_resumes_after_full_disk(tmp_path: Path) -> None:
    """The message has the system's error; with free space training resumes from the checkpoint before."""
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
    """A model with dropout in eval mode that also draws from NumPy in validation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = nn.functional.dropout(self.layer(x), 0.5)
        return out if self.training else out + float(np.random.normal())


class Counting(nn.Module):
    """A user's step with a buffer that changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        outputs = model(batch[0])
        self.seen = self.seen + float(model.training)
        return {"loss": nn.functional.cross_entropy(outputs, batch[1]) * (1 + 0.1 * self.seen), "outputs": outputs}


class Remembering(nn.Module):
    """A model with a buffer that `state_dict` leaves out and that changes in training."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("passes", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.passes += float(self.training)
        out: Tensor = self.layer(x) * (1 + 0.1 * self.passes)
        return out


class Noisy:
    """An augmentation that draws from torch's generator."""

    def __call__(self, inputs: Tensor, draws: Any) -> Tensor:
        return inputs + torch.randn_like(inputs)


@pytest.mark.parametrize(
    "changed",
    [
        {"model": {"_target_": "pipeline.models.mlp.Drawing"}},
        {"model": {"_target_": "pipeline.models.mlp.Remembering"}},
        {"task__step": {"_target_": "pipeline.models.mlp.Counting"}},
        {"loader__augment": [{"_target_": "pipeline.models.mlp.Noisy"}]},
    ],
)
def test_training_with_random_numbers_or_counters_resumes(monkeypatch: Any, tmp_path: Path, changed: Changed) -> None:
    """Models that draw or count, steps with a buffer, and augmentations that draw from torch give the same bits."""
    for kind in (Drawing, Remembering, Counting, Noisy):
        monkeypatch.setattr(f"pipeline.models.mlp.{kind.__name__}", kind, raising=False)
        monkeypatch.setattr(kind, "__module__", "pipeline.models.mlp")
    (undisturbed := tmp_path / "undisturbed").mkdir()
    (stopped := tmp_path / "stopped").mkdir()
    train(config(**changed), blobs(), folder=undisturbed)
    for at in (3, 7, 14):
        with pytest.raises(Interrupted):
            train(config(**changed), blobs(), Stop(at), folder=stopped)
    train(config(**changed), blobs(), folder=stopped)
    assert last_generation_digests(stopped) == last_generation_digests(undisturbed)


def test_training_refuses_state_that_cannot_be_stored(tmp_path: Path) -> None:
    """A scheduler that keeps a lock is refused with its path before the first step."""
    watcher = Watcher(1)
    body = config(scheduler={"_target_": "torch.optim.lr_scheduler.StepLR", "_partial_": True, "step_size": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.optim.lr_scheduler.StepLR.state_dict", lambda self: {"lock": threading.Lock()})
        with pytest.raises(UserError, match=r"schedule\.lock: cannot be stored in a checkpoint, got 'lock'"):
            train(body, blobs(), watcher, folder=tmp_path)
    assert 1 not in watcher.seen


# --- replay ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def trained_run(digits_permit: permits.TrainPermit) -> tuple[Run, Fit]:
    """Return the planned digits run, trained in the folder of the baseline."""
    run = digits_permit.run
    folder = run.inside("baseline")
    folder.mkdir(exist_ok=True)
    return run, fit(digits_permit, Job(digits_permit.plan.digest, "baseline"), folder=folder)


class Weights(Watcher):
    """Records a digest of the weights after each step."""

    def __init__(self) -> None:
        super().__init__(1)
        self.after: dict[int, str] = {}

    def after_update(self, step: int) -> None:
        self.after[step] = weights_digest(self.model.state_dict())


@pytest.mark.parametrize("step", [1, 17, 18, 30])
def test_replay_repeats_any_step(trained_run: tuple[Run, Fit], digits_permit: permits.TrainPermit, step: int) -> None:
    """Weights before and after the step, its loss and its rows are those of the training."""
    run, fit_result = trained_run
    seen = Weights()
    fit(digits_permit, Job(digits_permit.plan.digest, "baseline"), [seen])
    again = replay(run, step)
    assert again.weights_after == seen.after[step] and again.origin is None
    assert step == 1 or again.weights_before == seen.after[step - 1]
    at = fit_result.history.series("train/loss")[0].tolist().index(step)
    assert again.loss == pytest.approx(float(fit_result.history.series("train/loss")[1][at]))
    assert len(again.rows) == (64 if step % 17 else 1077 - 16 * 64)


def test_replay_starts_from_nearest_checkpoint(digits_permit: permits.TrainPermit) -> None:
    """Replay starts from a checkpoint before the step, not from one at the step or after it."""
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
    """A step that training did not reach within its time limit can be replayed."""
    job = Job(digits_permit.plan.digest, "trial", Delta(overrides={"trainer.max_minutes": 1e-9}))
    assert replay(digits_permit.run, 5, job).step == 5


def test_replay_shows_observers_one_step(trained_run: tuple[Run, Fit]) -> None:
    """An observer sees only the replayed step."""
    watcher = Watcher(1)
    replay(trained_run[0], 9, observers=[watcher])
    assert watcher.seen == ["start", 9]


@pytest.mark.parametrize("step", [0, 10_000])
def test_replay_refuses_missing_step(trained_run: tuple[Run, Fit], step: int) -> None:
    """The message has the range of existing steps."""
    with pytest.raises(UserError, match=r"step: is not a step of this training, got '?-?\d+'?; expected 1 to 51"):
        replay(trained_run[0], step)


def test_replay_names_module_of_first_nonfinite_tensor(digits_permit: permits.TrainPermit) -> None:
    """With an extreme learning rate the next step overflows in a layer, which is named with its train rows."""
    job = Job(digits_permit.plan.digest, "trial", Delta(overrides={"optimizer.lr": 1e36}))
    fit_result = fit(digits_permit, job)
    assert fit_result.stop_reason == "nonfinite"
    again = replay(digits_permit.run, fit_result.steps, job)
    assert again.origin and again.origin.what == "output" and again.origin.module.startswith(("body.", "head"))
    assert again.origin.rows and set(again.origin.rows) <= set(again.rows)
    assert again.weights_before == again.weights_after == weights_digest(fit_result.model.state_dict())


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


@pytest.mark.process
def test_baseline_names_nonfinite_row(own_folder: Path, cli: Any) -> None:
    """The row with the NaN is named in the output, in the evidence and in the diagnosis."""
    (own_folder / "conf" / "experiment").mkdir(parents=True)
    (own_folder / "holed.py").write_text(PACKAGE)
    (own_folder / "conf" / "experiment" / "holed.yaml").write_text(EXPERIMENT)
    code, out, _ = cli("phase=diagnostics", "--config-dir", "conf", "experiment=holed", "trust=[holed]")
    assert code in (2, 3)  # there is no run yet
    cli("phase=planning", "--config-dir", "conf", "experiment=holed", "trust=[holed]")
    why = ("--who", "nobody", "--why", "to see what training makes of it", "--expires", LATER)
    assert cli("waive", "holed", "data_finite", *why)[0] == 0
    code, out, _ = cli("phase=baseline", "--config-dir", "conf", "experiment=holed", "trust=[holed]")
    assert "(reproducible); the first tensor that is not finite: inputs, train rows 77" in out
    run = Run(own_folder / "runs" / "holed")
    evidence = json.loads((run.path / run.state().finished["baseline"]["evidence"]["path"]).read_text())["values"]
    assert evidence["first_nonfinite"]["rows"] == [77] and evidence["first_nonfinite"]["rerun"] == "reproducible"
    cli("phase=diagnostics", "run.name=holed")
    diagnosis = json.loads((run.path / "diagnostics" / "1" / "diagnosis.json").read_text())
    assert "the first non-finite tensor is inputs, in train rows 77" in diagnosis["confidence_statement"]


NOISY_PACKAGE = """
import numpy as np
import torch
from torch import nn

class Net(nn.Module):
    '''Its dropout stays on in evaluation.'''
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
    def forward(self, x):
        return self.layer(nn.functional.dropout(x, 0.5, training=True))

def rows():
    draw = np.random.default_rng(0)
    y = draw.integers(0, 3, 300)
    X = (draw.normal(size=(300, 4)) + np.eye(4)[y]).astype("float32")
    return {"train": (X[:200], y[:200]), "val": (X[200:250], y[200:250]), "test": (X[250:], y[250:])}
"""


def test_baseline_of_a_model_that_draws_in_evaluation_verifies(own_folder: Path, cli: Any) -> None:
    """Score and results per class come from the same draws, so that the record of such a model agrees with itself."""
    (own_folder / "conf" / "experiment").mkdir(parents=True)
    (own_folder / "noisy.py").write_text(NOISY_PACKAGE)
    experiment = EXPERIMENT.replace("holed", "noisy").replace(
        "override /data: null]", "override /data: null, override /model: null]"
    )
    experiment = experiment.replace("model: {in_features: 4, out_features: 3}", "model: {_target_: noisy.Net}")
    (own_folder / "conf" / "experiment" / "noisy.yaml").write_text(experiment)
    code, _, err = cli("phase=baseline", "--config-dir", "conf", "experiment=noisy", "trust=[noisy]")

    assert code in (0, 3), err
    assert cli("verify", "noisy")[0] == 0


def end_of(body: Changed, epochs: int, after: generation.Snapshot | None = None) -> generation.Snapshot:
    """The end of a training of so many epochs, which goes on from `after` if that is given."""
    job = Job("", "trial", Delta({"trainer.max_epochs": epochs}))
    components = components_of(job.config(body), blobs(), job)
    training = Training(PERMIT[0], components, job)
    begin = resume.reopened(components, job, after) if after else None
    assert after is None or begin is not None
    with training.session(snapshot=begin):
        training.run()
    return resume.take_snapshot(components, job, training.progress)


@pytest.mark.parametrize("changed", [{}, {"model__dropout": 0.3, "model__normalization": "batch"}])
def test_reopened_training_has_the_bits_of_a_longer_one(changed: Changed) -> None:
    """Four epochs from the end of two give weights, optimizer and history of four epochs from the start."""
    body = config(**changed)
    longer, whole = end_of(body, 4, after=end_of(body, 2)), end_of(body, 4)
    for part in ("weights", "training"):
        assert weights_digest(longer.parts[part]) == weights_digest(whole.parts[part])
    assert longer.history and whole.history and longer.history.digest() == whole.history.digest()


@pytest.mark.parametrize(
    "changed", [{"scheduler": {**ONE_CYCLE, "max_lr": 0.05, "total_steps": "budget"}}, {"seed": 4}]
)
def test_reopened_refuses_another_training(changed: Changed) -> None:
    """A schedule depends on the length, and another seed is another training: these begin from the first step."""
    job = Job("", "trial", Delta({"trainer.max_epochs": 4}))
    components = components_of(job.config(config(**{**changed, "seed": 3})), blobs(), job)
    ended = end_of(config(**changed), 2)
    if "seed" in changed:
        ended.state["identity"]["seed"] = 4
    assert resume.reopened(components, job, ended) is None
