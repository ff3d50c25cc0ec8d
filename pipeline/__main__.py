"""The command line, `python -m pipeline ...`. With fivegate.py, the only module that may import all others.

A record command (`status`, `verify`, ...) is a module of `pipeline/commands/`; a phase is a module of `phases/`; its
gate is `checklists/<phase>.yaml`, whose items name functions of `checklists/checks/`. `pipeline/orchestration/` runs
the phases in the order that the gates allow. Heavy libraries are imported where they are used, so that record commands
answer at once.
"""

# Nothing before this, `from __future__ import annotations` neither: it would be imported from the current folder.
from pipeline.current_folder import leave_out_current_folder, require_current_folder

if __name__ == "__main__":
    leave_out_current_folder()

# isort: split

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline import import_guard
from pipeline.errors import FivegateError, UserError, fault
from pipeline.escaping import visible, visible_lines
from pipeline.reporting.users_faults import users_faults_named
from pipeline.run_store.lock import ends_forked_children
from pipeline.runtime.announce import announced
from pipeline.runtime.interrupt import Interrupted, outside_training

if TYPE_CHECKING:
    from pipeline.orchestration.phase import Hooks, MakeProgress, PhaseRun, Registry
    from pipeline.orchestration.sweep_directory import SweepDirectory
    from pipeline.run_store.run import Run
    from pipeline.sanity_checks.preflight import PreflightReport
    from pipeline.trials.progress import ShowTrials

COMMANDS = (
    "status", "report", "verify", "approve", "waive", "rollback", "checklist", "diff", "explain",
    "diagnose", "preflight", "drift", "new", "compare",
)  # fmt: skip
JUDGING = ("verify", "approve", "waive")  # commands that judge the items of gates again
HELP = """\
Fivegate: a PyTorch training pipeline of five phases, each followed by a gate (a checklist).

  python -m pipeline phase=auto experiment=digits    run the phases until a gate is closed or the model is released
  python -m pipeline phase=baseline [KEY=VALUE ...]  run one phase (baseline: planning first, unless its gate is open)
  python -m pipeline -m phase=baseline seed=1,2,3    run a sweep: one run per combination, ranked at the end
  python -m pipeline -m hparams_search=digits_optuna search a space of values, and confirm the best on fresh seeds
  python -m pipeline COMMAND ...                     run a command of the list below (COMMAND -h shows its options)

  phases           planning, baseline, diagnostics, optimization, finalization, auto
  options          --config-dir DIR: your configs; --cfg job: print the config; --json: print the result as JSON
                   'trust=[PACKAGE]': let the config use code of this package

  status [RUN]     gates and next command            explain RUN [CHECK]  checks with details and what to do
  report RUN       write report.html                 checklist RUN        all checks as a Markdown list
  verify RUN       find changed records and files    diff RUN OTHER       compare two runs
  waive RUN CHECK  accept a check that did not pass  approve RUN          approve the bundle for release
  rollback RUN     undo a release or a repair        diagnose PATH        name possible causes from training logs
  preflight MODEL DATA   run the checks before training, without a run (my_pkg.model:Net my_pkg.data:load)
  drift BUNDLE DATA      compare live rows with the reference of a release (exit code 3 if they drifted)
  compare A B            is B better than A? two sweeps by seed, two runs by row, RUN@COMMIT twice, or FILE.csv
  new NAME               write a project of your own into the folder NAME: model, data, experiment, test

  exit codes       0 done, 1 internal error, 2 wrong input, 3 gate closed or check failed,
                   4 only an approval is missing, 130 interrupted
"""


class _Parser(argparse.ArgumentParser):
    """A parser that reports wrong arguments as one of our messages instead of a usage text."""

    def error(self, message: str) -> NoReturn:
        raise UserError(fault(self.prog.removeprefix("python -m pipeline "), message, do=f"{self.prog} --help"))


# --- what a run is executed with -------------------------------------------------------------------------------------


def find_phase(name: str) -> "PhaseRun":
    """The function that runs a phase. Each module is imported only when its phase runs, since some import torch."""
    if name == "planning":
        from phases import planning

        return planning.run
    if name == "baseline":
        from phases import baseline

        return baseline.run
    if name == "diagnostics":
        from phases import diagnostics

        return diagnostics.run
    if name == "optimization":
        from phases import optimization

        return optimization.run
    from phases import finalization

    assert name == "finalization", name
    return finalization.run


def make_registry() -> "Registry":
    """The phases, checks and checklists of this installation."""
    import checklists.resolve
    from pipeline.orchestration.phase import Registry

    return Registry(
        phase=find_phase, check=checklists.resolve.resolve_check, checklists=checklists.resolve.CHECKS.parent
    )


def make_hooks(
    log: Callable[[str], None], progress: "MakeProgress | None" = None, show_trials: "ShowTrials | None" = None
) -> "Hooks":
    """The hooks of a run: besides those that show what happens, its report and its tracker."""
    from pipeline.orchestration.phase import Hooks

    track = partial(_track, log)
    return Hooks(log=log, report=_write_report, track=track, progress=progress, show_trials=show_trials)


def _write_report(run: "Run") -> None:
    from pipeline.reporting.page import write_report

    write_report(run.path)


def _track(
    log: Callable[[str], None], run: "Run", config: Mapping[str, Any], warn: Callable[[str], None]
) -> AbstractContextManager[None]:
    from pipeline.tracking.sync_process import mirror_run

    return mirror_run(run.path, config["tracking"], warn, log)


# --- commands --------------------------------------------------------------------------------------------------------


def run_once(overrides: Sequence[str], config_dirs: Sequence[Path], as_json: bool = False) -> int:
    """Execute one run as the overrides request it, print its status, and return the exit code."""
    from pipeline.commands import status
    from pipeline.orchestration.execute import execute_run
    from pipeline.orchestration.run_request import resolve_request
    from pipeline.reporting.terminal import console, print_json, watchers

    screen = console(stderr=as_json)

    def log(text: str) -> None:
        screen.print(visible(text), soft_wrap=True)

    with announced(log, "composing the configuration"):
        request = resolve_request(overrides, config_dirs)
    outcome = execute_run(make_registry(), make_hooks(log, *watchers(screen)), request)
    if as_json:
        print_json(status.summary(outcome.run, outcome.run.state()))
    else:
        status.show(outcome.run, outcome.run.state())
    return outcome.exit_code(request.phase)


def run_sweep(argv: Sequence[str], config_dirs: Sequence[Path], as_json: bool = False) -> int:
    """Execute every job of a sweep as a run of its own, print them ranked, and return the exit code."""
    from pipeline.orchestration.execute import SweepJob
    from pipeline.orchestration.sweep import multirun
    from pipeline.reporting import ranking
    from pipeline.reporting.terminal import console

    screen = console(stderr=as_json)

    def log(text: str) -> None:
        screen.print(visible(text), soft_wrap=True)

    @contextmanager
    def track_sweep(directory: "SweepDirectory", config: Mapping[str, Any]) -> Iterator[None]:
        if config["tracking"]["kind"] == "none":
            yield
            return
        from pipeline.tracking.sweep_run import sweep_run

        with sweep_run(directory, config["tracking"]) as why:
            if why:
                log(f"the tracker is unavailable ({why}); the sweep continues without it")
            yield

    dirs = [str(Path(d).resolve()) for d in config_dirs]
    sweep = multirun(argv, SweepJob(make_registry, partial(_sweep_hooks, as_json), dirs), log, track_sweep)
    return ranking.show(sweep.root, sweep.ends, as_json)


def run_search(overrides: Sequence[str], config_dirs: Sequence[Path], as_json: bool = False) -> int:
    """Search the space that `hparams_search` names, print its trials ranked, and return the exit code."""
    from pipeline.reporting.terminal import console
    from pipeline.search import command, report

    screen = console(stderr=as_json)

    def log(text: str) -> None:
        screen.print(visible(text), soft_wrap=True)

    dirs = [str(Path(d).resolve()) for d in config_dirs]
    return report.show(command.run_search(overrides, dirs, make_registry(), make_hooks(log)), as_json)


def _sweep_hooks(as_json: bool, config: Mapping[str, Any]) -> "Hooks":
    """The hooks of one job of a sweep, in the process of the job: its lines begin with the name of its run."""
    from pipeline.reporting.terminal import print_lines

    name = visible(config["run"]["name"])
    return make_hooks(lambda text: print_lines(f"{name}  {visible(text)}", stderr=as_json))


def run_command(name: str, argv: Sequence[str]) -> int:
    """Run a command of `pipeline/commands/` and return its exit code."""
    if name in ("preflight", "drift", "new"):
        require_current_folder()
    module = import_module(f"pipeline.commands.{name}")
    parser = _Parser(prog=f"python -m pipeline {name}", description=module.__doc__)
    module.add_arguments(parser)
    if name == "diagnose":
        from diagnostics.logs.read import column_map
        from diagnostics.logs.report import diagnose_log

        return int(module.run(parser.parse_args(argv), diagnose_log, column_map))
    if name == "preflight":
        return int(module.run(parser.parse_intermixed_args(argv), _preflight))
    if name in JUDGING:
        return int(module.run(parser.parse_args(argv), make_registry().judge))
    return int(module.run(parser.parse_args(argv)))


def _preflight(model: str, data: str, overrides: Sequence[str], seed: int) -> "PreflightReport":
    from pipeline.sanity_checks.preflight import preflight

    return preflight(make_registry(), model, data, overrides, seed)


def run_worker(argv: Sequence[str]) -> int:
    """Train one trial in this process, or fork the experiments of diagnostics from it."""
    from pipeline.errors import DiskError
    from pipeline.experiments import warm_worker
    from pipeline.runtime.parent_process import die_with_parent
    from pipeline.trials import worker

    if len(argv) != 1:
        raise UserError(fault("worker", "takes one job", got=" ".join(argv), expected="the folder of a job.json"))
    die_with_parent()
    require_current_folder()
    if warm_worker.is_for(Path(argv[0])):
        warm_worker.serve(Path(argv[0]))
        return 0

    from diagnostics.monitor import Monitor
    from pipeline.search import pruning
    from pipeline.trials.progress import TrialProgress

    try:
        folder = Path(argv[0])
        worker.work(folder, lambda: [Monitor(), TrialProgress(folder), *pruning.observers_of(folder)])
    except DiskError as error:
        print(visible_lines("\n".join(error.faults)), file=sys.stderr)
        return os.EX_IOERR  # tells the executor that not the training failed
    return 0


def print_help() -> int:
    print(HELP, end="")
    return 0


def _unknown_command(name: str) -> str:
    """The message for a first word that is no command: what other libraries call so, else the most similar command."""
    from pipeline.config.override_keys import familiar_value, familiar_words
    from pipeline.errors import nearest

    phase = familiar_value("phase", name)
    proposed = phase.overrides[0] if phase else nearest(name, COMMANDS)
    meant = familiar_words()["commands"].get(name.lower()) or proposed or ""
    do = "python -m pipeline --help" if not meant else f"python -m pipeline {meant}"
    return fault("command", "unknown command", got=name, among=COMMANDS, close=meant, do=do)


def select_command(argv: Sequence[str]) -> Callable[[], int]:
    """The function that does what the command line asks for, with its arguments. Raises UserError for an unknown one.

    It is returned instead of called, so that a training has one frame less above it.
    """
    name = argv[0] if argv else ""
    if name in COMMANDS:
        return partial(run_command, name, argv[1:])
    if name == "worker":
        return partial(run_worker, argv[1:])
    if name.isalpha() and name != "help":
        raise UserError(_unknown_command(name))
    from pipeline.config.arguments import parse, words_of_file

    if name.endswith(".yaml") and "=" not in name:
        return select_command([*words_of_file(Path(name)), *argv[1:]])
    arguments = parse(argv)
    if "--help" in arguments.hydra_flags or name in ("", "help"):
        return print_help
    require_current_folder()
    if arguments.hydra_flags:
        from pipeline.config.hydra_queries import answer

        return partial(answer, arguments)
    searches = [word.partition("=")[2] for word in arguments.overrides if word.startswith("hparams_search=")]
    if arguments.multirun and searches and searches[-1] not in ("none", "null"):
        return partial(run_search, arguments.overrides, arguments.config_dirs, arguments.json)
    if arguments.multirun:
        return partial(run_sweep, argv, arguments.config_dirs, arguments.json)
    return partial(run_once, arguments.overrides, arguments.config_dirs, arguments.json)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code. Every fault of the input is one line on stderr."""
    shadowed = import_guard.message()
    if shadowed:
        print(visible_lines(shadowed), file=sys.stderr)
        return 2
    argv = sys.argv[1:] if argv is None else argv
    try:
        with outside_training(), ends_forked_children(), users_faults_named():
            code = select_command(argv)()
            sys.stdout.flush()  # a pipe that was closed raises here, and not while the interpreter exits
            return code
    except FivegateError as error:
        print(visible_lines("\n".join(error.faults)), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as stop:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not cut off the message
        where = stop if isinstance(stop, Interrupted) else "nothing that was recorded is lost"
        again = shlex.join(["python", "-m", "pipeline", *argv])
        print(visible_lines(f"\ninterrupted: {where}  Do: {again}"), file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader closed the pipe, as `| head` does: a record was shown, a phase is not finished
        os._exit(0 if argv[0] in COMMANDS else 1)  # a normal exit would report the broken pipe once more


if __name__ == "__main__":
    sys.exit(main())
