"""The way in: `python -m pipeline ...`. One of the two files that know everybody.

A record command (`status`, `verify`, ...) is a file of `pipeline/commands/`; a phase is a file of `phases/`; the gate
behind it is `checklists/<phase>.yaml`, whose items are answered by `checklists/checks/`; `pipeline/orchestration/`
runs them in the order the gates allow. Heavy libraries are imported by what needs them, so that records answer at once.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, NoReturn

from pipeline import import_guard
from pipeline.errors import FivegateError, UserError, fault
from pipeline.runtime.interrupt import Interrupted, outside_training

RECORDS = ("status", "report", "verify", "approve", "waive", "rollback", "checklist", "diff", "explain")
COMMANDS = (*RECORDS, "diagnose", "preflight")
NOT_BUILT = {"drift": "python -m pipeline report RUN"}
HELP = """\
Fivegate: a PyTorch training pipeline with a gate behind each of its five phases.

  python -m pipeline phase=auto experiment=digits      go as far as the gates let you
  python -m pipeline phase=baseline [overrides]        one phase (planning runs first where it has not passed)
  python -m pipeline -m phase=baseline seed=1,2,3      each job its own run, and a ranked table at the end

  phases   planning, baseline, diagnostics, optimization, finalization, auto
  config   --cfg job shows it as composed; --config-dir DIR adds yours; trust=[pkg] allows its code; --json
  records  python -m pipeline status|report|verify|approve|waive|rollback|checklist|diff|explain RUN   (-h for each)
  logs     python -m pipeline diagnose PATH [--out DIR]
  check    python -m pipeline preflight my_pkg.model:Net my_pkg.data:load [overrides] [--junit FILE]   no run is left

  exit     0 done, 1 fault, 2 wrong input, 3 the answer is no, 4 a person must decide, 130 interrupted
"""


class _Parser(argparse.ArgumentParser):
    """Wrong words give our one message instead of a usage text."""

    def error(self, message: str) -> NoReturn:
        raise UserError(fault(self.prog.removeprefix("python -m pipeline "), message, do=f"{self.prog} --help"))


def _command(name: str, words: Sequence[str]) -> int:
    """Run one record command."""
    module = import_module(f"pipeline.commands.{name}")
    parser = _Parser(prog=f"python -m pipeline {name}", description=module.__doc__)
    module.add_arguments(parser)
    if name == "diagnose":
        from diagnostics.diagnose import diagnose
        from diagnostics.readers import read

        return int(module.run(parser.parse_args(words), read, diagnose))
    if name == "preflight":
        return int(module.run(parser.parse_intermixed_args(words), _preflight))
    return int(module.run(parser.parse_args(words)))


def _preflight(*asked: Any) -> Any:
    """The proofs in the house that a run would have."""
    from pipeline.sanity_checks.preflight import preflight

    return preflight(house(lambda text: None), *asked)


def _worker(words: Sequence[str]) -> int:
    """One trial in this process."""
    from pathlib import Path

    from pipeline.trials import worker

    if len(words) != 1:
        raise UserError(fault("worker", "takes one job", got=" ".join(words), expected="the folder of a job.json"))
    worker.die_with_parent()

    from diagnostics.monitor import Monitor

    worker.work(Path(words[0]), lambda: [Monitor()])
    return 0


def _report(run: Any) -> None:
    """The run's page is written anew."""
    from pipeline.reporting.page import write_report

    write_report(run.path)


def _follow(run: Any, config: Mapping[str, Any], away: Callable[[str], None]) -> Any:
    """The tracker that the run's config names hears of it while it is at work."""
    from pipeline.tracking.sync_process import following

    return following(run.path, config["tracking"], away)


def house(log: Callable[[str], None], watch: Callable[..., Any] | None = None) -> Any:
    """The machine's surroundings: where phases, checks and checklists are found, who is told, and who looks on."""
    import checklists.resolve
    from pipeline.orchestration.phase import House

    return House(
        phase=lambda name: import_module(f"phases.{name}").run,
        check=checklists.resolve.resolve_check,
        checklists=checklists.resolve.CHECKS.parent,
        log=log,
        report=_report,
        follow=_follow,
        watch=watch,
    )


def exit_code(wanted: str, gate: str, stopped: int) -> int:
    """What the process returns: a closed gate is 3, a pending one 4; only `auto` also answers for where it stopped."""
    return {"closed": 3, "pending": 4}.get(gate, stopped if wanted == "auto" else 0)


def run_once(overrides: Sequence[str], config_dirs: Sequence[Any], as_json: bool = False) -> int:
    """Drive one run as typed, and show where it stands."""
    from pipeline.commands import status
    from pipeline.orchestration.execute import drive
    from pipeline.orchestration.run_request import draft
    from pipeline.reporting import tables

    console = tables.console(stderr=as_json)
    made = draft(overrides, config_dirs)

    def watch(what: str, metric: Any) -> Any:
        from pipeline.reporting.progress import Watch

        return Watch(console, what, metric)

    surroundings = house(lambda text: console.print(text, soft_wrap=True), watch=watch)
    run, gate, advice = drive(surroundings, made)
    if as_json:
        import json

        print(json.dumps(status.summary(run, run.state())))
    else:
        status.show(run, run.state())
    return exit_code(made.config["phase"], gate, advice.exit_code)


def _surroundings(as_json: bool, config: Mapping[str, Any]) -> Any:
    """Those of one job of a sweep, wherever it runs: its lines bear its name, and it waits for its share of cores."""
    from dataclasses import replace
    from pathlib import Path

    from pipeline.orchestration.core_limit import in_turn

    name, number = config["run"]["name"], str(config["run"]["sweep"])
    stream = sys.stderr if as_json else sys.stdout
    surroundings = house(lambda text: print(f"{name}  {text}", file=stream, flush=True))
    shared = Path(config["run"]["root"]).resolve() / ".sweeps" / number / "cores"
    return replace(surroundings, phase=in_turn(surroundings.phase, shared))


def run_sweep(words: Sequence[str], config_dirs: Sequence[Any], as_json: bool = False) -> int:
    """Every job of a sweep is a run of its own, under one parent in the tracker; they are ranked at the end."""
    from contextlib import contextmanager
    from functools import partial
    from pathlib import Path

    from pipeline.orchestration.execute import SweepJob
    from pipeline.orchestration.sweep import multirun
    from pipeline.reporting import ranking, tables

    console = tables.console(stderr=as_json)

    def log(text: str) -> None:
        console.print(text, soft_wrap=True)

    @contextmanager
    def tracked(shelf: Any, config: Mapping[str, Any]) -> Any:
        if config["tracking"]["kind"] == "none":
            yield
            return
        from pipeline.tracking.sweep_run import parent

        with parent(shelf, config["tracking"]) as why:
            if why:
                log(f"tracking is away ({why}); the sweep goes on without it")
            yield

    dirs = [str(Path(d).resolve()) for d in config_dirs]
    done = multirun(words, SweepJob(partial(_surroundings, as_json), exit_code, dirs), log, tracked)
    return ranking.show(done.root, [end._asdict() for end in done.ends], as_json)


def _phases(words: Sequence[str]) -> int:
    """Everything that is not a record command: overrides for one run, a sweep, or a question to Hydra."""
    from pipeline.config.arguments import parse

    arguments = parse(words)
    if "--help" in arguments.hydra_flags or not words:
        print(HELP, end="")
        return 0
    if arguments.hydra_flags:
        from pipeline.config.hydra_queries import ask

        return ask(words)
    if arguments.multirun:
        return run_sweep(words, arguments.config_dirs, arguments.json)
    return run_once(arguments.overrides, arguments.config_dirs, arguments.json)


def dispatch(words: Sequence[str]) -> int:
    """Hand the words to whom they are for; the exit code comes back."""
    if words and words[0] in COMMANDS:
        return _command(words[0], words[1:])
    if words and words[0] == "worker":
        return _worker(words[1:])
    if words and words[0] in NOT_BUILT:
        raise UserError(fault(words[0], "is not built in this version", do=NOT_BUILT[words[0]]))
    if words and words[0].isalpha() and words[0] not in ("help",):
        known = (*COMMANDS, *NOT_BUILT, "worker")
        raise UserError(
            fault("command", "there is no such command", got=words[0], among=known, do="python -m pipeline --help")
        )
    return _phases(words)


def main(words: Sequence[str] | None = None) -> int:
    """The process: a stop is one message per fault on stderr, and an exit code that says what kind of stop it is."""
    hidden = import_guard.message()
    if hidden:
        print(hidden, file=sys.stderr)
        return 2
    words = sys.argv[1:] if words is None else words
    try:
        with outside_training():
            return dispatch(words)
    except FivegateError as error:
        print("\n".join(error.faults), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as stop:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the answer is on its way; asking again changes nothing
        stands = stop if isinstance(stop, Interrupted) else "nothing acknowledged is lost"
        again = shlex.join(["python", "-m", "pipeline", *words])
        print(f"\ninterrupted: {stands}  Do: {again}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader went away, as `| head` does: a record has been answered, a phase has not
        os._exit(0 if words[0] in COMMANDS else 1)  # the interpreter's own end would complain of the pipe once more


if __name__ == "__main__":
    sys.exit(main())
