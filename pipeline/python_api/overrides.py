"""From what a program names a run by to the overrides of a command line: words, a mapping, a YAML file, a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipeline import safe_yaml
from pipeline.config.override_keys import OPEN
from pipeline.errors import UserError, fault
from pipeline.foreign_files import read_bytes
from pipeline.repair.config_edits import format_override_value
from pipeline.run_naming import DEFAULT_ROOT
from pipeline.run_store.run import Run

NOT_FROM_CONFIG = ("phase", "trust", "env")  # `advance` chooses the phase; only the caller trusts code and variables
EXPECTED = "overrides, a mapping, the path of a config in YAML, or the name or folder of a run"

Config = str | Path | Sequence[str] | Mapping[str, object]


def overrides_of(config: Config, more: Sequence[str]) -> list[str]:
    """Return the overrides that a config stands for, followed by `more`.

    - `"experiment=digits"`, or a sequence of such words: as on the command line.
    - A mapping of keys to values, nested or dotted: `{"experiment": "digits", "optimizer": {"lr": 0.01}}`. One with all
      sections, such as a composed config, replaces the experiment.
    - The path of a YAML file with such a mapping, such as `fixed.yaml` of an optimization.
    - The name or folder of an existing run.

    Raises UserError for anything else, and where `phase` is among them.
    """
    overrides = [*_words(config), *more]
    if wrong := [word for word in overrides if not isinstance(word, str) or not word.strip()]:
        raise UserError(fault("Run", "takes overrides as text", got=repr(wrong[0]), expected="KEY=VALUE"))
    chosen = [word for word in overrides if word.startswith("phase=")]
    if chosen:
        do = f"Run(...).advance({chosen[0].partition('=')[2]!r})"
        raise UserError(fault("phase", "is not part of a run", got=chosen[0], expected="a phase for advance", do=do))
    return overrides


def _words(config: object) -> list[str]:
    if isinstance(config, Mapping):
        return _of_mapping(config, "Run")
    if isinstance(config, str) and ("=" in config or config.startswith("~")):
        return [config]
    if isinstance(config, str | Path):
        path = Path(config)
        return _of_file(path) if path.suffix in (".yaml", ".yml") else _of_run(path)
    if isinstance(config, Sequence) and not isinstance(config, bytes):
        return [*config]
    raise UserError(fault("Run", "cannot be made from this", got=f"a {type(config).__name__}", expected=EXPECTED))


def _of_run(path: Path) -> list[str]:
    run = Run.find(path, DEFAULT_ROOT)
    return [f"run.name={run.name}", f"run.root={format_override_value(run.shown_root)}"]


def _of_file(path: Path) -> list[str]:
    import yaml

    text = read_bytes(path, "a config in YAML").decode("utf-8", errors="replace")
    try:
        config = safe_yaml.load(text, str(path))
    except yaml.YAMLError as error:
        raise UserError(fault(str(path), f"is not YAML: {error}", expected="a config")) from error
    if not isinstance(config, Mapping):
        raise UserError(fault(str(path), "is not a config", got=f"a {type(config).__name__}", expected="a mapping"))
    return _of_mapping(config, str(path))


def _of_mapping(config: Mapping[str, object], where: str) -> list[str]:
    if wrong := [key for key in config if not isinstance(key, str)]:
        raise UserError(fault(where, "has a key that is not text", got=repr(wrong[0]), expected="a key of the config"))
    settings = {key: value for key, value in config.items() if key not in NOT_FROM_CONFIG}
    if isinstance(config.get("data"), Mapping) and isinstance(config.get("task"), Mapping) and "trainer" in config:
        return [*_replaced(settings)]
    return [f"{key}={format_override_value(value)}" for key, value in _leaves(settings)]


def _replaced(config: Mapping[str, object]) -> Iterator[str]:
    """Yield the overrides that make Hydra compose exactly this config, which has all of its sections."""
    yield "~experiment"
    for section, content in config.items():
        if section in OPEN and (content is None or content == "none"):
            yield "~loss" if section == "loss" else f"{section}=none"
        elif section in OPEN:
            yield f"~{section}"  # Hydra would merge the two
            yield from (f"+{key}={format_override_value(value)}" for key, value in _leaves({section: content}))
        elif isinstance(content, Mapping) and section != "phases":
            # A key below the second level may be missing where the default is null.
            yield from (f"{section}.{key}={format_override_value(value)}" for key, value in content.items())
        else:
            yield from (f"{key}={format_override_value(value)}" for key, value in _leaves({section: content}))


def _leaves(node: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield every dotted key with its value; an empty mapping is a value."""
    for name, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
