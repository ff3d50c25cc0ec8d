"""How Hydra loads a config that is not ours: files are checked before they are parsed, Hydra's settings afterwards.

Hydra loads a config for each composition and for each job of a sweep, also in the processes of its launchers, and
builds callbacks and log handlers right after. The loader is therefore the one place where no config can pass by.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from pipeline import safe_yaml
from pipeline.errors import UserError, fault
from pipeline.trust.hydra_settings import SWEEPERS, faults_of, launcher_fault

NO_FOLDERS = "hydra.searchpath=[]"
OURS = ("hydra", "main")  # what Hydra calls the providers of its own files and of our config folder


def _leave_out_plugins_of_the_current_folder() -> None:
    """Hydra imports every module of the namespace `hydra_plugins`, of which somebody's folder may hold a part."""
    try:
        here = os.path.realpath(os.getcwd())
    except OSError:  # the folder was removed, and holds nothing
        here = ""
    entries = [entry for entry in sys.path if os.path.isabs(entry) and os.path.realpath(entry) != here]
    folders = [os.path.join(entry, "hydra_plugins") for entry in entries]
    module = sys.modules.setdefault("hydra_plugins", ModuleType("hydra_plugins"))
    module.__path__ = [folder for folder in folders if os.path.isdir(folder)]


_leave_out_plugins_of_the_current_folder()  # before Hydra looks for plugins, which it does once in a process


class UserConfigSource(FileConfigSource):
    """A folder of the user's: `FileConfigSource` for files that are safe to parse."""

    @staticmethod
    def scheme() -> str:
        return "user"

    def load_config(self, config_path: str) -> ConfigResult:
        path = os.path.join(self.path, self._normalize_file_name(config_path))
        if os.path.isfile(path):
            safe_yaml.check_file(path)
        return super().load_config(config_path)


class CheckedLoader(ConfigLoaderImpl):
    """Hydra's loader. Raises UserError for a config that changes a setting of Hydra's that is not settable."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        Plugins.instance().register(UserConfigSource)
        super().__init__(config_search_path)
        self._settings: dict[tuple[str, str], Mapping[str, Any]] = {}  # ours, by launcher and sweeper

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        composed = super().load_configuration(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        if any("hydra" in word for word in overrides if word != NO_FOLDERS):  # else every file is ours
            faults = self._faults(composed, config_name, overrides, run_mode)
            if faults:
                raise UserError(*faults)
        return composed

    def _faults(self, composed: DictConfig, name: str | None, overrides: list[str], run_mode: RunMode) -> list[str]:
        launcher = str(composed.hydra.runtime.choices.get("hydra/launcher"))
        if said := launcher_fault(launcher):
            return [said]
        chosen = str(composed.hydra.runtime.choices.get("hydra/sweeper"))
        sweeper = chosen if chosen in SWEEPERS else SWEEPERS[0]  # another one differs from ours, and is refused
        if (launcher, sweeper) not in self._settings:
            words = ["+hydra=default", f"hydra/launcher={launcher}", f"hydra/sweeper={sweeper}"]
            loaded = ConfigLoaderImpl(self.config_search_path).load_configuration(None, words, RunMode.RUN)
            self._settings[launcher, sweeper] = _plain(loaded)
        files = _Files(self, name, overrides, run_mode)
        settings = _plain(composed)
        return [
            *faults_of(settings, self._settings[launcher, sweeper], files.setting),
            *_computed_faults(settings, overrides),
        ]


def _plain(composed: DictConfig) -> Mapping[str, Any]:
    settings: Any = OmegaConf.to_container(composed.hydra, resolve=False)
    return dict(settings)


def _computed_faults(settings: Mapping[str, Any], overrides: list[str]) -> list[str]:
    """What a file added to the overrides or to the folders that Hydra searches, which it passes on to each job."""
    recorded = settings["overrides"]
    faults = []
    if sorted([*recorded["hydra"], *recorded["task"]]) != sorted(overrides):
        faults.append(fault("hydra.overrides", "is for Hydra to fill in", do="leave out hydra.overrides"))
    search = next((word for word in overrides if word.startswith("hydra.searchpath=")), NO_FOLDERS)
    if settings["searchpath"] != OverridesParser.create().parse_override(search).value():
        faults.append(fault("hydra.searchpath", "is set by a flag", do="python -m pipeline --config-dir DIR ..."))
    return faults


class _Files:
    """Finds the file of the user's that sets a key, for messages."""

    def __init__(self, loader: ConfigLoaderImpl, name: str | None, overrides: list[str], run_mode: RunMode) -> None:
        self.loader, self.name, self.overrides, self.run_mode = loader, name, overrides, run_mode

    def setting(self, key: str) -> str:
        """The file that sets the key, as a path below its folder; empty where none does."""
        _, repository = self.loader._parse_overrides_and_create_caching_repo(self.name, self.overrides)
        assert isinstance(repository, CachingConfigRepository)
        for entry in self.loader.compute_defaults_list(self.name, self.overrides, self.run_mode).defaults:
            if entry.config_path is None or not repository.config_exists(entry.config_path):
                continue
            loaded = self.loader._load_single_config(entry, repository)
            if loaded.provider not in OURS and OmegaConf.select(loaded.config, key) is not None:
                return f"{entry.config_path}.yaml"
        return ""
