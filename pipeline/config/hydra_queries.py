"""Questions about the config that Hydra answers itself: `--cfg job`, `--info defaults-tree`."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config.arguments import parse
from pipeline.config.compose import composition, existing, search_path
from pipeline.config.hydra_main import hydra_main
from pipeline.errors import UserError, fault


def ask(words: Sequence[str]) -> int:
    """The answer stands on stdout; 0 comes back. Raises UserError with every fault of the config or the question."""
    arguments = parse(words)
    composition(arguments.overrides, arguments.config_dirs)
    search = search_path(existing(arguments.config_dirs)[0])
    try:
        hydra_main([*arguments.hydra_flags, search, *arguments.overrides], lambda config: None)
    except SystemExit as end:
        if end.code:
            flags = " ".join(arguments.hydra_flags)
            raise UserError(fault(flags, "cannot be answered", do="python -m pipeline --cfg job")) from end
    return 0
