"""The process that keeps the trackers up to date: a training never waits for them, and does not import MLflow.

It reads the ledger and the newest checkpoints from disk, so that a training appears in the tracker about as often as it
is checkpointed. When it dies, nothing is lost: the next command on the run sends what is missing.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import FivegateError
from pipeline.import_guard import child_pythonpath
from pipeline.run_store.lock import end_if_forked_from
from pipeline.runtime.announce import announced
from pipeline.runtime.parent_process import die_with_parent
from pipeline.tracking.connection import TrackerUnavailable, TrackingConfig
from pipeline.tracking.mirror import mirror
from pipeline.tracking.tensorboard import write_run

FIRST_S = 60.0  # until the first look at the run, which imports MLflow: a short training does not pay for that
PAUSE_S = 5.0  # between two looks at the run,
BUSY_SHARE = 20.0  # and at least this many times the last look's duration: at most a twentieth of a core is used
UNAVAILABLE_S = 60.0  # until an unavailable tracker is tried again
END_TIMEOUT_S = 75.0  # for sending the rest when the run is over,
INTERRUPT_TIMEOUT_S = 10.0  # and when a person interrupted it
# Not passed as an argument, which every user of the machine can see: it may have a password.
URI_VARIABLE = "FIVEGATE_TRACKING_URI"

Fingerprint = tuple[tuple[str, int], ...]


@contextmanager
def mirror_run(
    run_dir: Path,
    config: TrackingConfig,
    unavailable: Callable[[str], None],
    log: Callable[[str], None] = lambda text: None,
) -> Iterator[None]:
    """Keep the tracker up to date inside the block, and send the rest after it; call `unavailable(why)` on failure.

    The end takes about a minute at most, whatever the tracker does, and seconds after an interrupt. `log` is told of it
    where it takes long.
    """
    trackers = trackers_of(config)
    if not trackers:
        yield
        return
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_RUN_ID"}
    environment |= {"PYTHONPATH": child_pythonpath(), "OMP_NUM_THREADS": "1", URI_VARIABLE: config.get("uri") or ""}
    command = [sys.executable, "-P", "-m", "pipeline.tracking.sync_process", str(run_dir), *trackers]
    process = subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    timeout, owner = END_TIMEOUT_S, os.getpid()
    try:
        yield
    except KeyboardInterrupt:
        timeout = INTERRUPT_TIMEOUT_S
        raise
    finally:
        end_if_forked_from(owner)  # a child of the user's code would end the process of its parent
        with announced(log, f"sending the rest of the run to the tracker, for {timeout:.0f} s at most"):
            why = _finish(process, timeout)
        if why:
            unavailable(why)


def _finish(process: subprocess.Popen[bytes], timeout: float) -> str:
    """Let the process send the rest and end it; return why not everything was sent, an empty string where it was."""
    try:
        # A message instead of closing the pipe, which a process that was forked meanwhile may keep open.
        answer, _ = process.communicate(b"over\n", timeout=timeout)
        return (
            str(json.loads(answer)["unavailable"]) if answer else f"the tracker's process exited {process.returncode}"
        )
    except subprocess.TimeoutExpired:
        return f"the tracker did not answer within {timeout:.0f} seconds"
    finally:
        process.kill()
        process.wait()


def trackers_of(config: TrackingConfig) -> list[str]:
    """Return the trackers of the section `tracking`: mlflow, tensorboard, both or none."""
    kinds = {"mlflow": config.get("kind", "mlflow") == "mlflow", "tensorboard": bool(config.get("tensorboard"))}
    return [name for name, chosen in kinds.items() if chosen]


def send(run_dir: Path, uri: str | None, trackers: Sequence[str], running: bool) -> str:
    """Bring every tracker up to date; return why one could not be, an empty string where all are."""
    reasons = []
    for tracker in trackers:
        try:
            if tracker == "mlflow":
                mirror(run_dir, uri, running=running)
            else:
                write_run(run_dir)
        except (TrackerUnavailable, FivegateError) as error:
            reasons.append(str(error))
    return "; ".join(reasons)


def follow(run_dir: Path, uri: str | None, trackers: Sequence[str] = ("mlflow",)) -> str:
    """Mirror the run when it changed, until standard input is readable, then the rest; return why that failed."""
    sent: Fingerprint = ()
    pause, over = FIRST_S, False
    while True:
        over = _is_over(pause)
        began, current = time.monotonic(), _fingerprint(run_dir)
        why = ""
        if current and (over or current != sent):
            why = send(run_dir, uri, trackers, running=not over)
            sent = sent if why else current
        if over or (why and _is_over(0.0)):  # no second try when the run ended during a failed one
            return why
        pause = UNAVAILABLE_S if why else max(PAUSE_S, BUSY_SHARE * (time.monotonic() - began))


def _is_over(timeout: float) -> bool:
    """Wait at most `timeout` seconds for the end of the run."""
    return bool(select.select([sys.stdin], [], [], timeout)[0])


def _fingerprint(run_dir: Path) -> Fingerprint:
    """Return what changes whenever the run does; empty before it has a plan, when there is nothing to send."""
    if not any(run_dir.glob("plan/*.yaml")):
        return ()
    times = []
    for path in (run_dir / "ledger.jsonl", *run_dir.rglob("history.npz")):
        try:
            times.append((str(path), path.stat().st_mtime_ns))
        except FileNotFoundError:
            continue
    return tuple(sorted(times))


def main() -> None:
    """Run the process. The parent says when to end: a signal that a terminal sends to the whole group is ignored."""
    die_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.nice(10)
    answer = os.dup(1)
    os.dup2(2, 1)  # what MLflow or a plugin of it prints, now or at exit, is not part of the answer
    try:
        why = follow(Path(sys.argv[1]), os.environ.pop(URI_VARIABLE, None) or None, sys.argv[2:])
    except Exception as error:  # MLflow and its plugins may raise anything
        why = f"{type(error).__name__}: {error}"
    sys.stdout.flush()
    os.dup2(answer, 1)
    sys.stdout.write(json.dumps({"unavailable": why}))
    sys.stdout.flush()
    os.dup2(2, 1)


if __name__ == "__main__":
    main()
