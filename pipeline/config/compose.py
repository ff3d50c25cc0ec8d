"""From overrides to one resolved, validated, plain config. The only module that composes with Hydra.

Hydra runs in the parent process only. Its result is frozen into the plan, from which workers, trials, resume and the
Python API read. Hydra stops at the first fault; this module reports all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.config.conf_dir import conf_dir
from pipeline.config.override_keys import SHOW, as_hydra, key_of, leaves, named
from pipeline.config.overrides import PRIMARY, first_line, sort_out
from pipeline.config.schema import faults_of
from pipeline.errors import FivegateError, UserError, fault
from pipeline.trust import expansion
from pipeline.trust.environment import reading
from pipeline.trust.hydra_loader import CheckedLoader, UserConfigSource

STORED = (str, bool, int, float, list, dict, type(None))  # the types of values that a plan can hold
ADD_FOLDER = "python -m pipeline --config-dir DIR ..."


@dataclass(frozen=True)
class Composition:
    """A resolved config, the chosen options, `choices["model"] == "mlp"`, and the settings of Hydra's sweeper."""

    config: dict[str, Any]
    choices: dict[str, Any]
    sweeper: dict[str, Any]


def compose(overrides: Sequence[str] = (), config_dirs: Sequence[Path | str] = ()) -> dict[str, Any]:
    """The resolved config as a plain dict. Raises one UserError with every fault of the overrides and the config."""
    return composition(overrides, config_dirs).config


def default_config() -> dict[str, Any]:
    """The config without an experiment: the default value of each key."""
    return compose(["~experiment", "run.name=defaults"])


def composition(
    overrides: Sequence[str] = (), config_dirs: Sequence[Path | str] = (), searching: bool = False
) -> Composition:
    """The resolved config together with the chosen options; `searching` where a search may be among them."""
    folders, faults = existing(config_dirs)
    if any(key_of(word) == "hydra.searchpath" for word in overrides):
        faults.append(fault("hydra.searchpath", "is set by a flag", do=ADD_FOLDER))
        overrides = [word for word in overrides if key_of(word) != "hydra.searchpath"]
    overrides = [as_hydra(word) for word in overrides]
    with reading(named(overrides, "env") or ()) as variables, hydra_over(folders) as search:
        composed, more = _composed([search, *overrides])
        if variables.refused:  # by a list of defaults
            raise UserError(*variables.faults())
        faults += more
        if composed is None:
            raise UserError(*faults)
        HydraConfig.instance().set_config(composed)
        config, more = finished(composed, overrides)
        faults += more
    choices = dict(composed.hydra.runtime.choices)
    chosen = choices.get("hparams_search")
    if chosen not in (None, "none") and not searching:
        do = f"python -m pipeline -m hparams_search={chosen} ..."
        faults.append(fault("hparams_search", "is a search, which needs -m", got=chosen, expected="none", do=do))
    if faults:
        raise UserError(*dict.fromkeys(faults))
    sweeper = OmegaConf.to_container(composed.hydra.sweeper, resolve=searching)
    return Composition(config, choices, {str(key): value for key, value in dict(sweeper or {}).items()})  # type: ignore[arg-type]


def existing(config_dirs: Sequence[Path | str]) -> tuple[list[Path], list[str]]:
    """The folders that exist, absolute, and a fault for each that does not."""
    folders = [Path(folder).resolve() for folder in config_dirs]
    faults = []
    for folder in (f for f in folders if not f.is_dir()):
        siblings = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        what = "there is no such folder"
        expected = "a folder of config groups"
        faults.append(fault("--config-dir", what, got=str(folder), among=siblings, expected=expected, do=ADD_FOLDER))
    return [f for f in folders if f.is_dir()], faults


@contextmanager
def hydra_over(folders: Sequence[Path]) -> Iterator[str]:
    """Initialize Hydra for our config folder and those of the user, and restore its global state afterwards.

    Yields the override that adds the user's folders to the search path: each composition needs it.
    """
    outer, settings = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), job_name="pipeline", version_base="1.3"):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            hydra.config_loader = CheckedLoader(hydra.config_loader.get_search_path())
            yield search_path(folders)
    finally:
        GlobalHydra.instance().hydra = outer
        HydraConfig.instance().cfg = settings


def search_path(folders: Sequence[Path]) -> str:
    """The override that adds folders to Hydra's search path."""
    escaped = (str(folder).replace("\\", "\\\\").replace("'", "\\'") for folder in folders)
    return "hydra.searchpath=[" + ",".join(f"'{UserConfigSource.scheme()}://{path}'" for path in escaped) + "]"


def _composed(words: list[str]) -> tuple[DictConfig | None, list[str]]:
    """Compose; where Hydra refuses, all reasons, and the config without the faulty overrides."""
    try:
        return hydra_compose(PRIMARY, words, return_hydra_config=True), []
    except FivegateError:  # a setting or a file that must not be read
        raise
    except Exception as error:  # Hydra and YAML raise many types of errors, all caused by the input
        return sort_out(words, error)


def finished(composed: DictConfig, overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """A composed config resolved to plain values, and its faults. HydraConfig must be set.

    `overrides` are those of the command line: only they may grant trust, and name environment variables to read.
    """
    raw: Any = OmegaConf.to_container(composed, resolve=False)
    if too_large := expansion.faults_of({key: value for key, value in raw.items() if key != "hydra"}):
        return raw, too_large
    with reading(named(overrides, "env") or ()) as variables:
        config, faults = _resolved(composed)
    if variables.refused:
        return config, variables.faults()  # other faults may be due to what was not read
    _fill_left_out(config)
    faults += _start_from(config) + _tensorboard_missing(config)
    faults += _granted_by_a_file(config, overrides)
    broken = {_section(said) for said in faults}
    typed = {key_of(word) for word in overrides}
    return config, faults + [said for said in faults_of(config, typed) if _section(said) not in broken]


def _granted_by_a_file(config: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    faults = []
    if config.get("trust") and not any(key_of(word) == "trust" and "${" not in word for word in overrides):
        do = "read that package; if you trust it: python -m pipeline ... 'trust=[PACKAGE]'"
        faults.append(fault("trust", "a config file cannot grant trust", got=config["trust"], expected="[]", do=do))
    if config.get("env") and not any(key_of(word) == "env" and "${" not in word for word in overrides):
        do = "if they are no secrets: python -m pipeline ... 'env=[NAME]'"
        what = "a config file cannot allow that variables are read"
        faults.append(fault("env", what, got=config["env"], expected="[]", do=do))
    return faults


def _fill_left_out(config: dict[str, Any]) -> None:
    """Give every section that may be left out, by `override /scheduler: null` or `none`, its value of none.

    Which sections need which others is checked by the schema.
    """
    for section in ("loss", "scheduler"):
        if config.get(section) in (None, "none"):
            config[section] = None
    for section in ("tracking", "preprocess"):
        if config.get(section) in (None, "none"):
            config[section] = _option(section, "none")
    if isinstance(config.get("tracking"), dict) and config["tracking"].get("tensorboard"):  # it may stand alone
        config["tracking"] = _option("tracking", "none") | config["tracking"]


def _option(section: str, name: str) -> dict[str, Any]:
    option: dict[str, Any] = yaml.safe_load((conf_dir() / section / f"{name}.yaml").read_text())
    return option


def _start_from(config: Mapping[str, Any]) -> list[str]:
    """Make `ckpt_path` the file of `model.init_from`, from which the model is built; a fault where both name one."""
    path, model = config.get("ckpt_path"), config.get("model")
    if path is None or not isinstance(model, dict):
        return []
    if model.get("init_from") not in (None, path):
        do = "python -m pipeline ... ckpt_path=null"
        return [fault("ckpt_path", "names another file than model.init_from", got=path, expected="one of them", do=do)]
    model["init_from"] = path
    return []


def _tensorboard_missing(config: Mapping[str, Any]) -> list[str]:
    """A fault where TensorBoard is asked for and not installed: better now than after the training."""
    tracking = config.get("tracking")
    if not isinstance(tracking, dict) or tracking.get("tensorboard") is not True or find_spec("tensorboard"):
        return []
    do = "python -m pip install tensorboard, or: python -m pipeline ... tracking=mlflow"
    return [fault("tracking.tensorboard", "tensorboard is not installed", got=True, do=do)]


def _section(said: str) -> str:
    """The top-level key that a message concerns."""
    return said.partition(":")[0].partition(".")[0]


def _resolved(composed: DictConfig) -> tuple[dict[str, Any], list[str]]:
    config: dict[str, Any] = {}
    faults = []
    for key in (k for k in composed if k != "hydra"):
        try:
            value = None if OmegaConf.is_missing(composed, key) else composed[key]
            plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except OmegaConfBaseException as error:
            where = error.full_key or str(key)
            faults.append(fault(where, "cannot be resolved", got=first_line(error), do=SHOW))
            plain = None
        config[str(key)] = plain
    faults += [_unset(key) for key, value in leaves(config) if value == "???"]
    return config, faults + [_unstorable(key, value) for key, value in leaves(config) if not _is_storable(value)]


def _is_storable(value: object) -> bool:
    """Whether a plan can hold the value; not bytes, and no text that is not Unicode, as of a wrongly encoded word."""
    return isinstance(value, STORED) and not (isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value))


def _unstorable(key: str, value: object) -> str:
    expected = "a number, text in Unicode, true, false, null, a list or a mapping"
    return fault(key, "cannot be stored in a plan", got=_kind(value), expected=expected, do=SHOW)


def _kind(value: object) -> str:
    return ascii(value) if isinstance(value, str) else type(value).__name__


def _unset(key: str) -> str:
    return fault(key, "must be given a value", do=f"python -m pipeline ... {key}=<value>")
