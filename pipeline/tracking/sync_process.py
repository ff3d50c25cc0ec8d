"""The tracker is kept up to date by a process beside the run: training never waits for it, and imports none of it.

It reads the ledger and the newest checkpoints, which are on disk anyway, so that a training shows in the tracker about
as often as it is checkpointed. Nothing is lost with it: what it has not sent is sent by the next command on the run.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import FivegateError
from pipeline.import_guard import child_pythonpath
from pipeline.runtime.parent_process import die_with_parent

FIRST = 60.0  # seconds until the first look, which loads MLflow: a short training does not pay for it
PAUSE = 5.0  # seconds between two looks at the run ...
SHARE = 20.0  # ... and at least so many times what the last look took: a twentieth of a core
AWAY = 60.0  # seconds until a tracker that was away is tried again
LAST = 75.0  # seconds that the rest may take when the run is over ...
AT_ONCE = 10.0  # ... and when somebody asked it to stop
URI = "FIVEGATE_TRACKING_URI"  # what the process is told; arguments, which may hold a password, are shown to everybody


@contextmanager
def following(run_dir: Path, tracking: Mapping[str, Any], away: Callable[[str], None]) -> Iterator[None]:
    """Inside the block the tracker hears of the run, and behind it has all of it; `away(why)` is called where not.

    Takes no longer than about a minute at the end, whatever the tracker does, and seconds when it is interrupted.
    """
    if tracking["kind"] == "none":
        yield
        return
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_RUN_ID"}
    environment |= {"PYTHONPATH": child_pythonpath(), "OMP_NUM_THREADS": "1", URI: tracking["uri"] or ""}
    command = [sys.executable, "-P", "-m", "pipeline.tracking.sync_process", str(run_dir)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
    patience = LAST
    try:
        yield
    except KeyboardInterrupt:
        patience = AT_ONCE
        raise
    finally:
        why = _ended(process, patience)
        if why:
            away(why)


def _ended(process: subprocess.Popen[bytes], patience: float) -> str:
    """The process has sent the rest and is gone; why not all was sent, empty where it was."""
    try:
        # A word says that the run is over: its input stays open where a process that was forked meanwhile lives on.
        out, _ = process.communicate(b"over\n", timeout=patience)
        return str(json.loads(out)["away"]) if out else f"the tracker's process ended with {process.returncode}"
    except subprocess.TimeoutExpired:
        return f"the tracker did not answer within {patience:.0f} seconds"
    finally:
        process.kill()
        process.wait()


def follow(run_dir: Path, uri: str | None) -> str:
    """Mirror the run whenever it changed, until standard input speaks or ends, then the rest; why not, if it failed."""
    from pipeline.tracking.mlflow import TrackerUnavailable, mirror

    seen: object = None
    pause, over = FIRST, False
    while True:
        over = _over(pause)
        began, now = time.monotonic(), _looks(run_dir)
        why = ""
        if now and (over or now != seen):
            try:
                mirror(run_dir, uri, running=not over)
                seen = now
            except (TrackerUnavailable, FivegateError) as error:
                why = str(error)
        if over or (why and _over(0.0)):  # a tracker that is away is not asked once more when the run is over
            return why
        pause = AWAY if why else max(PAUSE, SHARE * (time.monotonic() - began))


def _over(pause: float) -> bool:
    """Whether the run is over, waiting so many seconds for it."""
    return bool(select.select([sys.stdin], [], [], pause)[0])


def _looks(run_dir: Path) -> tuple[Any, ...]:
    """What changes whenever the run does; empty before it has a plan, when there is nothing to tell."""
    if not any(run_dir.glob("plan/*.yaml")):
        return ()
    found = []
    for path in (run_dir / "ledger.jsonl", *run_dir.rglob("history.npz")):
        try:
            found.append((str(path), path.stat().st_mtime_ns))
        except FileNotFoundError:
            continue
    return tuple(sorted(found))


def main() -> None:
    """The process. Its parent tells it when to end; a stop that a terminal sends to everybody is not for it."""
    die_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.nice(10)
    answer = os.dup(1)
    os.dup2(2, 1)  # whatever MLflow or a plugin of it prints, now or at exit, is no answer
    try:
        why = follow(Path(sys.argv[1]), os.environ.pop(URI, None) or None)
    except Exception as error:  # a tracker may die of anything
        why = f"{type(error).__name__}: {error}"
    sys.stdout.flush()
    os.dup2(answer, 1)
    sys.stdout.write(json.dumps({"away": why}))
    sys.stdout.flush()
    os.dup2(2, 1)


if __name__ == "__main__":
    main()
