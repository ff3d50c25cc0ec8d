"""The face of Fivegate: `from fivegate import Run, Monitor, diagnose, optimize`, and the command `fivegate`.

Names are loaded when they are asked for, so that `import fivegate` costs nothing and a log can be diagnosed on a
machine without torch. Before the first of them, the generic package names are checked to be ours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from diagnostics.diagnose import diagnose
    from diagnostics.monitor import Monitor
    from pipeline.run_store.run import Run

__all__ = ["Monitor", "Run", "diagnose", "optimize"]

_HOMES = {"Run": "pipeline.run_store.run", "Monitor": "diagnostics.monitor", "diagnose": "diagnostics.diagnose"}


def optimize(train: Callable[..., Any], *, seed: int | None = None, metric: str | None = None) -> NoReturn:
    """Not built in this version: it will improve somebody's own training function by proven steps.

    Raises UserError: every argument that is missing, and what to do instead.
    """
    from pipeline.errors import UserError, fault

    needed = {"seed": seed, "metric": metric}
    missing = [fault("optimize", f"needs {name}=", got=None) for name, value in needed.items() if value is None]
    instead = "watch this loop with Monitor, or bring the model: python -m pipeline phase=auto --config-dir DIR"
    raise UserError(*missing, fault("optimize", "is not built in this version", do=instead))


def main() -> int:
    """The command `fivegate`: `python -m pipeline`, which a user's own folder `pipeline` cannot hide."""
    hidden = _shadowed()
    if hidden:
        sys.stderr.write(hidden + "\n")
        return 2
    return int(import_module("pipeline.__main__").main() or 0)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    hidden = _shadowed()
    if hidden:
        raise ImportError(hidden)
    globals()[name] = value = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _shadowed() -> str | None:
    """Ask pipeline/import_guard.py by its path: its package may be the one that is hidden."""
    path = Path(__file__).resolve().parent / "pipeline" / "import_guard.py"
    spec = spec_from_file_location("_fivegate_import_guard", path)
    assert spec and spec.loader, path
    shadow = module_from_spec(spec)
    spec.loader.exec_module(shadow)
    found: str | None = shadow.message()
    return found


if __name__ == "__main__":
    raise SystemExit(main())
