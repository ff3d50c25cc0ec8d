"""The location of the configuration: next to the package in a checkout, inside it in an installed wheel."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def conf_dir() -> Path:
    """The folder of `config.yaml` and its groups. Raises FileNotFoundError when the installation lost it."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(f"conf/config.yaml is neither in {package} nor next to it; install fivegate again")
