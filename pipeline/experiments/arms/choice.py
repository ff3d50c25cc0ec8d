"""Which arms a run gets: the first split, then those of the suspected causes, of unusual settings, and general ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pipeline.config.conf_dir import LOSSES, loss_target
from pipeline.experiments.arms import model, rows, training
from pipeline.experiments.arms.arm import USUAL_BATCH, Arm, Subject
from pipeline.experiments.result import FIRST_SPLIT
from pipeline.run_store.job import Delta

MORE_EPOCHS = "more_epochs"  # the id of the arm that comes last
LONGER, LONGEST = 2, 4  # times the planned epochs, for a training that may need more of them
EPOCHS_OF_A_TREND = 5  # fewer do not show where a training ends
Group = Callable[[Subject], Iterator[Arm]]


def chosen_arms(subject: Subject, suspects: Sequence[str]) -> list[Arm]:
    """Return the arms that are worth a training, in the order in which they are tried.

    First comes the first split, then the arms of suspects in their order, those that undo an unusual setting, and those
    that every run can have. Arms of causes that nothing hints at are left out.
    """
    places = {cause: place for place, cause in enumerate(suspects)}
    arms = [arm for group in GROUPS for arm in group(subject) if arm.delta]
    indicated = [arm for arm in arms if arm.reason != "suspicion" or set(arm.causes) & set(places)]

    def place(arm: Arm) -> int:
        if arm.id == FIRST_SPLIT:
            return -1
        suspected = [places[cause] for cause in arm.causes if cause in places]
        return min(suspected) if suspected else len(places) + (arm.reason == "general")

    return sorted(indicated, key=place)


def first_split(subject: Subject) -> Iterator[Arm]:
    """A reference model with a reference optimizer, loss and scaling on the same rows: is the fault in the rows?"""
    about = subject.description
    if about["kind"] not in LOSSES or about["kind"] == "language_model":
        return
    overrides: dict[str, Any] = {
        "model": model.REFERENCE, "surgery": [], "optimizer": dict(training.REFERENCE_OPTIMIZER), "scheduler": None,
        "loss": {"_target_": loss_target(about["kind"])}, "trainer.gradient_clip_val": None, "trainer.precision": 32,
        "loader.batch_size": min(USUAL_BATCH, subject.rows), "loader.augment": [], "loader.shuffle": True,
        "trainer.accumulate_grad_batches": 1,
    }  # fmt: skip
    if about["input_scale"] is not None and subject.value("preprocess.images") == "none":
        overrides["preprocess.standardize"] = True
    if about["kind"] in ("regression", "autoencoder"):
        overrides["preprocess.targets"] = "standardize"
    known = {key: value for key, value in overrides.items() if subject.has(key)}
    text = "a reference model with reference loss, optimizer and scaling"
    yield Arm(FIRST_SPLIT, (), text, Delta(known), kind="context", reason="general")


def more_epochs(subject: Subject) -> Arm:
    """Twice the planned epochs; of one or two epochs, for which that is still few, up to four times as many."""
    epochs = int(subject.config["trainer"]["max_epochs"])
    times = min(LONGEST, max(LONGER, math.ceil(EPOCHS_OF_A_TREND / epochs)))
    limits = {"trainer.max_epochs": times * epochs}
    if subject.number("trainer.max_steps") is not None:
        limits["trainer.max_steps"] = times * subject.max_steps
    text = f"{times * epochs} epochs instead of {epochs}"
    return Arm(MORE_EPOCHS, ("too_few_epochs",), text, Delta(limits), length=times)


# The order decides between arms that nothing else orders.
GROUPS: tuple[Group, ...] = (
    first_split, training.optimizer, training.regularization, model.head_and_loss, rows.balance, rows.without_feature,
    training.learning_rate, training.batches, rows.scaling, model.body,
)  # fmt: skip
