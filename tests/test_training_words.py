"""Words of Lightning and its template: limits of batches, validation inside an epoch, first weights, callbacks."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from pipeline.callbacks.own import OwnCallback, build_callbacks
from pipeline.callbacks.step_profile import StepProfile, lines
from pipeline.checkpoints.weights import weights_digest
from pipeline.config.compose import compose
from pipeline.config.sections import LoaderConfig, TrainerConfig
from pipeline.engine.budget import StepBudget, limited_rows, planned_budget
from pipeline.engine.loop import Training
from pipeline.engine.observer import StopTraining
from pipeline.errors import UserError
from pipeline.models.mlp import MLP
from pipeline.run_store.job import Job
from tests.trainings import PERMIT, blobs, components_of, config, permitted, run, train

__all__ = ["permitted"]

DROPOUT = {"model": {"_target_": "pipeline.models.mlp.MLP", "in_features": 4, "out_features": 3, "hidden": [8],
                     "dropout": 0.5}}  # fmt: skip


# --- limits of batches, validation inside an epoch -------------------------------------------------------------------


def test_limit_train_batches_shortens_an_epoch() -> None:
    """Two of seven batches are an epoch, other rows each time; a share is of the batches, and at least one of them."""
    part = components_of(config(trainer__limit_train_batches=2), blobs(), Job("", "trial"))
    rows = [batch.rows.tolist() for epoch in (1, 2) for (batch,) in part.batches.accumulation_groups(epoch)]
    whole = components_of(config(), blobs(), Job("", "trial"))
    (first,), (second,), *_ = whole.batches.accumulation_groups(1)

    assert part.budget.steps_per_epoch == 2 and part.budget.max_steps == 6
    assert rows[:2] == [first.rows.tolist(), second.rows.tolist()] and rows[2:] != rows[:2]
    assert [limited_rows(share, 16, 100) for share in (None, 1.0, 0.5, 0.01, 9)] == [100, 100, 48, 16, 100]


def test_limit_train_batches_of_all_changes_nothing() -> None:
    """All batches, or a share of 1, train to the weights of a training without a limit."""
    plain, all_of_them = train(config(), blobs()), train(config(trainer__limit_train_batches=1.0), blobs())
    assert plain.weights_digest == all_of_them.weights_digest


def test_limit_val_batches_leaves_the_score_to_all_rows() -> None:
    """After an epoch one batch is measured; the score at the end is of all validation rows."""
    fitted = train(config(trainer__limit_val_batches=1), blobs())

    assert fitted.history.facts["val_rows"] == 16
    assert fitted.score is not None and fitted.score.n == 40


def test_val_check_interval_measures_inside_an_epoch() -> None:
    """Of seven batches validation is after every three and at the end, and the training is the same."""
    plain, checked = train(config(), blobs()), train(config(trainer__val_check_interval=3), blobs())
    inside = [event for event in checked.history.events if event["kind"] == "validated"]

    assert [event["step"] for event in inside] == [3, 6, 10, 13, 17, 20]
    assert all({"val/loss", "val/accuracy", "epoch"} <= set(event) for event in inside)
    assert checked.history.series("train/loss")[1].tolist() == plain.history.series("train/loss")[1].tolist()
    assert checked.score is not None and plain.score is not None and checked.score.value >= plain.score.value


def test_val_check_interval_resumes_bit_identically(tmp_path: Path) -> None:
    """A training that is continued inside an epoch has the weights and the checks of one that ran through."""
    body = config(trainer__val_check_interval=3, trainer__checkpoint_steps=2)
    whole = train(body, blobs())
    first = Training(PERMIT[0], components_of(body, blobs(), Job("", "trial")), Job("", "trial"))
    with first.session(folder=tmp_path):
        first.run(until=11)
    fitted = run(Training(PERMIT[0], components_of(body, blobs(), Job("", "trial")), Job("", "trial")), folder=tmp_path)

    assert 0 < fitted.resumed_at <= 11
    assert [e["step"] for e in fitted.history.events] == [e["step"] for e in whole.history.events]
    assert fitted.steps == whole.steps == 21


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 200))
def test_next_check_is_ahead_and_at_most_one_interval_away(every: int, steps: int, step: int) -> None:
    """From any step the next validation is inside the epoch or at its end, at most one interval ahead."""
    budget = StepBudget(1, 1, steps, 1000, check_every=min(every, steps))
    last = (step // steps + 1) * steps
    assert step < budget.next_check(step, last) <= min(last, step + budget.check_every)


def test_val_check_interval_longer_than_an_epoch_is_refused() -> None:
    """The message names the batches of an epoch, and a share, which always fits."""
    trainer = TrainerConfig(max_epochs=1, val_check_interval=50)
    with pytest.raises(UserError, match=r"val_check_interval: is longer than an epoch, got 50; expected at most 7"):
        planned_budget(trainer, LoaderConfig(batch_size=16), 100)


@pytest.mark.parametrize("word", ["limit_train_batches=0", "limit_val_batches=1.5", "val_check_interval=-1"])
def test_limits_out_of_range_are_refused(word: str) -> None:
    """No batch at all, and more than an epoch, are wrong input with one message."""
    with pytest.raises(UserError, match=f"trainer.{word.partition('=')[0]}: ") as raised:
        compose([f"trainer.{word}"])
    assert len(raised.value.faults) == 1


def test_precision_bf16_is_bf16_mixed() -> None:
    """Both words train to the same weights, which are not those of float32."""
    digests = [train(config(trainer__precision=p), blobs()).weights_digest for p in (32, "bf16", "bf16-mixed")]
    assert digests[0] != digests[1] == digests[2]
    assert compose(["trainer.precision=bf16"])["trainer"]["precision"] == "bf16"


# --- weights to start from -------------------------------------------------------------------------------------------


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return MLP(4, 3, hidden=[8]).state_dict()


def started(path: Path) -> str:
    """The digest of a model's weights that starts from a file."""
    body = config(model__init_from=str(path))
    return weights_digest(components_of(body, blobs(), Job("", "trial")).model.state_dict())


def test_ckpt_path_reads_what_people_have(weights: dict[str, torch.Tensor], own_folder: Path) -> None:
    """safetensors, a state dict, one inside a checkpoint, and Lightning's with its prefix are the same weights."""
    save_file(weights, own_folder / "a.safetensors")
    torch.save(weights, own_folder / "b.pt")
    torch.save({"model_state_dict": weights, "epoch": 3}, own_folder / "c.pth")
    prefixed = {f"net.{name}": value for name, value in weights.items()}
    torch.save({"state_dict": prefixed, "optimizer_states": []}, own_folder / "d.ckpt")

    digests = {started(path) for path in sorted(own_folder.iterdir())}

    assert digests == {weights_digest(weights)}


class Payload:
    """What runs code when a pickle is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


def test_ckpt_path_runs_no_code(own_folder: Path) -> None:
    """A pickle with objects is refused before anything of it runs, with what to do."""
    torch.save({"state_dict": Payload()}, own_folder / "evil.ckpt")
    with pytest.raises(UserError, match=r"cannot be read without running its code.*torch\.save\(model\.state_dict\(\)"):
        started(own_folder / "evil.ckpt")
    assert not Path("executed").exists()


@pytest.mark.parametrize(("content", "what"), [(b"PK\3\4 damaged", "cannot be read"), (None, "holds no weights")])
def test_ckpt_path_names_what_it_cannot_read(content: bytes | None, what: str, own_folder: Path) -> None:
    """A damaged file and one without weights are wrong input."""
    path = own_folder / "weights.pt"
    torch.save({"epoch": 3}, path) if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=what):
        started(path)


def test_ckpt_path_is_the_file_of_the_model() -> None:
    """The plan knows it as model.init_from, whose digest it freezes; two different files are refused."""
    assert compose(["ckpt_path=a.pt"])["model"]["init_from"] == "a.pt"
    assert "init_from" not in compose([])["model"]
    with pytest.raises(UserError, match=r"ckpt_path: names another file than model\.init_from"):
        compose(["ckpt_path=a.pt", "+model.init_from=b.pt"])


# --- callbacks -------------------------------------------------------------------------------------------------------


class Watch:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def before_forward(self, step: int) -> None:
        torch.rand(step)  # what it draws is its own
        self.calls.append(f"step {step}")

    def validated(self, epoch: int, metrics: dict[str, float]) -> None:
        self.calls.append(f"epoch {epoch} {sorted(metrics)[0]}")


def test_callback_watches_and_changes_nothing() -> None:
    """It is told steps and epochs, and a training with dropout ends with the same weights."""
    body, watch = config(**DROPOUT, trainer__max_epochs=1), Watch()

    watched = train(body, blobs(), OwnCallback("callbacks[0]", watch))

    assert watch.calls == [*(f"step {step}" for step in range(1, 8)), "epoch 1 val/accuracy"]
    assert watched.weights_digest == train(body, blobs()).weights_digest


class Meddler:
    """Changes what it should watch."""

    def start(self, model: torch.nn.Module, *_: Any) -> None:
        self.model = model

    def after_update(self, step: int) -> None:
        with torch.no_grad():
            next(self.model.parameters()).mul_(0.5)


def test_callback_that_changes_a_weight_is_refused() -> None:
    """The message names the callback, the method and the weight."""
    with pytest.raises(UserError, match=r"callbacks\[0\]: after_update changes the training.*another body"):
        train(config(), blobs(), OwnCallback("callbacks[0]", Meddler()))


class Looker:
    """Looks at the outputs of the model between two steps."""

    def __init__(self, mode: str, restores: bool) -> None:
        self.mode, self.restores = mode, restores

    def start(self, model: torch.nn.Module, *_: Any) -> None:
        self.model = model

    def after_update(self, step: int) -> None:
        with torch.no_grad():
            self.model.train(self.mode == "train")(torch.ones(2, 4))
        self.model.train(self.restores or self.model.training)


@pytest.mark.parametrize(
    ("looker", "refused"),
    [
        (Looker("eval", restores=True), ""),
        (Looker("eval", restores=False), r"after_update changes the training.*mode of the model.*training mode"),
        (Looker("train", restores=True), r"after_update changes the training.*running statistics of body\.1"),
    ],
)
def test_callback_that_leaves_batch_norm_in_another_state_is_refused(looker: Looker, refused: str) -> None:
    """One that evaluates and puts the mode back watches; eval mode that stays, and a pass in training mode, do not."""
    body = config(model__normalization="batch", trainer__max_epochs=1)
    if not refused:
        watched = train(body, blobs(), OwnCallback("callbacks[0]", looker))
        assert watched.weights_digest == train(body, blobs()).weights_digest
        return
    with pytest.raises(UserError, match=rf"callbacks\[0\]: {refused}"):
        train(body, blobs(), OwnCallback("callbacks[0]", looker))


def test_callback_stops_a_training() -> None:
    """StopTraining ends it after the epoch, with the reason in the history."""

    class Enough:
        def validated(self, epoch: int, metrics: dict[str, float]) -> None:
            raise StopTraining("enough")

    fitted = train(config(), blobs(), OwnCallback("callbacks[0]", Enough(), (StopTraining,)))
    assert fitted.stop_reason == "observer" and fitted.history.events[-1]["why"] == "enough"


MODULE = """
class Watch:
    def __init__(self, every):
        self.every = every
    def after_update(self, step):
        raise KeyError("lost")

class OfLightning:
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx): ...
"""


def test_callbacks_are_built_from_trusted_packages(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target becomes a callback, whose error names its line; hooks of another library are refused with ours."""
    (own_folder / "watching.py").write_text(MODULE)
    monkeypatch.syspath_prepend(own_folder)
    importlib.invalidate_caches()
    node = {"_target_": "watching.Watch", "every": 2}

    (callback,) = build_callbacks({"callbacks": [node]}, ("watching",))

    assert callback.every == 2
    with pytest.raises(UserError, match=r"callbacks\[0\]: fails in after_update at .*watching\.py:6"):
        callback.after_update(2)
    with pytest.raises(UserError, match=r"callbacks\[0\]: is not a callback.*before_update.*are not called"):
        build_callbacks({"callbacks": [{"_target_": "watching.OfLightning"}]}, ("watching",))
    with pytest.raises(UserError, match=r"callbacks\[0\]\._target_: is not allowed"):
        build_callbacks({"callbacks": [node]})


def test_debug_profile_names_the_operators() -> None:
    """The profile has the steps after the first, with operators by their time, and changes no weight."""
    node = compose(["debug=profile"])["callbacks"]
    (callback,) = build_callbacks({"callbacks": node})
    assert isinstance(callback.callback, StepProfile)

    fitted = train(config(), blobs(), OwnCallback("callbacks[0]", StepProfile(warm_up=2, steps=3)))
    (event,) = [event for event in fitted.history.events if event["kind"] == "profile"]

    assert event["step"] == 5 and math.isfinite(event["ms"])
    assert any("addmm" in row["operator"] or "Optimizer" in row["operator"] for row in event["operators"])
    assert lines(event)[0].startswith("profile of 3 steps")
    assert fitted.weights_digest == train(config(), blobs()).weights_digest
