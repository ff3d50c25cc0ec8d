"""How large a config becomes once its interpolations are resolved.

Ten keys that each repeat the one before ten times (`b: ${a}${a}...`) stand for ten billion characters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pipeline.errors import fault

MAX_SIZE = 10_000_000  # characters and values of a resolved config
PER_REFERENCE = 100  # characters that take as long as resolving one reference
MAX_NESTED = 20  # levels of an interpolation inside another one
REFERENCE = re.compile(r"\$\{([^${}]*)\}")


def faults_of(config: Mapping[str, Any]) -> list[str]:
    """A message for each section of an unresolved plain config that would be too large when it is resolved."""
    sizes, faults = _Sizes(config), []
    do = "write the value where it is used, or repeat it less often"
    for key in config:
        try:
            if sizes.of(key) > MAX_SIZE:
                expected = f"at most {MAX_SIZE:,} characters"
                faults.append(fault(key, "its interpolations stand for too much", expected=expected, do=do))
        except RecursionError:
            return [fault("config", "its interpolations refer to each other too deeply", do=do)]
        except _Unmeasured as error:
            expected = "inside of another interpolation only the key of a text or number, ${key}"
            faults.append(fault(str(error), "its interpolations cannot be measured", expected=expected, do=do))
    return faults


class _Unmeasured(Exception):
    """The key of a value whose interpolations depend on what a resolver returns."""


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
        if isinstance(value, Mapping):  # not by the keys of the values: a name may itself have dots
            return 1 + sum(self._of_value(part, f"{key}.{name}") for name, part in value.items())
        if isinstance(value, list):
            return 1 + sum(self._of_value(part, f"{key}.{index}") for index, part in enumerate(value))
        if not isinstance(value, str):
            return 1
        return 1 + len(value) + sum(PER_REFERENCE + self.of(reference) for reference in self._references(value, key))

    def _references(self, text: str, key: str) -> list[str]:
        """The keys that a text refers to. In `${a.${b}}` the text at `b` is a part of the name."""
        references: list[str] = []
        for _ in range(MAX_NESTED):
            references += [reference for inner in REFERENCE.findall(text) for reference in _keys_in(inner, key)]
            if "${" not in REFERENCE.sub("", text):
                return references
            text = REFERENCE.sub(lambda found: self._name_part(found[1], key), text)
            if len(text) > MAX_SIZE:
                break
        raise _Unmeasured(key)

    def _name_part(self, reference: str, key: str) -> str:
        """What a reference inside of another one stands for; the value of a variable cannot be the author's."""
        if ":" in reference:
            if reference.startswith("oc.env:") and "," not in reference:
                return ""
            raise _Unmeasured(key)
        value = self._at(_keys_in(reference, key)[0])
        if isinstance(value, Mapping | list) or "${" in str(value):
            raise _Unmeasured(key)
        return str(value)

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
