"""What every sanity check gets: one config with its data, the training's setup, and the time that is left."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.config.sections import TrainingConfig
from pipeline.data.dataset import Data
from pipeline.engine.fit import fit
from pipeline.engine.progress import Fit
from pipeline.engine.setup import TrainingComponents, build_components
from pipeline.run_store.job import Delta, Job
from pipeline.run_store.permits import TrainPermit
from pipeline.runtime import options
from pipeline.runtime.seeds import derive, seeded
from pipeline.runtime.threads import running_on, threads

SHARE = 0.1  # of trainer.max_minutes, for all sanity checks together


class NotApplicable(Exception):
    """The check makes no sense for this task; the message says why."""


class NotRun(Exception):
    """The check was skipped; the message says why."""


@dataclass(eq=False)
class CheckContext:
    """One config with its data, and the state that the sanity checks share.

    Without a `permit` no check trains, for the reason in `refused`. `folder` is for trainings in other processes.
    `settings` are those of the baseline phase. `control` is a short training of the unchanged plan, once a check has
    made one.
    """

    config: Mapping[str, Any]
    trust: tuple[str, ...]
    data: Data
    settings: Mapping[str, Any]
    permit: TrainPermit | None = None
    folder: Path | None = None
    refused: str = "there is no permit to train"
    began: float = field(default_factory=time.perf_counter)
    step_seconds: float = 0.0
    control: Fit | None = None

    @property
    def allowance(self) -> float:
        """Seconds for all sanity checks together."""
        return 60 * SHARE * float(self.config["trainer"]["max_minutes"])

    @property
    def left(self) -> float:
        """Seconds left of the allowance."""
        return self.allowance - (time.perf_counter() - self.began)

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @cached_property
    def threads(self) -> int:
        """The number of threads that the planned training uses."""
        frozen = self.permit.plan.facts.get("threads") if self.permit else None
        return int(frozen) if frozen else threads(self.config["trainer"].get("threads", "auto"), self.setup.parameters)

    @cached_property
    def setup(self) -> TrainingComponents:
        """The planned training before its first step, not compiled; no check changes its weights."""
        config = TrainingConfig.from_mapping({**self.config, "trainer": {**self.config["trainer"], "compile": False}})
        with seeded(derive(self.seed, "fit")), options.deterministic(config.trainer.deterministic):
            return build_components(config, Job("", "sanity_check.forward"), self.data, self.seed, self.trust)

    @property
    def model(self) -> nn.Module:
        """The model to inspect: after the control training where there is one, else untrained."""
        return self.control.model if self.control and self.control.stop_reason != "nonfinite" else self.setup.model

    @contextmanager
    def training_conditions(self) -> Iterator[TrainingComponents]:
        """Set seeds, kernels and threads as in training inside the block."""
        setup = self.setup
        with ExitStack() as stack:
            stack.enter_context(seeded(derive(self.seed, "proof")))
            stack.enter_context(options.deterministic(self.config["trainer"].get("deterministic", True)))
            stack.enter_context(running_on(self.threads))
            yield setup

    def steps(self, setting: str) -> int:
        """Return the number of steps of a `phases.baseline` setting, at most those of the plan. Raises NotRun for 0."""
        steps = int(self.settings[setting])
        if steps == 0:
            raise NotRun(f"phases.baseline.{setting} is 0")
        return min(steps, int(self.permit.plan.facts["budget"]["max_steps"])) if self.permit else steps

    def require_permit(self) -> TrainPermit:
        """Return the permit. Raises NotRun without one."""
        if self.permit is None:
            raise NotRun(self.refused)
        return self.permit

    def train(self, purpose: str, steps: int, delta: Delta | None = None, seed_index: int = 0) -> Fit:
        """Train the plan with one change for some steps. Raises NotRun if the time does not suffice."""
        permit, left = self.require_permit(), self.left
        needed = steps * self.step_seconds
        if left <= needed:
            raise NotRun(f"time: it takes about {needed:.1f} s, and {max(0.0, left):.1f} s of the allowance are left")
        delta = delta or Delta()
        # No early stopping, so that trainings of equal steps can be compared; no compilation, which takes longer than
        # so few steps.
        short = {"trainer.max_minutes": left / 60, "trainer.patience": None, "trainer.compile": False}
        changed = Delta({**delta.overrides, **short}, delta.surgery, delta.train_rows)
        fit_result = fit(permit, Job(permit.plan.digest, purpose, changed, seed_index, steps), data=self.data)
        self.step_seconds = fit_result.seconds / max(1, fit_result.steps)
        if fit_result.stop_reason == "clock":
            raise NotRun(f"time: the allowance was used up after {fit_result.steps} of {steps} steps")
        return fit_result
