"""`diagnose PATH`: rank the likely causes of a failed run from its logs."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipeline.errors import DiskError, UserError, fault
from pipeline.reporting.terminal import console, print_json
from pipeline.run_store import files

if TYPE_CHECKING:
    from pipeline.reporting.panels import RunCurves


class Report(Protocol):
    """What a report on a log can do here. `diagnostics/` is imported by the caller: an import of it would go up."""

    def save(self, path: Path, /) -> Sequence[Path]: ...

    def to_json(self) -> object: ...

    def page(self) -> str: ...

    def curves(self) -> Sequence[RunCurves]: ...


class DiagnoseLog(Protocol):
    """Reads and explains the log at a path."""

    def __call__(
        self,
        path: Path | None,
        columns: Mapping[str, str],
        target: float | None,
        classes: int | None,
        symptom: str | None,
        at: str | None,
        beside: Sequence[Path],
        /,
    ) -> Report: ...


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        metavar="PATH",
        nargs="?",
        help="a log in any format, a folder of logs, a run directory, or the id or the address of an MLflow run",
    )
    parser.add_argument("--map", action="append", default=[], metavar="MEANING=COLUMN",
                        help="what a column of the log means, as loss=objective; may be repeated")  # fmt: skip
    parser.add_argument("--target", type=float, help="the score that the training should have reached")
    parser.add_argument("--classes", type=int, help="the number of classes, for the loss and the score of guessing")
    parser.add_argument("--out", metavar="DIR", help="write diagnosis.json, diagnosis.md and diagnosis.html into it")
    parser.add_argument("--json", action="store_true", help="print diagnosis.json instead of the report")
    parser.add_argument("--beside", action="append", default=[], metavar="FILE",
                        help="a config, a traceback or the source of the model or loop; may be repeated")  # fmt: skip
    parser.add_argument("--symptom", help="what you observed, in your words; alone or beside a log")
    parser.add_argument("--at", help="since when you observed it, as epoch=7 or step=100")


def run(
    args: argparse.Namespace, diagnose_log: DiagnoseLog, column_map: Callable[[Sequence[str]], Mapping[str, str]]
) -> int:
    """Read the logs, say what was understood of them, evaluate every playbook, and print the diagnosis."""
    if args.path is None and args.symptom is None:
        do = 'python -m pipeline diagnose PATH, or python -m pipeline diagnose --symptom "loss is NaN since epoch 3"'
        raise UserError(fault("diagnose", "has nothing to diagnose", expected="a PATH, a --symptom, or both", do=do))
    if args.at is not None and args.symptom is None:
        raise UserError(fault("--at", "says when, but not what", got=args.at, expected="--symptom beside it"))
    if args.classes is not None and args.classes < 2:
        raise UserError(fault("--classes", "is too small", got=args.classes, expected="at least 2"))
    faults = [
        fault("--beside", "is not a file", got=text, expected="a config, a traceback or a source")
        for text in args.beside
        if not Path(text).is_file()
    ]
    if faults:
        raise UserError(*faults)
    path, beside = Path(args.path) if args.path else None, [Path(text) for text in args.beside]
    report = diagnose_log(path, column_map(args.map), args.target, args.classes, args.symptom, args.at, beside)
    if args.out:
        try:
            written = [*report.save(Path(args.out)), *_save_page(Path(args.out), report)]
        except DiskError as error:
            do = f"python -m pipeline diagnose {shlex.quote(args.path or '')} --out DIR"
            raise DiskError(*(f"{message.partition('  Do: ')[0]}  Do: {do}" for message in error.faults)) from error
        # With --json, standard output is JSON.
        console(stderr=args.json).print(f"wrote {' and '.join(map(str, written))}", soft_wrap=True)
    if args.json:
        print_json(report.to_json())
    else:
        from rich.markdown import Markdown

        console().print(Markdown(report.page(), hyperlinks=False))
    return 0


def _save_page(path: Path, report: Report) -> list[Path]:
    """Write diagnosis.html into a folder; return it. A file of JSON has no page beside it."""
    if path.suffix == ".json":
        return []
    from pipeline.reporting.log_page import render_log_page

    files.write_text(path / "diagnosis.html", render_log_page("Diagnosis of a log", report.page(), report.curves()))
    return [path / "diagnosis.html"]
