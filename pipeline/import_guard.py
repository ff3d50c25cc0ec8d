"""Are the packages that Python would import under our generic names really ours?

`pipeline`, `phases`, `diagnostics` and `checklists` are words that anybody uses. A folder of that name beside a user's
own script comes first on `sys.path`, is imported in our place, and the error that follows says nothing. This file
looks before anything is imported and needs the standard library alone: `fivegate.py` loads it by its path, since
`pipeline` itself may be the name that is taken.
"""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

NAMES = ("pipeline", "phases", "diagnostics", "checklists")
HOME = Path(__file__).resolve().parent.parent


def message(home: Path = HOME) -> str | None:
    """What to tell the user, all names in one message, or None when every name is found in `home`; imports nothing."""
    places = {name: _place(_spec(name)) for name in NAMES}
    wrong = {name: place for name, place in places.items() if place is None or place.parent != home}
    if not wrong:
        return None
    lines = [
        f"{place}: hides Fivegate's own package '{name}'; expected {home / name}"
        if place
        else f"{home / name}: package is missing from this installation"
        for name, place in wrong.items()
    ]
    if all(wrong.values()):
        return "\n".join([*lines, "Do: rename it, or run `fivegate` from elsewhere and without it in PYTHONPATH"])
    return "\n".join([*lines, "Do: install Fivegate again"])


def _spec(name: str) -> ModuleSpec | None:
    """Where Python would find a top-level name; a module that was half-made without a spec counts as not found."""
    try:
        return find_spec(name)
    except ValueError:
        return None


def _place(spec: ModuleSpec | None) -> Path | None:
    """The folder of a package, or the file of a module that took a package's name."""
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or ()) or [spec.origin or ""]
    return Path(places[0]).resolve()
