"""Every command that a message, a checklist, a playbook or a document proposes exists, with its options and keys."""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from pipeline.__main__ import COMMANDS, _Parser
from pipeline.config.arguments import parse
from pipeline.config.conf_dir import conf_dir
from pipeline.config.override_keys import OPEN, key_of, leaves
from pipeline.config.schema import accepts, known_keys
from pipeline.errors import UserError
from pipeline.results import PHASES

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pipeline", "phases", "checklists", "diagnostics")
DOCUMENTS = (
    "*.md",
    "docs/*.md",
    "phases/*.md",
    "diagnostics/*.md",
    "examples/**/*.md",
    "conf/**/*.yaml",
    "checklists/*.yaml",
)
COMMAND = "python -m pipeline"
GAP = "planning"  # stands for a part of a text that is filled in later: it is a name, and also the name of a gate
NAMED = re.compile(r"[A-Z]+|<\w+>|\.\.\.|mine")  # values that a person chooses
OVERRIDE = re.compile(r"(?<![\w.{])[~+]?[a-z][a-z_]*(?:\.[a-z_]+)*=(?![=(])[^\s,;)]*")
DOTTED = re.compile(r"(?<![\w./{])[a-z_]+\.[a-z_]+(?:\.[a-z_]+)*(?![\w(/])")
WORD = re.compile(r"""(?:'[^']*'|"[^"]*"|[^\s'"`])+""")
ARGUMENT = re.compile(rf"""['"]?[~+]*[A-Za-z_.@/]+=|-|\.\.\.|{GAP}|\[KEY=VALUE""")  # what a phase is given
VALUE_FLAGS = ("--config-dir", "--cfg", "--info")
INTERNAL = ("worker",)
NOT_KEYS = {"data.train", "data.val", "data.test", "data.production"}  # parts of what a data function returns


class Advice(NamedTuple):
    """A text of the product with its place; `proposed` says that it is what somebody should do (`do=`)."""

    place: str
    text: str
    proposed: bool = False


# --- the texts -------------------------------------------------------------------------------------------------------


def written(node: ast.AST) -> Iterator[tuple[str, list[str]]]:
    """The texts that an expression can be, each with the expressions of its gaps."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value, []
    elif isinstance(node, ast.JoinedStr):
        gaps = [ast.unparse(part.value) for part in node.values if isinstance(part, ast.FormattedValue)]
        yield "".join(filled(part) for part in node.values), gaps
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = list(written(node.left)), list(written(node.right))
        yield from ((a + b, [*one, *other]) for a, one in sides[0] for b, other in sides[1])
    elif isinstance(node, ast.IfExp):
        yield from written(node.body)
        yield from written(node.orelse)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "command":
        words = [next(written(argument), (GAP, []))[0] for argument in node.args]  # the function quotes each of them
        yield f"{COMMAND} ... {shlex.join(words)}", []


def filled(part: ast.expr) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    source = ast.unparse(part.value) if isinstance(part, ast.FormattedValue) else ""
    if source.startswith("command("):
        return next(text for text, _ in written(part.value))  # type: ignore[attr-defined]
    if source.endswith("run.overrides") or ".overrides_for(" in source:
        return f"run.name={GAP}"
    return f"{GAP} {GAP}" if "' '.join" in source else GAP


def advice_in(path: Path) -> Iterator[Advice]:
    """Every text of a module; what is passed as `do=` or called `do` is proposed."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    proposed = {id(node.value) for node in nodes if isinstance(node, ast.keyword) and node.arg == "do"}
    for node in nodes:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "do" for t in node.targets):
            proposed.add(id(node.value))
    joined = [node for node in nodes if isinstance(node, ast.JoinedStr | ast.BinOp)]
    inner = {id(part) for node in joined for part in list(ast.walk(node))[1:]}
    for node in nodes:
        if id(node) in inner:
            continue
        for text, gaps in written(node) if isinstance(node, ast.expr) else ():
            place = f"{path.relative_to(ROOT)}:{node.lineno}"
            yield Advice(place, text, id(node) in proposed or "  Do: " in text)
            if re.search(rf"{COMMAND} (?:{'|'.join(COMMANDS)}) {GAP}\b", text):
                bare = [gap for gap in gaps if gap.endswith("run.name")]
                assert not bare, f"{place}: {bare[0]} is not found outside of runs/; use run.argument"
            if re.search(
                rf"{COMMAND} phase=(?:{GAP}|planning|baseline) ", text
            ):  # a phase that composes the config, or any phase
                bare = [gap for gap in gaps if gap.endswith("run.overrides")]
                assert not bare, f"{place}: {bare[0]} lacks env=[...]; use run.overrides_for(phase)"
            if re.search(rf"{COMMAND} phase=[a-z]+ run.name={GAP}", text):
                bare = [gap for gap in gaps if gap.endswith("run.name")]
                assert not bare, f"{place}: {bare[0]} is not found outside of runs/; use run.overrides"


def texts() -> Iterator[Advice]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield from advice_in(path)
    for pattern in DOCUMENTS:
        for path in sorted(ROOT.glob(pattern)):
            for number, line in enumerate(path.read_text().splitlines(), 1):
                yield Advice(f"{path.relative_to(ROOT)}:{number}", line)


# --- what exists -----------------------------------------------------------------------------------------------------


@cache
def keys() -> frozenset[str]:
    """Every key and group of the config, with the parameters of what its options build."""
    found = {*known_keys(), *(path.name for path in conf_dir().iterdir() if path.is_dir())}
    for path in conf_dir().glob("*/*.yaml"):
        node = yaml.safe_load(path.read_text()) or {}
        found |= {f"{path.parent.name}.{key}" for key, _ in leaves(node)}
        module, _, name = str(node.get("_target_", "")).rpartition(".")
        if module:
            signature = inspect.signature(getattr(import_module(module), name))
            found |= {f"{path.parent.name}.{parameter}" for parameter in signature.parameters}
    return frozenset(found | {"data.test", "data.production"})


@cache
def targets() -> frozenset[str]:
    return frozenset(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@cache
def experiments() -> frozenset[str]:
    folders = (conf_dir(), *(ROOT / "examples").glob("*/conf"))
    return frozenset(path.stem for folder in folders for path in folder.glob("experiment/*.yaml"))


def wrong_override(word: str) -> str | None:
    """What is wrong with an override: its key does not exist, or its value is not accepted."""
    key, value = key_of(word), word.partition("=")[2]
    if (
        GAP in key
        or key in ("", "KEY")
        or key.startswith("hydra/")
        or (word.startswith("+") and key.split(".")[0] in (*OPEN, "hydra"))
    ):
        return None
    if key not in keys():
        return f"there is no key {key}"
    if "=" not in word or NAMED.fullmatch(value) or GAP in value or value[:1] in ("[", "{"):
        return None
    if key == "phase":
        return None if set(value.split(",")) <= {*PHASES, "auto"} else f"there is no phase {value}"
    if key == "experiment":
        return None if set(value.split(",")) <= experiments() else f"there is no experiment {value}"
    return None if any(accepts(key, one) for one in (value, *value.split(","))) else f"{key} does not accept {value}"


def command_words(rest: str) -> list[str]:
    """The words of a command, quotes included, from what follows `python -m pipeline`, up to the prose behind it."""
    words, end = list[str](), 0
    for found in WORD.finditer(rest):
        between, word = rest[end : found.start()], found[0].rstrip(",;:)")
        takes_any = (words[0] in ("COMMAND", *INTERNAL, *COMMANDS) or words[-1] in VALUE_FLAGS) if words else True
        if len(between) > 1 or "\n" in between or not (takes_any or ARGUMENT.match(word)):
            break
        words.append(word)
        end = found.end()
        if word != found[0]:
            break
    return words


def wrong_command(rest: str) -> str | None:
    """What is wrong with the command of a text that begins behind `python -m pipeline`."""
    quoted = command_words(rest)
    words = [word.strip("'\"") if "=" in word else word for word in quoted]
    name = words[0] if words else ""
    if name in ("", "COMMAND", GAP, *INTERNAL) or name.endswith("fixed.yaml"):  # a fix runs by its path
        return None
    if name in COMMANDS:
        return wrong_arguments(name, words[1:])
    if not ARGUMENT.match(name):
        return f"there is no command {name}"
    try:
        overrides = parse([word for word in words if word not in ("...", "[KEY=VALUE", "...]", GAP)]).overrides
    except UserError as error:
        return str(error)
    bare = [word for word in quoted if re.search(r"[\[{(]", word) and word[0] not in "'\"[" and '"' not in word]
    return f"{bare[0]} needs quotes" if bare else next(filter(None, map(wrong_override, overrides)), None)


def wrong_arguments(name: str, words: list[str]) -> str | None:
    module = import_module(f"pipeline.commands.{name}")
    parser = _Parser(prog=f"{COMMAND} {name}")
    module.add_arguments(parser)
    known = {option for action in parser._actions for option in action.option_strings}
    if unknown := [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]:
        return f"{name} has no option {unknown[0]}"
    if not words or "..." in words:  # the command is only named
        return None
    arguments = ["2999-01-01" if word == "YYYY-MM-DD" else word.strip("[]") for word in words]
    try:
        intermixed = name == "preflight"
        (parser.parse_intermixed_args if intermixed else parser.parse_args)(arguments)
    except (UserError, argparse.ArgumentError) as error:
        return str(error)
    return None


def faults(advice: Advice) -> Iterator[str]:
    for found in re.finditer(COMMAND, advice.text):
        if what := wrong_command(advice.text[found.end() :]):
            yield what
    for target in re.findall(r"`make ([a-z-]+)|^ {4,}make ([a-z-]+)|Do: make ([a-z-]+)", advice.text):
        if not set(target) & targets():
            yield f"there is no target {''.join(target)}"
    if advice.proposed:
        body = advice.text.rpartition("  Do: ")[2]
        for word in OVERRIDE.findall(re.sub(rf"{COMMAND} [a-z]+ .*", "", body)):
            if what := wrong_override(word.strip("'\"")):
                yield what
        sections = {key.partition(".")[0] for key in keys()} - {"hydra"}  # has keys of its own, which no run may set
        for name in DOTTED.findall(body):
            if GAP not in name and name.partition(".")[0] in sections and name not in keys() | NOT_KEYS:
                yield f"there is no key {name}"


def test_advice_names_what_exists() -> None:
    """Every command parses, and every key, phase, experiment and target of make in it exists."""
    wrong = [f"{advice.place}: {what}: {advice.text.strip()[:200]!r}" for advice in texts() for what in faults(advice)]
    assert wrong == [], "\n".join(wrong)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (f"{COMMAND} statuss RUN", "there is no command statuss"),
        (f"look first ({COMMAND} status RUN --gat planning), then wait", "status has no option --gat"),
        (f"{COMMAND} waive RUN", "the following arguments are required: CHECK"),
        (f"{COMMAND} status RUN OTHER", "unrecognized arguments: OTHER"),
        (f"{COMMAND} phase=basline experiment=digits", "there is no phase basline"),
        (f"{COMMAND} phase=auto experiment=digitz", "there is no experiment digitz"),
        (f"{COMMAND} ... optimizer=adamww", "optimizer does not accept adamww"),
        (f"{COMMAND} --cgf job", "unknown flag, got '--cgf'"),
        (f"{COMMAND} ... trust=[PACKAGE], then go on", "trust=[PACKAGE] needs quotes"),
        (f"{COMMAND} ... trainer.max_epoch=3", "there is no key trainer.max_epoch"),
        ("lower trainer.max_epoch", "there is no key trainer.max_epoch"),
        ("take a smaller model, or trainer.precison=32", "there is no key trainer.precison"),
        ("wait; `make finalise` goes on", "there is no target finalise"),
        (f"wait ({COMMAND} status RUN), or choose another run.name=NAME", None),
        (f"{COMMAND} -m phase=baseline seed=1,2,3    run a sweep", None),
        (f"{COMMAND} ... 'surgery=[{{resize_output: {{out_features: 3}}}}]', or fix the last layer", None),
        (f"leave the column out (data.ignore), or {COMMAND} ... data.delimiter=';'", None),
    ],
)
def test_advice_is_found_wrong(text: str, what: str | None) -> None:
    """What this file looks for is found, and right advice is not called wrong."""
    found = list(faults(Advice("here:1", text, proposed=True)))

    assert found == [] if what is None else what in found[0]
