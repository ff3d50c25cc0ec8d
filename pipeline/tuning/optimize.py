"""`optimize`: search a space for a user's own training, and accept only what is better on fresh seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import FivegateError, UserError, fault
from pipeline.run_store import files
from pipeline.tuning.compare import compare
from pipeline.tuning.comparison import Comparison
from pipeline.tuning.optimization import Config, Optimization, TriedConfig
from pipeline.tuning.own_training import Mode, Train, call_training, greater_is_better, score_of, scores_of
from pipeline.tuning.paired_test import FEWEST_PAIRS
from pipeline.tuning.space import Space, Tried, check_reference, doubts, parse_space, values_of

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

STUDY = "study.journal"  # Optuna's journal, in the folder of a search
ENDED = "ended"  # the mark of a trial that no interruption cut off
BEFORE_PRUNING = 5  # trials that are never stopped early: the median of fewer says little
SEED_LIMIT = 2**31 - 1  # all libraries take a seed below it
MAX_MESSAGE = 200  # characters of an error that a failed trial keeps


@dataclass(frozen=True)
class _Search:
    """What stays the same in all trials of a search."""

    train: Train
    space: Space
    reference: Config
    seed: int
    metric: str
    greater: bool
    log: Callable[[str], None]

    def derived(self, *purpose: str | int) -> int:
        """Return the seed of one purpose; all of them derive from the seed of the search."""
        from pipeline.runtime.seeds import derive

        return derive(self.seed, "optimize", *purpose) % SEED_LIMIT

    def config(self, values: Config) -> dict[str, object]:
        return {**self.reference, **values}

    def signed(self, score: float) -> float:
        return score if self.greater else -score

    def score(self, values: Config) -> float:
        """Train on the seed of the search and return the score."""
        return score_of(call_training(self.train, self.config(values), self.derived("search")), self.metric)


def optimize(
    train: Train,
    space: Mapping[str, object] | None = None,
    *,
    seed: int | None = None,
    metric: str | None = None,
    mode: Mode | None = None,
    trials: int = 30,
    reference: Config | None = None,
    seeds: int = 7,
    folder: str | Path | None = None,
    log: Callable[[str], None] | None = None,
) -> Optimization:
    """Search a space for a config of your own training that is better than the reference, and prove it on fresh seeds.

        result = optimize(train, {"lr": (1e-4, 1e-1, "log"), "layers": (1, 4)}, seed=0, metric="val/accuracy")
        result.config

    - `train(config)`: as for `compare`. Where it yields a score per epoch, a trial that is worse than the median of the
      others is stopped early. A training that raises is a failed trial; the reference's exception is raised.
    - `space`: names of the config with `(low, high)`, `(low, high, "log")` or a list of values. Whole limits give whole
      numbers.
    - `reference`: the config that you use now, with any further keys; without it, the middle of each range and the
      first value of each list. It is the first trial.
    - `trials`: how many trainings the search has, which are proposed by Optuna's TPE sampler and all use one seed.
    - `seeds`: how many fresh seeds confirm the best config.
    - `folder`: where trials are stored; the same call continues an interrupted search.

    Each change of the best config is taken back once, and dropped if it contributes nothing. The config is accepted
    only if `compare` shows it better than the reference. All seeds derive from `seed`, so that the same call gives the
    same result. Raises UserError with all faults of the arguments.
    """
    parsed = _checked(space, seed, metric, trials, seeds)
    greater = greater_is_better(metric, mode)
    start = {**{name: parameter.middle for name, parameter in parsed.items()}, **(reference or {})}
    check_reference(parsed, start)
    assert seed is not None and metric is not None  # _checked raises
    search = _Search(train, parsed, start, seed, metric, greater, log or (lambda text: None))
    with _quiet():
        study = _study(search, folder)
        _run_trials(study, search, trials)
        tried = _tried(study, search)
        values, without, dropped = _drop_idle_changes(search, tried)
    scored = [Tried(t.values, search.signed(t.score)) for t in tried if t.outcome == "scored"]
    notes = [*doubts(parsed, scored), *dropped]
    candidate = search.config(values) if values is not None else None
    proof = _confirm(search, candidate, seeds) if candidate is not None else None
    accepted = proof is not None and proof.answer == "better"
    config = candidate if accepted and candidate is not None else start
    return Optimization(
        accepted, config, start, candidate, proof, tuple(tried), without, metric, greater, tuple(notes)
    )  # fmt: skip


def _checked(space: object, seed: object, metric: object, trials: int, seeds: int) -> Space:
    faults: list[str] = []
    parsed: Space = {}
    try:
        parsed = parse_space(space)
    except UserError as error:
        faults += error.faults
    needed = {"seed": (seed, int), "metric": (metric, str)}
    for name, (value, kind) in needed.items():
        if not isinstance(value, kind):
            faults.append(fault("optimize", f"needs {name}=", got=value, expected=f"a value of type {kind.__name__}"))
    if trials < 2:
        faults.append(fault("trials", "leave nothing to compare with the reference", got=trials, expected="at least 2"))
    if seeds < FEWEST_PAIRS:
        expected = f"at least {FEWEST_PAIRS}"
        faults.append(fault("seeds", "are too few to show anything", got=seeds, expected=expected))
    if faults:
        raise UserError(*faults)
    return parsed


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from logging every trial, inside the block."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)


def _study(search: _Search, folder: str | Path | None) -> Study:
    """Return the study in the folder, or a new one there or in memory, whose first trial is the reference.

    Raises UserError if the folder has another search.
    """
    import optuna
    from optuna.storages import InMemoryStorage, JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage: InMemoryStorage | JournalStorage = InMemoryStorage()
    if folder is not None:
        storage = JournalStorage(JournalFileBackend(str(files.folder(Path(folder)) / STUDY)))
    study = optuna.create_study(
        storage=storage,
        study_name="optimize",
        direction="maximize" if search.greater else "minimize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=BEFORE_PRUNING),
        load_if_exists=True,
    )
    settings = {"space": search.space, "seed": search.seed, "metric": search.metric, "reference": search.reference}
    for name, value in {name: str(value) for name, value in settings.items()}.items():
        stored = study.user_attrs.setdefault(name, value) if study.trials else value
        if stored != value:
            what = f"has a search with another {name}"
            do = "choose another folder, or call with the same arguments"
            raise UserError(fault(str(folder), what, got=str(value), expected=str(stored), do=do))
        study.set_user_attr(name, value)
    if not study.trials:
        study.enqueue_trial(
            {name: parameter.encode(search.reference[name]) for name, parameter in search.space.items()}
        )
    return study


def _run_trials(study: Study, search: _Search, trials: int) -> None:
    """Run trials until the study has `trials` that ended; those that an interruption cut off are failed."""
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    for cut_off in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(cut_off.number, state=TrialState.FAIL)
        study.enqueue_trial(cut_off.params)
    while (number := len(_ended(study))) < trials:
        # A sampler per trial: its draws then depend on the trials before, and on no interruption.
        study.sampler = TPESampler(seed=search.derived("sampler", number))
        trial = study.ask({name: parameter.distribution() for name, parameter in search.space.items()})
        _run_trial(study, trial, search)


def _ended(study: Study) -> list[FrozenTrial]:
    """Return the trials that ended, without those that an interruption cut off, which were started again."""
    from optuna.trial import TrialState

    ended = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
    return [trial for trial in ended if trial.user_attrs.get(ENDED)]


def _run_trial(study: Study, trial: Trial, search: _Search) -> None:
    """Train one trial, epoch by epoch where the training yields them, and record how it ended."""
    from optuna.trial import TrialState

    values = values_of(search.space, trial.params)
    if known := next((t for t in _ended(study) if t.params == trial.params), None):  # lists and whole numbers repeat
        trial.set_user_attr(ENDED, True)
        study.tell(trial, known.value if known.state == TrialState.COMPLETE else None, state=known.state)
        return
    score, state = math.nan, TrialState.COMPLETE
    try:
        result = call_training(search.train, search.config(values), search.derived("search"))
        can_stop = isinstance(result, Iterator)  # a training that has returned its score is over
        for epoch, score in enumerate(scores_of(result, search.metric)):
            if math.isfinite(score):
                trial.report(score, epoch)
                if can_stop and trial.should_prune():
                    state = TrialState.PRUNED
                    break
    except FivegateError:
        raise
    except Exception as error:  # a user's own training may raise anything
        if values == {name: search.reference[name] for name in search.space}:
            raise
        trial.set_user_attr("why", f"{type(error).__name__}: {error}"[:MAX_MESSAGE])
        score = math.nan
    trial.set_user_attr(ENDED, True)
    if not math.isfinite(score):
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, None if state == TrialState.PRUNED else score, state=state)
    search.log(f"trial {trial.number}: {score:.4g}{', stopped early' if state == TrialState.PRUNED else ''}, {values}")


def _tried(study: Study, search: _Search) -> list[TriedConfig]:
    from optuna.trial import TrialState

    outcomes = {TrialState.COMPLETE: "scored", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
    tried = []
    for number, trial in enumerate(_ended(study)):
        outcome = outcomes[trial.state]
        why = str(trial.user_attrs.get("why", "no finite score" if outcome == "failed" else ""))
        score = math.nan if trial.value is None else trial.value
        tried.append(TriedConfig(number, values_of(search.space, trial.params), score, outcome, why))
    return tried


def _drop_idle_changes(search: _Search, tried: list[TriedConfig]) -> tuple[Config | None, dict[str, float], list[str]]:
    """Return the best values without changes that contribute nothing, the scores without each, and what was dropped.

    None as values if no trial was better than the reference. One change after the other is taken back, on the seed of
    the search.
    """
    scored = [trial for trial in tried if trial.outcome == "scored"]
    reference = next((search.signed(trial.score) for trial in scored if trial.number == 0), -math.inf)
    best = max(scored, key=lambda trial: search.signed(trial.score), default=None)
    if best is None or not search.signed(best.score) > reference:
        return None, {}, []
    values, kept_score = dict(best.values), best.score
    without: dict[str, float] = {}
    dropped: list[str] = []
    changed = [name for name in values if values[name] != search.reference[name]]
    for name in changed if len(changed) > 1 else []:
        score = without[name] = search.score({**values, name: search.reference[name]})
        search.log(f"without the change of {name}: {score:.4g}")
        if score == kept_score:
            dropped.append(f"{name}: does nothing, the score is the same without its change, which was dropped")
        elif math.isfinite(score) and search.signed(score) > search.signed(kept_score):
            dropped.append(f"{name}: its change contributes nothing ({score:.4g} without it), and was dropped")
        else:
            continue
        values[name], kept_score = search.reference[name], score
    return (values if any(values[name] != search.reference[name] for name in values) else None), without, dropped


def _confirm(search: _Search, candidate: Config, seeds: int) -> Comparison:
    """Compare reference and candidate on seeds that the search has not seen."""
    return compare(
        search.train,
        search.reference,
        candidate,
        [search.derived("confirmation", number) for number in range(seeds)],
        search.metric,
        mode="max" if search.greater else "min",
        names=("reference", "candidate"),
        log=search.log,
    )
