"""`verify RUN`: check ledger and recorded files, and judge gates and branch again; never repairs anything.

`verify BUNDLE` checks a released bundle by its files alone, as the `verify.py` inside of it does.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from pipeline.escaping import visible
from pipeline.release import attestation, verify
from pipeline.reporting.terminal import console, print_json, styled
from pipeline.run_store.checklist import Judge
from pipeline.run_store.ledger import scan_ledger
from pipeline.run_store.run import Run
from pipeline.serving.standalone import verify as standalone
from pipeline.tracking import anchors


class VerifyAnswer(TypedDict):
    """What `verify --json` prints.

    `entries` are the intact entries of the ledger, None for a bundle alone; `torn` is the number of bytes of a write
    that was interrupted. `compared_with` says which attestations and trackers the records were compared with.
    """

    schema: int
    run: str
    intact: bool
    entries: int | None
    faults: list[str]
    notes: list[str]
    torn: int
    compared_with: list[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory or name, or the folder of a released bundle")
    parser.add_argument("--root", default="runs", help="directory of the runs (run.root)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def _verify_bundle(bundle: Path, as_json: bool) -> int:
    """Check a bundle that may have come without its run. A payload alone has nothing that it can be compared with."""
    problems = standalone.verify(bundle)
    if as_json:
        approvals = [] if problems else [*standalone.approvals(bundle)]
        _print_answer(bundle.name, None, problems, compared_with=approvals)
        return 3 if problems else 0
    screen = console()
    for problem in problems:
        screen.print(f"✗ {visible(problem)}", style="red", soft_wrap=True)
    for line in [] if problems else standalone.approvals(bundle):
        screen.print(visible(line), soft_wrap=True)
    return 3 if problems else 0


def _print_answer(
    name: str,
    entries: int | None,
    faults: Sequence[str],
    notes: Sequence[str] = (),
    torn: int = 0,
    compared_with: Sequence[str] = (),
) -> None:
    answer = VerifyAnswer(
        schema=1,
        run=name,
        intact=not faults,
        entries=entries,
        faults=[*faults],
        notes=[*notes],
        torn=torn,
        compared_with=[*compared_with],
    )
    print_json(answer, indent=2)


def run(args: argparse.Namespace, judge: Judge) -> int:
    bundle = Path(args.run)
    if (bundle / "payload").is_dir() and not (bundle / "ledger.jsonl").exists():
        return _verify_bundle(bundle, args.json)
    run = Run.find(args.run, args.root)
    entries, faults, notes = verify.verify(run, judge)
    scan = scan_ledger(run.ledger_path)
    tracker = anchors.compare(run, scan.entries)
    if not scan.fault:  # else the rest of the ledger cannot be read, and nothing was truncated
        faults = [*faults, *tracker.faults]
    if args.json:
        compared_with = [] if faults else [*attestation.anchors(run), tracker.note]
        _print_answer(run.name, entries, faults, notes, len(scan.torn), compared_with)
        return 3 if faults else 0
    screen = console()
    for fault in faults:
        screen.print(f"✗ {visible(fault)}", style="red", soft_wrap=True)
    if faults:
        screen.print(f"{run.name}: not as recorded; {entries} ledger entries are intact")
        return 3
    # Not a fault: only a kill during a write leaves an incomplete last line, and nothing acknowledged is in it.
    if scan.torn:
        screen.print(
            f"the last write was interrupted: {len(scan.torn)} bytes, which the next write moves out of the ledger"
        )
    for note in notes:
        screen.print(f"not judged again: {note}", soft_wrap=True)
    for anchor in attestation.anchors(run) or ["no attestation compared: nothing was signed"]:
        screen.print(anchor, soft_wrap=True)
    screen.print(tracker.note, soft_wrap=True)
    template = "[green]✓[/] {run}: {entries} ledger entries, all recorded files and all gates are intact"
    screen.print(styled(template, run=run.name, entries=entries))
    return 0
