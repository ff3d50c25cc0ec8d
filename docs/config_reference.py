"""The page of the config: every key of conf/ with its default, what the schema accepts, and its comment."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from docs.markdown import cell, code, prose, table
from pipeline.config.conf_dir import conf_dir
from pipeline.config.schema import Config

COMMENTED = re.compile(r"^(?P<indent> *)(?P<key>[\w]+): *(?P<value>.*?)(?: +# (?P<comment>.*))?$")


def commented_keys(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield dotted key, value and comment of each line of a YAML file; a section has an empty value."""
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        comment = COMMENTED.match(line)
        if not comment or line.lstrip().startswith(("#", "-")):
            continue
        indent = len(comment["indent"])
        path = [(depth, key) for depth, key in path if depth < indent] + [(indent, comment["key"])]
        value = comment["value"] or ""
        yield ".".join(key for _, key in path), "" if value.startswith("#") else value, comment["comment"] or ""


def accepted_values() -> dict[str, str]:
    """Return what each key of the closed sections accepts, in words, from the schema."""
    schema = Config.model_json_schema()
    accepted: dict[str, str] = {}

    def inside(node: Mapping[str, Any], prefix: str) -> None:
        for name, part in node.get("properties", {}).items():
            target = schema["$defs"].get(str(part.get("$ref", "")).rpartition("/")[2], part)
            accepted[f"{prefix}{name}"] = kind_of(part, schema["$defs"])
            if target.get("additionalProperties") is False:
                inside(target, f"{prefix}{name}.")

    inside(schema, "")
    return accepted


def kind_of(part: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Return one part of a JSON schema in words."""
    if "anyOf" in part:
        return " or ".join(kind_of(option, definitions) for option in part["anyOf"])
    if "$ref" in part:
        target = definitions[part["$ref"].rpartition("/")[2]]
        return "a section" if target.get("additionalProperties") is False else "an object with `_target_`"
    if "enum" in part:
        return ", ".join(code(value) for value in part["enum"])
    if "const" in part:
        return code(str(part["const"]).lower() if isinstance(part["const"], bool) else part["const"])
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = " and ".join(f"{sign} {part[name]}" for name, sign in bounds.items() if name in part)
    words = {"null": "`null`", "integer": "a whole number", "number": "a number", "string": "a text",
             "boolean": "`true` or `false`", "array": "a list", "object": "a mapping"}  # fmt: skip
    kind = words.get(part.get("type", ""), "any value")
    return f"{kind} {limits}".strip()


def config_page() -> Iterator[str]:
    """Every key of conf/ with its default, what it accepts, and its comment."""
    accepts = accepted_values()
    yield "# Config\n"
    yield prose(
        "Every file of `conf/` with its keys. `python -m pipeline --cfg job` prints the composed config; "
        "`KEY=VALUE` on the command line overrides a key, and `GROUP=OPTION` chooses a file of a group, for "
        "example `optimizer=sgd`."
    )
    files = [conf_dir() / "config.yaml", *sorted(conf_dir().glob("*/*.yaml"))]
    group = ""
    for path in files:
        if path.parent.name in ("experiment", "hydra"):
            continue
        relative = path.relative_to(conf_dir())
        section = (
            ""
            if path.name == "config.yaml"
            else "phases." + path.stem
            if path.parent.name == "phases"
            else path.parent.name
        )
        if path.parent.name != group and section:
            group = path.parent.name
            yield f"## {group}\n"
        heading = f"### {relative.with_suffix('').as_posix()}" if section else "## config"
        yield f"{heading}\n"
        about = [line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("# ")]
        if about and not about[0].startswith("@package"):
            yield " ".join(about) + "\n"
        rows = list(config_rows(path, section, accepts))
        yield from table(["key", "default", "accepts", "meaning"], rows) if rows else ["Sets nothing.\n"]


def config_rows(path: Path, section: str, accepts: Mapping[str, str]) -> Iterator[list[str]]:
    in_defaults = False
    for key, value, comment in commented_keys(path.read_text()):
        in_defaults = key == "defaults" or (in_defaults and key.startswith("defaults."))
        if in_defaults:
            continue
        whole = f"{section}.{key}" if section else key
        yield [code(whole), code(value), accepts.get(whole, ""), cell(comment)]
