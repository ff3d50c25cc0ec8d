"""The pages of docs/: the generated ones say what the code says, and no link or command leads nowhere."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from docs.config_reference import commented_keys
from docs.generate import COMMANDS, pages
from docs.markdown import cell
from pipeline.config.conf_dir import conf_dir
from pipeline.config.schema import known_keys
from pipeline.results import PHASES
from tests.test_advice import wrong_command

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))


def anchors(text: str) -> set[str]:
    """The anchors of the headings, as mkdocs makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^a-z0-9_]+", "-", re.sub(r"[^\w\s-]", "", heading.lower())).strip("-") for heading in headings}


def test_generated_pages_are_up_to_date() -> None:
    """`make docs` would change nothing."""
    made = pages()
    assert [name for name, text in made.items() if (DOCS / name).read_text() != text] == []
    assert len(made) == 6


def test_every_page_is_in_the_navigation() -> None:
    """mkdocs refuses a page without a place, and so does this test, which needs no mkdocs."""
    nav = yaml.safe_load((DOCS.parent / "mkdocs.yml").read_text())["nav"]
    entries = [page for entry in nav for page in entry.values()]
    pages_of_groups = [page for group in entries if isinstance(group, list) for one in group for page in one.values()]
    assert sorted([*(page for page in entries if isinstance(page, str)), *pages_of_groups]) == PAGES


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    """Every link inside is to a file of docs/, and to a heading that exists."""
    wrong = []
    for target in re.findall(r"\]\(([^)#]*#?[^)]*)\)", re.sub(r"```.*?```", "", (DOCS / page).read_text(), flags=re.S)):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        place = DOCS / (file or page)
        if not place.is_file() or (anchor and anchor not in anchors(place.read_text())):
            wrong.append(target)
    assert wrong == []


def test_quick_reference_commands_parse() -> None:
    """Each command of the page has the keys, options and phases that it names, and every command has a row."""
    text = (DOCS / "quick_reference.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and line.count("`") >= 2]
    commands = [found[1] for line in rows if (found := re.search(r"`([^`]+)` \|$", line))]

    assert [(command, what) for command in commands if (what := wrong_command(f" {command}"))] == []
    assert {command.split()[0] for command in commands} >= {*COMMANDS, "-m", "--cfg"}
    assert len(text.splitlines()) <= 60  # a page to print


def test_completion_line_has_every_command() -> None:
    """The line for the shell knows every command and phase, and bash takes it."""
    text = (DOCS / "command_line.md").read_text()
    line = next(line.strip() for line in text.splitlines() if "complete -o default" in line)
    words = line.split('"')[1].split()

    assert {*COMMANDS, *(f"phase={phase}" for phase in (*PHASES, "auto"))} <= set(words)
    script = f"{line}; compgen -W '{' '.join(words)}' -- phase=d; complete -p fivegate"
    shown = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert shown.returncode == 0 and shown.stdout.splitlines()[0] == "phase=diagnostics", shown.stderr


def test_extras_are_named_in_the_installation() -> None:
    """What is optional is an extra of pyproject.toml, and the page names each of them."""
    extras = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    section = (DOCS / "command_line.md").read_text().split("## Install without make")[1].split("## Shell")[0]
    assert [name for name in extras if f"`{name}`" not in section] == []


def test_config_page_has_every_key() -> None:
    """Each key of the schema has a row, and the comments of conf/ are not lost."""
    text = pages()["config.md"]
    sections = {key.rpartition(".")[0] for key in known_keys()} | {key for key in known_keys() if f"## {key}\n" in text}
    missing = [key for key in known_keys() if f"`{key}`" not in text and key not in sections]
    assert [key for key in missing if ".next." not in key] == []  # `next` is one value: {sufficient: ..., ...}
    comments = [comment for _, _, comment in commented_keys((conf_dir() / "trainer" / "default.yaml").read_text())]
    assert all(cell(comment) in text for comment in comments) and len(comments) > 15
