"""A text that every machine has: source code of the Python standard library."""

from __future__ import annotations

import platform
import sysconfig
from pathlib import Path

from pipeline.data.source_data import SourceData
from pipeline.data.sources.delimited import read_bytes
from pipeline.data.sources.text import check_options, text_data
from pipeline.errors import UserError, fault

MODULES = ("calendar", "cmd", "contextlib", "heapq", "json/encoder", "shlex", "textwrap")
LICENCE = "PSF-2.0"


def stdlib_text(context: int = 64, targets: str = "every", val: float = 0.2, test: float = 0.2) -> SourceData:
    """Windows of `context` bytes of the concatenated `MODULES`, like those that `text_windows` takes from a file.

    The text, and with it every digest, depends on the version of Python. Raises UserError if this Python was installed
    without its sources.
    """
    check_options(context, "byte", targets, val, test)
    folder = Path(sysconfig.get_path("stdlib"))
    files = [folder / f"{module}.py" for module in MODULES]
    missing = [module for module, file in zip(MODULES, files, strict=True) if not file.is_file()]
    if missing:
        do = "install them, or use data=text_windows data.path=FILE"
        raise UserError(
            fault(str(folder), "this Python was installed without its sources", got=", ".join(missing), do=do)
        )
    text = b"\n".join(read_bytes(str(file)) for file in files)
    source = f"standard library of Python {platform.python_version()}: {', '.join(MODULES)}"
    return text_data(
        text, str(folder), context=context, targets=targets, val=val, test=test, source=source, licence=LICENCE
    )
