"""A text that every machine has: sources of Python's own standard library."""

from __future__ import annotations

import platform
import sysconfig
from pathlib import Path
from typing import Any

from pipeline.data.sources.delimited import read_bytes
from pipeline.data.sources.text import require_words, windows_of
from pipeline.errors import UserError, fault

MODULES = ("calendar", "cmd", "contextlib", "heapq", "json/encoder", "shlex", "textwrap")
LICENCE = "PSF-2.0"


def stdlib_text(context: int = 64, targets: str = "every", val: float = 0.2, test: float = 0.2) -> dict[str, Any]:
    """Windows of `context` bytes of `MODULES`, one behind the other, as `text_windows` gives those of a file.

    The text, and with it every digest, is that of the Python that runs. Raises UserError where this Python came without
    its sources.
    """
    require_words(context, "byte", targets, val, test)
    folder = Path(sysconfig.get_path("stdlib"))
    files = [folder / f"{module}.py" for module in MODULES]
    lacking = [module for module, file in zip(MODULES, files, strict=True) if not file.is_file()]
    if lacking:
        do = "install them, or take data=text_windows data.path=FILE"
        raise UserError(fault(str(folder), "this Python came without its sources", got=", ".join(lacking), do=do))
    text = b"\n".join(read_bytes(str(file)) for file in files)
    source = f"standard library of Python {platform.python_version()}: {', '.join(MODULES)}"
    return windows_of(
        text, str(folder), context=context, targets=targets, val=val, test=test, source=source, licence=LICENCE
    )
