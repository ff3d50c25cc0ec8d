"""A log file as lines of text: any encoding, progress bars that overwrite themselves, bounded memory."""

from __future__ import annotations

import codecs
import os
import re
import stat
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from diagnostics.logs.evidence.accidents import accident_in, finding_of
from pipeline.errors import UserError, fault
from pipeline.inspection.finding import Finding

HEAD_BYTES = 2**17  # what a format is recognized by
CHUNK_BYTES = 2**20
MAX_WORDS = 4000  # characters of a line that may be an error
MAX_LINE = 2**20  # characters; the rest of a longer line is not read
_ENDS = re.compile("(\r?\n|\r|\x08+)")  # a bar is overwritten after \r, or after as many \b as it is long
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


class Source:
    """A plain file. Raises UserError if there is none, or if it is a pipe or a device, which may have no end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.long_lines: list[int] = []  # lines of which only the beginning was read
        self.accidents: dict[str, Finding] = {}  # errors and warnings in the lines that were read, by cause
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise UserError(fault(str(path), "is a pipe or a device", expected="a log file"))
            with path.open("rb") as stream:
                self.first_bytes = stream.read(HEAD_BYTES)
        except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
            if isinstance(error, UserError):
                raise
            missing = isinstance(error, FileNotFoundError)
            what = "does not exist" if missing else f"cannot be read ({getattr(error, 'strerror', None) or error})"
            raise UserError(fault(str(path), what, expected="a log file or a folder of logs")) from None

    @property
    def encoding(self) -> str:
        return next((name for mark, name in _MARKS if self.first_bytes.startswith(mark)), "utf-8")

    @property
    def is_binary(self) -> bool:
        return self.encoding != "utf-16" and b"\0" in self.first_bytes

    @cached_property
    def head(self) -> list[str]:
        """The first lines, without the last one if the head ends in it."""
        text = self.first_bytes.decode(self.encoding, errors="replace")
        lines = [_COLOURS.sub("", line) for line in re.split("\r?\n|\r|\x08+", text)]
        return lines[:-1] if len(self.first_bytes) == HEAD_BYTES and len(lines) > 1 else lines

    def lines(self) -> Iterator[tuple[int, str]]:
        """Yield the number and the text of each line; a bar's states have the number of the line that they share."""
        decoder = codecs.getincrementaldecoder(self.encoding)(errors="replace")
        number, pending, cut = 1, "", False
        with self.path.open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                text = pending + decoder.decode(chunk)
                held = text[-1:] == "\r"  # it may belong to a \n in the next chunk
                *parts, pending = _ENDS.split(text[:-1] if held else text)
                for content, end in zip(parts[::2], parts[1::2], strict=True):
                    yield number, self._shown(number, content, cut)
                    cut = False
                    number += end.endswith("\n")
                if len(pending) > MAX_LINE:
                    cut, pending = True, pending[:MAX_LINE]
                pending += "\r" * held
        if pending:
            yield number, self._shown(number, pending.rstrip("\r"), cut)

    def _shown(self, number: int, content: str, cut: bool) -> str:
        if cut or len(content) > MAX_LINE:
            self.long_lines.append(number)
        content = content[:MAX_LINE]
        if len(content) <= MAX_WORDS and (accident := accident_in(content)):
            self.accidents.setdefault(accident.cause, finding_of(accident, f"line {number}", content))
        return _COLOURS.sub("", content) if "\x1b" in content else content
