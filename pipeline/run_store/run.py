"""A run directory: its name, its paths, and the two ways to open it (to read, or locked to write)."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import FivegateError, Refused, UserError, fault
from pipeline.run_naming import (
    COMPOSING,
    DEFAULT_ROOT,
    composing_overrides,
    run_argument,
    run_overrides,
    shown_root,
    valid_name,
)
from pipeline.run_store import files
from pipeline.run_store.ledger import SCHEMA, Ledger, read_ledger
from pipeline.run_store.lock import RunLock
from pipeline.run_store.state import RunState, fold

NAME = re.compile(r"^[a-z0-9][a-z0-9_-]{0,62}$")
RESERVED = frozenset({"mlartifacts"})


def check_name(name: str, root: Path | None = None) -> str:
    """The name itself. Raises UserError when it is not a valid name of a run, with how to rename one of this name."""
    if not NAME.fullmatch(name) or name in RESERVED:
        expected = "1 to 63 of a-z 0-9 _ -, beginning with a letter or digit" + (
            f", and not {name!r}, which is reserved" if name in RESERVED else ""
        )
        do, run_dir = "choose another run.name=NAME", (root or Path()) / name
        if root is not None and (run_dir / "ledger.jsonl").is_file():  # such as `digits (copy)`
            renamed = run_dir.with_name(valid_name(name))
            do = f"{shlex.join(['mv', '--', str(run_dir), str(renamed)])}, and use {run_overrides(renamed)}"
        raise UserError(fault("run.name", "cannot name a run", got=name, expected=expected, do=do))
    return name


def run_folder(path: Path) -> Path:
    """The folder of a run, with links above it followed, such as `runs` on a larger disk.

    Raises UserError when the folder itself is a link: its records would be somebody else's, or change behind the run.
    """
    path = Path(os.path.abspath(path))  # without following the link that it may be
    if path.is_symlink():
        what = "is a symbolic link, which cannot be the folder of a run"
        expected = "the folder itself; only run.root may be a link"
        do = "name the folder that it leads to, or choose another run.name=NAME"
        raise UserError(fault(str(path), what, got=f"a link to {os.path.realpath(path)}", expected=expected, do=do))
    return path.parent.resolve() / path.name


def refuse_links(path: Path) -> None:
    """Raise Refused when something in the folder of a run is a link out of it: it is not a record of this run."""
    inside = os.path.realpath(path) + os.sep
    names = (os.path.join(folder, name) for folder, folders, others in os.walk(path) for name in (*folders, *others))
    links = sorted(name for name in names if os.path.islink(name) and not os.path.realpath(name).startswith(inside))
    what, expected = "is a symbolic link that leads out of the run", "files and folders of the run itself"
    do = "put what it leads to in its place, or start a new run: python -m pipeline phase=auto run.name=NAME"
    if links:
        raise Refused(
            *(fault(link, what, got=f"a link to {os.path.realpath(link)}", expected=expected, do=do) for link in links)
        )


@dataclass(frozen=True)
class Run:
    """A run directory on disk, `<root>/<name>`."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def ledger_path(self) -> Path:
        return self.path / "ledger.jsonl"

    @property
    def shown_root(self) -> str:
        """The folder of runs, relative to the current folder where possible, as printed commands name it."""
        return shown_root(self.path)

    @property
    def argument(self) -> str:
        """What names the run in a printed command on its records, such as `status`."""
        return run_argument(self.path)

    @property
    def overrides(self) -> str:
        """The overrides that name the run in a printed command that runs a phase."""
        return run_overrides(self.path)

    def overrides_for(self, phase: str, state: RunState | None = None) -> str:
        """The overrides that name the run in a printed command for this phase, with `env=[...]` where it needs it."""
        try:
            state = state or self.state()
        except (FivegateError, OSError):  # the message is about something else
            return self.overrides
        if state.plan is None or (phase not in COMPOSING and state.gate("planning") == "open"):
            return self.overrides
        return composing_overrides(self.path, state.plan.get("env", ()))

    @property
    def identity(self) -> str:
        """The hash of the first entry of the ledger: copies of a run share it, and no other run has it."""
        with self.ledger_path.open("rb") as stream:
            return str(json.loads(stream.readline())["hash"])

    def exists(self) -> bool:
        return self.ledger_path.exists()

    def state(self) -> RunState:
        """The state that the ledger on disk amounts to. Raises Refused when the ledger was changed."""
        return fold(read_ledger(self.ledger_path))

    def inside(self, *parts: str | int) -> Path:
        return self.path.joinpath(*(str(p) for p in parts))

    def relative(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix()

    @classmethod
    def at(cls, root: str | Path, name: str) -> Run:
        """The run of this name under a root folder, whether or not it exists."""
        return cls(run_folder(Path(root) / check_name(name, Path(root))))

    @classmethod
    def find(cls, name: str | Path, root: str | Path = DEFAULT_ROOT) -> Run:
        """The run of this directory or name. Raises UserError that names the most similar run."""
        direct = Path(name)
        for path in (direct, Path(root) / direct):
            if (path / "ledger.jsonl").is_file():
                folder = run_folder(path)
                refuse_links(folder)
                return cls(folder)
        known = sorted(p.parent.name for p in Path(root).glob("*/ledger.jsonl"))
        default = Path(root) == Path(DEFAULT_ROOT)
        place = "" if default else f" {run_overrides(Path(root) / 'digits')}"
        start = f"python -m pipeline phase=baseline experiment=digits{place}"
        do = (
            start
            if not known
            else "python -m pipeline status" + ("" if default else f" --root {shlex.quote(str(root))}")
        )
        expected = None if known else f"a run directory, or the name of a run under {root}/ (there is none yet)"
        raise UserError(fault("RUN", "no such run", got=str(name), expected=expected, among=known, do=do))


@contextmanager
def opened(run: Run, **created: Any) -> Iterator[Ledger]:
    """Open the ledger of the run, locked for writing; `created` is added to the first entry of a new run."""
    files.folder(run_folder(run.path))
    refuse_links(run.path)
    with RunLock(run.path) as lock:
        ledger = Ledger(run.ledger_path, lock)
        if not ledger.entries:
            ledger.append("run.created", {"name": run.name, "schema": SCHEMA, **created})
        yield ledger
