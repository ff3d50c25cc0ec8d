"""`diagnose PATH`: name the cause of a run that failed elsewhere, from its logs alone."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, fault
from pipeline.reporting import tables


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="history.npz, a run directory, a CSV or a JSONL file")
    parser.add_argument("--out", metavar="DIR", help="write diagnosis.json and incident.md there")
    parser.add_argument("--json", action="store_true", help="print diagnosis.json instead of the page")
    parser.add_argument("--symptom", help="what you saw, in your words (not built in this version)")
    parser.add_argument("--at", help="when you saw it, as epoch=7 (not built in this version)")


def run(args: argparse.Namespace, read: Callable[[Path], Any], diagnose: Callable[[Any], Any]) -> int:
    """Read the logs, hold every playbook against them, and say what was found. The two doers are handed in."""
    said = [name for name in ("symptom", "at") if getattr(args, name)]
    if said:
        do = f"python -m pipeline diagnose {args.path}"
        raise UserError(
            *(fault(f"--{name}", "is not built in this version", got=getattr(args, name), do=do) for name in said)
        )
    found = diagnose(read(Path(args.path)))
    if args.out:
        found.save(Path(args.out))
    if args.json:
        import json

        print(json.dumps(found.to_json()))
    else:
        from rich.markdown import Markdown

        tables.console().print(Markdown(found.incident()))
    return 0
