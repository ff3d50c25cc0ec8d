"""The settings of a search: `hydra.sweeper` of a config that `hparams_search` chose, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError, fault
from pipeline.run_store.run import NAME
from pipeline.search.parameters import read_space
from pipeline.tuning.paired_test import FEWEST_PAIRS
from pipeline.tuning.space import Space

KEYS = (
    "n_trials", "n_jobs", "direction", "study_name", "storage", "generation", "seeds", "sampler", "pruner", "params",
)  # fmt: skip
IGNORED = ("_target_", "max_failure_rate", "custom_search_space")  # of hydra-optuna-sweeper, where they say nothing
SAMPLERS = ("TPESampler", "RandomSampler", "QMCSampler")
PRUNER = "MedianPruner"
SEARCH_SEED = 40  # the seed index of all trials; 0 to 36 belong to the phases
CONFIRMATION_SEEDS = range(50, 60)  # those of the pairs that confirm the best trial


@dataclass(frozen=True)
class SearchSettings:
    """What to search, and how.

    - `sampler` and `sampler_arguments`: of optuna.samplers; `seed` is None where it is derived.
    - `startup` and `warmup`: finished trials and epochs before a trial is stopped early; None where none is.
    - `generation`: trials that are proposed together.
    - `seeds`: pairs of trainings that confirm the best trial.
    - `jobs`: trainings at the same time, or `auto`.
    """

    name: str
    space: Space
    trials: int
    generation: int
    seeds: int
    jobs: int | str
    greater: bool
    sampler: str
    sampler_arguments: Mapping[str, Any]
    seed: int | None
    startup: int | None
    warmup: int = 0

    def identity(self) -> dict[str, str]:
        """Return what makes two searches the same; the number of trials may grow."""
        same = ("space", "generation", "greater", "sampler", "sampler_arguments", "seed", "startup", "warmup")
        return {name: str(getattr(self, name)) for name in same}


def read_settings(
    sweeper: Mapping[str, Any], name: str, config: Mapping[str, Any], greater: bool | None, typed: Mapping[str, str]
) -> SearchSettings:
    """Return the settings of a sweeper's section. `typed` are parameters of the command line, which replace its own.

    `greater` says whether a higher score of the task's metric is better, once planning has found that out; `direction`
    is not checked without. Raises UserError with all faults.
    """
    faults = [
        fault(f"hydra.sweeper.{key}", "unknown key", got=key, among=KEYS) for key in sweeper if key not in _known()
    ]
    for key, fewest in {"n_trials": 2, "generation": 1}.items():
        if not _is_whole(sweeper.get(key), fewest):
            faults.append(_wrong(key, sweeper, f"a whole number >= {fewest}"))
    if sweeper.get("seeds") not in range(FEWEST_PAIRS, len(CONFIRMATION_SEEDS) + 1):
        faults.append(_wrong("seeds", sweeper, f"{FEWEST_PAIRS} to {len(CONFIRMATION_SEEDS)}"))
    if sweeper.get("n_jobs") != "auto" and not _is_whole(sweeper.get("n_jobs"), 1):
        faults.append(_wrong("n_jobs", sweeper, "auto, or a whole number >= 1"))
    if sweeper.get("storage") is not None:
        faults.append(_wrong("storage", sweeper, "null: a study is stored in the run directory"))
    planned = ["maximize" if greater else "minimize"] if greater is not None else ["maximize", "minimize"]
    if sweeper.get("direction") not in (None, *planned):
        faults.append(
            _wrong("direction", sweeper, f"{' or '.join(planned)}, as the metric {config['task']['metric']} says")
        )
    study = str(sweeper.get("study_name") or name)
    if not NAME.fullmatch(study):
        faults.append(_wrong("study_name", {"study_name": study}, "a-z 0-9 _ -, beginning with a letter or digit"))
    sampler, arguments, seed = _sampler(sweeper, faults)
    startup, warmup = _pruner(sweeper, faults)
    params = sweeper.get("params")
    space, wrong = read_space({**(params if isinstance(params, Mapping) else {}), **typed}, config)
    if faults or wrong:
        raise UserError(*faults, *wrong)
    return SearchSettings(
        study, space, sweeper["n_trials"], sweeper["generation"], sweeper["seeds"], sweeper["n_jobs"], bool(greater),
        sampler, arguments, seed, startup, warmup,
    )  # fmt: skip


def _known() -> tuple[str, ...]:
    return (*KEYS, *IGNORED)


def _is_whole(value: object, fewest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= fewest


def _wrong(key: str, section: Mapping[str, Any], expected: str) -> str:
    return fault(f"hydra.sweeper.{key}", "is not possible", got=section.get(key), expected=expected)


def _sampler(sweeper: Mapping[str, Any], faults: list[str]) -> tuple[str, dict[str, Any], int | None]:
    """Return the name of the sampler, its other arguments and its seed; a fault is added for each that is wrong."""
    import optuna

    section = dict(sweeper.get("sampler") or {})
    name = str(section.pop("_target_", "")).removeprefix("optuna.samplers.")
    seed = section.pop("seed", None)
    if name not in SAMPLERS:
        among = [f"optuna.samplers.{known}" for known in SAMPLERS]
        faults.append(fault("hydra.sweeper.sampler._target_", "is not a supported sampler", got=name, among=among))
        return name, {}, None
    if seed is not None and not _is_whole(seed, 0):
        faults.append(_wrong("sampler.seed", {"sampler.seed": seed}, "null or a whole number >= 0"))
        seed = None
    try:
        getattr(optuna.samplers, name)(seed=0, **section)
    except (TypeError, ValueError) as error:
        faults.append(fault("hydra.sweeper.sampler", f"is refused by Optuna: {error}", got=str(section)))
    return name, section, seed


def _pruner(sweeper: Mapping[str, Any], faults: list[str]) -> tuple[int | None, int]:
    """Return the finished trials and the epochs before a trial is stopped; None where no trial is."""
    section = dict(sweeper.get("pruner") or {"_target_": "NopPruner"})
    name = str(section.pop("_target_", "")).removeprefix("optuna.pruners.")
    if name == "NopPruner":
        return None, 0
    startup, warmup = section.pop("n_startup_trials", 5), section.pop("n_warmup_steps", 0)
    if name != PRUNER or section or not (_is_whole(startup, 1) and _is_whole(warmup, 0)):
        expected = f"null, or optuna.pruners.{PRUNER} with n_startup_trials and n_warmup_steps"
        faults.append(_wrong("pruner", sweeper, expected))
    return startup, warmup
