"""An arm: one change of the run, the causes whose removal it is, and the effect that is expected of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pipeline.config.sections import LoaderConfig, TrainerConfig
from pipeline.engine.budget import planned_budget
from pipeline.experiments.describe import Description
from pipeline.repair.config_edits import MISSING, get
from pipeline.run_store.job import Delta, Job

USUAL_BATCH = 32  # rows of a batch that replaces an unusual one
Kind = Literal["repair", "context"]
Reason = Literal["unusual", "general", "suspicion"]


@dataclass(frozen=True)
class Arm:
    """A change of the run as a `Delta`, and the causes that it removes.

    A `repair` confirms its causes if it restores the shortfall. A `context` swaps a whole group for a reference: its
    result says in which group the cause is, and not which one it is. `length` is that of the training in planned ones.
    `reason` is why the arm is worth a training: the run has an `unusual` setting or row, every run can have the fault
    (`general`), or only a `suspicion` of another part of the diagnosis.
    """

    id: str
    causes: tuple[str, ...]
    change: str
    delta: Delta
    kind: Kind = "repair"
    length: float = 1.0
    reason: Reason = "suspicion"
    effect: str = "at least half of the shortfall is restored on 3 of 3 seeds"

    @property
    def expected(self) -> str:
        """The effect that confirms the causes, as the ledger states it before the training."""
        if self.kind == "context":
            return "a restored shortfall says that the cause is in what was replaced"
        return self.effect


def combined(first: Delta, second: Delta) -> Delta:
    """Both changes, the second after the first."""
    overrides = dict(first.overrides)
    for key, value in second.overrides.items():
        # A whole section replaces the keys inside it, which would be applied to the new one.
        overrides = {k: v for k, v in overrides.items() if not k.startswith(f"{key}.")}
        overrides[key] = value
    return Delta(overrides, (*first.surgery, *second.surgery), {**first.train_rows, **second.train_rows})


@dataclass(frozen=True)
class Subject:
    """What is experimented on: a training of the run, and what is known of it before any arm.

    `max_steps` are those of a slice, which is the `slice` share of the planned training.
    `config` includes the change `base` that an earlier round adopted. `control` is the validation score of the
    training, NaN without one; `stopped` is how it ended, `step_seconds` what a step took, `update_ratio` the median
    norm of an update over that of the weights, NaN if it was not measured.
    """

    plan_digest: str
    config: Mapping[str, Any]
    description: Description
    max_steps: int
    target: float | None
    trivial: float
    greater_is_better: bool
    control: float
    slice: float = 1.0
    stopped: str = "done"
    step_seconds: float = 0.0
    base: Delta = field(default_factory=Delta)
    update_ratio: float = math.nan
    telling_feature: int | None = None  # that alone tells the target
    reference_scores: Mapping[str, float] = field(default_factory=dict)

    def value(self, key: str) -> Any:
        """Return the value of a config key, None where the config has no such key."""
        value = get(self.config, key)
        return None if value is MISSING else value

    def number(self, key: str) -> float | None:
        """Return the number at a config key; None where there is none."""
        value = self.value(key)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    def has(self, key: str) -> bool:
        """Whether the config has a key, so that an override can replace it."""
        section, _, name = key.rpartition(".")
        node: Any = self.config.get(section) if section else self.config
        return isinstance(node, Mapping) and name in node

    @property
    def rows(self) -> int:
        return self.description["train_rows"]

    @property
    def batch_size(self) -> int:
        return min(int(self.config["loader"]["batch_size"]), self.rows)

    def better(self, value: float, other: float) -> bool:
        """Whether a score is better than another."""
        return value > other if self.greater_is_better else value < other

    def steps_of(self, arm: Arm, share: float) -> int:
        """The optimizer steps of a share of the arm's own slice: another batch size has other steps per epoch."""
        job = Job(self.plan_digest, "", combined(Delta(), arm.delta))
        config = job.config(self.config)
        planned = planned_budget(
            TrainerConfig.from_mapping(config["trainer"]), LoaderConfig.from_mapping(config["loader"]), self.rows
        )
        return max(1, round(planned.max_steps * self.slice * share))

    def cost(self, arm: Arm, steps: int) -> float:
        """The cost of so many steps of an arm, in slices: the larger of its share of steps and of rows."""
        batch = arm.delta.overrides.get("loader.batch_size", self.batch_size)
        rows = steps * min(int(batch), self.rows) / (self.max_steps * self.batch_size)
        return max(steps / self.max_steps, rows) if int(batch) > self.batch_size else rows

    def on(self, delta: Delta) -> Subject:
        """The subject with a further change, from which what is left is explained."""
        return replace(self, base=combined(self.base, delta), config=Job("", "", delta).config(self.config))
