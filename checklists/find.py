"""From the name of a check, as a checklist writes it, to the function: `data.splits_disjoint` is
`checklists/checks/data.py::splits_disjoint`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import UserError, fault
from pipeline.results import Result

CHECKS = Path(__file__).parent / "checks"


def _public(subject: str) -> dict[str, Callable[..., Result]]:
    module = importlib.import_module(f"checklists.checks.{subject}")
    own = inspect.getmembers(module, lambda f: inspect.isfunction(f) and f.__module__ == module.__name__)
    return {name: function for name, function in own if not name.startswith("_")}


def check(name: str) -> Callable[..., Result]:
    """The check of that name. Raises UserError with the nearest one that exists."""
    subject, _, function = name.partition(".")
    subjects = sorted(p.stem for p in CHECKS.glob("*.py") if p.stem != "__init__")
    known = _public(subject) if subject in subjects else {}
    if function not in known:
        among = [f"{subject}.{f}" for f in known] or subjects
        raise UserError(fault("check", "there is no such check", got=name if known else subject, among=among))
    return known[function]
