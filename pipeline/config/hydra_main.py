"""Calls Hydra's own command line, for flags that only Hydra can answer, and its sweeper."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig

from pipeline.config.compose import hydra_over
from pipeline.config.conf_dir import conf_dir
from pipeline.config.override_keys import named
from pipeline.config.overrides import PRIMARY, first_line
from pipeline.errors import FivegateError, UserError, fault
from pipeline.trust.environment import reading


def hydra_main(words: Sequence[str]) -> None:
    """Run Hydra's command line with these arguments, which a composition accepted before.

    Raises UserError where Hydra would print a message and exit.
    """
    argv, sys.argv = sys.argv, ["pipeline", *words]
    try:
        with _raises_user_error(), reading(named(words, "env") or ()):
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=PRIMARY)(_do_nothing)()
    finally:
        sys.argv = argv


def _do_nothing(config: DictConfig) -> None:
    """What Hydra's command line runs after flags that run nothing."""


def hydra_sweep(words: Sequence[str], folders: Sequence[Path], task: Callable[[DictConfig], None]) -> None:
    """Run the task for every job of a sweep. Raises UserError where Hydra refuses the overrides.

    Hydra's command line is not used, since it would load the configs with a loader of its own.
    """
    with _raises_user_error(), reading(named(words, "env") or ()), hydra_over(folders) as search:
        sweeper = GlobalHydra.instance().hydra
        assert sweeper is not None
        sweeper.multirun(config_name=PRIMARY, task_function=task, overrides=[search, *words])


@contextmanager
def _raises_user_error() -> Iterator[None]:
    full, os.environ["HYDRA_FULL_ERROR"] = os.environ.get("HYDRA_FULL_ERROR"), "1"  # raise instead of exit
    try:
        yield
    except FivegateError:
        raise
    except (HydraException, ValueError) as error:
        message = fault("hydra", f"refuses: {first_line(error)}", do="python -m pipeline --help")
        raise UserError(message) from error
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if full is not None:
            os.environ["HYDRA_FULL_ERROR"] = full
