"""Which settings of Hydra a config file or an override may change.

Hydra builds what some of its settings name (callbacks, launchers, sweepers, log handlers), so that a setting of
somebody else's could run any code. Only the settings of `SETTABLE` may differ from those of our own files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipeline.errors import fault

LAUNCHERS = ("basic", "joblib", "submitit_local")
SWEEPERS = ("basic", "optuna")
WHOLE, NUMBER, SWITCH, NAMES, SWEPT = "a whole number", "a number", "true or false", "true, false or names", "a mapping"
JOBS, WORD, NOTHING, BUILT = (
    "auto or a whole number",
    "a word of letters, digits, _ and -",
    "null",
    "one of Optuna's own",
)
# What a search may build by name; hydra-optuna-sweeper, if it is installed, would build any class that is named.
BUILDABLE = (
    *(f"optuna.samplers.{name}" for name in ("TPESampler", "RandomSampler", "QMCSampler")),
    *(f"optuna.pruners.{name}" for name in ("MedianPruner", "NopPruner")),
)
SETTABLE = {  # by their full keys, with what they may be; hydra/launcher chooses among LAUNCHERS
    "hydra.launcher.n_jobs": WHOLE,
    "hydra.launcher.verbose": WHOLE,
    "hydra.launcher.timeout": NUMBER,
    "hydra.launcher.timeout_min": NUMBER,
    "hydra.launcher.cpus_per_task": WHOLE,
    "hydra.launcher.gpus_per_node": WHOLE,
    "hydra.launcher.tasks_per_node": WHOLE,
    "hydra.launcher.mem_gb": NUMBER,
    "hydra.launcher.nodes": WHOLE,
    "hydra.launcher.stderr_to_stdout": SWITCH,
    "hydra.sweeper.max_batch_size": WHOLE,
    "hydra.sweeper.params": SWEPT,
    "hydra.sweeper.n_trials": WHOLE,
    "hydra.sweeper.n_jobs": JOBS,
    "hydra.sweeper.generation": WHOLE,
    "hydra.sweeper.seeds": WHOLE,
    "hydra.sweeper.direction": WORD,
    "hydra.sweeper.study_name": WORD,
    "hydra.sweeper.storage": NOTHING,
    "hydra.sweeper.sampler": BUILT,
    "hydra.sweeper.pruner": BUILT,
    "hydra.verbose": NAMES,
}
# Hydra fills these in after it has read every file. `hydra_loader.py` compares the last two with the words.
COMPUTED = (
    "hydra.runtime",
    "hydra.job.override_dirname",
    "hydra.job.config_name",
    "hydra.overrides",
    "hydra.searchpath",
)
COMMAND_LINE_ONLY = ("hydra", "trust", "env")  # what no file may sweep
ABSENT = object()
EXPECTED = f"only hydra/launcher ({', '.join(LAUNCHERS)}) and {', '.join(SETTABLE)}"


def launcher_fault(chosen: str) -> str | None:
    """The message for a launcher whose jobs this version cannot stop or continue, or None."""
    if chosen in LAUNCHERS:
        return None
    what = "is not built: its jobs could be neither stopped nor continued"
    return fault("hydra/launcher", what, got=chosen, among=LAUNCHERS, do="python -m pipeline --help")


def faults_of(
    settings: Mapping[str, Any], ours: Mapping[str, Any], file_of: Callable[[str], str] = lambda key: ""
) -> list[str]:
    """A message for every setting that differs from ours and is not in `SETTABLE`, or has another type than it says.

    Both are plain and unresolved. `file_of(key)` is the file that sets a key; empty for an override.
    """
    faults = []
    for key, value in _changes(settings, ours, "hydra"):
        file = file_of(key)
        where = f"{file}: {key}" if file else key
        kind = SETTABLE.get(key)
        if kind is None:
            what = "is fixed, since Hydra may run what it names"
            faults.append(fault(where, what, expected=EXPECTED, do=_advice(key)))
        elif not _is(kind, value):
            do = f"set or leave out {key}"
            faults.append(fault(where, "has the wrong value", got=str(value), expected=_words(kind), do=do))
    return faults


def _changes(settings: Mapping[str, Any], ours: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Every key that differs; sections that hold no settable key count as one."""
    for name in dict.fromkeys([*settings, *ours]):
        key, value, own = f"{prefix}.{name}", settings.get(name, ABSENT), ours.get(name, ABSENT)
        if key in COMPUTED or (value == own and type(value) is type(own)):
            continue
        inside = any(settable.startswith(f"{key}.") for settable in (*SETTABLE, *COMPUTED))
        if inside and isinstance(value, Mapping) and isinstance(own, Mapping):
            yield from _changes(value, own, key)
        else:
            yield key, None if value is ABSENT else value


def _advice(key: str) -> str:
    if key == "hydra.mode":
        return "leave it out, and sweep with: python -m pipeline -m ..."
    return f"leave out {key}"


def _words(kind: str) -> str:
    if kind == SWEPT:
        return f"values by key, for keys outside {', '.join(COMMAND_LINE_ONLY)}"
    if kind == BUILT:
        return f"{kind} with numbers: {', '.join(BUILDABLE)}"
    return kind


def _is(kind: str, value: object) -> bool:
    if value is None:
        return kind not in (NAMES,)
    if kind == SWITCH:
        return isinstance(value, bool)
    if kind == NOTHING:
        return False
    if kind == WORD:
        return isinstance(value, str) and value.replace("_", "").replace("-", "").isalnum()
    if kind == BUILT:
        return isinstance(value, Mapping) and all(map(_is_argument, value.keys(), value.values()))
    if kind == JOBS and value == "auto":
        return True
    if kind == NAMES:
        names = value if isinstance(value, list) else [value]
        return all(isinstance(name, bool | str) and "${" not in str(name) for name in names)
    if kind == SWEPT:
        return isinstance(value, Mapping) and all(_is_swept(str(key), inner) for key, inner in value.items())
    types = int if kind in (WHOLE, JOBS) else int | float
    return isinstance(value, types) and not isinstance(value, bool)


def _is_argument(key: object, value: object) -> bool:
    """Whether an argument of what a search builds is a number, or the name of something that it may build."""
    return value in BUILDABLE if key == "_target_" else value is None or isinstance(value, int | float | bool)


def _is_swept(key: str, value: object) -> bool:
    """Whether a file may sweep this key over these values, which are written as on the command line."""
    first = key.lstrip("+~").partition("@")[0].replace("/", ".").partition(".")[0].partition("[")[0]
    return first not in COMMAND_LINE_ONLY and isinstance(value, str | int | float | bool) and "${" not in str(value)
