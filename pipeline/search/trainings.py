"""The trainings of a search: the reference, the trials of each generation, and what confirms the best of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.engine.budget import extended_steps
from pipeline.executors.settings import ExecutorSettings
from pipeline.history import History
from pipeline.repair.config_edits import get
from pipeline.results import canonical
from pipeline.run_store import files
from pipeline.run_store.job import Delta, Job
from pipeline.run_store.ledger import Ledger
from pipeline.run_store.plan import Plan
from pipeline.run_store.run import Run
from pipeline.search.pruning import bounds_of, series_of
from pipeline.search.settings import SEARCH_SEED, SearchSettings
from pipeline.search.study import Ended, SearchStudy
from pipeline.trials.executor import Trial
from pipeline.trials.recorded import train_recorded
from pipeline.tuning.space import Choices

PURPOSE = "search"
EPOCHS = "trainer.max_epochs"
Values = Mapping[str, object]


@dataclass(frozen=True)
class Trainings:
    """What the trainings of a search have in common; the ledger is locked by the caller."""

    run: Run
    plan: Plan
    ledger: Ledger
    settings: SearchSettings
    executor: ExecutorSettings
    log: Callable[[str], None]

    @property
    def folder(self) -> Path:
        return self.run.inside("search", self.settings.name)

    @property
    def reference(self) -> dict[str, object]:
        """The values that the frozen plan has for the searched keys."""
        return {key: get(self.plan.config, key) for key in self.settings.space}

    @property
    def max_steps(self) -> int:
        """The steps that every training may take: those of the plan, times the longest extension in the space."""
        planned = int(self.plan.config["trainer"]["max_epochs"])
        epochs = self.settings.space.get(EPOCHS)
        longest: list[int] = []
        if epochs is not None:
            longest = [int(str(v)) for v in epochs.values] if isinstance(epochs, Choices) else [int(epochs.high)]
        return extended_steps(int(self.plan.facts["budget"]["max_steps"]), planned, longest)

    def job(self, values: Values, seed_index: int = SEARCH_SEED) -> Job:
        """Return the job of a config, which differs from the plan in these values."""
        changed = {key: value for key, value in values.items() if value != self.reference[key]}
        return Job(self.plan.digest, PURPOSE, Delta(changed), seed_index, self.max_steps)

    def train(self, jobs: Mapping[str, Job]) -> dict[str, Trial]:
        """Train jobs by id; one that was trained before, in an interrupted search, is not trained again."""
        if not jobs:
            return {}
        return train_recorded(
            [*jobs.items()],
            self.folder / "trials",
            ledger=self.ledger,
            round=0,
            study=self.settings.name,
            log=self.log,
            setting=self.settings.jobs,
            threads=int(self.plan.facts["threads"]),
            executor=self.executor,
        )

    def weights_of(self, name: str) -> object:
        """Return the digest of the weights that a training ended with; None where it was not trained under this id."""
        try:
            return json.loads((self.folder / "trials" / name / "result.json").read_text()).get("weights")
        except (OSError, ValueError):
            return None

    def train_generations(self, study: SearchStudy, reference: Trial, metric: str) -> None:
        """Train what the study proposes until it has enough trials. `metric` is their column in a history.

        Equal values are trained once, those of the reference not again: a training is a function of its job.
        """
        while generation := study.next_generation():
            params = {number: canonical(study.trials[number].params) for number, _ in generation}
            earlier = {canonical(t.params): t.number for t in study.trials if t.state.is_finished()}
            endings = {number: study.ending(earlier[text]) for number, text in params.items() if text in earlier}
            jobs = {number: self.job(values) for number, values in generation if number not in endings}
            endings |= {number: ending(reference, metric) for number, job in jobs.items() if job == reference.job}
            untrained = [number for number in sorted(jobs) if number not in endings]
            first_of_equal = {params[number]: number for number in reversed(untrained)}
            chosen = {f"t{number}": jobs[number] for number in sorted(first_of_equal.values())}
            self._write_bounds(study, metric, chosen)
            trained = self.train(chosen)
            for number in untrained:
                endings[number] = ending(trained[f"t{first_of_equal[params[number]]}"], metric)
            study.tell(endings)
            for number, values in generation:
                self.log(f"  trial {number}: {_format_ending(endings[number])}, {format_values(values)}")

    def _write_bounds(self, study: SearchStudy, metric: str, names: Iterable[str]) -> None:
        """Write when the trials of a generation are stopped early, by those of the generations before."""
        curves = study.finished_curves()
        bounds = bounds_of(metric, self.settings.greater, curves, self.settings.startup, self.settings.warmup)
        folder = files.folder(self.folder / "trials")
        for name in names if bounds else ():
            assert bounds is not None
            bounds.write(folder / name)


def ending(trial: Trial, metric: str) -> Ended:
    """Return how a training ended, as the study is told."""
    path = trial.folder / "history.npz"
    curve: Sequence[float] = series_of(History.load(path), metric) if path.is_file() else []
    if trial.died or not math.isfinite(trial.value):
        return Ended(None, curve, why=trial.died or "it has no finite score")
    return Ended(trial.value, curve, pruned=trial.result.get("stopped") == "observer")


def format_values(values: Values) -> str:
    """Return values by key in one line, as on the command line."""
    return ", ".join(f"{key}={f'{v:.4g}' if isinstance(v, float) else v}" for key, v in values.items())


def _format_ending(end: Ended) -> str:
    if end.score is None:
        return f"failed ({end.why})"
    return f"stopped early at {end.curve[-1]:.4g}" if end.pruned and end.curve else f"{end.score:.4g}"
