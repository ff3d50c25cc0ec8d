"""From a `_target_` to an object: the only place where a config runs code, with the rules for what it may run.

A target is resolved step by step inside the allowed packages, and the resolved object must itself be defined in one
of them: an alias of `os.system` inside a trusted package is still `os.system`. The whole node is checked before any of
it is called. Hydra's `instantiate` is not used: it resolves strings a second time, after a check could have seen them,
and workers do not need to load it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

from pipeline.errors import UserCodeError, UserError, fault, nearest, user_error
from pipeline.trust.grants import why_not

ALLOWED = ("pipeline.models", "pipeline.data", "pipeline.callbacks.step_profile", "torch.nn", "torch.optim")
# What no config may name: it builds targets itself, with a trust that a config must not choose, or imports modules.
REFUSED = ("pipeline.data.load", "torch.nn.attention", "torch.nn.utils._deprecation_utils")
SPECIAL = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)


def build(node: Any, *, trust: Sequence[str] = (), where: str = "") -> Any:
    """Build the object that a plain config node describes; values without a `_target_` are returned unchanged.

    `where` is the node's key in the config, for messages. `_partial_: true` gives a `functools.partial`,
    `_recursive_: false` leaves the nodes inside alone, `_args_` are positional. Raises one UserError with every
    target that is not allowed or does not exist, and every argument that a target does not take; then nothing was
    called.
    """
    faults = [f"trust: {name!r} {why}" for name in trust if (why := why_not(name))]
    allowed = (*ALLOWED, *trust)
    failed = list[UserError]()
    for key, inner in _targets(node, where):
        try:
            target = locate(inner["_target_"], allowed, f"{key}._target_")
        except UserError as error:
            faults += error.faults
            failed.append(error)
        else:
            faults += _argument_faults(target, inner, key)
    if faults:
        raise user_error(faults, failed)
    return _make(node, allowed, where)


def build_function(node: Mapping[str, Any], arguments: int, *, trust: Sequence[str] = (), where: str = "") -> Any:
    """Build a node whose object is called with this number of arguments each time, as a loss or a metric is.

    A function that still lacks them is that object itself, so that it needs no `_partial_: true`; a function that
    lacks nothing is called, and returns the object.
    """
    name = node.get("_target_")
    if "_partial_" not in node and isinstance(name, str):
        try:
            target = locate(name, (*ALLOWED, *trust), f"{where}._target_")
        except UserError:  # `build` reports it, together with the other faults of the node
            return build(dict(node), trust=trust, where=where)
        if inspect.isfunction(target) and _takes(target, node, arguments) and not _takes(target, node, 0):
            node = {"_partial_": True, **node}
    return build(dict(node), trust=trust, where=where)


def _takes(function: Callable[..., Any], node: Mapping[str, Any], arguments: int) -> bool:
    """Whether the function can be called with this number of arguments besides those of the node."""
    keywords = {str(name): value for name, value in node.items() if name not in SPECIAL}
    try:
        inspect.signature(function).bind(*node.get("_args_", ()), *[None] * arguments, **keywords)
    except TypeError:
        return False
    return True


def section_of(config: Mapping[str, object], key: str) -> dict[str, object]:
    """Return a copy of one section of a plain config; an empty one if it is missing or null."""
    section = config.get(key)
    assert section is None or isinstance(section, Mapping), f"{key} is validated before it is built"
    return dict(section or {})


def _targets(node: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node with a `_target_`, however deep, with its key."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield where, node
        children = [(f"{where}.{name}" if where else str(name), value) for name, value in node.items()]
    elif isinstance(node, list | tuple):
        children = [(f"{where}.{i}", value) for i, value in enumerate(node)]
    else:
        return
    for key, value in children:
        yield from _targets(value, key)


def locate(name: Any, allowed: Sequence[str], where: str) -> Callable[..., Any]:
    """The callable of that dotted name, which itself comes from an allowed package. Raises UserError otherwise."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UserError(fault(where, "is not a dotted name", got=name, expected="a name like my_pkg.model.Net"))
    hidden = "_" if _within(name, ALLOWED) else "__"  # private functions of torch import modules by their names
    if not _within(name, allowed) or any(part.startswith(hidden) for part in name.split(".")):
        raise UserError(_not_allowed(name, name, allowed, where))
    target = _walk(name, allowed, where)
    if not callable(target):
        raise UserError(fault(where, "cannot be called", got=name, expected="a class or a function"))
    home = _home(target)
    if home is None or not _within(home, allowed):
        raise UserError(_not_allowed(name, home, allowed, where))
    return target


def _within(name: str, allowed: Sequence[str]) -> bool:
    """Whether a dotted name lies in one of the packages, on package boundaries, and not in `REFUSED`."""
    inside = any(name == package or name.startswith(f"{package}.") for package in allowed)
    return inside and not name.startswith(REFUSED)


def _walk(name: str, allowed: Sequence[str], where: str) -> Any:
    """Follow a dotted name from its top package, importing only what is allowed."""
    parts = name.split(".")
    target: Any = _import(parts[0], where)
    for depth, part in enumerate(parts[1:], start=2):
        prefix = ".".join(parts[:depth])
        on_the_way = not _within(prefix, allowed)  # `torch` on the way to `torch.nn`
        if isinstance(target, ModuleType) and not hasattr(target, part):
            if not hasattr(target, "__path__") or not _is_module(prefix):
                raise UserError(_not_there(prefix, part, target, where))
            target = _import(prefix, where)
            continue
        if not hasattr(target, part):
            raise UserError(_not_there(prefix, part, target, where))
        target = getattr(target, part)
        if isinstance(target, ModuleType) and not on_the_way and not _within(target.__name__, allowed):
            raise UserError(_not_allowed(name, target.__name__, allowed, where))
    return target


def _is_module(name: str) -> bool:
    return name in sys.modules or importlib.util.find_spec(name) is not None


def _import(name: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            do = "python -m pipeline --config-dir DIR ..., with the package next to DIR"
            raise UserError(fault(where, "there is no such module", got=name, do=do)) from error
        raise _import_error(name, error, where) from error
    except BaseException as error:  # a user's module may fail in any way when it is imported
        from pipeline.error_attribution import is_users_fault

        if not is_users_fault(error):  # the package was changed since it was trusted
            raise
        raise _import_error(name, error, where) from error


def _import_error(name: str, error: BaseException, where: str) -> UserCodeError:
    from pipeline.error_attribution import place_of, text_of, users_error_class

    place = place_of(error)
    what = f"{name} cannot be imported{place and f' at {place}'} ({text_of(error)})"
    return users_error_class(error)(fault(where, what, do=f"python -c 'import {name}'"), place=place)


def _home(found: Any) -> str | None:
    """The module that a callable itself comes from, through partials, methods and instances."""
    if isinstance(found, functools.partial):
        return _home(found.func)
    if inspect.ismethod(found):
        return _home(found.__func__)
    if inspect.isclass(found) or inspect.isroutine(found):
        module = getattr(found, "__module__", None)
        return module if isinstance(module, str) else None
    return type(found).__module__


def _not_allowed(name: str, home: str | None, allowed: Sequence[str], where: str) -> str:
    got = name if home == name else f"{name}, which is from {home or 'no module'}"
    package = (home or "").partition(".")[0]
    offer = package.isidentifier() and not why_not(package)
    do = f"read {package}; if you trust it: python -m pipeline ... 'trust=[{package}]'" if offer else None
    return fault(where, "is not allowed", got=got, expected=f"something from {', '.join(allowed)}", do=do)


def _not_there(prefix: str, part: str, parent: Any, where: str) -> str:
    names = [name for name in dir(parent) if not name.startswith("_")]
    what = f"{prefix.rpartition('.')[0]} has no {part!r}"
    close = nearest(part, names)
    do = _typed(f"{where}={prefix.rpartition('.')[0]}.{close}", where) if close else None
    return fault(where, what, got=part, expected="one of its names", among=names, do=do)


def _argument_faults(target: Callable[..., Any], node: dict[str, Any], where: str) -> list[str]:
    """Arguments that the target does not take, and for a complete node those it lacks."""
    given = [str(name) for name in node if name not in SPECIAL]
    positional = node.get("_args_", [])
    if not isinstance(positional, list | tuple):
        return [fault(f"{where}._args_", "is not a list", got=positional, expected="a list of values")]
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # written in C: it complains for itself
        return []
    takes = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return []
    name = node["_target_"]
    wrong = [n for n in given if n not in takes]
    faults = [_no_argument(f"{where}.{n}", n, name, takes) for n in wrong]
    needed = [n for n in takes if parameters[n].default is inspect.Parameter.empty]
    lacking = [n for n in needed if n not in given and takes.index(n) >= len(positional)]
    if lacking and not node.get("_partial_") and not faults:
        do = _typed(f"+{where}.{lacking[0]}=<value>", where)
        faults.append(fault(where, f"{name} needs {', '.join(lacking)}", do=do))
    return faults


def arguments_of(name: str, where: str) -> list[str] | None:
    """The arguments of a bundled target, without what it gets when it is built; None where Python cannot tell."""
    try:
        parameters = inspect.signature(locate(name, ALLOWED, where)).parameters.values()
    except (UserError, TypeError, ValueError):
        return None
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in named if p.name not in ("params", "optimizer")]


def _typed(override: str, where: str) -> str:
    """The command that corrects a key; an override cannot address an element of a list."""
    if "[" in where:
        return f"write the whole list again: python -m pipeline ... '{where.partition('[')[0]}=[{{_target_: ...}}]'"
    return f"python -m pipeline ... {override}"


def _no_argument(where: str, argument: str, name: str, takes: list[str]) -> str:
    close = nearest(argument, takes)
    expected = f"one of {', '.join(takes)}" if takes else "no arguments at all"
    # The key may be in a file, or an override that was typed; only the person knows which of them to change.
    do = f"leave out {where}"
    do += f", and add ++{where.rpartition('.')[0]}.{close}=<value>" if close and "[" not in where else ""
    return fault(where, f"{name} has no such argument", got=argument, expected=expected, among=takes, do=do)


def _make(node: Any, allowed: Sequence[str], where: str, recursive: bool = True) -> Any:
    if isinstance(node, list | tuple):
        return [_make(value, allowed, f"{where}.{i}", recursive) for i, value in enumerate(node)]
    if not isinstance(node, dict):
        return node
    inside = recursive and node.get("_recursive_", True)
    values = {k: _make(v, allowed, f"{where}.{k}", inside) for k, v in node.items()} if inside else dict(node)
    if "_target_" not in node or not recursive:
        return values
    target = locate(node["_target_"], allowed, f"{where}._target_")
    arguments = {str(k): v for k, v in values.items() if k not in SPECIAL}
    positional = values.get("_args_", [])
    if node.get("_partial_"):
        return functools.partial(target, *positional, **arguments)
    try:
        return target(*positional, **arguments)
    except BaseException as error:  # a constructor may refuse its arguments in any way
        from pipeline.error_attribution import is_users_fault

        if not is_users_fault(error):
            raise
        raise _construction_error(str(node["_target_"]), error, where) from error


def _construction_error(name: str, error: BaseException, where: str) -> UserError:
    """What a constructor raised: a mistake in the user's own code names its line, else the arguments are refused."""
    from pipeline.error_attribution import text_of, user_code_error

    if not _within(name, ALLOWED):
        return user_code_error(where, error, f"{name} fails")
    do = "python -m pipeline --cfg job"
    return UserError(fault(where, f"{name} refused its arguments ({text_of(error)})", do=do))
