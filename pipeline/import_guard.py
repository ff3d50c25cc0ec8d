"""Check that Python imports Fivegate's own packages, and not other packages with the same generic names.

`pipeline`, `phases`, `diagnostics` and `checklists` are common names. A folder of that name next to a user's script
comes first on `sys.path` and is imported instead of ours; the error that follows does not mention the reason. This
module checks before anything is imported, and needs the standard library alone: `fivegate.py` loads it by its path,
since `pipeline` itself may be the hidden package.
"""

from __future__ import annotations

import os
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

NAMES = ("pipeline", "phases", "diagnostics", "checklists")
# The folder that holds our packages: the checkout, or site-packages.
HOME = Path(__file__).resolve().parent.parent
# The same with links not resolved: the frames of a traceback name files as Python imported them.
IMPORT_ROOT = Path(__file__).parent.parent


def message(home: Path = HOME) -> str | None:
    """Return one message with all names that are not found in `home`, or None when all are; imports nothing."""
    places = {name: _location(_spec(name)) for name in NAMES}
    misplaced = {name: place for name, place in places.items() if place is None or place.parent != home}
    if not misplaced:
        return None
    lines = [
        f"{place}: hides Fivegate's own package '{name}'; expected {home / name}"
        if place
        else f"{home / name}: package is missing from this installation"
        for name, place in misplaced.items()
    ]
    if all(misplaced.values()):
        return "\n".join([*lines, "Do: rename it, or run `fivegate` from elsewhere and without it in PYTHONPATH"])
    return "\n".join([*lines, "Do: install Fivegate again"])


def child_pythonpath() -> str:
    """Return the PYTHONPATH of a child process: our own packages first, then what this process was given."""
    return os.pathsep.join(path for path in (str(HOME), os.environ.get("PYTHONPATH")) if path)


def _spec(name: str) -> ModuleSpec | None:
    """Return the spec of a top-level name; a module in `sys.modules` without a spec counts as not found."""
    try:
        return find_spec(name)
    except ValueError:
        return None


def _location(spec: ModuleSpec | None) -> Path | None:
    """Return the folder of a package, or the file of a module that has a package's name."""
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or ()) or [spec.origin or ""]
    return Path(places[0]).resolve()
