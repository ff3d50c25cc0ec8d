"""All faults of the overrides on a command line, each with the most similar valid value.

This runs only after Hydra refused the overrides, so that a valid command line is not slowed down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra import compose as hydra_compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from pipeline.config.build import ALLOWED, arguments_of
from pipeline.config.override_keys import OPEN, command, familiar_value, leaves, unknown_key
from pipeline.config.schema import accepts
from pipeline.errors import fault, nearest

PRIMARY = "config"


def first_line(error: BaseException) -> str:
    """The informative part of an error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" ^\t")]
    reasons = [line for line in lines if not line.startswith(("See http", "full_key:", "object_type="))]
    return " ".join(reasons[:3]) or type(error).__name__


def read(words: Sequence[str]) -> tuple[list[Override], list[str]]:
    """The overrides that can be read, and a fault for each that cannot."""
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    parsed, faults = [], []
    for word in words:
        try:
            parsed += parser.parse_overrides([word])
        except (HydraException, ValueError, TypeError) as error:
            why = "" if "=" not in word else f" ({first_line(error)})"
            faults.append(fault(word, f"cannot be read{why}", expected="key=value", do="python -m pipeline --help"))
    return parsed, faults


def sort_out(words: Sequence[str], refusal: Exception) -> tuple[DictConfig | None, list[str]]:
    """Every fault of the overrides, and the config composed from the others; None where not even that composes.

    `words[0]` is the search path. `refusal` is what Hydra said, used when nothing better is found.
    """
    search, rest = words[0], words[1:]
    parsed, faults = read(rest)
    groups = [o for o in parsed if _options(o.key_or_group, search)]
    wrong = {_line(o): said for o in groups if (said := _group_fault(o, search))}
    base = _try([search, *(_line(o) for o in groups if _line(o) not in wrong)])
    if not isinstance(base, DictConfig):
        return None, [*faults, *wrong.values(), _composing(base)]
    raw = OmegaConf.to_container(base, resolve=False)
    unsure = {o.key_or_group for o in groups if _line(o) in wrong}
    for override in (o for o in parsed if o not in groups):
        said = _key_fault(override, raw, unsure)
        if said is not None:
            wrong[_line(override)] = said
    faults += [said for said in wrong.values() if said]
    composed = _try([search, *(_line(o) for o in parsed if _line(o) not in wrong)])
    if not isinstance(composed, DictConfig):
        return None, [*faults, _composing(composed)]
    return composed, faults or [_composing(refusal)]


def _line(override: Override) -> str:
    return override.input_line or ""


def _try(words: list[str]) -> DictConfig | Exception:
    try:
        return hydra_compose(PRIMARY, words, return_hydra_config=True)
    except Exception as error:  # every refusal is reported, none is ours
        return error


def _composing(error: Exception) -> str:
    return fault("config", f"cannot be composed: {first_line(error)}", do="python -m pipeline --info defaults-tree")


def _options(group: str, search: str) -> list[str]:
    loader = GlobalHydra.instance().config_loader()
    return loader.get_group_options(group, ObjectType.CONFIG, PRIMARY, [search])


def _group_fault(override: Override, search: str) -> str | None:
    """The fault of the choice of an option, or None."""
    group, options = override.key_or_group, _options(override.key_or_group, search)
    if override.is_sweep_override():
        return _several(override)
    value = override.value()
    if override.is_delete() or isinstance(value, dict):
        return None
    if value is None:
        return fault(group, "null is not an option", among=options, do=_without_option(group, options))
    for option in value if isinstance(value, list) else [value]:
        if "/" not in str(option) and str(option) not in options:
            return _no_such_option(group, str(option), options)
    if override.is_add() and group in _try_choices(search):
        return fault(group, "has an option already", got=f"+{group}={value}", do=command(f"{group}={value}"))
    return None


def _no_such_option(group: str, option: str, options: list[str]) -> str:
    """The message for an unknown option: the one that is meant, else where an option of the user's own is found."""
    what = "there is no such option"
    advice = familiar_value(group, option)
    if advice and advice.sentence:
        return fault(
            group, f"{what}: {advice.sentence}", got=option, among=options, close="", do=_add_option(group, option)
        )
    if advice:
        close = advice.overrides[-1].partition("=")[2] if len(advice.overrides) == 1 else ""
        return fault(group, what, got=option, among=options, close=close, do=command(*advice.overrides))
    similar = nearest(option, options)
    do = command(f"{group}={similar}") if similar else _add_option(group, option)
    return fault(group, what, got=option, among=options, do=do)


def _add_option(group: str, option: str) -> str:
    return f"python -m pipeline --config-dir DIR ... {group}={option}, with {option}.yaml in DIR/{group}"


def _without_option(group: str, options: list[str]) -> str:
    """The command for who wants none of a group's options; a section that is needed keeps one."""
    if group == "experiment":
        return command("~experiment", "run.name=NAME")
    if "none" in options:
        return command(f"{group}=none")
    if group in ("hydra", "phases"):
        return "leave it out"
    return command(f"{group}={options[0] if len(options) == 1 else '<option>'}")


def _try_choices(search: str) -> dict[str, Any]:
    base = _try([search])
    return dict(base.hydra.runtime.choices) if isinstance(base, DictConfig) else {}


def _several(override: Override) -> str:
    line = _line(override)
    expected, do = "one value, or [a,b] for a list", f"python -m pipeline -m ... {line}"
    return fault(override.key_or_group, "several values need -m", got=line, expected=expected, do=do)


def _key_fault(override: Override, raw: Any, unsure: set[str]) -> str | None:
    """The fault of an override's key: None if there is none, "" if another fault makes it impossible to tell."""
    key = override.key_or_group
    if override.is_sweep_override():
        return _several(override)
    known = dict(leaves(raw))
    if override.is_delete():
        return None if key in known else _no_such_key(override, known)
    if override.is_add():
        clash = key in known and not isinstance(known[key], dict | list | None)
        do = command(_line(override).lstrip("+"))
        return fault(key, "is set already, so it cannot be added", got=_line(override), do=do) if clash else None
    if override.is_force_add() or key in known:
        return None
    if key.split(".", 1)[0] in unsure:
        return ""
    groups = GlobalHydra.instance().config_loader().list_groups("")
    value = override.get_value_element_as_str()
    return unknown_key(key, [*known, *groups], value, accepts, addable=_arguments(key, raw))


def _no_such_key(override: Override, known: Mapping[str, Any]) -> str:
    """The message for `~key` of a key that the config does not have."""
    key = override.key_or_group
    section, _, last = key.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == section}
    close = siblings.get(nearest(last, siblings) or "")
    do = command(f"~{close}") if close else f"leave out {_line(override)}"
    return fault(key, "is not set, so it cannot be removed", got=_line(override), close=close, do=do)


def _arguments(key: str, raw: Any) -> list[str] | None:
    """The keys that the target of the key's open section takes as arguments; None for a class of the user's own.

    A user's package is not imported before it is trusted.
    """
    section = key.rpartition(".")[0]
    node = raw.get(section) if section in OPEN else None
    target = str((node or {}).get("_target_", ""))
    if not target.startswith(tuple(f"{package}." for package in ALLOWED)):
        return None if section in OPEN else []
    taken = arguments_of(target, f"{section}._target_")
    return None if taken is None else [f"{section}.{name}" for name in taken]
