"""Write the pages of docs/ that code can say: `make docs`. A test compares them with the code.

Checklists, playbooks, config, commands, exit codes and file formats are rendered from the files that the pipeline reads
itself, so that a page cannot contradict them.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

import checklists.resolve
from diagnostics import playbook
from diagnostics.logs.read import all_formats
from docs.json_schemas import schemas
from pipeline import errors
from pipeline.__main__ import COMMANDS, HELP
from pipeline.config.conf_dir import conf_dir
from pipeline.config.schema import Config
from pipeline.export.formats import FORMATS
from pipeline.repair import causes
from pipeline.results import PHASES
from pipeline.run_store.records import RECORDS

DOCS = Path(__file__).resolve().parent
HERE = "<!-- Written by `make docs`. Change the files that it names, not this page. -->\n\n"


def pages() -> dict[str, str]:
    """Return the text of every generated page, by its name."""
    writers = {
        "checklists.md": checklist_page,
        "playbooks.md": playbook_page,
        "config.md": config_page,
        "commands.md": command_page,
        "exit_codes.md": exit_code_page,
        "file_formats.md": format_page,
    }
    return {name: HERE + "\n".join(page()).rstrip("\n") + "\n" for name, page in writers.items()}


# --- Markdown --------------------------------------------------------------------------------------------------------


def one_line(text: object) -> str:
    return re.sub(r"\s+", " ", str(text)).replace("|", "\\|").strip()


def cell(text: object) -> str:
    """Return a text as one cell of a table; what is no code in it is no HTML either."""
    parts = re.split(r"(`[^`]*`)", one_line(text))
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)


def code(value: object) -> str:
    return f"`{one_line(value)}`" if str(value) else ""


def prose(text: str) -> str:
    """Return a paragraph in lines of at most 120 characters."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False) + "\n"


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> Iterator[str]:
    names = list(header)
    yield "| " + " | ".join(names) + " |"
    yield "| " + " | ".join("---" for _ in names) + " |"
    for row in rows:
        yield "| " + " | ".join(map(str, row)) + " |"
    yield ""


def flow(value: object) -> str:
    """Return a YAML value on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True, sort_keys=False)
    return text.removesuffix("...\n").strip()


def first_paragraph(text: str | None) -> str:
    return re.sub(r"\s+", " ", inspect.cleandoc(text or "").partition("\n\n")[0])


# --- the pages -------------------------------------------------------------------------------------------------------


def checklist_page() -> Iterator[str]:
    """Every check of every gate: its question, the function that answers it, its thresholds."""
    yield "# Checklists\n"
    yield prose(
        "A gate is open when each of its checks passed, does not apply, was approved, or has a valid waiver. The "
        "checks are `checklists/<phase>.yaml`, and their functions `checklists/checks/`. The thresholds are "
        "frozen with the plan; `${...}` takes a key of the config."
    )
    for phase in PHASES:
        items = yaml.safe_load((checklists.resolve.CHECKS.parent / f"{phase}.yaml").read_text())["items"]
        yield f"## {phase.capitalize()}: {len(items)} checks\n"
        for item in items:
            yield f"### {item['id']}\n"
            yield f"{item['ask']}\n"
            if "check" in item:
                yield f"{first_paragraph(checklists.resolve.resolve_check(item['check']).__doc__)}\n"
            yield from (f"- {fact}" for fact in item_facts(item))
            yield ""


def item_facts(item: Mapping[str, Any]) -> Iterator[str]:
    if "check" in item:
        yield f"Function: `checklists.checks.{item['check']}`"
    if "sign_off" in item:
        yield f"Answered by a person: {item['sign_off']}"
    if "not_built" in item:
        yield f"Not implemented: {item['not_built']}"
    if item.get("with"):
        yield "Thresholds: " + ", ".join(f"`{key}: {flow(value)}`" for key, value in item["with"].items())
    if item.get("needs"):
        yield "Needs: " + ", ".join(f"`{key}`" for key in item["needs"])
    if "section" in item:
        yield f"Section of the readiness score: {item['section']}"
    yield "Can be waived: " + ("yes" if item.get("waivable", True) else "no")


def playbook_page() -> Iterator[str]:
    """Every symptom with its possible causes and their fixes."""
    known = causes.load()
    yield "# Playbooks\n"
    yield prose(
        "A playbook, `diagnostics/<symptom>.md`, describes one symptom. Its causes are candidates, in the order "
        "of the file; diagnostics ranks them for a run. A blocking symptom makes a model insufficient, an "
        "advisory one does not."
    )
    books = playbook.load_all()
    rows = ([f"[{book.id}](#{book.id})", book.severity, cell(book.symptom)] for book in books)
    yield from table(["playbook", "severity", "symptom"], rows)
    for book in books:
        yield f"## {book.id}\n"
        yield f"{book.symptom}. *{book.severity.capitalize()}.*\n"
        yield f"{book.sections['Meaning'].strip()}\n"
        shown_causes = (
            [code(c.id), cell(known[c.id].means), ", ".join(code(name) for name, _ in c.cures), c.basis, cell(c.cites)]
            for c in book.causes
        )
        yield from table(["cause", "meaning", "fixes, in the order to try them", "basis", "source"], shown_causes)


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


def command_page() -> Iterator[str]:
    """The command line: its phases, and every command with its arguments."""
    yield "# Commands\n"
    yield "```text\n" + HELP.rstrip("\n") + "\n```\n"
    for name in COMMANDS:
        module = import_module(f"pipeline.commands.{name}")
        parser = argparse.ArgumentParser(prog=name)
        module.add_arguments(parser)
        yield f"## {name}\n"
        yield inspect.cleandoc(module.__doc__ or "").replace("\n", " ").replace("  ", "\n\n") + "\n"
        rows = [
            [code(", ".join(action.option_strings) or action.metavar or action.dest), cell(action.help or "")]
            for action in parser._actions
            if action.dest != "help"
        ]
        yield from table(["argument", "meaning"], rows)


def exit_code_page() -> Iterator[str]:
    """The exit codes, and the errors behind them."""
    yield "# Exit codes\n"
    said = re.sub(r"\s+", " ", HELP.partition("exit codes")[2])
    codes = [entry.strip().partition(" ") for entry in said.split(",")]
    yield from table(["code", "meaning"], ([number, meaning] for number, _, meaning in codes))
    yield prose(
        "A single phase ends with 0 also where the score misses its target or the training ended in NaN: the "
        "branch says so, and not the exit code. make ends with 2 whatever failed; the last line of its targets "
        "names the code of the pipeline. Scripts should call the pipeline itself."
    )
    yield "## Errors\n"
    yield prose(
        "A message is one line: `<file or key>: <what is wrong>, got <value>; expected <...>; did you mean "
        "'<close>'?  Do: <command>`. All faults of one input are named at once."
    )
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.FivegateError)
    ]
    yield from table(
        ["error", "code", "meaning"],
        ([code(kind.__name__), kind.exit_code, cell(first_paragraph(kind.__doc__))] for kind in kinds),
    )


def format_page() -> Iterator[str]:
    """The files that are written and read: ledger, JSON, exports, logs."""
    yield "# File formats\n"
    if schemas := sorted((DOCS / "schemas").glob("*.json")):
        yield from json_section(schemas)
    yield "## ledger.jsonl\n"
    yield prose(
        "One JSON object per line: `seq`, `kind`, `data`, the time, and the hash of the line before. Nothing is "
        "ever changed or removed; the state of a run is a function of these entries. Keys in italics may be "
        "missing."
    )
    kinds: dict[type, list[str]] = {}
    for kind, record in RECORDS.items():
        kinds.setdefault(record, []).append(kind)
    for record, names in kinds.items():
        yield f"### {', '.join(names)}\n"
        if described := vars(record).get("__doc__"):  # its own, and not that of dict
            yield f"{first_paragraph(described)}\n"
        yield ", ".join(record_keys(record)) + "\n"
    yield "## Exported models\n"
    yield prose(
        "`export.formats` chooses them; the outputs of each are compared with those of the trained model before "
        "it is kept."
    )
    yield from table(["format", "file"], ([code(name), code(file)] for name, (file, _) in FORMATS.items()))
    yield "## Logs that `diagnose` reads\n"
    yield "A format is recognized by the content of the file, in this order.\n"
    yield from table(
        ["format", "module", "meaning"],
        ([cell(f.NAME), code(module_of(f)), cell(first_paragraph(f.__doc__))] for f in all_formats()),
    )


def json_section(schemas: Iterable[Path]) -> Iterator[str]:
    yield "## JSON\n"
    yield prose(
        "What `--json` prints, and `diagnosis.json`. Each has a JSON schema (draft 2020-12), and tests validate "
        "the output of real runs against it. A change that removes or renames a key gives the schema a new "
        "version."
    )
    loaded = ((path, yaml.safe_load(path.read_text())) for path in schemas)
    yield from table(
        ["schema", "of"],
        ([f"[{path.name}](schemas/{path.name})", cell(schema["description"])] for path, schema in loaded),
    )


def module_of(log_format: object) -> str:
    return str(getattr(log_format, "__name__", "")).rpartition(".")[2]


def record_keys(record: type) -> Iterator[str]:
    """Yield the keys of a record, those that may be missing in italics."""
    optional: frozenset[str] = record.__optional_keys__  # type: ignore[attr-defined]
    for key, annotation in record.__annotations__.items():
        written = getattr(annotation, "__forward_arg__", str(annotation))
        yield f"*`{key}`*" if key in optional or written.startswith("NotRequired") else f"`{key}`"


def main() -> int:
    (DOCS / "schemas").mkdir(exist_ok=True)
    write({f"schemas/{name}": text for name, text in schemas().items()})
    write(pages())  # one of them lists the schemas
    return 0


def write(texts: Mapping[str, str]) -> None:
    """Write those that differ, and print their names."""
    for name, text in texts.items():
        if not same(DOCS / name, text):
            (DOCS / name).write_text(text)
            sys.stdout.write(f"docs/{name}\n")


def same(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text() == text


if __name__ == "__main__":
    sys.exit(main())
