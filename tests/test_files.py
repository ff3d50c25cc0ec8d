"""Every file appears whole or not at all, whichever system call fails or kills."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.record import files

WRITE = """
import sys
from pathlib import Path
from pipeline.record import files
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


def test_a_written_file_is_read_again(tmp_path: Path) -> None:
    """A write makes the folders it needs and leaves nothing beside the file."""
    path = tmp_path / "a" / "b.txt"

    files.write_text(path, "text")

    assert path.read_text() == "text"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", ["ENOSPC", "EROFS", "EIO"])
def test_a_refusing_disk_changes_nothing(tmp_path: Path, error: str) -> None:
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


def test_a_kill_at_any_call_leaves_old_or_new(tmp_path: Path) -> None:
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


def test_a_folder_is_committed_by_one_rename(tmp_path: Path) -> None:
    """A folder that is built aside replaces the old one as a whole."""
    final, temporary = tmp_path / "final", tmp_path / ".tmp"
    files.write_text(final / "old", "")
    files.write_text(temporary / "new", "")

    files.commit_folder(temporary, final)

    assert [p.name for p in final.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["final"]


def test_a_folder_that_cannot_be_made_is_the_users_to_mend() -> None:
    """A place where nobody may write gives one message that names it and says what to do."""
    with pytest.raises(UserError, match=r"/proc/nothing: cannot make the folder"):
        files.folder(Path("/proc/nothing"))
