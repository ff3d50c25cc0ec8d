"""How a run is named in the commands that messages print: by the folder that it is in now.

The name in the ledger is not used: after a run was copied or moved, it names another run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import relative_path

COMPOSING = ("planning", "baseline")  # the phases that compose the config of a planned run anew
DEFAULT_ROOT = "runs"  # where runs are stored unless run.root names another folder

_PLAIN = re.compile(r"(?!(?:null|true|false|nan|inf)$)[a-z_./][a-z0-9_./+@%-]*", re.IGNORECASE | re.ASCII)


def shown_root(run_dir: Path) -> str:
    """Return the folder that the run is in, relative to the current folder where possible."""
    return relative_path(run_dir.absolute().parent)


def run_argument(run_dir: Path) -> str:
    """Return what names the run in `status`, `verify` and the other commands on records, quoted for a shell."""
    root = shown_root(run_dir)
    plain = root == DEFAULT_ROOT and not run_dir.name.startswith("-")
    return shlex.quote(run_dir.name if plain else f"{root}/{run_dir.name}")


def run_overrides(run_dir: Path) -> str:
    """Return the overrides that name the run: `run.name`, and `run.root` outside of the default root."""
    root = shown_root(run_dir)
    place = "" if root == DEFAULT_ROOT else f" {_override('run.root', root)}"
    return f"{_override('run.name', run_dir.name)}{place}"


def composing_overrides(run_dir: Path, variables: Sequence[str]) -> str:
    """Return the overrides for a phase that composes the config of the run anew: they also name what it may read.

    `variables` are the environment variables that the plan was made with. No record allows one, since a ledger may be
    somebody else's: each command that reads it says `env=[NAME]`.
    """
    names = ",".join(variables)
    return " ".join([run_overrides(run_dir), *([shlex.quote(f"env=[{names}]")] if names else [])])


def _override(key: str, value: str) -> str:
    """Return the override, quoted for Hydra (which reads `1e5` as a number) and for a shell where that is necessary."""
    if not _PLAIN.fullmatch(value):
        # To Hydra a backslash is itself, except before a quote.
        value = "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value) + "'"
    return shlex.quote(f"{key}={value}")


def unquoted(value: str) -> str:
    """Return the text of an override's value as Hydra reads it, with or without quotes around it."""
    quote = value[:1]
    if len(value) < 2 or quote not in ("'", '"') or value[-1] != quote:
        return value
    return re.sub(rf"(\\+)({quote}|$)", lambda found: "\\" * (len(found[1]) // 2) + found[2], value[1:-1])


def valid_name(name: str) -> str:
    """Return a name that a run can have, similar to this one."""
    return re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_")[:63] or "run"
