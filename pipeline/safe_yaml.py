"""Reads YAML of which nobody knows who wrote it.

A few lines of aliases to aliases stand for billions of values, and a file of ten thousand opening brackets ends the
process inside libyaml. Both are found in the sequence of parser events, before anything is constructed.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, fault

MAX_BYTES = 64 * 2**20
MAX_DEPTH = 100
MAX_EXPANDED = 10_000  # values, unless the text itself holds more than a third of them
_EXPONENT = re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$")  # a number also without a point, or without a sign
CHARACTERS = 50  # of a text that count as one value


def load(text: str, where: str) -> Any:
    """The value of a text, read by the safe loader. Raises UserError where `check` does, and yaml.YAMLError."""
    import yaml

    check(text, where)
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def load_strict(text: str, where: str) -> Any:
    """The value of a text as OmegaConf reads it, ten times as fast: `1e-4` is a number, and no key comes twice.

    Raises UserError where `check` does, and yaml.YAMLError.
    """
    import yaml

    check(text, where)
    return yaml.load(text, Loader=_strict_loader())


@cache
def _strict_loader() -> Any:
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class StrictLoader(base):  # type: ignore[misc]  # one of two classes
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if key.tag == yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG]
            if twice := next((key for place, key in enumerate(keys) if key in keys[:place]), None):
                raise yaml.constructor.ConstructorError(None, None, f"found duplicate key {twice}", node.start_mark)
            mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
            return mapping

    StrictLoader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
    resolvers = StrictLoader.yaml_implicit_resolvers.items()
    StrictLoader.yaml_implicit_resolvers = {  # a day is text
        first: [(tag, pattern) for tag, pattern in known if not tag.endswith(":timestamp")]
        for first, known in resolvers
    }
    return StrictLoader


def check_file(path: str | Path) -> None:
    """Raise UserError for a file that is too large to be read, or that `check` refuses."""
    path = Path(path)
    if (size := path.stat().st_size) > MAX_BYTES:
        raise UserError(_too_large(str(path), size))
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return  # the reader of the file reports it
    check(text, str(path))


def check(text: str, where: str) -> None:
    """Raise UserError for a text whose reading would need an unreasonable amount of time or memory.

    A text that is no YAML is left to the reader, which says what is wrong with it.
    """
    import yaml

    if len(text) > MAX_BYTES:
        raise UserError(_too_large(where, len(text)))
    count = _Count(where)
    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            count.add(event)
    except yaml.YAMLError:
        return


class _Count:
    """Counts the values that a sequence of parser events stands for once every alias is replaced."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.written = 0
        self.open: list[tuple[str | None, int]] = []  # per open collection: its anchor, and `total` where it began
        self.total = 0
        self.sizes: dict[str, int] = {}  # of each anchor that is complete

    def add(self, event: Any) -> None:
        """Count one event. Raises UserError once the limits are exceeded."""
        import yaml

        if isinstance(event, yaml.CollectionStartEvent):
            self.open.append((event.anchor, self.total))
            self._count(1, event)
            if len(self.open) > MAX_DEPTH:
                self._refuse(event, "is nested too deeply", f"at most {MAX_DEPTH} levels", "nest it less")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = self.open.pop()
            if anchor:
                self.sizes[anchor] = self.total - before
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in self.open):
                self._refuse(event, f"&{event.anchor} contains itself", "a value without an alias to itself")
            self.total += self.sizes.get(str(event.anchor), 1)
            self._count(0, event)
        elif isinstance(event, yaml.ScalarEvent):
            size = 1 + len(event.value) // CHARACTERS
            if event.anchor:
                self.sizes[event.anchor] = size
            self._count(size, event)

    def _count(self, values: int, event: Any) -> None:
        self.written += values
        self.total += values
        if self.total > max(MAX_EXPANDED, 3 * self.written):
            expected = f"at most {MAX_EXPANDED:,} values where aliases (*name) repeat them"
            self._refuse(event, "aliases stand for too many values", expected)

    def _refuse(self, event: Any, what: str, expected: str, do: str = "write the values without aliases") -> None:
        raise UserError(fault(f"{self.where}:{event.start_mark.line + 1}", what, expected=expected, do=do))


def _too_large(where: str, size: int) -> str:
    return fault(where, "is too large", got=f"{size:,} bytes", expected=f"at most {MAX_BYTES:,}", do="shorten the file")
