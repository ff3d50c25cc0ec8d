"""Signals: training finishes its step and writes a checkpoint, everything else ends, and no process is left over."""

from __future__ import annotations

import html
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.__main__ import main
from pipeline.checkpoints import generation
from pipeline.run_store import permits
from pipeline.run_store.job import Delta, Job
from pipeline.run_store.run import Run
from pipeline.runtime import interrupt
from pipeline.runtime.interrupt import Interrupted, StopSignal, catch_signals, outside_training
from pipeline.trials import executor
from tests.conftest import SMALL

ROOT = Path(__file__).resolve().parents[1]


pytestmark = pytest.mark.usefixtures("default_sigint")


def start_pipeline(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start `python -m pipeline ...` in a process of its own, which Ctrl-C interrupts."""
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pipeline", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, text=True, **pipes)


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until the condition holds; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def send_signal(number: signal.Signals) -> None:
    """Send a signal to this process and wait until its handler has run."""
    os.kill(os.getpid(), number)
    time.sleep(0.01)


# --- in one process --------------------------------------------------------------------------------------------------


def test_catch_signals_records_requests() -> None:
    """SIGTERM and SIGINT request a stop and SIGUSR1 a checkpoint; the former handlers are restored afterwards."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(n) for n in numbers]
    with catch_signals() as request:
        send_signal(signal.SIGUSR1)
        assert (request.stop, request.checkpoint) == (None, True)
        send_signal(signal.SIGTERM)
        assert request.stop == "SIGTERM"
    with catch_signals() as request:
        send_signal(signal.SIGINT)
        assert request.stop == "SIGINT"
    assert [signal.getsignal(n) for n in numbers] == before


def test_catch_signals_raises_at_second_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """One Ctrl-C that arrives twice, from terminal and parent, is one request; a later one raises at once."""
    with catch_signals() as request:
        send_signal(signal.SIGINT)
        send_signal(signal.SIGTERM)
        assert request.stop == "SIGINT"
        monkeypatch.setattr(interrupt, "REPEAT_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            send_signal(signal.SIGINT)


def test_catch_signals_leaves_ignored_sigint_ignored() -> None:
    """A background job of a shell is not stopped by a Ctrl-C for the foreground job, but by SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with catch_signals() as request:
        send_signal(signal.SIGINT)
        assert request.stop is None
        send_signal(signal.SIGTERM)
        assert request.stop == "SIGTERM"


def test_catch_signals_does_nothing_in_other_threads() -> None:
    """In another thread no handler is changed and no request is recorded."""
    before, seen = signal.getsignal(signal.SIGTERM), []

    def trains() -> None:
        with catch_signals() as request:
            seen.append((request.stop, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=trains)
    thread.start()
    thread.join()
    assert seen == [(None, before)]


def test_outside_training_turns_sigterm_into_keyboard_interrupt() -> None:
    """SIGTERM raises KeyboardInterrupt and SIGUSR1 does nothing."""
    with outside_training():
        send_signal(signal.SIGUSR1)
        with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
            send_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("stop", "says"),
    [
        (Interrupted("step 120 of 340, epoch 7 of 20; a checkpoint was written"), "step 120 of 340, epoch 7 of 20; a"),
        (StopSignal("SIGINT"), "nothing that was recorded is lost"),
    ],
)
def test_main_prints_command_that_continues(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stop: BaseException, says: str
) -> None:
    """The exit code is 130, and one line says where training stopped and which command continues it."""

    def select_command(argv: list[str]) -> int:
        raise stop

    monkeypatch.setattr("pipeline.__main__.select_command", select_command)
    assert main(["phase=baseline", "run.name=a b"]) == 130
    message = capsys.readouterr().err.strip()
    assert message.startswith(f"interrupted: {says}") and message.count("\n") == 0
    assert message.endswith("  Do: python -m pipeline phase=baseline 'run.name=a b'")


# --- real processes --------------------------------------------------------------------------------------------------

LONG = ("phase=baseline", *SMALL, "trainer.max_epochs=20000")


def baseline_trains(root: Path) -> Callable[[], bool]:
    ledger = root / "runs" / "digits" / "ledger.jsonl"
    return lambda: ledger.exists() and b'"phase":"baseline"' in ledger.read_bytes()


@pytest.mark.process
def test_pipeline_stops_at_sigterm(own_folder: Path) -> None:
    """SIGUSR1 does not stop it; SIGTERM gives exit code 130, the command that continues, a ledger entry and a page."""
    running = start_pipeline(*LONG)
    wait_until(baseline_trains(own_folder))
    time.sleep(1)
    running.send_signal(signal.SIGUSR1)
    time.sleep(0.3)
    assert running.poll() is None
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=60)
    run = Run(own_folder / "runs" / "digits")
    failed = run.state().failed

    assert running.returncode == 130, err
    assert "interrupted: " in err and "Do: python -m pipeline phase=baseline" in err and "Traceback" not in err
    assert failed and failed["phase"] == "baseline"
    assert html.escape(failed["why"]) in run.inside("report.html").read_text()


@pytest.mark.process
def test_worker_saves_checkpoint_when_interrupted(planned: Run) -> None:
    """A worker that gets SIGINT in training ends its step, writes a checkpoint and exits with code 130 and one line."""
    folder = planned.inside("optimization", "1", "trials", "t")
    folder.mkdir(parents=True)
    delta = Delta(overrides={"trainer.max_epochs": 20000, "trainer.checkpoint_steps": 1})
    (folder / "job.json").write_text(json.dumps(Job(permits.train(planned).plan.digest, "trial", delta).to_json()))
    worker = start_pipeline("worker", folder)
    wait_until(lambda: bool(generation.generations(folder)))
    worker.send_signal(signal.SIGINT)
    _, err = worker.communicate(timeout=60)

    assert worker.returncode == 130, err
    assert err.strip().count("\n") == 0 and "Traceback" not in err
    match = re.match(r"interrupted: at step (\d+) of \d+, epoch \d+; a checkpoint is written", err.strip())
    assert match, err
    assert generation.state_of(generation.generations(folder)[-1])["step"] == int(match[1]) > 0
    assert (folder / "job.json").exists() and not (folder / "result.json").exists()


# --- the executor ----------------------------------------------------------------------------------------------------

SLEEPER = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def stop(number, frame):
    (folder / "stopped").touch()
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
(folder / "started").touch()
time.sleep(60)
"""
PARENT = """
import pathlib, sys
from pipeline.runtime.interrupt import outside_training
from pipeline.run_store.job import Job
from pipeline.trials import executor
executor._command = lambda folder, threads: ([sys.executable, "-c", sys.argv[1], str(folder)], None)
jobs = [(f"t{i}", Job("", "trial", seed_index=i)) for i in range(5)]
try:
    with outside_training():
        executor.run_jobs(jobs, pathlib.Path("trials"), parallel=2, threads=1, on_finished=print)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("whole_group", [True, False])
def test_executor_stops_workers_when_interrupted(own_folder: Path, number: signal.Signals, whole_group: bool) -> None:
    """Workers end and no further one starts, whether the whole group gets the signal or only the parent."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PARENT, SLEEPER]
    parent = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    started = Path("trials")
    wait_until(lambda: len(list(started.glob("*/started"))) == 2)
    sent = time.monotonic()
    (os.killpg if whole_group else os.kill)(parent.pid, number)
    _, err = parent.communicate(timeout=30)

    assert (parent.returncode, err) == (130, "") and time.monotonic() - sent < 3
    assert sorted(p.parent.name for p in started.glob("*/stopped")) == ["t0", "t1"]
    assert sorted(p.parent.name for p in started.glob("*/started")) == ["t0", "t1"]


def files_seen_by_worker(folder: Path, job: Job) -> list[str]:
    """Return the files that a worker finds in the folder of its job."""
    seen: list[str] = []

    def worker(at: Path, threads: int) -> subprocess.CompletedProcess[str]:
        seen.extend(sorted(p.name for p in at.iterdir()))
        (at / "result.json").write_text("{}")
        return subprocess.CompletedProcess([], 0, "", "")

    executor._run_trial(executor.Trial("t", job, folder), 1, worker)
    return seen


def test_executor_resumes_stopped_trial(own_folder: Path) -> None:
    """Checkpoints of the same job are kept, those of another job are removed, and a finished job is not run again."""
    folder, mine, other = own_folder / "t", Job("plan", "trial", seed_index=1), Job("plan", "trial", seed_index=2)
    folder.mkdir()
    (folder / "job.json").write_text(json.dumps(mine.to_json()))
    (folder / "checkpoint").touch()

    assert files_seen_by_worker(folder, mine) == ["checkpoint", "job.json"]
    assert files_seen_by_worker(folder, mine) == []
    assert files_seen_by_worker(folder, other) == ["job.json"]


@pytest.mark.parametrize("ending", [-9, os.EX_IOERR])
def test_executor_replaces_worker_that_was_killed_once(own_folder: Path, ending: int) -> None:
    """A kill and a full disk say nothing about a training: a second worker takes it up, and a second end counts."""
    endings = [ending, 0]

    def worker(at: Path, threads: int) -> subprocess.CompletedProcess[str]:
        code = endings.pop(0)
        if code == 0:
            (at / "result.json").write_text("{}")
        return subprocess.CompletedProcess([], code, "", "")

    job = Job("plan", "trial")
    taken_up = executor._run_trial(executor.Trial("a", job, own_folder / "a"), 1, worker)
    assert taken_up.died is None and taken_up.interrupted and not endings

    endings = [ending, ending]
    assert executor._run_trial(executor.Trial("b", job, own_folder / "b"), 1, worker).died

    endings = [1]  # the training's own fault is not repeated
    assert executor._run_trial(executor.Trial("c", job, own_folder / "c"), 1, worker).died


@pytest.mark.process
def test_die_with_parent_ends_orphaned_process(planned: Run) -> None:
    """A worker does not outlive a parent that was killed."""
    script = (
        "import subprocess, sys, time\n"
        "worker = subprocess.Popen([sys.executable, '-c', 'import time; from pipeline.runtime.parent_process "
        "import die_with_parent; die_with_parent(); print(1, flush=True); time.sleep(60)'], stdout=subprocess.PIPE)\n"
        "worker.stdout.readline(); print(worker.pid, flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not Path(f"/proc/{pid}").exists() or "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text(), 5)


@pytest.mark.process
@pytest.mark.parametrize("scope", [catch_signals, outside_training])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_forked_child_has_the_default_signals(scope: Callable[[], Any], number: signal.Signals) -> None:
    """A child that the user's code forks ends by a signal, as it would anywhere else; its parent requested nothing."""
    ready, told = os.pipe()
    with scope() as request:
        child = os.fork()
        if child == 0:
            try:
                os.write(told, b"1")
                time.sleep(60)
            except BaseException as error:
                os._exit(130 if type(error) is KeyboardInterrupt else 99)
            os._exit(98)
        os.read(ready, 1)
        os.kill(child, number)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

        assert code == (130 if number == signal.SIGINT else -number)
        assert request is None or not (request.stop or request.checkpoint)


@pytest.mark.process
def test_pool_of_processes_in_user_code_ends() -> None:
    """`multiprocessing.Pool` ends its processes by SIGTERM: inside of a training they end, too."""
    import multiprocessing

    began = time.monotonic()
    with catch_signals(), multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(abs, [-1, -2]) == [1, 2]

    assert time.monotonic() - began < 20
