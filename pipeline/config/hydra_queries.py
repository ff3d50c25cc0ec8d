"""Questions about the config that Hydra answers itself: `--cfg job`, `--info defaults-tree`."""

from __future__ import annotations

from pipeline.config.arguments import Arguments
from pipeline.config.compose import composition, existing, search_path
from pipeline.config.hydra_main import hydra_main
from pipeline.errors import UserError, fault


def answer(arguments: Arguments) -> int:
    """Print Hydra's answer and return 0. Raises UserError with every fault of the config or of the flags."""
    composition(arguments.overrides, arguments.config_dirs)
    search = search_path(existing(arguments.config_dirs)[0])
    try:
        hydra_main([*arguments.hydra_flags, search, *arguments.overrides])
    except SystemExit as exit_:
        if exit_.code:
            flags = " ".join(arguments.hydra_flags)
            raise UserError(fault(flags, "cannot be answered", do="python -m pipeline --cfg job")) from exit_
    return 0
