"""Diagnostics of trainings. The checks of single curves are imported on first use:

from diagnostics import check_convergence_rate, check_gradient_health, check_loss_divergence, check_overfitting
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diagnostics.checks import (
        check_convergence_rate,
        check_gradient_health,
        check_loss_divergence,
        check_overfitting,
    )

__all__ = ["check_convergence_rate", "check_gradient_health", "check_loss_divergence", "check_overfitting"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("diagnostics.checks"), name)
