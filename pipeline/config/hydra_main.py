"""Calls Hydra's own command line, for sweeps and for flags that only Hydra can answer."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig

from pipeline.config.conf_dir import conf_dir
from pipeline.config.overrides import PRIMARY, first_line
from pipeline.errors import FivegateError, UserError, fault


def hydra_main(words: Sequence[str], task: Callable[[DictConfig], None]) -> None:
    """Run Hydra with these arguments. Raises UserError where Hydra would print a message and exit."""
    argv, sys.argv = sys.argv, ["pipeline", *words]
    full, os.environ["HYDRA_FULL_ERROR"] = os.environ.get("HYDRA_FULL_ERROR"), "1"  # raise instead of exit
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=PRIMARY)(task)()
    except FivegateError:
        raise
    except (HydraException, ValueError) as error:
        message = fault("hydra", f"refuses: {first_line(error)}", do="python -m pipeline --help")
        raise UserError(message) from error
    finally:
        sys.argv = argv
        os.environ.pop("HYDRA_FULL_ERROR")
        if full is not None:
            os.environ["HYDRA_FULL_ERROR"] = full
