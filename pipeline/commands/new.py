"""`new NAME`: write a small project of your own into a new folder: a model, data, an experiment and a test.

Planning passes with it as it is; replace its model and data by yours. The folder must not exist.
"""

from __future__ import annotations

import argparse
import keyword
import os
import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.config.conf_dir import conf_dir
from pipeline.errors import UserError, fault
from pipeline.reporting.terminal import print_lines
from pipeline.run_store import files
from pipeline.trust import grants

TEMPLATES = Path(__file__).with_name("new_project")
RESERVED = {"conf": "is the folder of the experiments", "tests": "is the folder of the tests", "runs": "holds the runs"}
_NAME = re.compile(r"[a-z][a-z0-9_]{0,49}", re.ASCII)
_EXISTS = "a file or folder of this name exists already; nothing in it was changed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="name of the package and of its folder, such as my_project")


def run(args: argparse.Namespace) -> int:
    """Write the project and print what to do with it. Raises UserError for a name that cannot be used."""
    name: str = args.name
    if faults := name_faults(name, Path.cwd()):
        raise UserError(*faults)
    written = create_project(name, Path.cwd() / name)
    command = f"python -m pipeline phase=planning --config-dir conf experiment={name} 'trust=[{name}]'"
    print_lines("\n".join(f"{name}/{path}" for path in written))
    print_lines(f"next: check it, then replace the rows of {name}/{name}/data.py and the model by your own")
    print_lines(f"  cd {name}\n  {command}")
    return 0


def name_faults(name: str, folder: Path) -> list[str]:
    """Return why no project of this name can be made in the folder; empty if one can."""
    if not _NAME.fullmatch(name):
        expected = "1 to 50 lower-case letters, digits and underscores, a letter first"
        close = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_0123456789")[:50] or "my_project"
        return [_fault("is not a package name", name, close, expected)]
    if os.path.lexists(folder / name):
        return [_fault(_EXISTS, name, f"{name}_2")]
    if why := _why_taken(name):
        return [_fault(why, name, f"my_{name}")]
    return []


def _why_taken(name: str) -> str | None:
    """Why a package of this name would hide another, or be hidden by it; None for a name that is free."""
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        return "is a word of Python itself"
    if name in RESERVED:
        return RESERVED[name]
    if (conf_dir() / "experiment" / f"{name}.yaml").is_file():
        return "is an experiment of Fivegate"
    return grants.why_not(name) or ("is a package that is installed" if grants.is_importable(name) else None)


def _fault(what: str, name: str, close: str, expected: str | None = None) -> str:
    return fault("new", what, got=name, expected=expected, do=f"python -m pipeline new {close}")


def create_project(name: str, folder: Path) -> list[str]:
    """Write the project into the folder, completely or not at all, and return the paths of its files.

    Raises UserError if the folder appeared in the meantime, and DiskError where the disk refuses.
    """
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    written = []
    try:
        for path, text in _rendered(name):
            files.write_text(unfinished / path, text)
            written.append(path)
        if not files.claim(folder):
            raise UserError(_fault(_EXISTS, name, f"{name}_2"))
        files.commit_folder(unfinished, folder)
    finally:
        files.remove_folder(unfinished)
    return written


def _rendered(name: str) -> Iterator[tuple[str, str]]:
    """Yield path and text of every file of a project: each template is one file, and `package` stands for the name.

    The template of `.gitignore` has no dot, since setuptools leaves files with one out of a wheel.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    for template in environment.list_templates(extensions=["j2"]):
        path = template.removesuffix(".j2").replace("package", name).replace("gitignore", ".gitignore")
        yield path, environment.get_template(template).render(name=name)
