"""Fitting: a job of an open plan becomes a training, under the seed, the kernels and the threads that the plan says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from pipeline.data.dataset import Data
from pipeline.data.load import load
from pipeline.data.train_rows import changed
from pipeline.engine.loop import Fit, Training
from pipeline.engine.observer import StepObserver
from pipeline.engine.setup import TrainingComponents, build_components
from pipeline.errors import Refused, fault
from pipeline.run_store import permits
from pipeline.run_store.job import Job, run_seed
from pipeline.runtime import options
from pipeline.runtime.allocator import keep_freed_memory
from pipeline.runtime.seeds import derive, seeded
from pipeline.runtime.threads import running_on, threads
from pipeline.runtime.warning_capture import capture_warnings, record_warning


def fit(
    permit: permits.TrainPermit,
    job: Job,
    observers: Sequence[StepObserver] = (),
    *,
    data: Data | None = None,
    folder: Path | None = None,
) -> Fit:
    """Train the job's model under the permit's plan; checkpoints go to `folder` where one is given.

    A folder that holds checkpoints of this very training continues it. What warns meanwhile is an event of the
    history. Raises Interrupted when a signal asked for a stop, Refused without a permit or for a job of another plan,
    UserError where model, data, loss and options do not fit each other.
    """
    early: list[tuple[str, str, str]] = []  # warnings of building the model and its kin
    training: Training | None = None

    def note(category: str, message: str, where: str) -> None:
        if training is None:
            early.append((category, message, where))
        else:
            record_warning(training.history, training.step, category, message, where)

    with capture_warnings(note), prepared(permit, job, data) as setup:
        training = Training(permit, setup, job)
        for warning in early:
            note(*warning)
        return training.run(observers, folder)


@contextmanager
def prepared(permit: permits.TrainPermit, job: Job, data: Data | None = None) -> Iterator[TrainingComponents]:
    """The job's training before its first step, under the seed, the kernels and the threads that the plan says."""
    permit = permits.require(permit, permits.TrainPermit)
    plan = permit.plan
    if job.plan_digest != plan.digest:
        do = f"python -m pipeline status {permit.run.name}"
        raise Refused(fault("job", "is of another plan", got=job.plan_digest[:12], expected=plan.digest[:12], do=do))
    config = job.config(plan.config)
    options.require_built(config)
    trust = tuple(grant["package"] for grant in permit.run.state().trust)
    seed = run_seed(int(config["seed"]), job.seed_index)
    with ExitStack() as stack:
        stack.enter_context(seeded(derive(seed, "fit")))
        stack.enter_context(options.deterministic(config["trainer"].get("deterministic", True)))
        data = data or load(config, trust)
        _refuse_other_rows(permit, data)
        planned = data
        if job.delta.train_rows:
            data = replace(data, train=changed(data.train, job.delta.train_rows, seed))
        fitted_on = planned if job.delta.train_rows.get("inputs") == "zeroed" else data  # zeros have no spread
        setup = build_components(config, job, data, seed, trust, fitted_on)
        if setup.device.type == "cpu":
            keep_freed_memory()
        rule = plan.facts.get("threads") or config["trainer"].get("threads", "auto")
        stack.enter_context(running_on(threads(rule, setup.parameters)))
        yield setup


def _refuse_other_rows(permit: permits.TrainPermit, data: Data) -> None:
    """Raise Refused when the rows are not, split by split, those that the plan froze."""
    frozen = {name: known["digest"] for name, known in permit.plan.facts["splits"].items()}
    found = {"train": data.train.digest, "val": data.val.digest, "test": data.test.digest}
    faults = [
        fault(f"data.{name}", "are not the rows that the plan froze", got=found[name][:12], expected=digest[:12],
              do=f"python -m pipeline phase=planning run.name={permit.run.name}")
        for name, digest in frozen.items()
        if found[name] != digest
    ]  # fmt: skip
    if faults:
        raise Refused(*faults)
