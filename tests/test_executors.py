"""Executors: the same trials on this machine, as jobs of submitit and as tasks of Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.compose import compose
from pipeline.errors import UserError
from pipeline.executors.remote_worker import RemoteWorker
from pipeline.executors.settings import MOST_WAITING, ExecutorSettings
from pipeline.executors.submitit_jobs import SubmititWorkers
from pipeline.run_store import permits
from pipeline.run_store.job import Delta, Job
from pipeline.run_store.run import Run
from pipeline.runtime.threads import cores
from pipeline.trials import executor
from pipeline.trials.executor import Trial, run_jobs, start_jobs
from tests.integrations import FOLDER, add_packages

LOCAL_SUBMITIT = ExecutorSettings(kind="submitit", cluster="local")
# A worker that says that it began, and ends at SIGTERM as after its running step.
PATIENT = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def stop(number, frame):
    (folder / "stopped").touch()
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
(folder / "started").touch()
time.sleep(60)
"""


def patient(folder: Path, threads: int) -> tuple[list[str], dict[str, str]]:
    return [sys.executable, "-c", PATIENT, str(folder.resolve())], {}


def started(folder: Path) -> bool:
    deadline = time.monotonic() + 60
    while not (folder / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return (folder / "started").exists()


def weights_of(run: Run, name: str, parallel: int, settings: ExecutorSettings) -> list[object]:
    """The weights of two short trainings, in the order of their jobs."""
    plan = permits.train(run).plan.digest
    jobs = [(f"t{index}", Job(plan, "trial", Delta({"optimizer.lr": 0.01}), index, 8)) for index in (10, 11)]
    ended: list[str] = []

    def note(trial: Trial) -> None:
        ended.append(trial.id)

    trials = run_jobs(jobs, run.inside(name), parallel=parallel, threads=1, on_finished=note, settings=settings)
    assert ended == ["t10", "t11"] and [trial.died for trial in trials] == [None, None]
    return [trial.result["weights"] for trial in trials]


@given(threads=st.integers(0, 64), setting=st.one_of(st.just("auto"), st.integers(1, 100)))
def test_settings_let_as_many_workers_run_as_fit(threads: int, setting: int | str) -> None:
    """A number is taken as it is; `auto` fills the cores of this machine, and leaves those of a cluster to it."""
    for settings in (ExecutorSettings(), LOCAL_SUBMITIT):
        parallel = settings.parallel(setting, threads)
        assert parallel == (setting if setting != "auto" else max(1, cores() // max(1, threads)))
    expected = MOST_WAITING if setting == "auto" else setting
    assert ExecutorSettings(kind="ray").parallel(setting, threads) == expected


@pytest.mark.parametrize("kind", ["local", "submitit", "ray"])
def test_settings_are_those_of_the_config(kind: str) -> None:
    """Every option of the group is one that the executors take."""
    settings = ExecutorSettings.from_config(compose([f"executor={kind}"]))
    assert (settings.kind, settings.cluster, settings.address) == (kind, "slurm", None)
    assert ExecutorSettings.from_config({}) == ExecutorSettings()


def test_executor_changes_no_plan(planned: Run) -> None:
    """Another executor is no change of a frozen plan; later phases compute where the command says."""
    from pipeline.orchestration.run_request import resolve_request
    from pipeline.run_store import plan as plans

    named = [f"run.name={planned.name}", f"run.root={planned.path.parent}"]
    plan = plans.load(planned)
    request = resolve_request([*named, "phase=diagnostics", "executor=submitit", "executor.cluster=local"], [])
    assert request.config["executor"]["kind"] == "submitit" and plan.config["executor"] == {"kind": "local"}
    assert plans.changes_from(plan, request.config) == {}
    assert resolve_request([*named, "phase=diagnostics"], []).config["executor"] == {"kind": "local"}
    assert not resolve_request([*named, "phase=baseline", "executor=submitit"], []).changed


def test_submitit_names_what_it_does_not_know(tmp_path: Path) -> None:
    """A parameter that submitit does not have, and a Slurm that is not there, are mistakes with a message."""
    wrong = ExecutorSettings(kind="submitit", cluster="local", parameters={"no_such_one": 1})
    with pytest.raises(UserError, match=r"executor: cannot be used: .*no_such_one"):
        SubmititWorkers(wrong, tmp_path, patient)
    with pytest.raises(UserError, match=r"executor: cannot be used: .*Do: .*executor\.cluster=local"):
        SubmititWorkers(ExecutorSettings(kind="submitit"), tmp_path, patient)


def test_ray_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray is an extra: without it the message says how to install it."""
    from pipeline.executors.ray_tasks import RayTasks

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"executor: needs Ray, which is not installed  Do: .*fivegate\[ray\]"):
        RayTasks(ExecutorSettings(kind="ray"), patient)


@pytest.mark.process
def test_remote_worker_returns_how_its_process_ended() -> None:
    """Exit code, output and the signal that killed it come back; its variables are added to those of the machine."""
    code = "import os; print(os.environ['A'], 'MLFLOW_RUN_ID' in os.environ, bool(os.environ['PATH'])); os._exit(3)"
    assert RemoteWorker((sys.executable, "-c", code), {"A": "b"})() == (3, "b False True\n", "")
    killed = RemoteWorker((sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"), {})
    assert killed()[0] == -signal.SIGKILL


@pytest.mark.process
def test_submitit_gives_the_results_of_local_workers(planned: Run) -> None:
    """The same jobs have the same weights, whatever the executor and the number of workers."""
    local = weights_of(planned, "one", 1, ExecutorSettings())
    assert local == weights_of(planned, "two", 2, ExecutorSettings())
    assert local == weights_of(planned, "submitit", 2, LOCAL_SUBMITIT)


@pytest.mark.process
def test_submitit_stops_its_jobs(tmp_path: Path) -> None:
    """A cancelled job passes the request on: its worker ends as at SIGTERM, and no other job is submitted."""
    workers = SubmititWorkers(LOCAL_SUBMITIT, tmp_path / "jobs", patient)
    codes: list[int] = []
    folder = tmp_path / "t"
    folder.mkdir()
    waiting = threading.Thread(target=lambda: codes.append(workers.run(folder, 1).returncode))
    waiting.start()
    assert started(folder)
    workers.stop(signal.SIGTERM)
    waiting.join(timeout=60)
    assert (folder / "stopped").exists() and codes and codes[0] != 0
    with pytest.raises(CancelledError):
        workers.run(folder, 1)


REQUEST_AT_START = """
import os, signal, subprocess, sys
from pipeline.executors.remote_worker import RemoteWorker

class Popen(subprocess.Popen):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        os.kill(os.getpid(), signal.SIGTERM)

subprocess.Popen = Popen
print(RemoteWorker((sys.executable, "-c", "import time; time.sleep(60)"), {})()[0])
"""


@pytest.mark.process
def test_remote_worker_passes_on_a_request_that_comes_while_it_starts() -> None:
    """A request to stop between the start of the worker and the next line reaches the worker."""
    job = subprocess.run([sys.executable, "-c", REQUEST_AT_START], capture_output=True, text=True, timeout=50)
    assert (job.returncode, job.stdout.strip()) == (0, str(-signal.SIGTERM)), job.stderr


@pytest.mark.process
def test_submitit_says_that_a_job_was_killed(tmp_path: Path) -> None:
    """A job whose process is gone counts as killed, so that its training is taken up once more."""

    def suicidal(folder: Path, threads: int) -> tuple[list[str], dict[str, str]]:
        code = "import os; os.kill(os.getppid(), 9)"  # the job of submitit itself
        return [sys.executable, "-c", code], {}

    ended = SubmititWorkers(LOCAL_SUBMITIT, tmp_path, suicidal).run(tmp_path, 1)
    assert ended.returncode == -signal.SIGKILL and ended.stderr


@pytest.mark.process
@pytest.mark.integration
def test_ray_gives_the_results_of_local_workers(planned: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real cluster on this machine trains the same jobs to the same weights, and is ended afterwards."""
    add_packages(monkeypatch, "ray")
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(FOLDER / "packages"))))
    monkeypatch.setenv("PYTHONPATH", path)
    local = weights_of(planned, "one", 1, ExecutorSettings())
    assert local == weights_of(planned, "ray", 2, ExecutorSettings(kind="ray"))
    import ray  # type: ignore[import-not-found, unused-ignore]

    assert not ray.is_initialized()


@pytest.mark.process
@pytest.mark.integration
def test_ray_stops_its_tasks_and_says_that_one_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancelled task ends its worker; a task whose process was killed counts as killed."""
    add_packages(monkeypatch, "ray")
    monkeypatch.setenv("PYTHONPATH", str(FOLDER / "packages"))
    from pipeline.executors.ray_tasks import RayTasks

    def suicidal(folder: Path, threads: int) -> tuple[list[str], dict[str, str]]:
        return [sys.executable, "-c", "import os; os.kill(os.getppid(), 9)"], {}

    tasks = RayTasks(ExecutorSettings(kind="ray"), patient)
    try:
        codes: list[int] = []
        waiting = threading.Thread(target=lambda: codes.append(tasks.run(tmp_path, 1).returncode))
        waiting.start()
        assert started(tmp_path)
        tasks.stop(signal.SIGTERM)
        waiting.join(timeout=60)
        assert (tmp_path / "stopped").exists() and codes and codes[0] != 0
        assert RayTasks(ExecutorSettings(kind="ray"), suicidal).run(tmp_path, 1).returncode == -signal.SIGKILL
    finally:
        tasks.close()


@contextmanager
def interrupted_at_line(number: int) -> Iterator[list[int]]:
    """Inside the block, Ctrl-C comes before the line of this number; the list counts the lines that are left."""
    left, tracer = [number], sys.gettrace()

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if event == "line":
            left[0] -= 1
            if left[0] == -1:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        yield left
    finally:
        sys.settrace(tracer)


def test_start_jobs_ends_wherever_it_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C before any line of the loop over the trials leaves no lock closed: block and threads end."""
    monkeypatch.setattr(executor, "_run_trial", lambda trial, threads, run: trial)
    jobs, number = [(name, Job("plan", "trial")) for name in "abcd"], 0
    before = threading.active_count()
    while True:
        try:
            with start_jobs(jobs, tmp_path, parallel=2, threads=1) as trials, interrupted_at_line(number) as left:
                names = [trial.id for trial in trials]
            if left[0] >= 0:
                break
        except KeyboardInterrupt:
            names = []
        number += 1

    assert names == ["a", "b", "c", "d"] and number > 20
    assert threading.active_count() == before
