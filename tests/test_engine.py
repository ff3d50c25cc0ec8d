"""The engine: training is a pure function of its plan, learns what can be learned, and never hides a NaN."""

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
from pipeline.engine.fit import fit
from pipeline.engine.guard import Guard, NonfiniteStep
from pipeline.engine.loop import Training
from pipeline.engine.setup import OVERFIT
from pipeline.errors import FivegateError, Refused, UserError
from pipeline.run_store.job import Job, run_seed
from pipeline.run_store.permits import TrainPermit
from pipeline.runtime.backward import backward
from pipeline.runtime.seeds import derive, reseed, seeded
from pipeline.runtime.threads import running_on, threads
from tests.trainings import PERMIT, REGRESSION, Changed, Watcher, blobs, components_of, config, permitted, run, train

CPU = torch.device("cpu")
__all__ = ["permitted"]


# --- seeds, order, threads -------------------------------------------------------------------------------------------


def test_derive_depends_on_seed_and_purpose() -> None:
    """Equal arguments give equal 63-bit seeds, and `run_seed` derives a trial's seed in the same way."""
    assert derive(7, "init") == derive(7, "init") != derive(7, "step") != derive(8, "step")
    assert run_seed(7, 3) == derive(7, "trial", 3) and 0 <= derive(7, "a", 1) < 2**63


def test_seeded_restores_generators() -> None:
    """Inside the block draws are reproducible; after it the generators have their former state."""
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    with seeded(5):
        first = torch.rand(3), np.random.rand(3)
    with seeded(5):
        second = torch.rand(3), np.random.rand(3)
    assert torch.equal(first[0], second[0]) and np.array_equal(first[1], second[1])
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # type: ignore[index]


def test_reseed_equals_manual_seed() -> None:
    """The fast function and `torch.manual_seed` give the same random numbers."""
    with seeded(0):
        reseed(99, CPU)
        cheap = torch.rand(4)
        torch.manual_seed(99)
        assert torch.equal(cheap, torch.rand(4))


def test_threads_follow_rule_and_are_restored() -> None:
    """A number is used as it is; auto is 1 for a small model and the number of cores for a large one."""
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


# --- training --------------------------------------------------------------------------------------------------------


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
    """The score is that of the best epoch, and the history has its columns and facts."""
    fit_result = train(config(trainer__max_epochs=12), blobs())
    history = fit_result.history
    assert fit_result.score is not None and fit_result.score.value > 0.8 and "val" == fit_result.score.split
    assert fit_result.score.value == pytest.approx(max(history.series("val/accuracy")[1]))
    assert (84, "done", "step") == (fit_result.steps, fit_result.stop_reason, history.table("train/loss"))
    assert {"train/loss", "lr", "val/loss", "val/accuracy", "train/accuracy", "time/step", "time/data_wait"} == set(
        history.names()
    )
    assert list(range(1, 85)) == history.series("train/loss")[0].tolist()
    assert list(range(1, 13)) == history.series("val/loss")[0].tolist()
    assert {"loss_at_init", "loss_expected", "train_rows", "classes", "steps_per_epoch", "target"} <= set(history.facts)
    assert math.log(3) == pytest.approx(history.facts["loss_expected"]) and 67 == history.facts["parameters"]


def test_fit_uses_last_partial_batch() -> None:
    """37 rows in batches of 16 are three steps."""
    assert 3 == train(config(trainer__max_epochs=1), blobs(37)).steps


def test_accumulation_equals_large_batch() -> None:
    """The accumulated gradient is that of all rows together, also if the last batch is smaller."""
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
    """A job's budget ends inside an epoch, which is validated; more steps than planned change nothing."""
    fit_result = train(config(), blobs(), **job)
    assert (steps, stopped) == (fit_result.steps, fit_result.stop_reason)
    assert math.ceil(steps / 7) == len(fit_result.history.series("val/loss")[0])


def test_shorter_budget_gives_same_first_steps() -> None:
    """The first steps do not depend on the length of the budget."""
    data = blobs()
    short, long = (
        train(config(model__dropout=0.2), data, max_steps=n).history.series("train/loss")[1] for n in (5, 11)
    )
    assert short.tolist() == long[:5].tolist()


def test_time_limit_stops_training() -> None:
    """Without any time no step is made: the weights are the initial ones, and the event is recorded."""
    fit_result = train(config(trainer__max_minutes=1e-9), blobs())
    assert ("clock", 0) == (fit_result.stop_reason, fit_result.steps) and "clock" == fit_result.history.events[0][
        "kind"
    ]


def test_patience_stops_training() -> None:
    """Training without improvement stops after the epochs of patience."""
    fit_result = train(config(optimizer__lr=0.0, trainer__max_epochs=50, trainer__patience=2), blobs())
    assert 3 == len(fit_result.history.series("val/loss")[0]) and "early_stop" == fit_result.history.events[-1]["kind"]


def test_overfit_check_fits_one_batch() -> None:
    """One batch, without dropout and scheduler, is learned by heart, and validation is not scored."""
    body = config(
        model__dropout=0.5,
        model__hidden=[64],
        scheduler={"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 1},
    )
    fit_result = train(body, blobs(), purpose=OVERFIT, max_steps=150)
    losses = fit_result.history.series("train/loss")[1]
    assert (150, None) == (fit_result.steps, fit_result.score) and losses[-1] < 0.05 * losses[0]
    assert 1.0 == fit_result.history.series("train/accuracy")[1][-1] and not len(
        fit_result.history.series("val/loss")[0]
    )
    assert 0.02 == pytest.approx(fit_result.history.series("lr")[1].min())


def test_loader_options_change_training() -> None:
    """Each option of the loader gives other weights."""
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
    """The history records the learning rate of every step."""
    rates = train(config(scheduler=scheduler), blobs()).history.series("lr")[1]
    assert 1 == len(set(rates[:7])) and falls == (rates[-1] < rates[0])


def test_clipping_bounds_update() -> None:
    """With plain SGD the length of an update is at most the learning rate times the clip value."""
    sgd = {"_target_": "torch.optim.SGD", "lr": 1.0}
    body = config(optimizer=sgd, trainer__gradient_clip_val=0.01)
    first = builder.build_model(body, (), 3, blobs()).state_dict()
    moved = train(body, blobs(), max_steps=1).model.state_dict()
    length = math.sqrt(sum(float(((moved[n] - first[n]) ** 2).sum()) for n in first))
    assert 0.01 == pytest.approx(length, rel=1e-3)


def test_observers_see_their_steps_and_do_not_change_training() -> None:
    """An observer is called before and after every third step; training gives the same weights without it."""
    watcher, data = Watcher(3), blobs(48)
    observed = train(config(), data, watcher)
    assert ["start", 3, "epoch 1", 6, "epoch 2", 9, "epoch 3", "finish"] == watcher.seen
    assert train(config(), data).weights_digest == observed.weights_digest


# --- non-finite values -----------------------------------------------------------------------------------------------


def poisoned(data: Data, value: float = math.nan) -> Data:
    """Return the data with one train feature that is not finite."""
    X = data.train.X.clone()
    X[5, 0] = value
    return replace(data, train=replace(data.train, X=X))


def test_nonfinite_loss_stops_before_update() -> None:
    """The history has the NaN, the event has its step, and the weights are finite."""
    fit_result = train(config(), poisoned(blobs()))
    step, losses = fit_result.steps, fit_result.history.series("train/loss")[1]
    assert "nonfinite" == fit_result.stop_reason and len(losses) == step and math.isnan(losses[-1])
    assert np.isfinite(losses[:-1]).all() and ["nonfinite"] == [e["kind"] for e in fit_result.history.events]
    assert (step, "loss") == (fit_result.history.events[0]["step"], fit_result.history.events[0]["what"])
    assert all(bool(t.isfinite().all()) for t in fit_result.model.state_dict().values())


class Sharp(nn.Module):
    """A model with finite outputs whose gradient at zero is not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return (x.abs() * self.weight).sqrt()[:, :3]


def test_guard_distinguishes_nonfinite_gradient_from_loss() -> None:
    """The event has the finite loss, and the update is withheld all the same."""
    guard = Guard(torch.optim.SGD(Sharp().parameters(), lr=0.1), None, deferred=False)
    (parameter,) = guard.parameters
    loss = (parameter * 0).sqrt().sum()
    loss.backward()
    assert not guard.check_and_clip(loss.detach())
    losses, bad = guard.read_losses(withheld=True)
    assert NonfiniteStep(1, "gradient", 0.0) == bad and math.isnan(losses[0])


def test_guard_allows_gradients_with_overflowing_norm() -> None:
    """Gradients of 1e30 are finite, although the square of their norm is not."""
    guard = Guard(torch.optim.SGD([p := nn.Parameter(torch.ones(4))], lr=0.1), None, deferred=False)
    p.grad = torch.full((4,), 1e30)
    assert guard.check_and_clip(torch.tensor(1.0))


def test_deferred_guard_stops_at_same_step() -> None:
    """With the flag on the device, weights, losses and events equal those of a check after every step."""
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
    """If validation features are infinite, there is no score, and the history has NaN."""
    data = blobs()
    bad = poisoned(data, math.inf)
    bad = replace(bad, val=replace(bad.val, X=bad.val.X * math.inf))
    fit_result = train(config(), bad)
    assert fit_result.score is None and math.isnan(fit_result.history.series("val/accuracy")[1][0])


# --- fit with a permit -----------------------------------------------------------------------------------------------


def test_fit_trains_planned_job(digits_permit: TrainPermit, tmp_path: Path) -> None:
    """The checkpoint holds the model's own weights, and a second training is identical."""
    job = Job(digits_permit.plan.digest, "baseline")
    fit_result = fit(digits_permit, job, folder=tmp_path)
    assert fit_result.score is not None and fit_result.score.value > 0.5 and fit_result.checkpoint is not None
    _, state = generation.load(fit_result.checkpoint)
    assert fit_result.weights_digest == state["weights_digest"] == weights.weights_digest(fit_result.model.state_dict())
    assert job.plan_digest == json.loads((fit_result.checkpoint / generation.STATE).read_text())["plan_digest"]
    again = fit(digits_permit, job)
    assert (fit_result.weights_digest, fit_result.history.digest()) == (again.weights_digest, again.history.digest())


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
    """Anything that is not a TrainPermit is refused before anything is built."""
    with pytest.raises(Refused, match="TrainPermit"):
        fit(permit, Job("", "baseline"))


def test_fit_refuses_job_of_another_plan(digits_permit: TrainPermit) -> None:
    """A job names the digest of its plan."""
    with pytest.raises(Refused, match="job: is of another plan"):
        fit(digits_permit, Job("0" * 64, "baseline"))


# --- speed without changes -------------------------------------------------------------------------------------------


def test_backward_equals_tensor_backward() -> None:
    """The gradients are those of `Tensor.backward` bit for bit, and are added to existing ones."""
    model, data = builder.build_model(config(), (), 3, blobs()), blobs()
    gradients = []
    for way in (Tensor.backward, backward):
        model.zero_grad()
        for _ in range(2):
            way(nn.functional.cross_entropy(model(data.train.X), data.train.y))
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True)) and gradients[0]


class Flat(nn.Module):
    """A convolution followed by `view`, which does not support channels_last."""

    def __init__(self, view: bool = True) -> None:
        super().__init__()
        self.view, self.first, self.last = view, nn.Conv2d(2, 4, 3), nn.Linear(4 * 2 * 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = self.first(x).relu()
        out: Tensor = self.last(features.view(len(features), -1) if self.view else features.flatten(1))
        return out


@pytest.mark.parametrize("view", [True, False])
def test_channels_last_is_used_where_model_runs_in_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, view: bool
) -> None:
    """channels_last is used where the model runs in it; either way it trains, and a stopped training resumes."""
    monkeypatch.setattr("pipeline.models.mlp.Flat", Flat, raising=False)
    monkeypatch.setattr(Flat, "__module__", "pipeline.models.mlp")
    draw = np.random.default_rng(0)
    X, y = draw.normal(size=(90, 2, 4, 4)).astype("float32"), draw.integers(0, 3, 90)
    data = seal({"train": (X[:50], y[:50]), "val": (X[50:70], y[50:70]), "test": (X[70:], y[70:])}, "classification")
    body = config(model={"_target_": "pipeline.models.mlp.Flat", "view": view}, trainer__checkpoint_steps=2)
    fit_result = train(body, data, folder=tmp_path)
    last = fit_result.model.first.weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr, operator]
    assert fit_result.stop_reason == "done" and bool(last) is not view
    newest = [p for p in generation.generations(tmp_path) if generation.state_of(p)["role"] == "last"][-1]
    for path in generation.generations(tmp_path):
        if int(path.name) >= int(newest.name):
            shutil.rmtree(path)
    assert 0 < train(body, data, folder=tmp_path).resumed_at < fit_result.steps
    assert train(body, data, folder=tmp_path).weights_digest == fit_result.weights_digest


def test_trainer_max_steps_ends_inside_epoch() -> None:
    """`max_steps` can end training inside an epoch, which is validated; the stop reason is done."""
    fit_result = train(config(trainer__max_steps=10), blobs())
    assert (10, "done") == (fit_result.steps, fit_result.stop_reason)
    assert [1, 2] == fit_result.history.series("val/accuracy")[0].tolist()


# --- special cases ---------------------------------------------------------------------------------------------------


def test_deferred_guard_is_independent_of_checkpoints(tmp_path: Path) -> None:
    """With the flag on the device, checkpoints do not change the step or the loss at which training ends."""
    data, job = poisoned(blobs(400)), Job("", "trial")
    results = []
    for steps in (None, 2):
        body = config(trainer__max_epochs=4, trainer__checkpoint_steps=steps)
        with seeded(derive(3, "fit")):
            components = components_of(body, data, job)
            deferred = replace(components, guard=Guard(components.optimizer, None, deferred=True))
            (folder := tmp_path / str(steps)).mkdir()
            fit_result = run(Training(PERMIT[0], deferred, job), folder=folder)
        results.append(
            (fit_result.steps, fit_result.stop_reason, fit_result.weights_digest, fit_result.history.digest())
        )
    assert results[0] == results[1] and results[0][1] == "nonfinite"


@pytest.mark.parametrize("more", [{}, {"ignore_index": 1}, {"reduction": "sum"}])
@pytest.mark.parametrize("class_weights", ["none", [10.0, 1.0, 0.1]])
def test_accumulation_equals_large_batch_with_weighted_loss(more: Changed, class_weights: Any) -> None:
    """Accumulation is exact with class weights, ignored targets and summed losses."""
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
    """A model with an embedding whose gradient is sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.EmbeddingBag(9, 4, mode="sum", sparse=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.table(x.abs().long().clamp(max=8)))
        return out


def test_fit_supports_sparse_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """An optimizer that supports sparse gradients is neither fused nor stopped by the guard."""
    monkeypatch.setattr("pipeline.models.mlp.Words", Words, raising=False)
    monkeypatch.setattr(Words, "__module__", "pipeline.models.mlp")
    sgd = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1}
    fit_result = train(config(model={"_target_": "pipeline.models.mlp.Words"}, optimizer=sgd), blobs())
    assert fit_result.stop_reason == "done" and np.isfinite(fit_result.history.series("train/loss")[1]).all()


class Lazy(nn.Sequential):
    """A model whose weights are created with the first rows."""

    def __init__(self) -> None:
        super().__init__(nn.LazyLinear(3))


def test_lazy_modules_are_initialized_from_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two master seeds give two models; the same seed gives the same model."""
    monkeypatch.setattr("pipeline.models.mlp.Lazy", Lazy, raising=False)
    monkeypatch.setattr(Lazy, "__module__", "pipeline.models.mlp")
    body = config(model={"_target_": "pipeline.models.mlp.Lazy"}, optimizer__lr=0.0, trainer__max_epochs=1)
    first, again, other = (train({**body, "seed": seed}, blobs()).weights_digest for seed in (1, 1, 2))
    assert first == again != other


def test_balanced_sampler_requires_classes() -> None:
    """A balanced sampler is refused for targets that are values."""
    regression = {**REGRESSION, "loader": {"batch_size": 16, "shuffle": True, "sampler": "balanced"}}
    with pytest.raises(UserError, match=r"loader\.sampler: balanced needs classes"):
        train(config(**regression), blobs(kind="regression"))


def test_clipping_keeps_direction_of_huge_gradients() -> None:
    """Finite gradients whose squares overflow are scaled to the clip value, not to zero."""
    guard = Guard(torch.optim.SGD([p := nn.Parameter(torch.ones(4))], lr=1.0), 2.0, deferred=False)
    p.grad = torch.full((4,), 1e30)
    assert guard.check_and_clip(torch.tensor(1.0))
    assert torch.allclose(p.grad, torch.ones(4))


def test_training_ends_where_an_epoch_has_too_few_batches() -> None:
    """A source that gives fewer batches than the epoch has steps is an error, not an endless training."""
    components = components_of(config(), blobs(), job := Job("", "trial"))
    source = components.batches
    short = types.SimpleNamespace(
        accumulation_groups=lambda epoch, skip=0: list(source.accumulation_groups(epoch, skip))[:-1],
        start=source.start,
        close=source.close,
    )
    last = components.budget.steps_per_epoch - 1
    with pytest.raises(FivegateError, match=f"data: epoch 1 has no batch after step {last}"):
        run(Training(PERMIT[0], replace(components, batches=short), job))
