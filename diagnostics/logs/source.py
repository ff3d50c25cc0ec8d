"""A log file as lines of text: any encoding, progress bars that overwrite themselves, bounded memory."""

from __future__ import annotations

import codecs
import itertools
import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from functools import cached_property
from pathlib import Path

from diagnostics.logs.evidence.accidents import accident_in, finding_of, may_hold_accident
from pipeline.errors import UserError, fault
from pipeline.inspection.finding import Finding

HEAD_BYTES = 2**17  # what a format is recognized by
CHUNK_BYTES = 2**20
MAX_WORDS = 4000  # characters of a line that may be an error
MAX_LINE = 2**20  # characters; the rest of a longer line is not read
_ENDS = re.compile("(\r?\n|\r|\x08+)")  # a bar is overwritten after \r, or after as many \b as it is long
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# Without the characters of numbers, lines that differ in their numbers alone are equal.
_NUMBERS = {ord(character): None for character in "0123456789.+-eE"}
RARE = 1000  # lines with the same words, from which on a long log has enough of them to leave some out
MAX_KINDS = 10_000  # of lines that are told apart
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins as that of UTF-16 does
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
WIDE = 0.9  # share of one half of the bytes that is 0 in a Latin text of two bytes per character


class Source:
    """A plain file. Raises UserError if there is none, or if it is a pipe or a device, which may have no end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.long_lines: dict[int, None] = {}  # lines of which only the beginning was read, in order
        self.accidents: dict[str, Finding] = {}  # errors and warnings in the lines that were read, by cause
        self.wanted: Collection[str] = ()  # columns that the user named
        self._every = 1
        self._kinds: Counter[tuple[str, int]] = Counter()
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
        marked = next((name for mark, name in _MARKS if self.first_bytes.startswith(mark)), None)
        return marked or _encoding_by_zeros(self.first_bytes[:1024]) or "utf-8"

    @property
    def is_binary(self) -> bool:
        return self.encoding in ("utf-8", "utf-8-sig") and b"\0" in self.first_bytes

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
                contents, ends, pending = _split(text[:-1] if held else text)
                # Most logs have neither colours nor words of an error, which is seen in many lines at once.
                bare = "\x1b" not in text and not may_hold_accident(text)
                for content, end in zip(contents, ends, strict=False):
                    if self._every == 1 or self._is_read(content):
                        whole = bare and not cut and len(content) <= MAX_LINE
                        yield number, content if whole else self._shown(number, content, cut)
                    cut = False
                    number += end.endswith("\n")
                if len(pending) > MAX_LINE:
                    cut, pending = True, pending[:MAX_LINE]
                pending += "\r" * held
        if pending:
            yield number, self._shown(number, pending.rstrip("\r"), cut)

    def read_one_in(self, every: int) -> None:
        """Read one in so many of the lines to come that differ in their numbers alone."""
        self._every = every

    def _is_read(self, line: str) -> bool:
        """Whether a line of a long log is read: each whose words are rare, as those of a validation, and NaN is a word.

        Empty cells tell the rows of a table apart, which has no words.
        """
        kind = (line[:MAX_WORDS].translate(_NUMBERS), line.count(",,"))
        if kind not in self._kinds and len(self._kinds) >= MAX_KINDS:
            kind = ("", -1)
        self._kinds[kind] += 1
        return self._kinds[kind] <= RARE or self._kinds[kind] % self._every == 0

    def _shown(self, number: int, content: str, cut: bool) -> str:
        if cut or len(content) > MAX_LINE:
            self.long_lines[number] = None
        content = content[:MAX_LINE]
        if len(content) <= MAX_WORDS and (accident := accident_in(content)):
            self.accidents.setdefault(accident.cause, finding_of(accident, f"line {number}", content))
        return _COLOURS.sub("", content) if "\x1b" in content else content


def _split(text: str) -> tuple[list[str], Iterable[str], str]:
    """Return the lines of a text, what ends each of them, and the rest behind the last end."""
    if "\r" not in text and "\b" not in text:
        *lines, rest = text.split("\n")
        return lines, itertools.repeat("\n"), rest
    *parts, rest = _ENDS.split(text)
    return parts[::2], parts[1::2], rest


def _encoding_by_zeros(start: bytes) -> str | None:
    """Return the encoding of two bytes per character that a text without a mark has; None for other bytes."""
    if len(start) < 8:
        return None
    even, odd = start[::2], start[1::2]
    if odd.count(0) >= WIDE * len(odd) and 0 not in even:
        return "utf-16-le"
    return "utf-16-be" if even.count(0) >= WIDE * len(even) and 0 not in odd else None
