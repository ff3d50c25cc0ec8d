"""Dotted keys of a plain config, and the message for an unknown one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pipeline.errors import fault, nearest

SHOW = "python -m pipeline --cfg job"
OPEN = ("model", "data", "loss", "optimizer", "scheduler")


def key_of(word: str) -> str:
    """The key or group of an override, `model` for `+model@x=mlp`."""
    return word.partition("=")[0].lstrip("+~").partition("@")[0]


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a plain config with its value, sections themselves included."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in children:
        key = f"{prefix}.{name}" if prefix else str(name)
        yield key, value
        yield from leaves(value, key)


def unknown_key(key: str, known: Iterable[str], value: str = "=<value>") -> str:
    """The message for an unknown key, with the keys of its section, the most similar key and a command."""
    known = [k for k in known if not k.startswith("hydra.")]
    section, _, last = key.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == section}
    close = siblings.get(nearest(last, siblings) or "") or nearest(last if siblings else key, known)
    expected = f"one of {', '.join(sorted(siblings))}" if section and 0 < len(siblings) <= 20 else "a key of the config"
    do = f"python -m pipeline ... {close}{value}" if close else SHOW
    if not close and section in OPEN:
        do = f"python -m pipeline ... +{key}{value}"
    return fault(key, "unknown key", got=last, expected=expected, among=[close] if close else (), do=do)
