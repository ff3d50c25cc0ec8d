"""Resolves a check by name: `data.splits_disjoint` is the function `splits_disjoint` of `checklists/checks/data.py`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import UserError, fault
from pipeline.results import Result

CHECKS = Path(__file__).parent / "checks"


def resolve_check(name: str) -> Callable[..., Result]:
    """Return the check with that name. Raises UserError with the nearest existing name."""
    subject, _, function = name.partition(".")
    subjects = sorted(p.stem for p in CHECKS.glob("*.py") if p.stem != "__init__")
    checks = _public_functions(subject) if subject in subjects else {}
    if function not in checks:
        among = [f"{subject}.{f}" for f in checks] or subjects
        raise UserError(fault("check", "there is no such check", got=name if checks else subject, among=among))
    return checks[function]


def _public_functions(subject: str) -> dict[str, Callable[..., Result]]:
    module = importlib.import_module(f"checklists.checks.{subject}")
    # Functions that a check module imports are not checks.
    own = inspect.getmembers(module, lambda f: inspect.isfunction(f) and f.__module__ == module.__name__)
    return {name: function for name, function in own if not name.startswith("_")}
