"""Compositions and YAML files that are remembered: Hydra takes 0.2 s each time, and most tests ask for the same few.

Which files a config consists of depends on the overrides that name an option of a group (`optimizer=sgd`). Each such
choice is composed once in a process. The other overrides set values; Hydra's own function sets them in a copy.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import cache
from io import TextIOBase
from pathlib import Path
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
    """`compose` with a memory. A request for other folders, of Hydra itself or for a sweep goes to Hydra."""
    composed: dict[tuple[str, ...], bytes] = {}

    def call(primary: str, overrides: list[str], **options: Any) -> DictConfig:
        if overrides[:1] != [OURS] or any("hydra" in word for word in overrides[1:]):
            return compose(primary, overrides, **options)
        choices = tuple(word for word in overrides[1:] if _chooses_files(word.partition("=")[0].lstrip("+~")))
        values = OverridesParser.create().parse_overrides([w for w in overrides[1:] if w not in choices])
        if any(value.is_sweep_override() for value in values):
            return compose(primary, overrides, **options)
        if choices not in composed:
            composed[choices] = pickle.dumps(compose(primary, [OURS, *choices], **options))
        config: DictConfig = pickle.loads(composed[choices])
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
        return config

    return call


def remembering_text(parse: Callable[..., Any], text_of: Callable[[Any], str | bytes | None]) -> Callable[..., Any]:
    """`OmegaConf.load` or `create` that parses each YAML text once: conf/, checklists and playbooks take 0.5 s."""
    parsed: dict[str | bytes, bytes] = {}

    def call(*source: Any, **options: Any) -> Any:
        text = text_of(source[0]) if len(source) == 1 and not options else None
        if text is None:
            return parse(*source, **options)
        if text not in parsed:
            parsed[text] = pickle.dumps(parse(*source))
        return pickle.loads(parsed[text])

    return call


def text_of_file(file: Any) -> str | bytes | None:
    """The text of a path or an open file, None of anything else."""
    if isinstance(file, TextIOBase):
        text = file.read()
        file.seek(0)
        return text
    return file.read_bytes() if isinstance(file, Path) else None


def text_of_string(string: Any) -> str | None:
    """The string itself, None of anything else."""
    return string if isinstance(string, str) else None
