"""Every file appears whole or not at all, whichever system call fails or kills."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.run_store import files

WRITE = """
import sys
from pathlib import Path
from pipeline.run_store import files
files.write_bytes(Path(sys.argv[1]), b'new' * 999)
"""


def _calls(path: Path) -> int:
    """How many fault points one write passes."""
    seen: list[str] = []

    def hook(operation: str, _: Path) -> bool:
        seen.append(operation)
        return False

    with files.fault_points(hook):
        files.write_bytes(path, b"new")
    return len(seen)


def test_write_bytes_is_read_again(tmp_path: Path) -> None:
    """A write makes the folders it needs and leaves nothing beside the file."""
    path = tmp_path / "a" / "b.txt"

    files.write_text(path, "text")

    assert path.read_text() == "text"
    assert list(path.parent.iterdir()) == [path]


def synced_paths(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files and folders that are synced to the disk from now on, in order; the real call runs."""
    paths: list[Path] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        paths.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    return paths


@pytest.mark.skipif(sys.platform != "linux", reason="reads the names of open files from /proc")
def test_writes_sync_the_file_and_then_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file and its name outlast a power cut: what is written is synced before the folder that holds its name."""
    paths = synced_paths(monkeypatch)

    files.write_text(tmp_path / "file", "text")
    assert len(paths) == 2 and paths[0].parent == tmp_path and paths[1] == tmp_path

    paths.clear()
    files.append_line(tmp_path / "log", b"line\n")  # a new name
    files.append_line(tmp_path / "log", b"line\n")
    files.truncate(tmp_path / "log", 5)
    assert paths == [tmp_path / "log", tmp_path, tmp_path / "log", tmp_path / "log"]

    paths.clear()
    temporary = tmp_path / ".folder.tmp"
    temporary.mkdir()
    (temporary / "inside").write_text("text")
    files.commit_folder(temporary, tmp_path / "folder")
    assert paths == [temporary / "inside", temporary, tmp_path]


@pytest.mark.parametrize("error", ["ENOSPC", "EROFS", "EIO"])
def test_write_failure_changes_nothing(tmp_path: Path, error: str) -> None:
    """Whichever call of a write the disk refuses: the old content stands, and one message says why."""
    import errno

    path = tmp_path / "file"
    files.write_bytes(path, b"old")
    total = _calls(tmp_path / "other")
    assert total == 5

    for k in range(total - 1):  # the last call syncs the folder: by then the new file stands
        left = iter(range(k + 1))

        def hook(operation: str, _: Path, left=left, k=k) -> bool:
            if next(left, None) == k:
                raise OSError(getattr(errno, error), os.strerror(getattr(errno, error)))
            return False

        with files.fault_points(hook), pytest.raises(UserError, match="file: cannot write, got"):
            files.write_bytes(path, b"new")
        assert path.read_bytes() == b"old"
        assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "other"]


@pytest.mark.process
def test_write_bytes_is_atomic_under_kill(tmp_path: Path) -> None:
    """SIGKILL at each call of a write, in a real process: the file is the old one or the new one, never between."""
    path = tmp_path / "file"
    seen = set()
    for k in range(1, 6):
        files.write_bytes(path, b"old")
        environment = {**os.environ, "FIVEGATE_FAULT": f"kill@{k}", "PYTHONPATH": str(Path(files.__file__).parents[2])}

        ended = subprocess.run([sys.executable, "-c", WRITE, str(path)], env=environment)

        assert ended.returncode == -9
        assert path.read_bytes() in (b"old", b"new" * 999)
        seen.add(path.read_bytes())
    assert len(seen) == 2


def test_commit_folder_is_one_rename(tmp_path: Path) -> None:
    """A folder that is built aside replaces the old one as a whole."""
    final, temporary = tmp_path / "final", tmp_path / ".tmp"
    files.write_text(final / "old", "")
    files.write_text(temporary / "new", "")

    files.commit_folder(temporary, final)

    assert [p.name for p in final.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["final"]


COMMIT = """
import sys
from pathlib import Path
from pipeline.run_store import files
if "renames" in sys.argv:
    files._exchange = lambda one, other: False
final = Path(sys.argv[1])
temporary = final.with_name(f".{final.name}.1.tmp")
for name in ("a", "b"):
    files.write_text(temporary / name, "new")
files.commit_folder(temporary, final)
"""


@pytest.mark.process
@pytest.mark.parametrize("way", ["exchange", "renames"])
def test_commit_folder_is_reachable_after_kill(tmp_path: Path, way: str) -> None:
    """SIGKILL at each call of a commit, with and without an exchange of names: old or new, then healed by the next."""
    outcomes = []
    for k in range(1, 99):
        final = tmp_path / str(k) / "final"
        for name in ("a", "b"):
            files.write_text(final / name, "old")
        arguments = [sys.executable, "-c", COMMIT, str(final), way]
        here = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[2])}

        ended = subprocess.run(arguments, env={**here, "FIVEGATE_FAULT": f"kill@{k}"})
        standing = [p for p in (final, *final.parent.glob(".final.*.old")) if p.exists()]

        assert way == "renames" or final.exists()
        assert len({f.read_text() for f in standing[0].iterdir()}) == 1 and len(list(standing[0].iterdir())) == 2
        outcomes.append((final.exists(), (standing[0] / "a").read_text()))
        subprocess.run(arguments, env=here, check=True)
        assert [p.name for p in final.parent.iterdir()] == ["final"] and (final / "b").read_text() == "new"
        if ended.returncode == 0:
            break
    assert ended.returncode == 0 and {was for _, was in outcomes} == {"old", "new"}
    assert ((False, "old") in outcomes) == (way == "renames")


def test_commit_folder_restores_name_after_kill(tmp_path: Path) -> None:
    """What a commit finds aside is put back before it begins, so that a commit that fails then loses nothing."""
    files.write_text(tmp_path / ".final.7.old" / "file", "old")
    files.write_text(tmp_path / ".final.8.tmp" / "file", "half")
    files.write_text(tmp_path / ".new" / "file", "new")

    def refuse(operation: str, path: Path) -> bool:
        if operation == "fsync":
            raise OSError(28, "No space left on device")
        return False

    with files.fault_points(refuse), pytest.raises(UserError, match="cannot commit"):
        files.commit_folder(tmp_path / ".new", tmp_path / "final")

    assert sorted(p.name for p in tmp_path.iterdir()) == [".new", "final"]
    assert (tmp_path / "final" / "file").read_text() == "old"


def test_commit_folder_restores_name_after_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where names cannot be exchanged and the disk refuses the new name, the old folder has its own again."""
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    files.write_text(tmp_path / "final" / "file", "old")
    files.write_text(tmp_path / ".new" / "file", "new")
    renames: list[Path] = []

    def refuse(operation: str, path: Path) -> bool:
        if operation == "rename":
            renames.append(path)
        if len(renames) == 2:
            raise OSError(5, "Input/output error")
        return False

    with files.fault_points(refuse), pytest.raises(UserError, match="cannot commit"):
        files.commit_folder(tmp_path / ".new", tmp_path / "final")

    assert (tmp_path / "final" / "file").read_text() == "old"


def test_folder_failure_is_user_error() -> None:
    """A place where nobody may write gives one message that names it and says what to do."""
    with pytest.raises(UserError, match=r"/proc/nothing: cannot make the folder"):
        files.folder(Path("/proc/nothing"))


def write_in_every_way(root: Path) -> list[str]:
    """Use every function that writes once, and return the fault points that they passed."""
    root.mkdir(exist_ok=True)
    operations: list[str] = []

    def record(operation: str, path: Path) -> bool:
        operations.append(operation)
        return False

    with files.fault_points(record):
        files.folder(root / "folder")
        files.claim(root / "claimed")
        files.write_text(root / "folder" / "file", "text")
        files.append_line(root / "log", b"line\n")
        files.truncate(root / "log", 2)
        for content in ("old", "new"):
            (root / "draft").mkdir()
            (root / "draft" / "file").write_text(content)
            files.commit_folder(root / "draft", root / "final")
        files.remove(root / "log")
        files.remove_folder(root / "final")
    return operations


def test_writes_pass_a_fault_point_before_every_system_call(tmp_path: Path) -> None:
    """The tests of kills and full disks reach each call that changes the disk."""
    assert write_in_every_way(tmp_path) == [
        "mkdir", "fsync_folder",  # folder
        "mkdir", "fsync_folder",  # claim
        "open", "write", "fsync", "rename", "fsync_folder",  # write_text
        "open", "write", "fsync", "fsync_folder",  # append_line of a new file
        "truncate",
        "fsync", "fsync_folder", "rename", "fsync_folder",  # commit_folder
        "fsync", "fsync_folder", "rename", "fsync_folder", "unlink",  # commit_folder over another
        "unlink",  # remove
        "unlink",  # remove_folder
    ]  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="counts the open files in /proc")
def test_writes_close_every_descriptor(tmp_path: Path) -> None:
    """A long run does not use up the files that a process may open."""
    write_in_every_way(tmp_path / "first")
    before = len(os.listdir("/proc/self/fd"))
    write_in_every_way(tmp_path / "second")
    assert len(os.listdir("/proc/self/fd")) == before
