"""Signals: a training ends its step and says where it stands, anything else ends; nothing is left that still runs."""

from __future__ import annotations

import json
import os
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
from pipeline.run_store import permits
from pipeline.run_store.job import Delta, Job
from pipeline.run_store.run import Run
from pipeline.runtime import interrupt
from pipeline.runtime.interrupt import Interrupted, catch_signals, outside_training
from pipeline.trials import executor
from tests.conftest import SMALL

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def heard() -> Any:
    """Signals are heard here also where a shell has them ignored for what it runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def process(*words: str | Path, group: bool = False) -> subprocess.Popen[str]:
    """`python -m pipeline ...` in a process of its own, which hears Ctrl-C; with `group` in a group of its own."""
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pipeline", *map(str, words)]
    hears = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), "start_new_session": group}
    return subprocess.Popen(command, env=environment, text=True, **pipes, **hears)


def waited(until: Callable[[], bool], seconds: float = 60) -> None:
    """Until something is so."""
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def signalled(number: signal.Signals) -> None:
    """This process gets a signal, and has got it."""
    os.kill(os.getpid(), number)
    time.sleep(0.01)


# --- in one process --------------------------------------------------------------------------------------------------


def test_a_signal_in_training_only_asks() -> None:
    """SIGTERM and SIGINT ask to stop, SIGUSR1 for a checkpoint; afterwards the former handlers are back."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(n) for n in numbers]
    with catch_signals() as asked:
        signalled(signal.SIGUSR1)
        assert (asked.stop, asked.checkpoint) == (None, True)
        signalled(signal.SIGTERM)
        assert asked.stop == "SIGTERM"
    with catch_signals() as asked:
        signalled(signal.SIGINT)
        assert asked.stop == "SIGINT"
    assert [signal.getsignal(n) for n in numbers] == before


def test_who_asks_again_is_not_kept_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """One Ctrl-C that arrives twice, from the terminal and from the parent, asks once; a later one ends at once."""
    with catch_signals() as asked:
        signalled(signal.SIGINT)
        signalled(signal.SIGTERM)
        assert asked.stop == "SIGINT"
        monkeypatch.setattr(interrupt, "ONE_REQUEST", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signalled(signal.SIGINT)


def test_what_a_shell_ignores_stays_ignored() -> None:
    """A run in the background of a shell is not stopped by the Ctrl-C that is meant for the foreground."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with catch_signals() as asked:
        signalled(signal.SIGINT)
        assert asked.stop is None
        signalled(signal.SIGTERM)
        assert asked.stop == "SIGTERM"


def test_another_thread_hears_nothing() -> None:
    """Training in a thread changes no handler and is asked nothing."""
    before, seen = signal.getsignal(signal.SIGTERM), []

    def trains() -> None:
        with catch_signals() as asked:
            seen.append((asked.stop, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=trains)
    thread.start()
    thread.join()
    assert seen == [(None, before)]


def test_outside_training_a_term_is_a_ctrl_c() -> None:
    """SIGTERM raises KeyboardInterrupt, SIGUSR1 does nothing at all."""
    with outside_training():
        signalled(signal.SIGUSR1)
        with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
            signalled(signal.SIGTERM)


@pytest.mark.parametrize(
    ("stop", "says"),
    [
        (Interrupted("step 120 of 340, epoch 7 of 20; a checkpoint was written"), "step 120 of 340, epoch 7 of 20; a"),
        (KeyboardInterrupt(), "nothing acknowledged is lost"),
    ],
)
def test_an_interrupt_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stop: BaseException, says: str
) -> None:
    """Exit 130 and one line: where the training stands, and the command that continues."""

    def dispatch(words: list[str]) -> int:
        raise stop

    monkeypatch.setattr("pipeline.__main__.dispatch", dispatch)
    assert main(["phase=baseline", "run.name=a b"]) == 130
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"interrupted: {says}") and said.count("\n") == 0
    assert said.endswith("  Do: python -m pipeline phase=baseline 'run.name=a b'")


# --- real processes --------------------------------------------------------------------------------------------------

LONG = ("phase=baseline", *SMALL, "trainer.max_epochs=20000")


def baseline_trains(root: Path) -> Callable[[], bool]:
    ledger = root / "runs" / "digits" / "ledger.jsonl"
    return lambda: ledger.exists() and b'"phase":"baseline"' in ledger.read_bytes()


@pytest.mark.process
def test_a_term_stops_a_training_as_ctrl_c_does(own_folder: Path) -> None:
    """SIGUSR1 does no harm; SIGTERM gives exit 130, one line with the command, and `stopped` in the ledger."""
    running = process(*LONG)
    waited(baseline_trains(own_folder))
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


@pytest.mark.process
def test_a_worker_stops_cleanly(planned: Run) -> None:
    """A worker that gets SIGINT ends with exit 130 and one line; its folder keeps the job."""
    folder = planned.inside("optimization", "1", "trials", "t")
    folder.mkdir(parents=True)
    delta = Delta(overrides={"trainer.max_epochs": 20000})
    (folder / "job.json").write_text(json.dumps(Job(permits.train(planned).plan.digest, "trial", delta).to_json()))
    running = process("worker", folder)
    time.sleep(4)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)

    assert running.returncode == 130, err
    assert err.strip().startswith("interrupted: ") and err.strip().count("\n") == 0 and "Traceback" not in err
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
def test_an_interrupted_parent_leaves_no_worker(own_folder: Path, number: signal.Signals, whole_group: bool) -> None:
    """Whether the terminal signals the group or somebody the parent alone: workers end, no further one starts."""
    hears = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), "start_new_session": True}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PARENT, SLEEPER]
    parent = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, **hears)  # type: ignore[call-overload]
    started = Path("trials")
    waited(lambda: len(list(started.glob("*/started"))) == 2)
    asked = time.monotonic()
    (os.killpg if whole_group else os.kill)(parent.pid, number)
    _, err = parent.communicate(timeout=30)

    assert (parent.returncode, err) == (130, "") and time.monotonic() - asked < 3
    assert sorted(p.parent.name for p in started.glob("*/stopped")) == ["t0", "t1"]
    assert sorted(p.parent.name for p in started.glob("*/started")) == ["t0", "t1"]


def ran(folder: Path, job: Job) -> list[str]:
    """What a worker finds in the folder of its job."""
    found: list[str] = []

    def worker(at: Path, threads: int) -> subprocess.CompletedProcess[str]:
        found.extend(sorted(p.name for p in at.iterdir()))
        (at / "result.json").write_text("{}")
        return subprocess.CompletedProcess([], 0, "", "")

    executor._run_one(executor.Trial("t", job, folder), 1, worker)
    return found


def test_a_stopped_trial_is_taken_up(own_folder: Path) -> None:
    """The folder of the same job keeps its checkpoints, another job's is removed, a finished job is not run again."""
    folder, mine, other = own_folder / "t", Job("plan", "trial", seed_index=1), Job("plan", "trial", seed_index=2)
    folder.mkdir()
    (folder / "job.json").write_text(json.dumps(mine.to_json()))
    (folder / "checkpoint").touch()

    assert ran(folder, mine) == ["checkpoint", "job.json"]
    assert ran(folder, mine) == []
    assert ran(folder, other) == ["job.json"]


@pytest.mark.process
def test_a_worker_dies_with_its_parent(planned: Run) -> None:
    """Killed without a word, the parent leaves no worker that goes on writing."""
    script = (
        "import subprocess, sys, time\n"
        "worker = subprocess.Popen([sys.executable, '-c', 'import time; from pipeline.trials.worker import "
        "die_with_parent; die_with_parent(); print(1, flush=True); time.sleep(60)'], stdout=subprocess.PIPE)\n"
        "worker.stdout.readline(); print(worker.pid, flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    waited(lambda: not Path(f"/proc/{pid}").exists() or "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text(), 5)
