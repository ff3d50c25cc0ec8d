"""One run's turn at the machine, or a sweep's: the run is locked, its packages are trusted, the phases are driven."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import machine
from pipeline.drafting import about_the_plan, typed
from pipeline.errors import Refused, UserError, fault
from pipeline.phase import Draft, House
from pipeline.record import files
from pipeline.record.advice import Advice
from pipeline.record.ledger import Ledger
from pipeline.record.run import Run, opened
from pipeline.record.state import fold
from pipeline.records import GateState


def _trust(book: Ledger, made: Draft) -> Draft:
    """The packages that the user trusts are importable, on record, and unchanged since they were recorded.

    Trusting a package anew, because its source changed, changes the draft: its plan has to be made again.
    """
    from pipeline.config import trust

    names = made.config.get("trust") or []
    state = fold(book.entries)
    if names:
        grants = trust.grant(names, trust.roots(made.config_dirs))
        if list(state.trust) != list(grants):
            book.append("trust.granted", {"packages": grants})
            made = replace(made, changed=True)
    trust.activate(fold(book.entries).trust)
    return made


def _clear_false_start(run: Run, book: Ledger, fresh_root: bool) -> None:
    """A run that was stopped before its first plan leaves nothing behind."""
    if not fold(book.entries).plan:
        files.remove_folder(run.path)
        if fresh_root and not any(run.path.parent.iterdir()):
            files.remove_folder(run.path.parent)


def drive(house: House, made: Draft) -> tuple[Run, GateState, Advice]:
    """Run what the draft asks for, with the run locked; the gate it stopped at and the advice come back.

    Raises UserError or Refused as the phases do; a run that such a stop ends before its first plan is removed.
    """
    run = Run.at(made.config["run"]["root"], made.config["run"]["name"])
    fresh_root = not run.path.parent.exists()
    with opened(run, experiment=typed(made.overrides, "experiment")) as book:
        fresh = len(book.entries) == 1
        last = book.entries[-1]
        healed = last["prev"] if last["kind"] == "ledger.torn" else None
        if made.head and made.head not in (book.head, healed):
            what = "another process changed this run in the meantime"
            raise UserError(fault(run.name, what, do="repeat the command"))
        try:
            gate, advice = machine.advance(house, run, book, made.config["phase"], _trust(book, made))
        except (UserError, Refused):
            if fresh:
                _clear_false_start(run, book, fresh_root)
            raise
    return run, gate, advice


def sweep(
    house: House, words: Sequence[str], config_dirs: Sequence[str | Path], code: Callable[[str, str, int], int]
) -> tuple[Path, list[dict[str, Any]]]:
    """Every job of a sweep as a run of its own; the root folder and how each job ended come back.

    `code(wanted, gate, stopped)` is the exit code of a job.
    """
    from pipeline.config.sweep import multirun

    dirs = [str(Path(d).resolve()) for d in config_dirs]
    roots: set[Path] = set()

    def job(config: dict[str, Any], overrides: list[str]) -> int:
        roots.add(Path(config["run"]["root"]).resolve())
        _, gate, advice = drive(house, Draft(config, about_the_plan(overrides), dirs))
        return code(config["phase"], gate, advice.exit_code)

    ends = multirun(words, job)
    root = next(iter(roots), Path(typed(words, "run.root") or "runs").resolve())
    return root, [end._asdict() for end in ends]
