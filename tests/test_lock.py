"""One process per run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.run_store.lock import RunLock, locked

HOLD = """
import subprocess, sys, time
from pathlib import Path
from pipeline.run_store.lock import RunLock, locked
with RunLock(Path(sys.argv[1])):
    orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"]) if len(sys.argv) > 2 else None
    print(orphan.pid if orphan else 0, flush=True)
    time.sleep(30)
"""


def _holder(folder: Path, *arguments: str) -> tuple[subprocess.Popen, int]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert process.stdout
    return process, int(process.stdout.readline())


@pytest.mark.process
def test_lock_refuses_second_process(tmp_path: Path) -> None:
    """While one process holds a run, another gets one message that names the process."""
    process, _ = _holder(tmp_path)
    try:
        with (
            pytest.raises(UserError, match=f"another process is using this run, got 'process {process.pid}'"),
            RunLock(tmp_path),
        ):
            pass
    finally:
        process.kill()
        process.wait()


@pytest.mark.process
def test_lock_ends_with_killed_process(tmp_path: Path) -> None:
    """After kill -9 of the holder the run is free, although a child of it still lives."""
    import os
    import signal

    process, orphan = _holder(tmp_path, "with a child")
    process.kill()
    process.wait()
    try:
        with RunLock(tmp_path) as lock:
            os.kill(orphan, 0)  # the child is alive
            assert lock.guards(tmp_path / "ledger.jsonl")
    finally:
        os.kill(orphan, signal.SIGKILL)


@pytest.mark.process
def test_lock_refuses_same_process(tmp_path: Path) -> None:
    """The same process is turned away too, and the first lock stays whole."""
    with RunLock(tmp_path):
        with pytest.raises(UserError, match="another process"), RunLock(tmp_path):
            pass
        process = subprocess.run(
            [sys.executable, "-c", HOLD, str(tmp_path)], capture_output=True, text=True, cwd=Path(__file__).parents[1]
        )
        assert "another process is using this run" in process.stderr
    with RunLock(tmp_path):
        pass


def test_locked_excludes_every_other_descriptor(tmp_path: Path) -> None:
    """A second attempt gets nothing until the first descriptor is closed."""
    first = locked(tmp_path)
    assert first is not None and locked(tmp_path) is None

    os.close(first)
    second = locked(tmp_path)
    assert second is not None
    os.close(second)


def test_locked_without_a_path_is_none(tmp_path: Path) -> None:
    """What does not exist cannot be locked, and is not created."""
    assert locked(tmp_path / "gone") is None and not list(tmp_path.iterdir())
