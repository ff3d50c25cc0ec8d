"""From pydantic's errors to our messages: one per key, with the value, what is expected, and the most similar name."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import yaml
from pydantic_core import ErrorDetails

from pipeline.config.conf_dir import conf_dir
from pipeline.config.override_keys import OPEN, SHOW, VALUE, Accepts, command, familiar_value, leaves, unknown_key
from pipeline.errors import fault, nearest
from pipeline.results import PHASES

EXPECTED = {
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a section of keys",
    "model_type": "a section of keys",
    "none_required": "null",
    "finite_number": "a finite number",
    "string_too_short": "text that is not empty",
    "string_too_long": "at most {max_length} characters",
    "greater_than": "> {gt}",
    "greater_than_equal": ">= {ge}",
    "less_than": "< {lt}",
    "less_than_equal": "<= {le}",
    "literal_error": "{expected}",
    "string_pattern_mismatch": "a dotted name like my_pkg.model.Net",
    "value_error": "{error}",
}
BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number")


def format_errors(
    errors: Iterable[ErrorDetails],
    config: Mapping[str, Any],
    known: Sequence[str],
    accepts: Accepts,
    typed: Collection[str],
) -> list[str]:
    """One message per key that is wrong, in the order of the config's sections.

    `typed` are the keys of the command line: another one is from a file, where an override must remove it.
    """
    by_key: dict[str, list[ErrorDetails]] = {}
    for error in errors:
        by_key.setdefault(_dotted_key(error, config), []).append(error)
    messages, left_out = [], _sections_left_out(by_key)
    messages += [_missing(section, keys) for section, keys in left_out.items()]
    for key, group in by_key.items():
        if _has_inner(key, by_key) or key.partition(".")[0] in left_out:
            continue
        if any(error["type"] == "extra_forbidden" for error in group):
            removal = "" if any(key == t or key.startswith(f"{t}.") for t in typed) else f"~{key}"
            messages.append(unknown_key(key, known, _as_typed(_look_up(config, key)), accepts, removal=removal))
        else:
            messages.append(_format_error(key, group, config))
    return messages


def _sections_left_out(by_key: Mapping[str, list[ErrorDetails]]) -> dict[str, list[str]]:
    """The sections of which most keys are missing, with these keys: the option that has them was left out."""
    missing: dict[str, list[str]] = {}
    for key, errors in by_key.items():
        section, _, last = key.partition(".")
        if last and "." not in last and any(error["type"] == "missing" for error in errors):
            missing.setdefault(section, []).append(last)
    return {section: keys for section, keys in missing.items() if len(keys) > 2 and default_option(section)}


def _has_inner(where: str, keys: Iterable[str]) -> bool:
    """Whether another message concerns a key inside `where`, and is more precise."""
    return any(key.startswith(f"{where}.") for key in keys)


def _dotted_key(error: ErrorDetails, config: Any) -> str:
    """The dotted key of an error, without the names of a union's branches, which are not in the config."""
    path, node = [], config
    for part in error["loc"]:
        if part in (node if isinstance(node, Mapping) else range(len(node)) if isinstance(node, list) else ()):
            path.append(str(part))
            node = node[part]
    if error["type"] == "missing":
        path.append(str(error["loc"][-1]))
    return ".".join(path)


def _look_up(config: Any, where: str) -> Any:
    return dict(leaves(config)).get(where)


def _as_typed(value: object) -> str:
    """A value of the config as an override has it; empty for a section."""
    if isinstance(value, list):
        return f"[{','.join(map(_as_typed, value))}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return "" if isinstance(value, dict) else str(value)


def _format_error(where: str, errors: list[ErrorDetails], config: Mapping[str, Any]) -> str:
    kinds = [error["type"] for error in errors]
    got = _look_up(config, where)
    if "missing" in kinds:
        return _missing(where)
    if "not_built" in kinds:
        use = errors[kinds.index("not_built")]["ctx"]["use"]
        return fault(where, "is not built in this version", got=got, expected=use, do=command(f"{where}={use}"))
    wanted = [EXPECTED.get(e["type"], str(e["msg"])).format(**e.get("ctx", {})) for e in errors]
    if len(kinds) == 1 and kinds[0] == "string_type":
        wanted = ["text in quotes" if isinstance(got, int | float) else "text"]
    expected = " or ".join(dict.fromkeys(wanted))
    choices = [word for e in errors if e["type"] == "literal_error" for word in _choices(e["ctx"]["expected"])]
    place = re.split(r"\.\d+(?:\.|$)", where)[0]  # a list is replaced as a whole: no override names an element of it
    advice = familiar_value(place, _as_typed(_look_up(config, place))) if not isinstance(got, dict) else None
    if advice and advice.sentence:
        do = command(f"{where}={choices[0]}") if choices else SHOW
        return fault(where, f"is {advice.sentence}", got=got, expected=expected, do=do)
    if advice:
        close = advice.overrides[-1].partition("=")[2]
        return fault(where, _what(kinds), got=got, expected=expected, close=close, do=command(*advice.overrides))
    similar = nearest(got, choices) if isinstance(got, str) else None
    value = similar or (choices[0] if choices else VALUE)
    do = command(f"{place}={value}" if place == where else f"{place}=[{value}]")
    if any(kind in ("model_type", "dict_type") for kind in kinds):
        do = SHOW
    return fault(where, _what(kinds), got=got, expected=expected, close=similar, do=do)


def _what(kinds: list[str]) -> str:
    if any(kind in BOUNDS for kind in kinds):
        return "is out of bounds"
    typed = all(kind in EXPECTED and kind.endswith(("_type", "_required")) for kind in kinds)
    return "has the wrong type" if typed else "is not allowed"


def _choices(text: str) -> list[str]:
    """The values of pydantic's `'a', 'b' or 3`."""
    return [word.strip("' ") for word in re.split(r", | or ", text)]


def _missing(where: str, keys: Sequence[str] = ()) -> str:
    """The message for a missing key or section: what can stand there, and the command that adds it.

    `keys` are those that a section of which only a part is given lacks.
    """
    if keys:
        return fault(where, f"is missing, or lacks {', '.join(keys)}", do=_addition(where))
    if "." in where or where not in OPEN:
        return fault(where, "is missing", do=_addition(where))
    options = sorted(path.stem for path in conf_dir().joinpath(where).glob("*.yaml"))
    partial = ", _partial_: true" if where == "optimizer" else ""
    expected = f"a section `{where}: {{_target_: my_pkg.NAME{partial}}}` in the experiment, or an option"
    return fault(where, "is missing", expected=f"{expected} ({', '.join(options)})", do=_addition(where))


@cache
def default_option(group: str) -> str | None:
    """The option of a group that conf/config.yaml chooses; None for what is no group."""
    defaults = yaml.safe_load((conf_dir() / "config.yaml").read_text())["defaults"]
    options = [entry[group] for entry in defaults if isinstance(entry, dict) and group in entry]
    return options[0] if options and isinstance(options[0], str) else None


def _addition(where: str) -> str:
    """The command that adds a missing key."""
    phase = where.partition("phases.")[2]
    if phase and "." not in phase:
        return command(f"phases=[{','.join(PHASES)}]")
    if "." in where:
        return command(f"++{where}={'true' if where.endswith('._partial_') else VALUE}")
    option = default_option(where)
    return command(f"{where}={option}") if option else SHOW
