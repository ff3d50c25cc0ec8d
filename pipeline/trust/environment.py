"""Which environment variables a config may read: those that the command line names, `env=[NAME]`.

`${oc.env:NAME}` puts the value into plan, report, bundle and tracker. Whoever wrote the config could so publish any
secret of whoever runs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from omegaconf import Node, OmegaConf
from omegaconf.resolvers.oc import env as read

from pipeline.errors import fault

_MISSING: Any = object()


class Readable:
    """The names that may be read, and the keys that read another one, by its name."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        self.refused: dict[str, str] = {}

    def faults(self) -> list[str]:
        """A message for each name that was refused, with the command that allows it."""
        names = ",".join(sorted({*self.names, *self.refused}))
        what = "reads the environment variable {}, whose value would become part of the plan"
        do = f"leave it out, or if it is no secret: python -m pipeline ... 'env=[{names}]'"
        return [fault(key or "config", what.format(name), do=do) for name, key in self.refused.items()]


_readable: ContextVar[Readable | None] = ContextVar("readable", default=None)


@contextmanager
def reading(names: Iterable[str]) -> Iterator[Readable]:
    """Inside the block, configs read only these environment variables; another one is `unread`, and is noted."""
    readable = Readable(names)
    token = _readable.set(readable)
    try:
        yield readable
    finally:
        _readable.reset(token)


@contextmanager
def reading_all() -> Iterator[None]:
    """Inside the block, which runs code of the user's, configs read what they like, as outside of `reading`."""
    token = _readable.set(None)
    try:
        yield
    finally:
        _readable.reset(token)


def _read(key: str, default: Any = _MISSING, *, _node_: Node) -> Any:
    """The resolver `oc.env`."""
    readable = _readable.get()
    if readable is None or key in readable.names:
        return read(key) if default is _MISSING else read(key, default)
    readable.refused.setdefault(str(key), _node_._get_full_key(None))
    return "unread"


OmegaConf.register_new_resolver("oc.env", _read, replace=True)
