"""Dotted keys of a plain config, what other libraries call them, and the message for an unknown key.

`familiar_words.yaml` has the words that users of Lightning, the Hugging Face Trainer, Keras and scikit-learn type. It
is read only when something is wrong.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.config.conf_dir import conf_dir
from pipeline.errors import fault, nearest

SHOW = "python -m pipeline --cfg job"
OPEN = ("model", "data", "loss", "optimizer", "scheduler")  # sections whose keys are those of their own classes
OFF = ("false", "0", "no", "none", "null", "off")
_PLAIN = re.compile(r"[\w@%+=:,./~<>-]*")  # needs no quoting in a shell; `<value>` is a gap to fill in
VALUE = "<value>"  # in a proposed override, where the user must choose the value

Accepts = Callable[[str, str], bool]  # whether a key or group accepts the value that is written like this


class Advice(NamedTuple):
    """What a word of another library is here: the key, and the overrides that set it; or why there is no such thing."""

    key: str
    overrides: tuple[str, ...] = ()
    sentence: str = ""


def key_of(word: str) -> str:
    """The key or group of an override, `model` for `+model@x=mlp`."""
    return word.partition("=")[0].lstrip("+~").partition("@")[0]


def named(overrides: Iterable[str], key: str) -> list[str] | None:
    """The names in the list that the last override of a key gives it, `trust=[a,b]`; None without one."""
    lists = [word.partition("=")[2] for word in overrides if key_of(word) == key and "=" in word]
    if not lists:
        return None
    return [name for part in lists[-1].strip("'\" ").strip("[]").split(",") if (name := part.strip("'\" "))]


def as_hydra(word: str) -> str:
    """An override as Hydra takes it: `scheduler=null` chooses the option `none`, and `loss=null` removes the loss."""
    group, equals, value = word.partition("=")
    if not equals or value not in ("null", "None") or not group.isidentifier():
        return word
    if group == "loss":
        return "~loss"
    return f"{group}=none" if conf_dir().joinpath(group, "none.yaml").is_file() else word


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a plain config with its value, sections themselves included."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in children:
        key = f"{prefix}.{name}" if prefix else str(name)
        yield key, value
        yield from leaves(value, key)


def targets_of(config: Mapping[str, Any]) -> list[str]:
    """Every `_target_` of a config."""
    return [str(value) for key, value in leaves(dict(config)) if key.rpartition(".")[2] == "_target_"]


@cache
def familiar_words() -> dict[str, Any]:
    """The table of familiar words: `keys`, `values` of each key, and `commands`, with normalized words."""
    import yaml

    table = yaml.safe_load(Path(__file__).with_name("familiar_words.yaml").read_text())
    values = {
        key: {_normal(word): str(here) for word, here in translations.items()}
        for key, translations in table["values"].items()
    }
    return {"keys": table["keys"], "values": values, "commands": table["commands"]}


def _normal(word: object) -> str:
    return str(word).strip("'\" ").lower().replace("-", "_")


def is_sentence(entry: str) -> bool:
    """Whether an entry of the table explains that there is no equivalent, and is neither a name nor overrides."""
    parts = entry.split()
    return len(parts) > 1 and not all("=" in part or part.startswith(("~", "-")) for part in parts)


def familiar_value(key: str, value: object) -> Advice | None:
    """What a value of this key or group is here; None where the table does not have it."""
    translations = familiar_words()["values"].get(key, {})
    text = str(value)
    if text.startswith("[") and text.endswith("]"):
        items = [item.strip("'\" ") for item in text[1:-1].split(",")]
        here = [translations.get(_normal(item), item) for item in items]
        return Advice(key, (f"{key}=[{','.join(here)}]",)) if here != items else None
    entry = translations.get(_normal(value))
    if entry is None:
        return None
    if is_sentence(entry):
        return Advice(key, sentence=entry)
    return Advice(key, tuple(entry.split()) if "=" in entry else (f"{key}={entry}",))


def familiar_key(key: str, value: str, known: Collection[str] | None, accepts: Accepts) -> Advice | None:
    """What an unknown key is here, with the value in words that are accepted; None where the table does not have it.

    `value` is what was typed after the equals sign. `known` are the keys and groups of the config; None before there is
    one.
    """
    entry = familiar_words()["keys"].get(_normal(key.rpartition(".")[2]))
    if entry is None:
        return None
    if isinstance(entry, str) and is_sentence(entry):
        return Advice("", sentence=entry)
    if isinstance(entry, str) and "=" in entry:
        if _normal(value) in OFF:
            return Advice("", sentence="not needed: it is off unless another key turns it on")
        overrides = tuple(entry.split())
        return Advice(key_of(overrides[-1]), overrides)
    places = [entry] if isinstance(entry, str) else entry
    here = next((p for p in places if known is None or p.startswith("+") or " " in p or p in known), None)
    if here is None:
        return None
    *choices, name = here.split()
    advice = with_value(name, value, accepts)
    return Advice(advice.key, (*choices, *advice.overrides))


def with_value(key: str, value: str, accepts: Accepts) -> Advice:
    """The override that gives a key this value: as it is called here, as it is typed, or with a gap to fill in."""
    plain = key.lstrip("+")
    if translated := familiar_value(plain, value):
        return translated
    return Advice(plain, (f"{key}={value if value and accepts(plain, value) else VALUE}",))


def unknown_key(
    key: str,
    known: Iterable[str],
    value: str,
    accepts: Accepts,
    *,
    removal: str = "",
    addable: Collection[str] | None = None,
) -> str:
    """The message for an unknown key: what it is called here, else the keys of its section, and a command.

    `value` is what was typed after the equals sign. `removal` is the override that removes a key that a file has.
    `addable` are keys that the config does not have and that can be added; None if any key can be.
    """
    section, _, last = key.rpartition(".")
    in_config = [k for k in known if not k.startswith("hydra.")]
    new = [k for k in addable or () if k not in in_config]
    known = [*in_config, *new]
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == section}
    proposable = {name: k for name, k in siblings.items() if not name.startswith("_")}  # not `_target_` for `target`
    expected = f"one of {', '.join(sorted(siblings))}" if section and 0 < len(siblings) <= 20 else "a key of the config"
    advice = with_value(f"+{key}", value, accepts) if key in new else familiar_key(key, value, known, accepts)
    if not advice:
        similar = proposable.get(nearest(last, proposable) or "") or nearest(last if siblings else key, known)
        place = f"+{similar}" if similar in new else similar
        advice = with_value(place, value, accepts) if place else None
    if advice and advice.sentence:
        return fault(key, f"is {advice.sentence}", do=command(removal) if removal else "leave it out")
    if advice:
        close, do = "" if advice.key == key else advice.key, command(removal, *advice.overrides)
    else:
        added = f"+{key}={value}" if section in OPEN and addable is None and not removal else ""
        close, do = "", command(removal, added) if removal or added else SHOW
    return fault(key, "unknown key", got=last, expected=expected, close=close, do=do)


def command(*overrides: str) -> str:
    """The command line with these overrides added, as a shell takes them."""
    arguments = [word if _PLAIN.fullmatch(word) else shlex.quote(word) for word in overrides if word]
    return " ".join(["python -m pipeline ...", *arguments])
