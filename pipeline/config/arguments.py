"""The command line of `python -m pipeline phase=...`: flags are parsed, everything else is an override for Hydra."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError, fault

CHOICES = {
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
}
VALUE_FLAGS = {"--config-dir": "-cd", "--cfg": "-c", "--package": "-p", "--info": "-i"}
SWITCHES = {"--json": None, "--multirun": "-m", "--help": "-h", "--resolve": None, "--hydra-help": None}
HYDRA_FLAGS = ("--cfg", "--package", "--info", "--resolve", "--help", "--hydra-help")  # only Hydra can answer them
REFUSED_FLAGS = {
    "--config-path": "the config of the pipeline is fixed; add to it with --config-dir DIR",
    "--config-name": "the config of the pipeline is fixed; choose experiment=NAME",
    "--experimental-rerun": "it reads a pickle, and a pickle can run any code",
    "--shell-completion": "it is not built",
    "--run": "without a flag the pipeline runs anyway",
}


@dataclass(frozen=True)
class Arguments:
    """The parsed command line; `hydra_flags` are the flags for Hydra with their values, one word each."""

    overrides: tuple[str, ...] = ()
    config_dirs: tuple[Path, ...] = ()
    multirun: bool = False
    json: bool = False
    hydra_flags: tuple[str, ...] = ()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag, short in VALUE_FLAGS.items():
        # `nargs="?"`: a missing value becomes "", so that every fault of a command line can be reported at once.
        parser.add_argument(short, flag, dest=flag, action="append", nargs="?", const="", default=[])
    for switch, letter in SWITCHES.items():
        parser.add_argument(*filter(None, (letter, switch)), dest=switch, action="store_true")
    return parser


def parse(argv: Sequence[str]) -> Arguments:
    """Parse the command line. Raises UserError with every flag that is wrong."""
    flags, rest = _parser().parse_known_args(argv)
    values = vars(flags)
    faults = [_unknown_flag(word.partition("=")[0]) for word in rest if word.startswith("-") and word != "-"]
    faults += [said for flag in VALUE_FLAGS for value in values[flag] if (said := _value_fault(flag, value))]
    if faults:
        raise UserError(*faults)
    hydra_flags: list[str] = []
    for flag in HYDRA_FLAGS:
        if flag in SWITCHES:
            hydra_flags += [flag] if values[flag] else []
        else:
            hydra_flags += [word for value in values[flag] for word in (flag, value)]
    return Arguments(
        overrides=tuple(rest),
        config_dirs=tuple(Path(folder) for folder in values["--config-dir"]),
        multirun=values["--multirun"],
        json=values["--json"],
        hydra_flags=tuple(hydra_flags),
    )


def _unknown_flag(flag: str) -> str:
    if flag in REFUSED_FLAGS:
        return fault(flag, f"cannot be used here: {REFUSED_FLAGS[flag]}", do="python -m pipeline --help")
    return fault(flag, "unknown flag", got=flag, among=(*SWITCHES, *VALUE_FLAGS), do="python -m pipeline --help")


def _value_fault(flag: str, value: str) -> str | None:
    if not value:
        return fault(flag, "needs a value", do=f"python -m pipeline {flag} {CHOICES.get(flag, ('DIR',))[0]}")
    if flag in CHOICES and value not in CHOICES[flag]:
        return fault(flag, "unknown choice", got=value, among=CHOICES[flag], do="python -m pipeline --help")
    return None
