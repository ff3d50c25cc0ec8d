"""A row that is never read is named, Ctrl-C ends the wait, and a killed loader process is one message and no loss."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data.load import seal
from pipeline.data.reading import items
from pipeline.run_store.run import Run
from tests.user_package import WORDS, trace, write_package

ROOT = Path(__file__).resolve().parents[1]


class SlowRows:
    """Rows of which one takes a while."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        if i == 3:
            time.sleep(0.4)
        return np.full(2, i, np.float32), i % 2


def test_slow_row_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One line names the row and the user's line that it is at; the row is used when it comes."""
    monkeypatch.setattr(items, "SLOW_ROW_S", 0.1)
    arrays = np.zeros((20, 2), np.float32), np.arange(20) % 2

    data = seal({"train": SlowRows(), "val": arrays, "test": arrays}, "classification")

    line = SlowRows.__getitem__.__code__.co_firstlineno + 2
    assert capsys.readouterr().err == (
        f"data.train[3]: this row has been read for 0.1 s and is not there yet, at {__file__}:{line}"
        "  Do: wait, or press Ctrl-C twice\n"
    )
    assert len(data.train) == 20


# Somebody's Dataset, of which a process of the loader reads one row for ever while the file `hang` exists.
HANGING = """
import multiprocessing, time
from pathlib import Path
class Hanging(Rows):
    def __getitem__(self, i):
        if i == 77 and multiprocessing.parent_process() and Path("hang").exists():
            time.sleep(3600)
        return super().__getitem__(i)
_plain = table
def table(items=False):
    data = _plain(items)
    return {**data, "train": Hanging(data["train"].X, data["train"].y)}
"""
COMMAND = """
import json, sys
from pipeline.data.reading import items
items.SLOW_ROW_S = 1.0
from pipeline.__main__ import main
sys.exit(main(json.loads(sys.argv[1])))
"""


def started(name: str, *words: str) -> subprocess.Popen[str]:
    arguments = ["phase=baseline", *WORDS, "+data.items=true", "loader.num_workers=2", f"run.name={name}", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-c", COMMAND, json.dumps(arguments)]
    return subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes)


def group_of(leader: int) -> list[int]:
    """Return the living processes of a group, but its leader."""
    listed = subprocess.check_output(["ps", "-e", "-o", "pid=,pgid=,stat="], text=True).splitlines()
    rows = [line.split() for line in listed]
    return [int(pid) for pid, group, state in rows if int(group) == leader != int(pid) and state[0] != "Z"]


@pytest.mark.process
def test_dataset_that_hangs_is_named_and_interrupted(own_folder: Path) -> None:
    """A process of the loader names the row and line; two signals end the command in seconds; nobody is left."""
    write_package(own_folder)
    (own_folder / "somebody.py").write_text((own_folder / "somebody.py").read_text() + HANGING)
    (own_folder / "hang").touch()
    running = started("hanging")
    assert running.stderr
    line = running.stderr.readline()
    assert line.startswith("data.train[77]: this row has been read for 1 s and is not there yet, at "), line
    assert f"{own_folder}/somebody.py:" in line

    signals = 0
    while running.poll() is None:  # two, and more where the machine is so busy that two arrive as one
        assert signals < 40
        running.send_signal(signal.SIGINT)
        signals += 1
        time.sleep(1)
    _, err = running.communicate()

    assert running.returncode == 130, err
    assert err.count("interrupted: ") == 1 and "Traceback" not in err
    assert group_of(running.pid) == []

    (own_folder / "hang").unlink()
    again = started("hanging")
    assert again.communicate(timeout=120) and again.returncode == 0


@pytest.mark.process
def test_killed_loader_process_is_one_message_and_no_loss(own_folder: Path) -> None:
    """SIGKILL of a loader process in training: exit 1 with one line, and the same command ends as undisturbed."""
    write_package(own_folder)
    longer = ("trainer.max_epochs=60",)
    calm = started("calm", *longer)
    assert calm.communicate(timeout=120) and calm.returncode == 0

    running = started("killed", *longer)
    checkpoints = own_folder / "runs" / "killed" / "baseline" / "checkpoints"
    while not any(checkpoints.glob("[0-9]*")):
        assert running.poll() is None
        time.sleep(0.01)
    os.kill(group_of(running.pid)[0], signal.SIGKILL)
    _, err = running.communicate(timeout=60)

    assert running.returncode == 1 and err.strip().count("\n") == 0, err
    assert err.startswith("loader.num_workers: a process that reads the data died, got 'signal 9'")
    assert group_of(running.pid) == []
    again = started("killed", *longer)
    assert again.communicate(timeout=120) and again.returncode == 0
    runs = [Run(own_folder / "runs" / name) for name in ("calm", "killed")]
    assert trace(runs[0].inside("baseline")) == trace(runs[1].inside("baseline"))
