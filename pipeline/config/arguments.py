"""The command line of `python -m pipeline phase=...`: flags are parsed, everything else is an override for Hydra."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.override_keys import Advice, as_hydra, command, familiar_key, with_value
from pipeline.errors import UserError, fault
from pipeline.foreign_files import read_bytes

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
FIRST_LINE = ("# python -m pipeline", "phase=")  # of a config that runs by its path begins so


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
    faults = [_unknown_flag(word, "".join(rest[i + 1 : i + 2])) for i, word in enumerate(rest) if _is_flag(word)]
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
        overrides=tuple(map(as_hydra, rest)),
        config_dirs=tuple(Path(folder) for folder in values["--config-dir"]),
        multirun=values["--multirun"],
        json=values["--json"],
        hydra_flags=tuple(hydra_flags),
    )


def words_of_file(path: Path) -> list[str]:
    """Return the words of the command in the first line of a config that a run wrote, such as `fixed.yaml`.

    Packages to trust and variables to read are left out: only the command line grants them. Raises UserError for a file
    without such a line.
    """
    expected = "a fixed.yaml, whose first line is a comment with its command"
    first = read_bytes(path, expected).decode("utf-8", "replace").splitlines()[:1]
    words = shlex.split(first[0].removeprefix("# ")) if first and first[0].startswith(" ".join(FIRST_LINE)) else []
    if not words:
        raise UserError(fault(str(path), "does not begin with its command", expected=expected))
    return [word for word in words[3:] if not word.startswith(("trust=", "env="))]


def _is_flag(word: str) -> bool:
    return word.startswith("-") and word != "-"


def _unknown_flag(word: str, after: str) -> str:
    """The message for an unknown flag; a key of the config, by whatever name, is proposed as an override."""
    flag, equals, value = word.partition("=")
    if flag in REFUSED_FLAGS:
        return fault(flag, f"cannot be used here: {REFUSED_FLAGS[flag]}", do="python -m pipeline --help")
    if not equals and not _is_flag(after) and "=" not in after:
        value = after
    if flag.startswith("--") and (advice := _override_of(flag.strip("-").replace("-", "_"), value)):
        if advice.sentence:
            return fault(flag, f"is {advice.sentence}", do="leave it out")
        expected = "an override without dashes"
        return fault(flag, "unknown flag", got=flag, expected=expected, close=advice.key, do=command(*advice.overrides))
    return fault(flag, "unknown flag", got=flag, among=(*SWITCHES, *VALUE_FLAGS), do="python -m pipeline --help")


def _override_of(name: str, value: str) -> Advice | None:
    """The override that somebody means who types a key of the config, or its name elsewhere, as a flag."""
    from pipeline.config.conf_dir import conf_dir
    from pipeline.config.schema import accepts, known_keys

    groups = [path.name for path in conf_dir().iterdir() if path.is_dir()]
    same = [key for key in (*known_keys(), *groups) if name in (key, key.replace(".", "_"), key.rpartition(".")[2])]
    return with_value(same[0], value, accepts) if len(same) == 1 else familiar_key(name, value, None, accepts)


def _value_fault(flag: str, value: str) -> str | None:
    if not value:
        return fault(flag, "needs a value", do=f"python -m pipeline {flag} {CHOICES.get(flag, ('DIR',))[0]}")
    if flag in CHOICES and value not in CHOICES[flag]:
        return fault(flag, "unknown choice", got=value, among=CHOICES[flag], do="python -m pipeline --help")
    return None
