"""One process per run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoints.writer import Writer
from pipeline.errors import UserError
from pipeline.release import verify
from pipeline.run_store import files
from pipeline.run_store.ledger import read_ledger
from pipeline.run_store.lock import RunLock, ends_forked_children, locked, sole_writer
from pipeline.run_store.run import Run, opened
from pipeline.trials.executor import start_jobs
from tests.conftest import SMALL, go

HOLD = """
import subprocess, sys, time
from pathlib import Path
from pipeline.run_store.ledger import read_ledger
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


def exit_code_of_child(work: Callable[[], None]) -> int:
    """The exit code of a forked child that does this work; 99 where it was not ended."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.process
def test_ledger_is_not_written_by_forked_child(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A child that appends to the ledger that it inherited ends, is named, and the ledger stays its parent's."""
    run = Run.at(tmp_path, "demo")
    with opened(run) as ledger:
        assert exit_code_of_child(lambda: ledger.append("job.finished", {"by": "child"})) == 1
        ledger.append("job.finished", {"by": "parent"})

    assert [e["data"].get("by") for e in read_ledger(run.ledger_path)] == [None, "parent"]
    error = capfd.readouterr().err
    assert "test_lock.py:" in error and "the child process forked here came back into the pipeline" in error


@pytest.mark.process
def test_files_of_run_are_not_written_by_forked_child(tmp_path: Path) -> None:
    """Whatever a child does to the files of its parent's run or job, nothing is changed; other folders are its own."""
    (tmp_path / "run").mkdir()
    for scope in (RunLock, sole_writer):
        with scope(tmp_path / "run"):
            kept = tmp_path / "run" / "kept"
            files.write_text(kept, "by the parent")
            for work in (
                partial(files.write_text, kept, "by the child"),
                partial(files.append_line, kept, b"by the child"),
                partial(files.remove, kept),
                partial(files.truncate, kept, 0),
                partial(files.remove_folder, kept.parent),
                partial(files.folder, kept.with_name("new")),
            ):
                assert exit_code_of_child(work) == 1
            assert exit_code_of_child(partial(files.write_text, tmp_path / "other", "by the child")) == 99
            assert kept.read_text() == "by the parent" and not kept.with_name("new").exists()
    assert (tmp_path / "other").read_text() == "by the child"


@pytest.mark.process
@pytest.mark.parametrize(
    "scope",
    [
        RunLock, sole_writer, lambda folder: ends_forked_children(), lambda folder: closing(Writer(folder)),
        lambda folder: start_jobs([], folder, parallel=1, threads=1),
    ],
    ids=["lock", "sole writer", "command", "checkpoints", "trials"],
)  # fmt: skip
@pytest.mark.parametrize(("error", "code"), [(None, 1), (SystemExit(7), 7), (SystemExit(), 0), (ValueError("no"), 1)])
def test_forked_child_ends_where_it_leaves_a_scope_of_its_parent(
    tmp_path: Path, scope: Callable[[Path], Any], error: BaseException | None, code: int
) -> None:
    """A child never gets behind a block that its parent entered; its `sys.exit` keeps its exit code."""

    block = scope(tmp_path)
    block.__enter__()

    def leave() -> None:
        try:
            if error:
                raise UserError("as the pipeline words it") from error
        finally:
            block.__exit__(*sys.exc_info())

    assert exit_code_of_child(leave) == code
    block.__exit__(None, None, None)


FORKING = """
import os, sys
from torch import nn

class Net(nn.Sequential):
    def __init__(self, ends):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
        self.ends, self.calls = ends, 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 30 and os.fork() == 0:
            if self.ends == "exit":
                sys.exit(3)
            if self.ends == "raise":
                raise ValueError("in the child")
        return super().forward(x)
"""


@pytest.mark.process
@pytest.mark.parametrize("ends", ["return", "exit", "raise"])
def test_run_is_intact_after_forward_forked(own_folder: Path, monkeypatch: pytest.MonkeyPatch, ends: str) -> None:
    """However a child of the user's `forward` ends, the run is that of the parent: trained, and verified."""
    monkeypatch.syspath_prepend(own_folder)
    (own_folder / "forking.py").write_text(FORKING)
    monkeypatch.delitem(sys.modules, "forking", raising=False)
    owner, model = os.getpid(), ("~model", "+model._target_=forking.Net", f"+model.ends={ends}", "trust=[forking]")
    try:
        outcome = go(own_folder / "runs", "phase=baseline", *SMALL, *model, "task.target=0.1")
    finally:
        if os.getpid() != owner:
            os._exit(99)
    assert outcome.gate == "open"
    count, problems = verify.faults(outcome.run)
    assert not problems and count == len(read_ledger(outcome.run.ledger_path))
