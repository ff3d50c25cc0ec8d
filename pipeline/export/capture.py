"""Everything that exporters say: their prints, logs and warnings, kept from the terminal and written to a file."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

TALKERS = ("torch", "onnxscript", "onnx_ir", "onnx", "onnxruntime")


@dataclass
class Capture:
    """What was said in a block: its text, and its warnings, each once, as `Category: message`."""

    stream: io.StringIO = field(default_factory=io.StringIO)
    warnings: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Add a paragraph of our own."""
        self.stream.write(f"{text.rstrip()}\n")

    @property
    def text(self) -> str:
        lines = (*self.warnings, *self.stream.getvalue().splitlines())
        return "".join(f"{line}\n" for line in lines if line.strip())


@contextlib.contextmanager
def captured() -> Iterator[Capture]:
    """Collect what is printed, logged by exporters, or warned of inside the block; nothing of it is shown."""
    capture = Capture()
    with (
        contextlib.redirect_stdout(capture.stream),
        contextlib.redirect_stderr(capture.stream),
        _logs_to(capture.stream),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        try:
            yield capture
        finally:
            said = dict.fromkeys(f"{w.category.__name__}: {w.message}" for w in caught)
            capture.warnings += [text for text in said if text not in capture.warnings]


@contextlib.contextmanager
def _logs_to(stream: io.StringIO) -> Iterator[None]:
    """Send the log records of exporters to the stream alone, also where they brought a handler for the terminal."""
    handler = logging.StreamHandler(stream)
    existing = [log for log in logging.root.manager.loggerDict.values() if isinstance(log, logging.Logger)]
    heads = [logging.getLogger(name) for name in TALKERS]
    speaking = [log for log in existing if log.handlers and log.name.split(".")[0] in TALKERS]
    changed = list(dict.fromkeys((*heads, *speaking)))
    before = [(log, log.handlers[:], log.propagate) for log in changed]
    try:
        for log in changed:
            log.handlers, log.propagate = [handler], False
        yield
    finally:
        for log, handlers, propagate in before:
            log.handlers, log.propagate = handlers, propagate
