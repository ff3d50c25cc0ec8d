"""The warm worker: a process that imports torch and reads the data once, and forks a process for every experiment.

`python -m pipeline worker FOLDER` becomes one if the folder has a `worker.json`. It reads names of jobs from its
standard input, one per line; the job is `FOLDER/<name>/job.json`. For each one it forks a process that writes the
result into the folder of the job, and answers with a line `<name> <exit code>` when that process has ended. It has one
thread, and nothing runs in parallel before a fork: a forked process has no threads but the one that forked it.
"""

from __future__ import annotations

import os
import selectors
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from pipeline.errors import FivegateError
from pipeline.experiments.jobs import MARK, READY
from pipeline.run_store import permits
from pipeline.runtime.parent_process import die_with_parent
from pipeline.trials.worker import read_job, run_around

if TYPE_CHECKING:
    from pipeline.data.dataset import Data


def is_for(folder: Path) -> bool:
    """Whether the folder is that of experiments, and not that of one trial."""
    return (folder / MARK).is_file()


def serve(folder: Path) -> None:
    """Fork a process for every job that is named on the standard input, until that is closed.

    Raises UserError for data that cannot be read, Refused where the ledger does not permit experiments.
    """
    folder = folder.resolve()
    run = run_around(folder)
    permit = permits.probe(run)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # code of the user's own may print

    import torch

    torch.set_num_threads(1)
    from pipeline.data.load import load
    from pipeline.experiments import measure  # noqa: F401  # imported once, before the forks
    from pipeline.trust import grants as trust

    trust.activate_recorded(run.state().trust, run.path, run.overrides)
    data = load(permit.plan.config, tuple(grant["package"] for grant in run.state().trust))
    for split in (data.train, data.val, data.test):
        _ = split.digest  # computed once; every experiment compares it with the plan
    answers.write(f"{READY}\n")
    _fork_jobs(folder, permit, data, answers)


def _fork_jobs(folder: Path, permit: permits.ProbePermit, data: Data, answers: TextIO) -> None:
    """Fork a process for each line, and answer when one has ended; end those that run when there are no more lines."""
    running: dict[int, tuple[str, int]] = {}  # name and id of a process, by the pipe that closes with it
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        unread = b""
        while True:
            for key, _ in selector.select():
                if key.fd != 0:
                    name, pid = running.pop(key.fd)
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    answers.write(f"{name} {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n")
                    continue
                received = os.read(0, 65536)
                if not received:
                    return _kill(pid for _, pid in running.values())
                *lines, unread = (unread + received).split(b"\n")
                for line in lines:
                    read_end, pid = _fork(folder / line.decode(), permit, data)
                    running[read_end] = line.decode(), pid
                    selector.register(read_end, selectors.EVENT_READ)


def _kill(pids: Iterable[int]) -> None:
    """Kill processes and wait for their end."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _fork(job_folder: Path, permit: permits.ProbePermit, data: Data) -> tuple[int, int]:
    """Fork a process that does the job; return the read end of a pipe that closes with it, and its id."""
    read_end, write_end = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        _do_job(job_folder, permit, data)
    os.close(write_end)
    return read_end, pid


def _do_job(job_folder: Path, permit: permits.ProbePermit, data: Data) -> NoReturn:
    """Do the job in the forked process, and end it there: nothing of the parent is cleaned up twice."""
    code = 1
    try:
        die_with_parent()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        from pipeline.experiments.measure import measure

        measure(permit, read_job(job_folder), data, job_folder)
        code = 0
    except FivegateError as error:
        sys.stderr.write("\n".join(error.faults) + "\n")
        sys.stderr.flush()
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    finally:
        os._exit(code)
