"""The progress of a training: how far it is, what it has measured and why it stopped; and its result."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from torch import Tensor, nn

from pipeline.checkpoints import codec
from pipeline.checkpoints.generation import CheckpointState, Snapshot
from pipeline.checkpoints.weights import tensors_of
from pipeline.evaluation.metrics import Metric
from pipeline.evaluation.task import Task
from pipeline.evaluation.trivial_baseline import TrivialBaseline
from pipeline.history import History
from pipeline.results import Score

# done: all planned epochs or steps, or early stopping; budget: the job allows fewer steps than the plan;
# clock: trainer.max_minutes is used up; nonfinite: a loss or gradient is not finite; spike: a loss rose sharply.
StopReason = Literal["done", "budget", "clock", "nonfinite", "spike", "observer"]


@dataclass(frozen=True, eq=False)
class WeightsSnapshot:
    """Copies of the weights on the CPU with their epoch, step and validation score (NaN if they were not scored)."""

    epoch: int
    step: int
    value: float
    weights: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class KeptState:
    """Model, loss and optimizer after a step, on the CPU; a rollback returns to it. `others` refers to `tensors`."""

    step: int
    others: Mapping[str, object]
    weights: Mapping[str, Tensor]
    tensors: Mapping[str, Tensor]


@dataclass
class Progress:
    """Everything that changes during training outside of model, optimizer, scheduler and loss scale.

    `step` optimizer steps have been made and `epoch` epochs are validated. `stop_reason` is None while training runs;
    it can be set inside an epoch, which is then still validated. `ended` means that nothing is left to do.
    """

    step: int = 0
    epoch: int = 0
    ended: bool = False
    stop_reason: StopReason | None = None
    best: WeightsSnapshot | None = None
    lowest_val_loss: float = math.inf
    lowest_val_loss_epoch: int = 0
    kept: tuple[KeptState, ...] = ()  # that a rollback can return to, oldest first
    history: History = field(default_factory=History)
    earlier_seconds: float = 0.0  # spent by earlier processes that trained the same job
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Seconds spent on this training, including those of earlier processes."""
        return self.earlier_seconds + time.perf_counter() - self.started

    def epochs_without_improvement(self, epoch: int, val_loss: float) -> int:
        """Record the epoch's validation loss and return the number of epochs since the lowest one."""
        if val_loss < self.lowest_val_loss:
            self.lowest_val_loss, self.lowest_val_loss_epoch = val_loss, epoch
        return epoch - self.lowest_val_loss_epoch

    def keep_if_best(self, epoch: int, metrics: Mapping[str, float], metric: Metric, model: nn.Module) -> float:
        """Copy the weights if their validation score is the best so far, and return the score."""
        value = metrics[f"val/{metric.name}"]
        if metric.better(value, self.best.value if self.best else math.nan):
            self.best = WeightsSnapshot(epoch, self.step, value, tensors_of(model.state_dict()))
        return value

    def to_state(self) -> CheckpointState:
        """Return the JSON form for a checkpoint; history and best weights are stored in files of their own."""
        best = self.best
        return {
            "step": self.step,
            "epoch": self.epoch,
            "ended": self.ended,
            "stop_reason": self.stop_reason,
            "seconds": self.seconds,
            "best": codec.pack([best.epoch, best.step, best.value], "best", {}) if best else None,
            "lowest_val_loss": codec.pack([self.lowest_val_loss, self.lowest_val_loss_epoch], "lowest_val_loss", {}),
            "kept": [{"step": state.step, "others": dict(state.others)} for state in self.kept],
        }

    def kept_parts(self) -> dict[str, Mapping[str, Tensor]]:
        """Return the tensors of the kept states, grouped by the stem of the file that a checkpoint stores them in."""
        weights = {f"kept_{i}_weights": state.weights for i, state in enumerate(self.kept)}
        return weights | {f"kept_{i}_training": state.tensors for i, state in enumerate(self.kept)}

    @classmethod
    def from_snapshot(cls, snapshot: Snapshot) -> Progress:
        """Return the progress that a checkpoint was taken at."""
        state = snapshot.state
        lowest, lowest_epoch = codec.unpack(state["lowest_val_loss"], {})
        progress = cls(
            step=state["step"],
            epoch=state["epoch"],
            ended=state["ended"],
            stop_reason=cast("StopReason | None", state["stop_reason"]),
            lowest_val_loss=lowest,
            lowest_val_loss_epoch=lowest_epoch,
            history=snapshot.history or History(),
            earlier_seconds=state["seconds"],
            kept=tuple(
                KeptState(
                    kept["step"],
                    kept["others"],
                    snapshot.parts[f"kept_{i}_weights"],
                    snapshot.parts[f"kept_{i}_training"],
                )
                for i, kept in enumerate(state.get("kept", []))
            ),
        )
        if state["best"]:
            epoch, step, value = codec.unpack(state["best"], {})
            # The best weights have a file of their own only if they are not the checkpoint's weights.
            weights = dict(snapshot.parts.get("best", snapshot.parts["weights"]))
            progress.best = WeightsSnapshot(epoch, step, value, weights)
        return progress


@dataclass(frozen=True, eq=False)
class Fit:
    """The result of a training: the model with its best weights, the history, the score and why training stopped.

    `score` is the validation score of the best epoch; it is None for the overfit check and if no epoch had a score
    that is a number. `checkpoint` holds the same weights as `model`. `seconds` include those of earlier processes, if
    the training was resumed at step `resumed_at`. `baseline_score` is the score of a model that learned nothing.
    """

    model: nn.Module
    task: Task
    history: History
    score: Score | None
    steps: int
    stop_reason: StopReason
    weights_digest: str
    checkpoint: Path | None
    seconds: float
    baseline_score: TrivialBaseline
    resumed_at: int = 0
