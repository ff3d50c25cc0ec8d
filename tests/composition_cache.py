"""Config compositions that are remembered: Hydra takes 0.2 s for each, and most tests ask for the same few.

Which files a config consists of depends on the overrides that name an option of a group (`optimizer=sgd`). Each such
choice is composed once in a process. The other overrides set values; Hydra's own function sets them in a copy.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import cache
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from pipeline.config.compose import search_path
from pipeline.config.conf_dir import conf_dir

Compose = Callable[..., DictConfig]
OURS = search_path([])  # the word for no other folders than ours


@cache
def _chooses_files(key: str) -> bool:
    return "@" in key or (conf_dir() / key).is_dir()


def remembering(compose: Compose) -> Compose:
    """`compose` with a memory. A request that is unusual or wrong goes to Hydra itself."""
    composed: dict[tuple[str, ...], bytes] = {}

    def call(primary: str, overrides: list[str], **options: Any) -> DictConfig:
        if overrides[:1] != [OURS] or any("hydra" in word for word in overrides[1:]):
            return compose(primary, overrides, **options)
        choices = tuple(word for word in overrides[1:] if _chooses_files(word.partition("=")[0].lstrip("+~")))
        try:
            values = OverridesParser.create().parse_overrides([w for w in overrides[1:] if w not in choices])
            if any(value.is_sweep_override() for value in values):
                return compose(primary, overrides, **options)
            if choices not in composed:
                composed[choices] = pickle.dumps(compose(primary, [OURS, *choices], **options))
            config: DictConfig = pickle.loads(composed[choices])
            ConfigLoaderImpl._apply_overrides_to_config(values, config)
        except Exception:  # Hydra says it in its own words
            return compose(primary, overrides, **options)
        return config

    return call
