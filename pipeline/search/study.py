"""The Optuna study of a search: trials are proposed a generation at a time, and told in the order of their numbers.

A trial is proposed from the results of the generations before its own. So the result does not depend on the number of
workers or on the order in which they finish, and an interrupted search goes on as if nothing had happened.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError, fault
from pipeline.run_store import files
from pipeline.runtime.seeds import derive
from pipeline.search.settings import SearchSettings
from pipeline.tuning.space import values_of

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

JOURNAL = "study.journal"  # Optuna's journal, in the folder of a search
SEED_LIMIT = 2**31 - 1  # all libraries take a seed below it


@dataclass(frozen=True)
class Ended:
    """How a trial ended: its values per epoch, and its score; None for a training that died or has no finite score."""

    score: float | None
    curve: Sequence[float] = ()
    pruned: bool = False
    why: str = ""


class SearchStudy:
    """A study in the folder of a search, or the one that is there and continued.

    Raises UserError where the folder has another search, or one of another plan.
    """

    def __init__(self, folder: Path, settings: SearchSettings, plan: str, master_seed: int) -> None:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        self.settings = settings
        self._seed = master_seed if settings.seed is None else settings.seed
        with _quiet():
            storage = JournalStorage(JournalFileBackend(str(files.folder(folder) / JOURNAL)))
            direction = "maximize" if settings.greater else "minimize"
            self._study: Study = optuna.create_study(
                storage=storage, study_name=settings.name, direction=direction, load_if_exists=True
            )
            for name, value in {"plan": plan, **settings.identity()}.items():
                self._require_same(folder, name, value)

    def _require_same(self, folder: Path, name: str, value: str) -> None:
        """Record a setting of a new study. Raises UserError where the stored study has another value of it."""
        stored = self._study.user_attrs.get(name)
        if stored is None:
            self._study.set_user_attr(name, value)
        elif stored != value:
            what = f"has a search with another {name}"
            expected = f"{stored}, or another hydra.sweeper.study_name"
            raise UserError(fault(str(folder), what, got=value, expected=expected))

    @property
    def trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def start_with(self, values: Mapping[str, object]) -> None:
        """Propose these values first, unless the study has begun or they are outside of the space."""
        space = self.settings.space
        if not self.trials and all(parameter.contains(values[name]) for name, parameter in space.items()):
            self._study.enqueue_trial({name: parameter.encode(values[name]) for name, parameter in space.items()})

    def next_generation(self) -> list[tuple[int, dict[str, object]]]:
        """Return number and values of the trials that are to be trained next; none once there are enough."""
        from optuna.trial import TrialState

        with _quiet():
            size, known = self.settings.generation, [t for t in self.trials if t.state != TrialState.WAITING]
            running = [trial for trial in known if trial.state == TrialState.RUNNING]
            finished = len(known) - len(running)
            # A generation that has begun to end is completed first: later proposals depend on all of it.
            if finished % size == 0 or not known:
                last = min(finished + size, self.settings.trials)
                for number in range(len(known), last):
                    self._study.sampler = self._sampler(number)
                    self._study.ask({name: parameter.distribution() for name, parameter in self.settings.space.items()})
                running = [trial for trial in self.trials if trial.state == TrialState.RUNNING]
        return [(trial.number, values_of(self.settings.space, trial.params)) for trial in running]

    def tell(self, ended: Mapping[int, Ended]) -> None:
        """Record how the trials of a generation ended, in the order of their numbers."""
        from optuna.trial import Trial, TrialState

        with _quiet():
            for number in sorted(ended):
                end = ended[number]
                trial = Trial(self._study, self.trials[number]._trial_id)
                for epoch, value in enumerate(end.curve):
                    if math.isfinite(value):
                        trial.report(value, epoch)
                trial.set_user_attr("why", end.why)
                if end.score is None:
                    self._study.tell(number, state=TrialState.FAIL)
                elif end.pruned:
                    self._study.tell(number, state=TrialState.PRUNED)
                else:
                    self._study.tell(number, end.score)

    def values(self) -> list[tuple[int, dict[str, object]]]:
        """Return number and values of every trial that has ended."""
        ended = (trial for trial in self.trials if trial.state.is_finished())
        return [(trial.number, values_of(self.settings.space, trial.params)) for trial in ended]

    def ending(self, number: int) -> Ended:
        """Return how a trial ended, as it was told."""
        from optuna.trial import TrialState

        trial = self.trials[number]
        curve = [trial.intermediate_values[epoch] for epoch in sorted(trial.intermediate_values)]
        score = None if trial.state == TrialState.FAIL else trial.value
        return Ended(score, curve, trial.state == TrialState.PRUNED, str(trial.user_attrs.get("why", "")))

    def finished_curves(self) -> list[list[float]]:
        """Return the values per epoch of the trials that were trained to their end."""
        from optuna.trial import TrialState

        complete = (trial for trial in self.trials if trial.state == TrialState.COMPLETE)
        return [[*self.ending(trial.number).curve] for trial in complete]

    def _sampler(self, number: int) -> BaseSampler:
        """Return the sampler of one trial; its draws depend on the trials before, and on no interruption."""
        import optuna

        name, arguments = self.settings.sampler, dict(self.settings.sampler_arguments)
        if name == "TPESampler":
            arguments.setdefault("constant_liar", True)  # keeps the trials of one generation apart
        # The points of a quasi-random sequence belong to one seed.
        seed = derive(self._seed, "search", "sampler", 0 if name == "QMCSampler" else number) % SEED_LIMIT
        sampler: BaseSampler = getattr(optuna.samplers, name)(seed=seed, **arguments)
        return sampler


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from logging every trial, and from warning of what is experimental, inside the block."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)
