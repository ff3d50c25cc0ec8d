"""The engine: a training is a pure function of its plan, learns what can be learnt, and never hides a NaN."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.checkpoints import weights
from pipeline.data.dataset import Data
from pipeline.data.load import seal
from pipeline.engine import builder, loop, options, probe, setup
from pipeline.engine.guard import Guard, Nonfinite
from pipeline.engine.seeds import derive, reseed, seeded
from pipeline.engine.threads import running_on, threads
from pipeline.errors import Refused, UserError
from pipeline.evaluation import evaluate
from pipeline.evaluation.task import build_task, expected_loss
from pipeline.feed.order import balanced_order, epoch_order, windows
from pipeline.job import Delta, Job, run_seed
from pipeline.record import permits
from pipeline.record.permits import TrainPermit
from pipeline.record.run import Run
from pipeline.records import Score, TrainSide

CPU = torch.device("cpu")
Changed = dict[str, Any]


def config(**changed: Any) -> dict[str, Any]:
    """A small complete config; `section__key=value` changes one key, `section=...` a whole section."""
    body: dict[str, Any] = {
        "seed": 3,
        "task": {"kind": "classification", "metric": "accuracy", "target": 0.9, "predict": "auto"},
        "model": {"_target_": "pipeline.models.mlp.MLP", "in_features": 4, "out_features": 3, "hidden": [8]},
        "loss": {"_target_": "torch.nn.CrossEntropyLoss"},
        "optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 0.02},
        "scheduler": None,
        "loader": {"batch_size": 16, "shuffle": True},
        "trainer": {"max_epochs": 3, "deterministic": True, "max_minutes": 10, "accelerator": "cpu"},
        "surgery": [],
    }
    for key, value in changed.items():
        section, _, name = key.partition("__")
        if name:
            body[section] = {**body[section], name: value}
        else:
            body[section] = value
    return body


PERMIT: list[permits.TrainPermit] = []


@pytest.fixture(autouse=True, scope="module")
def permitted(_planned: Path) -> None:
    """The real permit of a planned run, without which not even the bare loop makes a step."""
    PERMIT[:] = [permits.train(Run(_planned))]


def blobs(rows: int = 100, kind: str = "classification", seed: int = 0) -> Data:
    """Three clouds of points, or a linear target; 37 rows leave a partial last batch."""
    draw = np.random.default_rng(seed)

    def part(n: int) -> tuple[np.ndarray, np.ndarray]:
        y = draw.integers(0, 2 if kind == "binary" else 3, n)
        X = draw.normal(size=(n, 4)) + 2 * np.eye(4)[y]
        return X, (X[:, 0] - X[:, 1] if kind == "regression" else y)

    return seal({"train": part(rows), "val": part(40), "test": part(40)}, kind)


def train(body: Mapping[str, Any], data: Data, *observers: Any, purpose: str = "trial", **job: Any) -> loop.Fit:
    """The loop under a real permit, on a config that no run has planned."""
    made = Job("", purpose, **job)
    made_config = made.config(body)
    options.require_built(made_config)
    seed = run_seed(made_config["seed"], made.seed_index)
    with seeded(derive(seed, "fit")):
        return loop.Training(PERMIT[0], setup.set_up(made_config, made, data, seed, ()), made).run(observers, None)


# --- seeds, order, threads -------------------------------------------------------------------------------------------


def test_seeds_derive_from_their_purpose_alone() -> None:
    """Equal paths give equal 63-bit seeds; a trial's seed is the one that jobs derive."""
    assert derive(7, "init") == derive(7, "init") != derive(7, "step") != derive(8, "step")
    assert run_seed(7, 3) == derive(7, "trial", 3) and 0 <= derive(7, "a", 1) < 2**63


def test_seeded_leaves_the_process_as_it_was() -> None:
    """Inside the block draws repeat; outside they go on as if nothing had happened."""
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    with seeded(5):
        first = torch.rand(3), np.random.rand(3)
    with seeded(5):
        second = torch.rand(3), np.random.rand(3)
    assert torch.equal(first[0], second[0]) and np.array_equal(first[1], second[1])
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # type: ignore[index]


def test_reseed_is_what_manual_seed_does() -> None:
    """The cheap way and the public way draw the same numbers."""
    with seeded(0):
        reseed(99, CPU)
        cheap = torch.rand(4)
        torch.manual_seed(99)
        assert torch.equal(cheap, torch.rand(4))


@given(st.integers(0, 2**63 - 1), st.integers(1, 500), st.integers(0, 300))
def test_an_epochs_order_is_a_pure_permutation(seed: int, epoch: int, n: int) -> None:
    """Every row once, and the same order for the same seed and epoch."""
    order = epoch_order(seed, epoch, n)
    assert np.array_equal(np.arange(n), np.sort(order)) and np.array_equal(order, epoch_order(seed, epoch, n))


def test_order_is_frozen_for_ever() -> None:
    """The order of a known seed and epoch, as this version and every later one must give it."""
    assert [1, 3, 5, 0, 2, 4] == epoch_order(1, 1, 6).tolist()
    assert not np.array_equal(epoch_order(1, 1, 50), epoch_order(1, 2, 50))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=120), st.integers(0, 9))
def test_a_balanced_order_draws_every_class_equally(labels: list[int], seed: int) -> None:
    """Class counts differ by one at most, and rows of a class by one as well."""
    y = np.array(labels)
    order = balanced_order(seed, 1, y)
    counts = np.unique(y[order], return_counts=True)[1]
    assert len(order) == len(y) and counts.max() - counts.min() <= 1
    assert all(np.ptp(np.bincount(order, minlength=len(y))[y == c]) <= 1 for c in set(labels))


@settings(deadline=None)
@given(st.integers(1, 70), st.integers(1, 9), st.integers(1, 4))
def test_windows_hold_every_row_once_in_order(n: int, batch: int, accumulate: int) -> None:
    """Batches and windows are full but for the last, and nothing is dropped."""
    X, order = torch.arange(n, dtype=torch.float32)[:, None], epoch_order(1, 1, n)
    made = list(windows(X, torch.arange(n), order, batch, accumulate, CPU))
    assert order.tolist() == [int(y) for window in made for _, targets in window for y in targets]
    assert math.ceil(n / (batch * accumulate)) == len(made)
    assert all(len(window) == accumulate for window in made[:-1])


def test_windows_in_chunks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data too large to be gathered at once give the same batches."""
    X, y, order = torch.rand(50, 3), torch.arange(50), epoch_order(2, 1, 50)
    whole = list(windows(X, y, order, 4, 3, CPU))
    monkeypatch.setattr("pipeline.feed.order.CHUNK_BYTES", 200)
    chunked = list(windows(X, y, order, 4, 3, CPU))
    assert [t.tolist() for w in whole for _, t in w] == [t.tolist() for w in chunked for _, t in w]
    assert list(map(len, whole)) == list(map(len, chunked))


def test_threads_follow_the_rule_and_are_given_back() -> None:
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
def test_equal_jobs_give_equal_trainings(change: Changed) -> None:
    """Weights and history are bit-identical, whatever the process drew in between."""
    data = blobs()
    first = train(config(**change), data)
    torch.rand(17), np.random.rand(5)
    second = train(config(**change), data)
    assert first.weights_digest == second.weights_digest and first.history.digest() == second.history.digest()
    other = train(config(**change), data, seed_index=1)
    assert other.weights_digest != first.weights_digest


def test_a_training_learns_and_says_what_it_measured() -> None:
    """The score is that of the best epoch; the history has its columns and facts."""
    done = train(config(trainer__max_epochs=12), blobs())
    history = done.history
    assert done.score is not None and done.score.value > 0.8 and "val" == done.score.split
    assert done.score.value == pytest.approx(max(history.series("val/accuracy")[1]))
    assert (84, "done", "step") == (done.steps, done.stopped, history.table("train/loss"))
    assert {"train/loss", "lr", "val/loss", "val/accuracy", "train/accuracy", "time/step"} == set(history.names())
    assert list(range(1, 85)) == history.series("train/loss")[0].tolist()
    assert list(range(1, 13)) == history.series("val/loss")[0].tolist()
    assert {"loss_at_init", "loss_expected", "train_rows", "classes", "steps_per_epoch", "target"} <= set(history.facts)
    assert math.log(3) == pytest.approx(history.facts["loss_expected"]) and 67 == history.facts["parameters"]


def test_the_last_partial_batch_is_trained_on() -> None:
    """37 rows in batches of 16 are three steps."""
    assert 3 == train(config(trainer__max_epochs=1), blobs(37)).steps


def test_accumulated_batches_are_one_large_batch() -> None:
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
def test_budgets_count_in_steps(job: Changed, steps: int, stopped: str) -> None:
    """A job's steps cut an epoch short; its partial epoch is measured; more steps than planned change nothing."""
    done = train(config(), blobs(), **job)
    assert (steps, stopped) == (done.steps, done.stopped)
    assert math.ceil(steps / 7) == len(done.history.series("val/loss")[0])


def test_a_shorter_budget_is_a_prefix() -> None:
    """The first steps are the same whatever comes later."""
    data = blobs()
    short, long = (
        train(config(model__dropout=0.2), data, max_steps=n).history.series("train/loss")[1] for n in (5, 11)
    )
    assert short.tolist() == long[:5].tolist()


def test_the_clock_stops_and_says_so() -> None:
    """No time, no steps: the weights are the first ones and the event is on record."""
    done = train(config(trainer__max_minutes=1e-9), blobs())
    assert ("clock", 0) == (done.stopped, done.steps) and "clock" == done.history.events[0]["kind"]


def test_patience_ends_a_training_without_progress() -> None:
    """A rate that moves nothing for the better stops after the epochs of patience."""
    done = train(config(optimizer__lr=0.0, trainer__max_epochs=50, trainer__patience=2), blobs())
    assert 3 == len(done.history.series("val/loss")[0]) and "early_stop" == done.history.events[-1]["kind"]


def test_the_proof_fits_one_batch() -> None:
    """One batch alone, without dropout and scheduler, is learnt by heart; nothing is judged on validation."""
    body = config(
        model__dropout=0.5,
        model__hidden=[64],
        scheduler={"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 1},
    )
    done = train(body, blobs(), purpose=setup.OVERFIT, max_steps=150)
    losses = done.history.series("train/loss")[1]
    assert (150, None) == (done.steps, done.score) and losses[-1] < 0.05 * losses[0]
    assert 1.0 == done.history.series("train/accuracy")[1][-1] and not len(done.history.series("val/loss")[0])
    assert 0.02 == pytest.approx(done.history.series("lr")[1].min())


def test_a_balanced_sampler_and_an_unshuffled_loader_are_real() -> None:
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
def test_schedulers_step_once_per_epoch(scheduler: Changed, falls: bool) -> None:
    """The rate of an epoch is on record with its steps."""
    rates = train(config(scheduler=scheduler), blobs()).history.series("lr")[1]
    assert 1 == len(set(rates[:7])) and falls == (rates[-1] < rates[0])


def test_clipping_bounds_what_moves_the_weights() -> None:
    """With plain SGD the step's length is at most rate times bound."""
    sgd = {"_target_": "torch.optim.SGD", "lr": 1.0}
    body = config(optimizer=sgd, trainer__gradient_clip_val=0.01)
    first = builder.build_model(body, (), 3).state_dict()
    moved = train(body, blobs(), max_steps=1).model.state_dict()
    length = math.sqrt(sum(float(((moved[n] - first[n]) ** 2).sum()) for n in first))
    assert 0.01 == pytest.approx(length, rel=1e-3)


class Watcher:
    """An observer that notes what it is shown."""

    def __init__(self, every: int) -> None:
        self.every, self.seen = every, list[Any]()

    def start(self, model: nn.Module, optimizer: Any, history: Any) -> None:
        self.model = model
        self.seen.append("start")

    def before_update(self, step: int, inputs: Tensor, targets: Tensor, outputs: Tensor, loss: Tensor) -> None:
        assert len(inputs) == len(targets) == len(outputs) and loss.ndim == 0
        assert all(p.grad is not None for p in self.model.parameters())
        self.before = weights.weights_digest(self.model.state_dict())

    def after_update(self, step: int) -> None:
        assert self.before != weights.weights_digest(self.model.state_dict())
        self.seen.append(step)

    def validated(self, epoch: int, metrics: Mapping[str, float]) -> None:
        assert {"val/loss", "val/accuracy"} == set(metrics)
        self.seen.append(f"epoch {epoch}")

    def finish(self) -> None:
        self.seen.append("finish")


def test_observers_see_their_steps_and_change_nothing() -> None:
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


def test_a_loss_that_is_not_finite_stops_before_it_moves_a_weight() -> None:
    """The history shows the NaN, the event its step, and the weights are finite."""
    done = train(config(), poisoned(blobs()))
    step, losses = done.steps, done.history.series("train/loss")[1]
    assert "nonfinite" == done.stopped and len(losses) == step and math.isnan(losses[-1])
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


def test_a_gradient_that_is_not_finite_is_told_from_a_loss() -> None:
    """The loss was finite and stands in the event; the update is withheld all the same."""
    guard = Guard(torch.optim.SGD(Sharp().parameters(), lr=0.1), None, deferred=False)
    (parameter,) = guard.parameters
    loss = (parameter * 0).sqrt().sum()
    loss.backward()
    assert not guard.allows(loss.detach())
    losses, bad = guard.drain(withheld=True)
    assert Nonfinite(1, "gradient", 0.0) == bad and math.isnan(losses[0])


def test_a_norm_that_overflows_is_no_reason_to_stop() -> None:
    """Gradients of 1e30 are finite, though the square of their norm is not."""
    guard = Guard(torch.optim.SGD([p := nn.Parameter(torch.ones(4))], lr=0.1), None, deferred=False)
    p.grad = torch.full((4,), 1e30)
    assert guard.allows(torch.tensor(1.0))


def test_a_deferred_flag_stops_the_same_training_at_the_same_step() -> None:
    """Where the flag stays on the device, weights, losses and events are those of a host that looks at every step."""
    data = poisoned(blobs(400))
    body = config(trainer__max_epochs=4)
    immediate = train(body, data)
    job = Job("", "trial")
    with seeded(derive(3, "fit")):
        made = setup.set_up(body, job, data, 3, ())
        deferred = replace(made, guard=Guard(made.optimizer, None, deferred=True))
        later = loop.Training(PERMIT[0], deferred, job).run((), None)
    assert immediate.steps == later.steps and immediate.weights_digest == later.weights_digest
    assert immediate.history.digest() == later.history.digest()


def test_a_training_that_is_nan_from_the_start_has_no_score() -> None:
    """Features that are infinite in validation too leave no score, and NaN in the history."""
    data = blobs()
    bad = poisoned(data, math.inf)
    bad = replace(bad, val=replace(bad.val, X=bad.val.X * math.inf))
    done = train(config(), bad)
    assert done.score is None and math.isnan(done.history.series("val/accuracy")[1][0])


# --- what does not fit -----------------------------------------------------------------------------------------------


class Broken(nn.Module):
    """A user's model that fails in the way it is told to."""

    def __init__(self, way: Callable[[Tensor], Any], trained: bool = True) -> None:
        super().__init__()
        self.way, self.layer = way, nn.Linear(4, 3)
        self.requires_grad_(trained)

    def forward(self, x: Tensor) -> Any:
        return self.way(self.layer(x))


def probed(model: nn.Module, body: Changed, data: Data, loss: Any = None) -> str:
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
        (lambda out: (out, out), "returns no tensor, got 'tuple'"),
        (lambda out: out.detach(), "loss: depends on no parameter that trains"),
        (lambda out: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda out: out @ out, "RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)"),
    ],
)
def test_outputs_that_do_not_fit_are_named_before_the_first_step(way: Callable[[Tensor], Any], message: str) -> None:
    """One message with shapes got and expected, or the user's own line and words."""
    told = probed(Broken(way), config(), blobs())
    assert message in told and "\n" not in told
    assert "Error" not in message or f"{__file__}:" in told


def test_a_model_without_anything_to_train_is_refused() -> None:
    """Frozen parameters are counted, and the command that unfreezes them is given."""
    assert "2 parameters, none of which requires a gradient" in probed(Broken(lambda x: x, False), config(), blobs())


def test_a_wrong_input_width_names_the_layer() -> None:
    """Where no line is the user's, the layer is."""
    told = probed(nn.Sequential(nn.Linear(9, 3)), config(), blobs())
    assert told.startswith("model: fails in Linear(in_features=9") and "shapes cannot be multiplied" in told


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nn.CrossEntropyLoss(reduction="none"), "gives no scalar, got 'shape (2,)'"),
        (lambda out, y: 3.0, "gives no scalar, got 'float'"),
        (nn.BCEWithLogitsLoss(), "loss: fails in BCEWithLogitsLoss()"),
        (lambda out, y: out.nonsense, "AttributeError: 'Tensor' object has no attribute 'nonsense'"),
    ],
)
def test_a_loss_that_does_not_fit_is_named(loss: Any, message: str) -> None:
    """The loss is blamed for its own result and its own exception."""
    assert message in probed(Broken(lambda x: x), config(), blobs(), loss)


class OwnLoss:
    """A loss of one's own that fails from its third call on."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        return nn.functional.cross_entropy(outputs, targets if self.calls < 3 else targets[:1])


class Odd(torch.optim.SGD):
    """An optimizer that cannot step."""

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


def test_the_part_that_fails_is_the_part_that_is_named() -> None:
    """Loss, optimizer and backward pass are told apart; an observer's fault is not the user's."""
    data, job = blobs(), Job("", "trial")

    def failing(**changed: Any) -> loop.Training:
        made = setup.set_up(config(), job, data, 3, ())
        return loop.Training(PERMIT[0], replace(made, **changed), job)

    made = setup.set_up(config(), job, data, 3, ())
    with pytest.raises(UserError, match=rf"loss: fails at {__file__}"):
        failing(task=replace(made.task, loss=OwnLoss())).run((), None)
    with pytest.raises(UserError, match=r"optimizer: fails at .*no step today"):
        failing(optimizer=Odd(made.model.parameters(), lr=0.1)).run((), None)
    back = failing()
    back.model.register_forward_hook(lambda module, inputs, out: Doubled.apply(out))
    with pytest.raises(UserError, match=r"model or loss: fails in the backward pass at .*no way back"):
        back.run((), None)
    with pytest.raises(KeyError, match="an observer's own fault"):
        failing().run([Curious(1)], None)


def test_a_failure_in_the_middle_names_the_users_line() -> None:
    """An exception at a later step is the user's line, not a traceback through the loop."""

    def late(module: nn.Module, inputs: Any, out: Tensor) -> Tensor:
        calls.append(len(out))
        return out if len(calls) < 8 else out.nonsense  # type: ignore[no-any-return, attr-defined]

    calls: list[int] = []
    job, data, body = Job("", "trial"), blobs(), config()
    made = setup.set_up(body, job, data, 3, ())
    made.model.register_forward_hook(late)
    training = loop.Training(PERMIT[0], made, job)
    with pytest.raises(UserError, match=rf"model: fails at {__file__}:\d+ \(AttributeError"):
        training.run((), None)


def test_the_probe_leaves_no_trace() -> None:
    """Running statistics and gradients are as before two rows went through."""
    body = config(model__normalization="batch")
    model = builder.build_model(body, (), 3)
    before = weights.weights_digest(model.state_dict())
    data = blobs()
    seen = probe.probe_rows(
        model, build_task(body, nn.CrossEntropyLoss(), model), data.train.X[:2], data.train.y[:2], 3
    )
    assert before == weights.weights_digest(model.state_dict()) and not seen.stochastic
    assert all(p.grad is None for p in model.parameters())


def test_planning_probes_the_whole_config() -> None:
    """The count of parameters comes back, and a config that cannot train is refused."""
    assert 67 == probe.probe(config(), blobs())
    with pytest.raises(UserError, match="outputs do not fit"):
        probe.probe(config(model__out_features=2), blobs())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"trainer__precision": "bf16-mixed"}, r"trainer\.precision: is not built in this version, got 'bf16-mixed'"),
        ({"trainer__strategy": "ddp"}, r"trainer\.strategy"),
        ({"trainer__devices": 2}, r"trainer\.devices"),
        ({"trainer__compile": True}, r"trainer\.compile"),
        ({"trainer__accelerator": "mps"}, r"trainer\.accelerator"),
        ({"loader__num_workers": 4}, r"loader\.num_workers"),
        ({"task__kind": "language_model"}, r"task\.kind: is not built"),
        ({"task__kind": "clasification"}, "did you mean 'classification'"),
        ({"task__step": {"_target_": "x.y"}}, r"task\.step: is not built"),
        ({"task__predict": "argmax"}, r"task\.predict: unknown"),
        ({"task__class_weights": "equal"}, r"task\.class_weights: unknown"),
        ({"optimizer__groups": [{"match": "haed.*", "lr": 1}]}, r"groups\[0\]\.match: matches no parameter"),
        ({"optimizer": {"_target_": "torch.nn.Linear"}}, r"optimizer: "),
        ({"model": {"_target_": "torch.nn.functional.relu", "_partial_": True}}, r"model: is no torch\.nn\.Module"),
        ({"model__init_from": "nowhere.safetensors"}, r"model\.init_from: there is no such file"),
        ({"scheduler": {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 0}}, "scheduler"),
    ],
)
def test_what_cannot_be_is_one_message(changed: Changed, message: str) -> None:
    """Options that are not built and pieces that cannot be are named by their key."""
    with pytest.raises(UserError, match=message):
        train(config(**changed), blobs())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the card that must be missing")
def test_a_missing_card_is_said() -> None:
    """Asking for a device that is not there is the user's input."""
    with pytest.raises(UserError, match=r"trainer\.accelerator: finds no CUDA card"):
        train(config(trainer__accelerator="cuda"), blobs())


# --- building --------------------------------------------------------------------------------------------------------


def test_first_weights_depend_on_the_seed_alone() -> None:
    """Whatever was drawn before, the same seed gives the same model."""
    first = weights.weights_digest(builder.build_model(config(), (), 3).state_dict())
    torch.rand(9)
    assert first == weights.weights_digest(builder.build_model(config(), (), 3).state_dict())
    assert first != weights.weights_digest(builder.build_model(config(), (), 4).state_dict())


def test_init_from_starts_from_a_file(tmp_path: Path) -> None:
    """Weights of an earlier training are where the next one starts; others are refused with names and shapes."""
    model = builder.build_model(config(), (), 9)
    saved = weights.save(tmp_path, model.state_dict(), {}) / weights.WEIGHTS
    again = builder.build_model(config(model__init_from=str(saved)), (), 3)
    assert weights.weights_digest(model.state_dict()) == weights.weights_digest(again.state_dict())
    with pytest.raises(UserError, match=r"head.weight is \[3, 8\], the model's \[5, 8\]"):
        builder.build_model(config(model__init_from=str(saved), model__out_features=5), (), 3)


def test_surgery_is_done_on_the_built_model() -> None:
    """The config's list changes the model, and a job's is appended to it."""
    body = config(surgery=[{"swap_activation": {"from": "ReLU", "to": "Tanh"}}])
    done = train(body, blobs(), delta=Delta(surgery=({"set_dropout": {"p": 0.1}},)))
    assert {"Tanh", "Dropout"} <= {type(m).__name__ for m in done.model.modules()}


def test_adam_is_fused_unless_the_user_chose() -> None:
    """Fused where nothing was said; what the user says stands; other optimizers are left alone."""
    model = nn.Linear(2, 2)
    assert builder.build_optimizer(config(), model).defaults["fused"]
    assert not builder.build_optimizer(config(optimizer__fused=False), model).defaults["fused"]
    assert not builder.build_optimizer(config(optimizer__foreach=True), model).defaults["fused"]
    sgd = {"_target_": "torch.optim.SGD", "lr": 0.1}
    assert not builder.build_optimizer(config(optimizer=sgd), model).defaults["fused"]


def test_optimizer_groups_take_parameters_by_name() -> None:
    """The first pattern that matches takes a parameter; frozen ones are in no group."""
    body = config(optimizer__groups=[{"match": "head.*", "lr": 0.5}], surgery=[{"freeze": {"match": "*.bias"}}])
    optimizer = builder.build_optimizer(body, builder.build_model(body, (), 3))
    assert [0.5, 0.02] == [g["lr"] for g in optimizer.param_groups]
    assert [(3, 8), (8, 4)] == [tuple(p.shape) for g in optimizer.param_groups for p in g["params"]]


@pytest.mark.parametrize(
    ("loss", "asked", "expected"),
    [("CrossEntropyLoss", "balanced", [2.0, 2 / 3]), ("NLLLoss", [1, 3], [1, 3]), ("CrossEntropyLoss", "none", None)],
)
def test_class_weights_reach_the_loss(loss: str, asked: Any, expected: list[float] | None) -> None:
    """Balanced weights are rows / (classes · rows of the class); a list is taken as it is."""
    body = config(loss={"_target_": f"torch.nn.{loss}"}, task__class_weights=asked)
    weight = builder.build_loss(body, (), {"0": 25, "1": 75}).weight
    assert expected == (None if weight is None else pytest.approx(weight.tolist()))


def test_class_weights_of_binary_losses_and_of_others() -> None:
    """Two classes weigh positives against negatives; a loss that takes no weights is named."""
    binary = config(loss={"_target_": "torch.nn.BCEWithLogitsLoss"}, task__class_weights="balanced")
    assert 4.0 == pytest.approx(float(builder.build_loss(binary, (), {"0": 80, "1": 20}).pos_weight))
    with pytest.raises(UserError, match="this loss takes none, got 'MSELoss'"):
        builder.build_loss(config(loss={"_target_": "torch.nn.MSELoss"}, task__class_weights=[1, 2]))


# --- tasks and evaluation --------------------------------------------------------------------------------------------

BINARY: Changed = {
    "task": {"kind": "binary", "metric": "roc_auc", "target": 0.9},
    "loss": {"_target_": "torch.nn.BCEWithLogitsLoss"},
    "model__out_features": 1,
}
REGRESSION: Changed = {
    "task": {"kind": "regression", "metric": "rmse", "target": 0.5},
    "loss": {"_target_": "torch.nn.MSELoss"},
    "model__out_features": 1,
}


def test_a_binary_task_trains_on_one_or_two_outputs() -> None:
    """Logits, probabilities and two columns reach the same kind of score."""
    data = blobs(kind="binary")
    two = {**BINARY, "loss": {"_target_": "torch.nn.CrossEntropyLoss"}, "model__out_features": 2}
    accuracy = {**BINARY, "task": {"kind": "binary", "metric": "accuracy", "target": 0.9}}
    for body in (BINARY, two, accuracy):
        done = train(config(**body, trainer__max_epochs=15), data)
        assert done.score is not None and done.score.value > 0.8
        assert set(evaluate.evaluate(done.model, data.val, config(**body)).predictions.tolist()) <= {0, 1}
    assert math.log(2) == pytest.approx(train(config(**BINARY), data).history.facts["loss_expected"])


def test_a_regression_trains_on_values_of_its_own_shape() -> None:
    """Targets [N] meet outputs [N, 1] row by row; less is better; the expected loss is the variance."""
    data = blobs(300, "regression")
    done = train(config(**REGRESSION, trainer__max_epochs=20), data)
    assert done.score is not None and not done.score.greater_is_better and done.score.value < 0.5
    assert done.score.value == pytest.approx(min(done.history.series("val/rmse")[1]), rel=1e-5)
    assert float(data.train.y.var(correction=0)) == pytest.approx(done.history.facts["loss_expected"])


def test_regression_outputs_of_the_wrong_width_are_refused() -> None:
    """torch would broadcast them without a word."""
    told = probed(Broken(lambda x: x), config(**REGRESSION), blobs(kind="regression"))
    assert "model: outputs do not fit the targets, got 'shape [B, 3]'" in told


def test_thresholds_follow_what_the_loss_reads() -> None:
    """0 for logits, 0.5 for probabilities, by name, by attribute, or by the model's last module."""

    def own(outputs: Tensor, y: Tensor) -> Tensor:
        return outputs.mean()

    body, point_two = config(**BINARY), torch.tensor([[0.2]])
    assert 1 == int(build_task(body, nn.BCEWithLogitsLoss()).predict(point_two))
    assert 0 == int(build_task(body, nn.BCELoss()).predict(point_two))
    assert 0 == int(build_task(body, own, nn.Sequential(nn.Linear(1, 1), nn.Sigmoid())).predict(point_two))
    assert 1 == int(build_task(body, own, nn.Linear(1, 1)).predict(point_two))
    own.takes = "probabilities"  # type: ignore[attr-defined]
    assert 0 == int(build_task(body, own).predict(point_two))


def absolute_error(targets: np.ndarray, predictions: np.ndarray) -> float:
    return float(np.abs(targets - predictions).mean())


def test_metrics_and_predictors_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `_target_` gives the metric or the predictor; the metric's attributes say its direction."""
    made = {"my.metric": absolute_error, "my.predict": torch.round, "my.number": 3}
    monkeypatch.setattr("pipeline.config.build.build", lambda node, **_: made[node["_target_"]])
    task = {**REGRESSION["task"], "metric": {"_target_": "my.metric"}, "predict": {"_target_": "my.predict"}}
    body = {**config(**REGRESSION), "task": task}
    monkeypatch.setattr(absolute_error, "greater_is_better", False, raising=False)
    own = build_task(body, nn.MSELoss())
    assert ("metric", False, "values") == (own.metric.name, own.metric.greater_is_better, own.metric.needs)
    assert 0.5 == own.measure(torch.tensor([[1.2]]), torch.tensor([0.5]))
    with pytest.raises(UserError, match=r"task\.metric: is not callable"):
        build_task({**body, "task": {**task, "metric": {"_target_": "my.number"}}}, nn.MSELoss())


def test_probabilities_sum_to_one_whatever_the_loss_reads() -> None:
    """Metrics of scores get probabilities from logits, log-probabilities and probabilities alike."""
    logits = torch.randn(5, 3)
    for loss, outputs in ((nn.CrossEntropyLoss(), logits), (nn.NLLLoss(), logits.log_softmax(1))):
        torch.testing.assert_close(build_task(config(), loss).probabilities(outputs), logits.softmax(1))


def test_expected_losses_are_theory_or_none() -> None:
    """Cross entropy, squared and absolute error have one; a loss of one's own has none."""
    y = torch.tensor([0.0, 2.0])
    tasks = {loss: build_task(config(**REGRESSION), loss) for loss in (nn.MSELoss(), nn.L1Loss(), nn.HuberLoss())}
    assert [1.0, 1.0, None] == [expected_loss(task, y, None) for task in tasks.values()]


def test_evaluation_types_say_what_may_be_done_with_them() -> None:
    """Validation rows give a Score, train rows a TrainSide; the model's mode is its own again."""
    data = blobs()
    model = builder.build_model(config(model__dropout=0.5), (), 3)
    model.train()
    model.body[0].eval()  # type: ignore[index, operator, union-attr]
    judged = evaluate.evaluate(model, data.val, config())
    assert isinstance(judged.score, Score) and (40, 3) == tuple(judged.outputs.shape)
    assert isinstance(evaluate.evaluate(model, data.train, config()).score, TrainSide)
    assert model.training and not model.body[0].training  # type: ignore[index, union-attr]
    assert judged.score.value == pytest.approx(np.mean(judged.predictions == judged.targets))


def test_evaluation_in_parts_is_evaluation_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and metric do not depend on how many rows go through at a time."""
    data, model = blobs(), builder.build_model(config(), (), 3)
    whole = evaluate.evaluate(model, data.val, config())
    monkeypatch.setattr(evaluate, "ROWS", 7)
    parts = evaluate.evaluate(model, data.val, config())
    assert whole.loss == pytest.approx(parts.loss, rel=1e-6) and whole.score == parts.score


def test_the_test_split_needs_a_key() -> None:
    """Without one nothing is evaluated."""
    data, model = blobs(), builder.build_model(config(), (), 3)
    with pytest.raises(Refused, match="TestKey"):
        evaluate.evaluate_test(model, data.test, "please", config())  # type: ignore[arg-type]


# --- weights ---------------------------------------------------------------------------------------------------------


def test_weights_digest_is_of_names_types_shapes_and_bytes() -> None:
    """Each of the four changes it; order and files do not."""
    one = {"a": torch.zeros(2, 3), "b": torch.ones(())}
    assert weights.weights_digest(one) == weights.weights_digest(dict(reversed(one.items())))
    others: list[dict[str, Tensor]] = [
        {**one, "a": torch.zeros(3, 2)},
        {**one, "a": torch.zeros(2, 3, dtype=torch.bfloat16)},
        {"c": one["a"], "b": one["b"]},
        {**one, "b": torch.tensor(1.5)},
    ]
    assert 5 == len({weights.weights_digest(o) for o in [one, *others]})


def test_checkpoints_round_trip_in_generations(tmp_path: Path) -> None:
    """Tensors, also tied and strided ones, and state come back; each save is the next generation."""
    tied = torch.rand(3, 4)
    given = {"a": tied, "b": tied, "c": tied.T, "n": torch.tensor(3)}
    first, second = (weights.save(tmp_path, given, {"epoch": e}) for e in (1, 2))
    tensors, state = weights.load(second)
    assert ("1", "2", 2) == (first.name, second.name, state["epoch"])
    assert all(torch.equal(given[name], t) for name, t in tensors.items()) and 4 == len(tensors)
    assert [first, second] == weights.generations(tmp_path)


def test_changed_weights_are_refused(tmp_path: Path) -> None:
    """A flipped byte, a missing state and a pickle are not read as a checkpoint."""
    folder = weights.save(tmp_path, {"a": torch.zeros(4)}, {})
    path = folder / weights.WEIGHTS
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"\x01")
    with pytest.raises(Refused, match="is not what was saved"):
        weights.load(folder)
    torch.save({"a": 1}, path)
    with pytest.raises(UserError, match="is no safetensors file"):
        weights.load(folder)
    path.write_bytes(whole)
    (folder / weights.STATE).write_text("{}")
    with pytest.raises(UserError, match="cannot be read as the state"):
        weights.load(folder)


# --- behind the permit -----------------------------------------------------------------------------------------------


def test_fit_trains_what_was_planned(digits_permit: TrainPermit, tmp_path: Path) -> None:
    """A real permit trains the real digits; the checkpoint holds the model's own weights, and a repeat is identical."""
    job = Job(digits_permit.plan.digest, "baseline")
    done = loop.fit(digits_permit, job, folder=tmp_path)
    assert done.score is not None and done.score.value > 0.5 and done.checkpoint is not None
    _, state = weights.load(done.checkpoint)
    assert done.weights_digest == state["weights_digest"] == weights.weights_digest(done.model.state_dict())
    assert job.plan_digest == json.loads((done.checkpoint / weights.STATE).read_text())["plan_digest"]
    again = loop.fit(digits_permit, job)
    assert (done.weights_digest, done.history.digest()) == (again.weights_digest, again.history.digest())


@pytest.mark.parametrize("permit", [None, "permit", object(), types.SimpleNamespace(plan=None)])
def test_nothing_trains_without_a_permit(permit: Any) -> None:
    """Whatever is not a TrainPermit is refused before anything is built."""
    with pytest.raises(Refused, match="TrainPermit"):
        loop.fit(permit, Job("", "baseline"))


def test_a_job_of_another_plan_is_refused(digits_permit: TrainPermit) -> None:
    """The digest ties a job to what was planned."""
    with pytest.raises(Refused, match="job: is of another plan"):
        loop.fit(digits_permit, Job("0" * 64, "baseline"))


def test_changes_of_train_rows_are_not_built_yet(digits_permit: TrainPermit) -> None:
    """A job that asks for them is refused instead of trained without."""
    job = Job(digits_permit.plan.digest, "trial", Delta(train_rows={"drop": [1]}))
    with pytest.raises(UserError, match="train_rows: is not built"):
        loop.fit(digits_permit, job)
