"""The command line of the phases, split into what is an override and what is a flag; knows nothing of Hydra."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError, fault

SWITCHES = {"-m": "--multirun", "-h": "--help", "--resolve": "--resolve", "--hydra-help": "--hydra-help"}
VALUED = {"-cd": "--config-dir", "-c": "--cfg", "-p": "--package", "-i": "--info"}
CHOICES = {
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
}
REFUSED = {
    "--config-path": "the pipeline is always our own; add to it with --config-dir DIR",
    "--config-name": "the pipeline is always our own; choose experiment=NAME",
    "--experimental-rerun": "it reads a pickle, and a pickle can run anything",
    "--shell-completion": "it is not built",
    "--run": "that is what happens without a flag",
}
KNOWN = ("--json", *SWITCHES.values(), *VALUED.values())


@dataclass(frozen=True)
class Arguments:
    """What a user typed behind `python -m pipeline`.

    `hydra_flags` are the flags that only Hydra answers (`--cfg job`, `--info defaults-tree`, `--help`), one word each.
    """

    overrides: tuple[str, ...] = ()
    config_dirs: tuple[Path, ...] = ()
    multirun: bool = False
    json: bool = False
    hydra_flags: tuple[str, ...] = ()


def parse(argv: Sequence[str]) -> Arguments:
    """The words sorted into overrides and flags. Raises UserError with every flag that is wrong."""
    overrides, folders, flags, faults = [], [], [], []
    seen: set[str] = set()
    words = iter(argv)
    for word in words:
        if not word.startswith("-") or word == "-":
            overrides.append(word)
            continue
        name, equals, value = word.partition("=")
        name = SWITCHES.get(name, VALUED.get(name, name))
        if name not in KNOWN:
            faults.append(_unknown(name))
        elif name in VALUED.values():
            given = value if equals else next(words, None)
            if problem := _problem(name, given):
                faults.append(problem)
            elif name == "--config-dir":
                folders.append(Path(str(given)))
            else:
                flags += [name, str(given)]
        elif name in ("--multirun", "--json"):
            seen.add(name)
        else:
            flags.append(name)
    if faults:
        raise UserError(*faults)
    return Arguments(tuple(overrides), tuple(folders), "--multirun" in seen, "--json" in seen, tuple(flags))


def _unknown(name: str) -> str:
    if name in REFUSED:
        return fault(name, f"is not taken here: {REFUSED[name]}", do="python -m pipeline --help")
    return fault(name, "unknown flag", got=name, among=KNOWN, do="python -m pipeline --help")


def _problem(name: str, given: str | None) -> str | None:
    if not given:
        return fault(name, "needs a value", do=f"python -m pipeline {name} {CHOICES.get(name, ('DIR',))[0]}")
    if name in CHOICES and given not in CHOICES[name]:
        return fault(name, "unknown choice", got=given, among=CHOICES[name], do="python -m pipeline --help")
    return None
