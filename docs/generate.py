"""Write the pages of docs/ that code can say: `make docs`. A test compares them with the code.

Checklists, playbooks, config, commands, exit codes and file formats are rendered from the files that the pipeline reads
itself, so that a page cannot contradict them.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

import checklists.resolve
from diagnostics import playbook
from diagnostics.logs.read import all_formats
from docs.config_reference import config_page
from docs.json_schemas import schemas
from docs.markdown import cell, code, first_paragraph, flow, prose, table
from pipeline import errors
from pipeline.__main__ import COMMANDS, HELP
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
    yield prose(
        "An ordinary exception of your own code ends with 2. SystemExit, KeyboardInterrupt, GeneratorExit, "
        "RecursionError and the like end with 1, also `sys.exit(0)`: nothing was done, and the message has their line."
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
