"""Train a job of an approved plan, under the seed, the kernels and the threads that the plan sets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.checkpoints.generation import Snapshot
from pipeline.checkpoints.weights import tensors_of, weights_digest
from pipeline.config.build import section_of
from pipeline.config.sections import TrainingConfig
from pipeline.data.dataset import Data
from pipeline.data.load import load
from pipeline.data.splits import Split
from pipeline.data.train_rows import apply_row_changes
from pipeline.engine import resume
from pipeline.engine.loop import Training
from pipeline.engine.observer import StepObserver
from pipeline.engine.progress import Fit, WeightsSnapshot
from pipeline.engine.resume import find_snapshot, reopened
from pipeline.engine.setup import TrainingComponents, build_components
from pipeline.errors import Refused, fault
from pipeline.evaluation.evaluate import Evaluation, model_device, score_split
from pipeline.evaluation.task import Task
from pipeline.results import Score
from pipeline.run_store import files, permits
from pipeline.run_store.job import DIAGNOSTICS, DIAGNOSTICS_SEEDS, Job, run_seed
from pipeline.runtime import options
from pipeline.runtime.allocator import keep_freed_memory
from pipeline.runtime.interrupt import catch_signals
from pipeline.runtime.seeds import derive, reseed, seeded
from pipeline.runtime.threads import running_on, threads
from pipeline.runtime.warning_capture import capture_warnings, record_warning


def fit(
    permit: permits.FitPermit,
    job: Job,
    observers: Sequence[StepObserver] = (),
    *,
    data: Data | None = None,
    folder: Path | None = None,
    after: Snapshot | None = None,
    keep: Callable[[Snapshot], object] | None = None,
) -> Fit:
    """Train the job's model under the permit's plan; checkpoints are written to `folder` if it is given.

    If `folder` holds checkpoints of the same training, it is resumed. `after` is the end of the same training with
    fewer epochs, from which this one goes on where it can; `keep` gets the end of this one. Warnings during training
    become events of the history. Raises Interrupted if a signal asked to stop, Refused without a permit or for a job of
    another plan, and UserError if model, data, loss and options do not fit each other.
    """
    early_warnings: list[tuple[str, str, str]] = []  # raised while the components are built
    training: Training | None = None

    def note(category: str, message: str, where: str) -> None:
        if training is None:
            early_warnings.append((category, message, where))
        else:
            record_warning(training.progress.history, training.progress.step, category, message, where)

    if folder is not None and isinstance(permit, permits.ProbePermit):
        raise Refused(fault("permit", "an experiment of diagnostics keeps no checkpoint", got=str(folder)))
    with capture_warnings(note), prepared(permit, job, data) as components:
        training = Training(permit, components, job)
        for warning in early_warnings:
            note(*warning)
        snapshot = find_snapshot(components, job, folder) if folder is not None else None
        snapshot = reopened(components, job, after) if after is not None else snapshot
        with catch_signals() as training.stop_request, training.session(observers, snapshot=snapshot, folder=folder):
            training.run()
        if keep is not None:
            keep(resume.take_snapshot(components, job, training.progress))
        return result(training)


def result(training: Training) -> Fit:
    """Load the best weights into the model, write them to the session's folder, and score them on validation."""
    components, progress, model = training.components, training.progress, training.model
    assert progress.stop_reason is not None
    last = WeightsSnapshot(progress.epoch, progress.step, math.nan, tensors_of(model.state_dict()))
    best, checkpoint = progress.best or last, None
    if progress.best:
        progress.history.facts["best_epoch"] = float(progress.best.epoch)
    if training.folder is not None:
        last_saved = training.resumed_from is not None and training.resumed_from.step == progress.step
        checkpoint = resume.save_best(components, training.job, progress, training.folder, best, last_saved=last_saved)
    model.load_state_dict(best.weights, strict=False)  # state that is not a tensor was not copied
    score = evaluate(model, components.val, training.task, components.seed).score if progress.best else None
    return Fit(
        model=model.eval(),
        task=training.task,
        history=progress.history,
        score=score if isinstance(score, Score) and math.isfinite(score.value) else None,
        steps=progress.step,
        stop_reason=progress.stop_reason,
        weights_digest=weights_digest(best.weights),
        checkpoint=checkpoint,
        seconds=progress.seconds,
        resumed_at=training.resumed_from.step if training.resumed_from else 0,
        baseline_score=components.baseline_score,
    )


def evaluate(model: nn.Module, val: Split, task: Task, seed: int) -> Evaluation:
    """Evaluate a trained model on validation, with the same random numbers each time: it may draw in eval mode, too."""
    reseed(derive(seed, "judge"), model_device(model), True)
    return score_split(model, val, task, seed)


@contextmanager
def prepared(permit: permits.FitPermit, job: Job, data: Data | None = None) -> Iterator[TrainingComponents]:
    """Build the job's training under the seed, the kernels and the threads of the plan, which hold inside the block."""
    permit = permits.require(permit, permits.FitPermit)
    plan, is_probe = permit.plan, isinstance(permit, permits.ProbePermit)
    if job.plan_digest != plan.digest:
        do = f"python -m pipeline status {permit.run.argument}"
        raise Refused(fault("job", "is of another plan", got=job.plan_digest[:12], expected=plan.digest[:12], do=do))
    if is_probe:
        _refuse_unless_experiment(job)
    config = TrainingConfig.from_mapping(job.config(plan.config))
    trust = tuple(grant["package"] for grant in permit.run.state().trust)
    seed = run_seed(config.seed, job.seed_index)
    with ExitStack() as stack:
        stack.enter_context(seeded(derive(seed, "fit")))
        stack.enter_context(options.deterministic(config.trainer.deterministic))
        planned_data = data or load(config.source, trust)
        _refuse_other_rows(permit, planned_data)
        _refuse_other_weights(permit, config.source)
        data = preprocess_data = planned_data
        if job.delta.train_rows:
            data = replace(
                planned_data, train=apply_row_changes(planned_data.train, job.delta.train_rows, seed, planned_data.val)
            )
            # Inputs that are all zero have no spread to standardize by.
            preprocess_data = planned_data if job.delta.train_rows.get("inputs") == "zeroed" else data
        components = build_components(config, job, data, seed, trust, preprocess_data)
        # On a GPU torch's own allocator keeps freed memory.
        if components.device.type == "cpu":
            keep_freed_memory()
        # Planning recorded the thread count, since results depend on it.
        # Experiments are short and compared with each other, so that each has one.
        rule = 1 if is_probe else plan.facts.get("threads") or config.trainer.threads
        stack.enter_context(running_on(threads(rule, components.parameters)))
        yield components


def _refuse_unless_experiment(job: Job) -> None:
    """Raise Refused for a job that a `ProbePermit` does not allow: another purpose, or a seed of another phase."""
    if job.purpose.partition(".")[0] != DIAGNOSTICS or job.seed_index not in DIAGNOSTICS_SEEDS:
        got = f"{job.purpose}, seed index {job.seed_index}"
        expected = f"{DIAGNOSTICS}, seed index {DIAGNOSTICS_SEEDS[0]} to {DIAGNOSTICS_SEEDS[-1]}"
        raise Refused(fault("job", "a ProbePermit allows experiments of diagnostics only", got=got, expected=expected))


def _refuse_other_weights(permit: permits.FitPermit, config: Mapping[str, Any]) -> None:
    """Raise Refused if the file of weights that the model starts from is another one than the plan froze."""
    path, frozen = section_of(config, "model").get("init_from"), permit.plan.facts.get("init_from")
    if path is None or frozen is None:
        return
    got = files.sha256(Path(str(path))) if Path(str(path)).is_file() else "no such file"
    if got != frozen:
        do = f"python -m pipeline phase=planning {permit.run.overrides_for('planning')}"
        what = f"{path} is not the file of weights that the plan froze"
        raise Refused(fault("model.init_from", what, got=got[:12], expected=frozen[:12], do=do))


def _refuse_other_rows(permit: permits.FitPermit, data: Data) -> None:
    """Raise Refused if the rows of any split differ from those that the plan froze."""
    frozen = {name: split["digest"] for name, split in permit.plan.facts["splits"].items()}
    digests = {"train": data.train.digest, "val": data.val.digest, "test": data.test.digest}
    faults = [
        fault(f"data.{name}", "are not the rows that the plan froze", got=digests[name][:12], expected=digest[:12],
              do=f"python -m pipeline phase=planning {permit.run.overrides_for('planning')}")
        for name, digest in frozen.items()
        if digests[name] != digest
    ]  # fmt: skip
    if faults:
        raise Refused(*faults)
