"""`new NAME`: write a small project of your own into a new folder: a model, data, an experiment and a test.

Planning passes with it as it is; replace its model and data by yours. The folder must not exist. `new NAME --fixed RUN`
writes the config that an optimization of RUN adopted as the experiment NAME into your own folder of configs.
"""

from __future__ import annotations

import argparse
import keyword
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import safe_yaml
from pipeline.config.arguments import words_of_file
from pipeline.config.conf_dir import conf_dir
from pipeline.config.override_keys import OPEN, key_of
from pipeline.errors import Refused, UserError, fault
from pipeline.repair.config_edits import get
from pipeline.reporting.terminal import print_lines
from pipeline.run_naming import DEFAULT_ROOT
from pipeline.run_store import files
from pipeline.run_store import plan as plans
from pipeline.run_store.ledger import is_intact
from pipeline.run_store.run import Run
from pipeline.trust import grants

TEMPLATES = Path(__file__).with_name("new_project")
RESERVED = {"conf": "is the folder of the experiments", "tests": "is the folder of the tests", "runs": "holds the runs"}
_NAME = re.compile(r"[a-z][a-z0-9_]{0,49}", re.ASCII)
_EXISTS = "a file or folder of this name exists already; nothing in it was changed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="name of the package and of its folder, such as my_project")
    parser.add_argument("--fixed", metavar="RUN", help="write the fixed config of this run as the experiment NAME")
    parser.add_argument("--config-dir", type=Path, default=Path("conf"), help="with --fixed: your folder of configs")
    parser.add_argument("--root", default=DEFAULT_ROOT, help="with --fixed: directory of the runs (run.root)")


def run(args: argparse.Namespace) -> int:
    """Write the project and print what to do with it. Raises UserError for a name that cannot be used."""
    name: str = args.name
    if args.fixed:
        path = write_experiment(name, Run.find(args.fixed, args.root), args.config_dir)
        print_lines(f"{path}\nnext: run it")
        print_lines(
            f"  python -m pipeline phase=auto --config-dir {shlex.quote(str(args.config_dir))} experiment={name}"
        )
        return 0
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


# --- the fixed config of a run as an experiment ----------------------------------------------------------------------


def write_experiment(name: str, run: Run, folder: Path) -> Path:
    """Write the config that an optimization adopted to `<folder>/experiment/<name>.yaml`, and return the path.

    Raises UserError for a name that is none, for a file that exists, and for a config that no experiment can hold, and
    Refused for a run without an adopted change.
    """
    path = folder / "experiment" / f"{name}.yaml"
    if not _NAME.fullmatch(name.replace("-", "_")):
        raise UserError(fault("new", "is not the name of an experiment", got=name, expected="such as digits-fixed"))
    bundled = (conf_dir() / "experiment" / f"{name}.yaml").is_file()
    if os.path.lexists(path) or bundled:
        what = "is an experiment of Fivegate" if bundled else "exists already; nothing in it was changed"
        do = f"python -m pipeline new {name}-2 --fixed {run.argument} --config-dir {shlex.quote(str(folder))}"
        raise UserError(fault(name if bundled else str(path), what, do=do))
    fixed = _fixed_config(run)
    overrides = [word for word in words_of_file(fixed) if not word.startswith(("phase=", "run."))]
    config: dict[str, Any] = safe_yaml.load(fixed.read_text(encoding="utf-8"), str(fixed))
    command = f"# python -m pipeline phase=auto --config-dir {folder} experiment={name}"
    head = f"# @package _global_\n{command}\n# The config that optimization adopted in the run {run.name}.\n"
    # An experiment that extends another one cannot take a key away from it; one that says everything can leave it out.
    for content in (_format_experiment(overrides, config), format_whole(config)):
        changes = _differences(head + content, name, run, config)
        if not changes:
            files.write_text(path, head + content)
            return path
    what = f"cannot be written as an experiment: {', '.join(changes)} would differ"
    raise UserError(fault(run.name, what, do=f"python -m pipeline {run.inside('optimization')}/.../fixed.yaml"))


def _fixed_config(run: Run) -> Path:
    """Return the `fixed.yaml` of the adopted change. Raises Refused where there is none, or it is not as recorded."""
    state = run.state()
    finished = state.finished.get("optimization")
    record = finished.get("artifacts", {}).get("fixed.yaml") if finished else None
    adopted = state.candidate is not None and state.candidate["phase"] == "optimization"
    if not adopted or record is None:
        do = f"python -m pipeline status {run.argument}"
        raise Refused(fault(run.name, "has no fixed config, since no optimization has adopted a change", do=do))
    if not is_intact(run.path, **record):
        do = f"python -m pipeline verify {run.argument}"
        raise Refused(fault(record["path"], "is not the file that the ledger recorded", do=do))
    return run.inside(record["path"])


def _format_experiment(overrides: Sequence[str], config: Mapping[str, Any]) -> str:
    """Return the file that makes the choices and sets the values of these overrides."""
    import yaml

    groups = {folder.name for folder in conf_dir().iterdir() if folder.is_dir()}
    defaults: list[Any] = []
    values: dict[str, Any] = {}
    for word in overrides:
        key, chosen = key_of(word), word.partition("=")[2]
        if key == "experiment":
            defaults.insert(0, chosen)
        elif key in groups and "=" in word:
            defaults.append({f"override /{key}": yaml.safe_load(chosen)})
        elif "=" in word:
            *path, last = key.split(".")
            section = values
            for part in path:
                section = section.setdefault(part, {})
            section[last] = get(config, key)
    return str(yaml.safe_dump({"defaults": [*defaults, "_self_"], **values}, sort_keys=False, allow_unicode=True))


def format_whole(config: Mapping[str, Any]) -> str:
    """Return the experiment that says a whole config and takes nothing from the groups of objects."""
    import yaml

    defaults = [*({f"override /{section}": None} for section in OPEN), "_self_"]
    said = {key: value for key, value in config.items() if key not in ("phase", "run", "trust", "resolved")}
    return str(yaml.safe_dump({"defaults": defaults, **said}, sort_keys=False, allow_unicode=True))


def _differences(text: str, name: str, run: Run, config: Mapping[str, Any]) -> list[str]:
    """Return the keys in which the experiment would differ from the fixed config."""
    import tempfile

    from pipeline.config.compose import compose

    state, plan = run.state(), plans.load(run)
    known = state.plan.get("config_dirs", []) if state.plan else []
    with tempfile.TemporaryDirectory() as folder:
        files.write_text(Path(folder) / "experiment" / f"{name}.yaml", text)
        composed = compose([f"experiment={name}"], [*known, folder])
    return list(plans.changed_config(config, plans.with_resolved(composed, plan.facts)))
