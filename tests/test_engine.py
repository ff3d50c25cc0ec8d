"""The engine: a training is a pure function of its plan, learns what can be learnt, and never hides a NaN."""

from __future__ import annotations

import json
import math
import shutil
import traceback
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.building import builder
from pipeline.checkpoints import generation, weights
from pipeline.data.dataset import Data
from pipeline.data.load import seal
from pipeline.engine.backward import backward
from pipeline.engine.fit import fit
from pipeline.engine.guard import Guard, NonfiniteStep
from pipeline.engine.loop import Training
from pipeline.engine.setup import OVERFIT
from pipeline.errors import Refused, UserError
from pipeline.run_store.job import Job, run_seed
from pipeline.run_store.permits import TrainPermit
from pipeline.runtime.seeds import derive, reseed, seeded
from pipeline.runtime.threads import running_on, threads
from tests.trainings import PERMIT, REGRESSION, Changed, Watcher, blobs, components_of, config, permitted, run, train

CPU = torch.device("cpu")
__all__ = ["permitted"]


# --- seeds, order, threads -------------------------------------------------------------------------------------------


def test_derive_depends_on_seed_and_purpose() -> None:
    """Equal paths give equal 63-bit seeds; a trial's seed is the one that jobs derive."""
    assert derive(7, "init") == derive(7, "init") != derive(7, "step") != derive(8, "step")
    assert run_seed(7, 3) == derive(7, "trial", 3) and 0 <= derive(7, "a", 1) < 2**63


def test_seeded_restores_generators() -> None:
    """Inside the block draws repeat; outside they go on as if nothing had happened."""
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    with seeded(5):
        first = torch.rand(3), np.random.rand(3)
    with seeded(5):
        second = torch.rand(3), np.random.rand(3)
    assert torch.equal(first[0], second[0]) and np.array_equal(first[1], second[1])
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # type: ignore[index]


def test_reseed_equals_manual_seed() -> None:
    """The cheap way and the public way draw the same numbers."""
    with seeded(0):
        reseed(99, CPU)
        cheap = torch.rand(4)
        torch.manual_seed(99)
        assert torch.equal(cheap, torch.rand(4))


def test_threads_follow_rule_and_are_restored() -> None:
    """A number stands; auto is one for a small model and the cores for a large one; the process keeps its own."""
    assert (3, 1, 8, 16) == (
        threads(3, 5),
        threads("auto", 10_000),
        threads("auto", 10**7, 8),
        threads("auto", 10**7, 64),
    )
    before = torch.get_num_threads()
    with running_on(before + 1):
        assert before + 1 == torch.get_num_threads()
    assert before == torch.get_num_threads()


# --- what a training is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{}, {"model__dropout": 0.3}, {"trainer__accumulate_grad_batches": 2}])
def test_fit_is_reproducible(change: Changed) -> None:
    """Weights and history are bit-identical, whatever the process drew in between."""
    data = blobs()
    first = train(config(**change), data)
    torch.rand(17), np.random.rand(5)
    second = train(config(**change), data)
    assert first.weights_digest == second.weights_digest and first.history.digest() == second.history.digest()
    other = train(config(**change), data, seed_index=1)
    assert other.weights_digest != first.weights_digest


def test_fit_learns_and_records_history() -> None:
    """The score is that of the best epoch; the history has its columns and facts."""
    done = train(config(trainer__max_epochs=12), blobs())
    history = done.history
    assert done.score is not None and done.score.value > 0.8 and "val" == done.score.split
    assert done.score.value == pytest.approx(max(history.series("val/accuracy")[1]))
    assert (84, "done", "step") == (done.steps, done.stop_reason, history.table("train/loss"))
    assert {"train/loss", "lr", "val/loss", "val/accuracy", "train/accuracy", "time/step"} == set(history.names())
    assert list(range(1, 85)) == history.series("train/loss")[0].tolist()
    assert list(range(1, 13)) == history.series("val/loss")[0].tolist()
    assert {"loss_at_init", "loss_expected", "train_rows", "classes", "steps_per_epoch", "target"} <= set(history.facts)
    assert math.log(3) == pytest.approx(history.facts["loss_expected"]) and 67 == history.facts["parameters"]


def test_fit_uses_last_partial_batch() -> None:
    """37 rows in batches of 16 are three steps."""
    assert 3 == train(config(trainer__max_epochs=1), blobs(37)).steps


def test_accumulation_equals_large_batch() -> None:
    """A window's gradient is that of its rows together, also where its last batch is smaller."""
    data = blobs(41)
    one = train(config(loader__batch_size=48), data)
    many = train(config(loader__batch_size=16, trainer__accumulate_grad_batches=3), data)
    for name, tensor in one.model.state_dict().items():
        torch.testing.assert_close(tensor, many.model.state_dict()[name], rtol=1e-4, atol=1e-6)
    assert one.steps == many.steps == 3


@pytest.mark.parametrize(
    ("job", "steps", "stopped"), [({"max_steps": 5}, 5, "budget"), ({"max_steps": 10**6}, 21, "done"), ({}, 21, "done")]
)
def test_job_budget_limits_steps(job: Changed, steps: int, stopped: str) -> None:
    """A job's steps cut an epoch short; its partial epoch is measured; more steps than planned change nothing."""
    done = train(config(), blobs(), **job)
    assert (steps, stopped) == (done.steps, done.stop_reason)
    assert math.ceil(steps / 7) == len(done.history.series("val/loss")[0])


def test_shorter_budget_gives_same_first_steps() -> None:
    """The first steps are the same whatever comes later."""
    data = blobs()
    short, long = (
        train(config(model__dropout=0.2), data, max_steps=n).history.series("train/loss")[1] for n in (5, 11)
    )
    assert short.tolist() == long[:5].tolist()


def test_time_limit_stops_training() -> None:
    """No time, no steps: the weights are the first ones and the event is on record."""
    done = train(config(trainer__max_minutes=1e-9), blobs())
    assert ("clock", 0) == (done.stop_reason, done.steps) and "clock" == done.history.events[0]["kind"]


def test_patience_stops_training() -> None:
    """A rate that moves nothing for the better stops after the epochs of patience."""
    done = train(config(optimizer__lr=0.0, trainer__max_epochs=50, trainer__patience=2), blobs())
    assert 3 == len(done.history.series("val/loss")[0]) and "early_stop" == done.history.events[-1]["kind"]


def test_overfit_check_fits_one_batch() -> None:
    """One batch alone, without dropout and scheduler, is learnt by heart; nothing is judged on validation."""
    body = config(
        model__dropout=0.5,
        model__hidden=[64],
        scheduler={"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 1},
    )
    done = train(body, blobs(), purpose=OVERFIT, max_steps=150)
    losses = done.history.series("train/loss")[1]
    assert (150, None) == (done.steps, done.score) and losses[-1] < 0.05 * losses[0]
    assert 1.0 == done.history.series("train/accuracy")[1][-1] and not len(done.history.series("val/loss")[0])
    assert 0.02 == pytest.approx(done.history.series("lr")[1].min())


def test_loader_options_change_training() -> None:
    """The loader's options change what is trained on, and nothing breaks."""
    data = blobs()
    digests = {train(config(loader=loader), data).weights_digest for loader in LOADERS}
    assert len(LOADERS) == len(digests)


LOADERS: list[Changed] = [
    {"batch_size": 16},
    {"batch_size": 16, "sampler": "balanced"},
    {"batch_size": 16, "shuffle": False},
]


@pytest.mark.parametrize(
    ("scheduler", "falls"),
    [
        ({"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 1, "gamma": 0.5}, True),
        ({"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", "patience": 0, "threshold": 10.0}, True),
        ({"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", "mode": "max", "patience": 99}, False),
    ],
)
def test_scheduler_steps_once_per_epoch(scheduler: Changed, falls: bool) -> None:
    """The rate of an epoch is on record with its steps."""
    rates = train(config(scheduler=scheduler), blobs()).history.series("lr")[1]
    assert 1 == len(set(rates[:7])) and falls == (rates[-1] < rates[0])


def test_clipping_bounds_update() -> None:
    """With plain SGD the step's length is at most rate times bound."""
    sgd = {"_target_": "torch.optim.SGD", "lr": 1.0}
    body = config(optimizer=sgd, trainer__gradient_clip_val=0.01)
    first = builder.build_model(body, (), 3, blobs()).state_dict()
    moved = train(body, blobs(), max_steps=1).model.state_dict()
    length = math.sqrt(sum(float(((moved[n] - first[n]) ** 2).sum()) for n in first))
    assert 0.01 == pytest.approx(length, rel=1e-3)


def test_observers_see_their_steps_and_do_not_change_training() -> None:
    """Every third step, before and after; the training is the same without them."""
    watcher, data = Watcher(3), blobs(48)
    watched = train(config(), data, watcher)
    assert ["start", 3, "epoch 1", 6, "epoch 2", 9, "epoch 3", "finish"] == watcher.seen
    assert train(config(), data).weights_digest == watched.weights_digest


# --- what is not finite ----------------------------------------------------------------------------------------------


def poisoned(data: Data, value: float = math.nan) -> Data:
    """The data with one row of train features that is not finite."""
    X = data.train.X.clone()
    X[5, 0] = value
    return replace(data, train=replace(data.train, X=X))


def test_nonfinite_loss_stops_before_update() -> None:
    """The history shows the NaN, the event its step, and the weights are finite."""
    done = train(config(), poisoned(blobs()))
    step, losses = done.steps, done.history.series("train/loss")[1]
    assert "nonfinite" == done.stop_reason and len(losses) == step and math.isnan(losses[-1])
    assert np.isfinite(losses[:-1]).all() and ["nonfinite"] == [e["kind"] for e in done.history.events]
    assert (step, "loss") == (done.history.events[0]["step"], done.history.events[0]["what"])
    assert all(bool(t.isfinite().all()) for t in done.model.state_dict().values())


class Sharp(nn.Module):
    """A finite output whose gradient at zero is not: the square root of an input times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return (x.abs() * self.weight).sqrt()[:, :3]


def test_guard_distinguishes_nonfinite_gradient_from_loss() -> None:
    """The loss was finite and stands in the event; the update is withheld all the same."""
    guard = Guard(torch.optim.SGD(Sharp().parameters(), lr=0.1), None, deferred=False)
    (parameter,) = guard.parameters
    loss = (parameter * 0).sqrt().sum()
    loss.backward()
    assert not guard.check_and_clip(loss.detach())
    losses, bad = guard.read_losses(withheld=True)
    assert NonfiniteStep(1, "gradient", 0.0) == bad and math.isnan(losses[0])


def test_guard_allows_gradients_with_overflowing_norm() -> None:
    """Gradients of 1e30 are finite, though the square of their norm is not."""
    guard = Guard(torch.optim.SGD([p := nn.Parameter(torch.ones(4))], lr=0.1), None, deferred=False)
    p.grad = torch.full((4,), 1e30)
    assert guard.check_and_clip(torch.tensor(1.0))


def test_deferred_guard_stops_at_same_step() -> None:
    """Where the flag stays on the device, weights, losses and events are those of a host that looks at every step."""
    data = poisoned(blobs(400))
    body = config(trainer__max_epochs=4)
    immediate = train(body, data)
    job = Job("", "trial")
    with seeded(derive(3, "fit")):
        components = components_of(body, data, job)
        deferred = replace(components, guard=Guard(components.optimizer, None, deferred=True))
        later = run(Training(PERMIT[0], deferred, job))
    assert immediate.steps == later.steps and immediate.weights_digest == later.weights_digest
    assert immediate.history.digest() == later.history.digest()


def test_fit_without_finite_metric_has_no_score() -> None:
    """Features that are infinite in validation too leave no score, and NaN in the history."""
    data = blobs()
    bad = poisoned(data, math.inf)
    bad = replace(bad, val=replace(bad.val, X=bad.val.X * math.inf))
    done = train(config(), bad)
    assert done.score is None and math.isnan(done.history.series("val/accuracy")[1][0])


# --- behind the permit -----------------------------------------------------------------------------------------------


def test_fit_trains_planned_job(digits_permit: TrainPermit, tmp_path: Path) -> None:
    """A real permit trains the real digits; the checkpoint holds the model's own weights, and a repeat is identical."""
    job = Job(digits_permit.plan.digest, "baseline")
    done = fit(digits_permit, job, folder=tmp_path)
    assert done.score is not None and done.score.value > 0.5 and done.checkpoint is not None
    _, state = generation.load(done.checkpoint)
    assert done.weights_digest == state["weights_digest"] == weights.weights_digest(done.model.state_dict())
    assert job.plan_digest == json.loads((done.checkpoint / generation.STATE).read_text())["plan_digest"]
    again = fit(digits_permit, job)
    assert (done.weights_digest, done.history.digest()) == (again.weights_digest, again.history.digest())


def test_fit_reaches_kernel_in_five_frames(digits_permit: TrainPermit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between `fit` and the optimizer's fused kernel there is no further Python function, also none of torch."""
    kernel, stacks = torch._fused_adamw_, set[tuple[str, ...]]()

    def recording_kernel(*args: Any, **options: Any) -> None:
        stacks.add(tuple(frame.name for frame in traceback.extract_stack()[:-1]))
        kernel(*args, **options)

    monkeypatch.setattr(torch, "_fused_adamw_", recording_kernel)
    fit(digits_permit, Job(digits_permit.plan.digest, "trial", max_steps=2))
    [stack] = stacks
    assert stack[-5:] == ("fit", "run", "_train_epoch", "_train_step", "__call__")


@pytest.mark.parametrize("permit", [None, "permit", object(), types.SimpleNamespace(plan=None)])
def test_fit_requires_permit(permit: Any) -> None:
    """Whatever is not a TrainPermit is refused before anything is built."""
    with pytest.raises(Refused, match="TrainPermit"):
        fit(permit, Job("", "baseline"))


def test_fit_refuses_job_of_another_plan(digits_permit: TrainPermit) -> None:
    """The digest ties a job to what was planned."""
    with pytest.raises(Refused, match="job: is of another plan"):
        fit(digits_permit, Job("0" * 64, "baseline"))


# --- the same bits, sooner --------------------------------------------------------------------------------------------


def test_backward_equals_tensor_backward() -> None:
    """Bit for bit those of `Tensor.backward`, added to what is there."""
    model, data = builder.build_model(config(), (), 3, blobs()), blobs()
    gradients = []
    for way in (Tensor.backward, backward):
        model.zero_grad()
        for _ in range(2):
            way(nn.functional.cross_entropy(model(data.train.X), data.train.y))
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True)) and gradients[0]


class Flat(nn.Module):
    """A convolution with somebody's `view` behind it, which needs rows that lie in order."""

    def __init__(self, view: bool = True) -> None:
        super().__init__()
        self.view, self.first, self.last = view, nn.Conv2d(2, 4, 3), nn.Linear(4 * 2 * 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        made = self.first(x).relu()
        out: Tensor = self.last(made.view(len(made), -1) if self.view else made.flatten(1))
        return out


@pytest.mark.parametrize("view", [True, False])
def test_channels_last_is_used_where_model_runs_in_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, view: bool
) -> None:
    """channels_last where it works, else as it was; either way it trains, and a stopped training is taken up."""
    monkeypatch.setattr("pipeline.models.mlp.Flat", Flat, raising=False)
    monkeypatch.setattr(Flat, "__module__", "pipeline.models.mlp")
    draw = np.random.default_rng(0)
    X, y = draw.normal(size=(90, 2, 4, 4)).astype("float32"), draw.integers(0, 3, 90)
    data = seal({"train": (X[:50], y[:50]), "val": (X[50:70], y[50:70]), "test": (X[70:], y[70:])}, "classification")
    body = config(model={"_target_": "pipeline.models.mlp.Flat", "view": view}, trainer__checkpoint_steps=2)
    done = train(body, data, folder=tmp_path)
    last = done.model.first.weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr, operator]
    assert done.stop_reason == "done" and bool(last) is not view
    newest = [p for p in generation.generations(tmp_path) if generation.state_of(p)["role"] == "last"][-1]
    for path in generation.generations(tmp_path):
        if int(path.name) >= int(newest.name):
            shutil.rmtree(path)
    assert 0 < train(body, data, folder=tmp_path).resumed_at < done.steps
    assert train(body, data, folder=tmp_path).weights_digest == done.weights_digest


def test_trainer_max_steps_ends_inside_epoch() -> None:
    """`max_steps` ends inside an epoch, which is measured there; it is no cut but the plan itself."""
    done = train(config(trainer__max_steps=10), blobs())
    assert (10, "done") == (done.steps, done.stop_reason)
    assert [1, 2] == done.history.series("val/accuracy")[0].tolist()


# --- found by looking hard --------------------------------------------------------------------------------------------


def test_deferred_guard_is_independent_of_checkpoints(tmp_path: Path) -> None:
    """Where the flag waits on the device, checkpoints in between end training at the same step, with the same loss."""
    data, job = poisoned(blobs(400)), Job("", "trial")
    left = []
    for steps in (None, 2):
        body = config(trainer__max_epochs=4, trainer__checkpoint_steps=steps)
        with seeded(derive(3, "fit")):
            components = components_of(body, data, job)
            deferred = replace(components, guard=Guard(components.optimizer, None, deferred=True))
            (folder := tmp_path / str(steps)).mkdir()
            done = run(Training(PERMIT[0], deferred, job), folder=folder)
        left.append((done.steps, done.stop_reason, done.weights_digest, done.history.digest()))
    assert left[0] == left[1] and left[0][1] == "nonfinite"


@pytest.mark.parametrize("more", [{}, {"ignore_index": 1}, {"reduction": "sum"}])
@pytest.mark.parametrize("class_weights", ["none", [10.0, 1.0, 0.1]])
def test_accumulation_equals_large_batch_with_weighted_loss(more: Changed, class_weights: Any) -> None:
    """Also where classes weigh differently, where targets are ignored, and where the loss sums."""
    same = {
        "loss": {"_target_": "torch.nn.CrossEntropyLoss", **more},
        "task__class_weights": class_weights,
        "optimizer": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.001},
        "loader__shuffle": False,
        "trainer__max_epochs": 1,
    }
    if "reduction" in more:  # planning refuses a sum as the loss of a whole batch only where it is no scalar
        same["optimizer"] = {**same["optimizer"], "lr": 1e-5}
    whole = train(config(**same, loader__batch_size=100), blobs())
    parts = train(config(**same, loader__batch_size=30, trainer__accumulate_grad_batches=4), blobs())
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-7)


class Words(nn.Module):
    """Rows of an embedding whose gradient is sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.EmbeddingBag(9, 4, mode="sum", sparse=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.table(x.abs().long().clamp(max=8)))
        return out


def test_fit_supports_sparse_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """An optimizer that takes them is neither fused nor stopped by the guard."""
    monkeypatch.setattr("pipeline.models.mlp.Words", Words, raising=False)
    monkeypatch.setattr(Words, "__module__", "pipeline.models.mlp")
    sgd = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1}
    done = train(config(model={"_target_": "pipeline.models.mlp.Words"}, optimizer=sgd), blobs())
    assert done.stop_reason == "done" and np.isfinite(done.history.series("train/loss")[1]).all()


class Lazy(nn.Sequential):
    """Weights that are made when the first rows come."""

    def __init__(self) -> None:
        super().__init__(nn.LazyLinear(3))


def test_lazy_modules_are_initialized_from_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two master seeds are two models, and one is one."""
    monkeypatch.setattr("pipeline.models.mlp.Lazy", Lazy, raising=False)
    monkeypatch.setattr(Lazy, "__module__", "pipeline.models.mlp")
    body = config(model={"_target_": "pipeline.models.mlp.Lazy"}, optimizer__lr=0.0, trainer__max_epochs=1)
    first, again, other = (train({**body, "seed": seed}, blobs()).weights_digest for seed in (1, 1, 2))
    assert first == again != other


def test_balanced_sampler_requires_classes() -> None:
    """Asked for where targets are values, it is refused and not passed over."""
    regression = {**REGRESSION, "loader": {"batch_size": 16, "shuffle": True, "sampler": "balanced"}}
    with pytest.raises(UserError, match=r"loader\.sampler: balanced needs classes"):
        train(config(**regression), blobs(kind="regression"))


def test_clipping_keeps_direction_of_huge_gradients() -> None:
    """Finite numbers whose squares overflow are scaled to the norm, not to nothing."""
    guard = Guard(torch.optim.SGD([p := nn.Parameter(torch.ones(4))], lr=1.0), 2.0, deferred=False)
    p.grad = torch.full((4,), 1e30)
    assert guard.check_and_clip(torch.tensor(1.0))
    assert torch.allclose(p.grad, torch.ones(4))
