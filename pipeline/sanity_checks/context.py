"""The bench: what every proof works on, and how much time is left for them all."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.data.dataset import Data
from pipeline.engine.fit import fit
from pipeline.engine.loop import Fit
from pipeline.engine.setup import TrainingComponents, build_components
from pipeline.run_store.job import Delta, Job
from pipeline.run_store.permits import TrainPermit
from pipeline.runtime import options
from pipeline.runtime.seeds import derive, seeded
from pipeline.runtime.threads import running_on, threads

SHARE = 0.1  # of trainer.max_minutes, for all proofs together


class NotApplicable(Exception):
    """The question does not arise here; the message says why."""


class NotRun(Exception):
    """The question could be asked, and was not; the message says why."""


@dataclass(eq=False)
class CheckContext:
    """One config with its data, and what the proofs need beside it.

    Without a `permit` nothing trains, for the reason `refused`; `folder` is where work in other processes is laid.
    `settings` are those of the baseline. `arm` is a short training of the plan as it is, once a proof has made one.
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
    arm: Fit | None = None

    @property
    def allowance(self) -> float:
        """Seconds for all proofs together."""
        return 60 * SHARE * float(self.config["trainer"]["max_minutes"])

    @property
    def left(self) -> float:
        """Seconds that are left of the allowance."""
        return self.allowance - (time.perf_counter() - self.began)

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @cached_property
    def threads(self) -> int:
        """As many as the training runs on."""
        frozen = self.permit.plan.facts.get("threads") if self.permit else None
        return int(frozen) if frozen else threads(self.config["trainer"].get("threads", "auto"), self.setup.parameters)

    @cached_property
    def setup(self) -> TrainingComponents:
        """The planned training before its first step, as it is without a compiler; no proof moves its weights."""
        config = {**self.config, "trainer": {**self.config["trainer"], "compile": False}}
        with seeded(derive(self.seed, "fit")), options.deterministic(config["trainer"].get("deterministic", True)):
            return build_components(config, Job("", "proof.passes"), self.data, self.seed, self.trust)

    @property
    def model(self) -> nn.Module:
        """The model to be looked at: after some steps on the real rows where there were any, else untrained."""
        return self.arm.model if self.arm and self.arm.stopped != "nonfinite" else self.setup.model

    @contextmanager
    def conditions(self) -> Iterator[TrainingComponents]:
        """Inside the block seeds, kernels and threads are those of the training."""
        setup = self.setup
        with ExitStack() as stack:
            stack.enter_context(seeded(derive(self.seed, "proof")))
            stack.enter_context(options.deterministic(self.config["trainer"].get("deterministic", True)))
            stack.enter_context(running_on(self.threads))
            yield setup

    def steps(self, asked: int) -> int:
        """So many steps, or as many as the plan has. Raises NotRun where none are asked for."""
        if asked == 0:
            raise NotRun("phases.baseline asks for no steps")
        planned = self.permit.plan.facts["budget"]["max_steps"] if self.permit else asked
        return min(asked, int(planned))

    def require_permit(self) -> TrainPermit:
        """The permit. Raises NotRun, saying why, where there is none."""
        if self.permit is None:
            raise NotRun(self.refused)
        return self.permit

    def train(self, purpose: str, steps: int, delta: Delta | None = None, seed_index: int = 0) -> Fit:
        """So many steps of the planned training, with one change. Raises NotRun where the time does not suffice."""
        permit, left = self.require_permit(), self.left
        needed = steps * self.step_seconds
        if left <= needed:
            raise NotRun(f"time: it takes about {needed:.1f} s, and {max(0.0, left):.1f} s of the allowance are left")
        delta = delta or Delta()
        # to the end of the steps or of the time; compiling anew for each would take longer than they do
        short = {"trainer.max_minutes": left / 60, "trainer.patience": None, "trainer.compile": False}
        changed = Delta({**delta.overrides, **short}, delta.surgery, delta.train_rows)
        done = fit(permit, Job(permit.plan.digest, purpose, changed, seed_index, steps), data=self.data)
        self.step_seconds = done.seconds / max(1, done.steps)
        if done.stopped == "clock":
            raise NotRun(f"time: the allowance was used up after {done.steps} of {steps} steps")
        return done
