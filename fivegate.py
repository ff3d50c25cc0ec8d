"""The Python API (`from fivegate import Run, Monitor, diagnose, compare, optimize`) and the command `fivegate`.

Names are imported on first use, so that `import fivegate` is fast and a log can be diagnosed without torch. Before the
first import, a check makes sure that no other package hides one of ours, whose names are generic (`pipeline`, ...).
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diagnostics.callbacks.lightning import LightningMonitor as LightningMonitor
    from diagnostics.callbacks.transformers import TransformersMonitor as TransformersMonitor
    from diagnostics.diagnose import diagnose
    from diagnostics.monitor import Monitor
    from pipeline.python_api.run import Run
    from pipeline.tuning.compare import compare
    from pipeline.tuning.optimize import optimize

__all__ = ["Monitor", "Run", "compare", "diagnose", "optimize"]

# The callbacks are not in `__all__`: they import Lightning and transformers, which need not be installed.
_MODULES = {
    "LightningMonitor": "diagnostics.callbacks.lightning",
    "Monitor": "diagnostics.monitor",
    "Run": "pipeline.python_api.run",
    "TransformersMonitor": "diagnostics.callbacks.transformers",
    "compare": "pipeline.tuning.compare",
    "diagnose": "diagnostics.diagnose",
    "optimize": "pipeline.tuning.optimize",
}


def main() -> int:
    """Run the command `fivegate`: like `python -m pipeline`, but a user's folder `pipeline` cannot hide it."""
    hidden = _hidden_package()
    if hidden:
        sys.stderr.write(hidden + "\n")
        return 2
    import_module("pipeline.current_folder").leave_out_current_folder()
    return int(import_module("pipeline.__main__").main() or 0)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    hidden = _hidden_package()
    if hidden:
        raise ImportError(hidden)
    globals()[name] = value = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _hidden_package() -> str | None:
    """Return a message if another package hides one of ours.

    `pipeline/import_guard.py` is loaded by its path, since `pipeline` may be the hidden package.
    """
    path = Path(__file__).resolve().parent / "pipeline" / "import_guard.py"
    spec = spec_from_file_location("_fivegate_import_guard", path)
    assert spec and spec.loader, path
    import_guard = module_from_spec(spec)
    spec.loader.exec_module(import_guard)
    message: str | None = import_guard.message()
    return message


if __name__ == "__main__":
    raise SystemExit(main())
