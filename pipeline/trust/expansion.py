"""How large a config becomes once its interpolations are resolved.

Ten keys that each repeat the one before ten times (`b: ${a}${a}...`) stand for ten billion characters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pipeline.errors import fault

MAX_SIZE = 10_000_000  # characters and values of a resolved config
REFERENCE = re.compile(r"\$\{([^${}]*)\}")


def faults_of(config: Mapping[str, Any]) -> list[str]:
    """A message for each section of an unresolved plain config that would be too large when it is resolved."""
    sizes = _Sizes(config)
    do = "write the value where it is used, or repeat it less often"
    expected = f"at most {MAX_SIZE:,} characters"
    what = "its interpolations stand for too much"
    try:
        large = [key for key in config if sizes.of(key) > MAX_SIZE]
    except RecursionError:
        return [fault("config", "its interpolations refer to each other too deeply", do=do)]
    return [fault(key, what, expected=expected, do=do) for key in large]


class _Sizes:
    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.known: dict[str, int] = {}

    def of(self, key: str) -> int:
        """The size of what is at a key; 1 where nothing is, and for a key that refers to itself."""
        if key not in self.known:
            self.known[key] = 1
            self.known[key] = self._of_value(self._at(key), key)
        return self.known[key]

    def _of_value(self, value: object, key: str) -> int:
        if isinstance(value, Mapping):
            return 1 + sum(self.of(f"{key}.{name}") for name in value)
        if isinstance(value, list):
            return 1 + sum(self.of(f"{key}.{index}") for index in range(len(value)))
        if not isinstance(value, str):
            return 1
        references = [reference for text in REFERENCE.findall(value) for reference in _keys_in(text, key)]
        return 1 + len(value) + sum(self.of(reference) for reference in references)

    def _at(self, key: str) -> object:
        value: Any = self.config
        for part in key.split("."):
            if isinstance(value, Mapping):
                value = value.get(part)
            elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
                value = value[int(part)]
            else:
                return None
        return value


def _keys_in(text: str, key: str) -> list[str]:
    """The keys that the inside of `${...}` may refer to: the key, or any argument of a resolver."""
    resolver, colon, arguments = text.partition(":")
    words = [word.strip() for word in (arguments.split(",") if colon else [resolver])]
    keys = []
    for word in words:
        plain = re.sub(r"\[['\"]?([^\]'\"]*)['\"]?\]", r".\1", word)
        dots = len(plain) - len(plain.lstrip("."))
        around = key.split(".")[:-dots] if dots else []
        keys.append(".".join([*around, plain.lstrip(".")]))
    return keys
