"""`diagnose PATH`: rank the likely causes of a failed run from its logs."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipeline.errors import DiskError, UserError, fault
from pipeline.reporting.terminal import console, print_json

if TYPE_CHECKING:
    from pipeline.history import History

NOT_BUILT = ("symptom", "at")


class Diagnosis(Protocol):
    """What a diagnosis can do here. `diagnostics/` is imported by the caller: an import of it would go up."""

    def save(self, folder: Path, /) -> object: ...

    def to_json(self) -> object: ...

    def incident(self) -> str: ...


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="history.npz, a run directory, a CSV or a JSONL file")
    parser.add_argument("--out", metavar="DIR", help="write diagnosis.json and incident.md into this directory")
    parser.add_argument("--json", action="store_true", help="print diagnosis.json instead of the incident report")
    parser.add_argument("--symptom", help="what you observed, in your words (not built in this version)")
    parser.add_argument("--at", help="when you observed it, as epoch=7 (not built in this version)")


def run(args: argparse.Namespace, read: Callable[[Path], History], diagnose: Callable[[History], Diagnosis]) -> int:
    """Read the logs, evaluate every playbook on them, and print the diagnosis."""
    unavailable = [name for name in NOT_BUILT if getattr(args, name)]
    if unavailable:
        do, what = f"python -m pipeline diagnose {shlex.quote(args.path)}", "is not built in this version"
        raise UserError(*(fault(f"--{name}", what, got=getattr(args, name), do=do) for name in unavailable))
    diagnosis = diagnose(read(Path(args.path)))
    if args.out:
        folder = Path(args.out)
        try:
            diagnosis.save(folder)
        except DiskError as error:
            do = f"python -m pipeline diagnose {shlex.quote(args.path)} --out DIR"
            raise DiskError(*(f"{message.partition('  Do: ')[0]}  Do: {do}" for message in error.faults)) from error
        names = [folder] if folder.suffix else [folder / "diagnosis.json", folder / "incident.md"]
        # With --json, standard output is JSON.
        console(stderr=args.json).print(f"wrote {' and '.join(map(str, names))}", soft_wrap=True)
    if args.json:
        print_json(diagnosis.to_json())
    else:
        from rich.markdown import Markdown

        console().print(Markdown(diagnosis.incident(), hyperlinks=False))
    return 0
