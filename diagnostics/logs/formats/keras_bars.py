"""Progress bars of Keras: `Epoch 1/10`, then a bar that overwrites itself; its last state holds the epoch's values."""

from __future__ import annotations

import re
from collections.abc import Iterator

from diagnostics.logs.header import settings_in
from diagnostics.logs.row import Notes, Row
from diagnostics.logs.source import Source

NAME = "progress bars of Keras"
PRIORITY = 25
_EPOCH = re.compile(r"^\s*Epoch (\d+)/(\d+)")
_BAR = re.compile(r"^\s*(\d+)/(\d+)\s.*? - ")
_PAIR = re.compile(r"(?<= - )([A-Za-z_]\w*): (-?(?:\d[\d.]*(?:[eE][+-]?\d+)?|nan|inf))")


def matches(source: Source) -> bool:
    epochs = sum(bool(_EPOCH.match(line)) for line in source.head)
    return epochs > 0 and any(_BAR.match(line) and _PAIR.search(line) for line in source.head)


def rows(source: Source, notes: Notes) -> Iterator[Row]:
    """Yield the last state of each epoch's bar; of an epoch that was cut off, what was shown last."""
    epoch, last = 0, None
    for line, text in source.lines():
        if match := _EPOCH.match(text):
            if last:
                yield last
            epoch, last = int(match[1]), None
        elif _BAR.match(text) and (pairs := _PAIR.findall(text)):
            last = Row(line, {"epoch": epoch, **dict(pairs)})
        elif not epoch:
            notes.header.update(settings_in(text))
    if last:
        yield last
