"""The current folder, which may be somebody else's: nothing in it is imported, neither here nor in other processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import current_folder
from pipeline.current_folder import leave_out_current_folder
from tests.conftest import SHORT

ROOT = Path(__file__).resolve().parents[1]
RECORDS = """
import os, sys

class Recorder:
    names = set()

    def find_spec(self, name, path=None, target=None):
        if path is None and name not in self.names:
            self.names.add(name)
            with open(os.environ["LOOKED_UP"], "a") as file:
                file.write(name + "\\n")

sys.meta_path.insert(0, Recorder())
"""
# What Python itself imports for `python -m`, before any file of ours.
OF_PYTHON_ITSELF = {
    "collections", "contextlib", "functools", "importlib", "keyword", "operator", "reprlib", "types", "warnings",
}  # fmt: skip
OWN = {"pipeline", "phases", "diagnostics", "checklists", "lab"}
WISHED_FOR = {"dill", "cloudpickle", "xxhash", "triton", "cupy", "pandas", "typing", "pickle", "socket", "joblib"}
NET = """
import joblib
import torch
from torch import nn

def rows(tag, count):
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(tag))
    return x.numpy(), (x.sum(1) > 0).long().numpy()

def load(**settings):
    loader = torch.utils.data.DataLoader(range(4), num_workers=1, multiprocessing_context="spawn")
    assert len(list(loader)) == 4
    assert joblib.Parallel(n_jobs=2)(joblib.delayed(abs)(x) for x in (-1, -2)) == [1, 2]
    return {"train": rows(2, 256), "val": rows(3, 64), "test": rows(4, 64)}

def make(**settings):
    return nn.Linear(4, 2)
"""
CONFIG = """# @package _global_
defaults: [digits]
seed: 1
trust: [lab]
data: {_target_: lab.net.load}
model: {_target_: lab.net.make}
tracking: {kind: none}
"""


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which `python -m` was started: it comes first on the path."""
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    return tmp_path


def test_leave_out_current_folder_concerns_processes_too(started: Path) -> None:
    """The folder that Python put first is removed, and processes do not search it."""
    before = [*sys.path]
    leave_out_current_folder()

    assert sys.path == before[1:] and os.environ["PYTHONSAFEPATH"] == "1" and os.environ["PYTHONPATH"] == ""


def test_leave_out_current_folder_keeps_one_that_is_named(started: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever names the folder in PYTHONPATH means it."""
    monkeypatch.setenv("PYTHONPATH", f"{os.curdir}{os.pathsep}elsewhere")
    before = [*sys.path]
    leave_out_current_folder()

    assert sys.path == before


def test_leave_out_current_folder_ignores_empty_entries(started: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`PYTHONPATH=$PYTHONPATH:/x` with no value before means the current folder to Python, and nobody wants that."""
    monkeypatch.setenv("PYTHONPATH", f"{os.pathsep}/x")
    monkeypatch.setattr(sys, "path", ["", str(started), *sys.path[1:]])
    leave_out_current_folder()

    assert not {"", str(started)} & set(sys.path) and os.environ["PYTHONPATH"] == "/x"


def test_leave_out_current_folder_keeps_a_checkout(started: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our packages that are not installed stay, and processes find them, too."""
    monkeypatch.setattr(current_folder, "HOME", str(started))
    before = [*sys.path]
    leave_out_current_folder()

    assert sys.path == before and os.environ["PYTHONPATH"] == str(started)


def test_leave_out_current_folder_without_a_folder(started: Path) -> None:
    """In a folder that was removed meanwhile, a command still answers, and Python looks where it did."""
    removed = started / "removed"
    removed.mkdir()
    os.chdir(removed)
    removed.rmdir()
    before = [*sys.path]
    leave_out_current_folder()

    assert sys.path == before


def write_lab(folder: Path) -> Path:
    """A package of the user's whose data function starts processes, and a config that names it."""
    (folder / "lab").mkdir(parents=True)
    (folder / "lab" / "__init__.py").touch()
    (folder / "lab" / "net.py").write_text(NET)
    (folder / "conf" / "experiment").mkdir(parents=True)
    (folder / "conf" / "experiment" / "theirs.yaml").write_text(CONFIG)
    return folder


def python(words: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python as a user does in this folder, with the packages of this checkout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "", "OMP_NUM_THREADS": "1", **variables}
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )


def commands(lab: Path) -> list[list[str]]:
    """Commands that together start every kind of process: loaders, executors, launchers, trials."""
    own = ["--config-dir", str(lab / "conf"), "experiment=theirs", "trust=[lab]", *SHORT]
    sweep = ["experiment=digits", "model=mlp", "model.hidden=[8]", "tracking=none", "seed=1,2"]
    return [
        ["phase=baseline", *own, "run.name=one", "trainer.max_epochs=2", "phases.baseline.overfit_steps=20"],
        ["status", "one"],
        ["-m", "phase=planning", *sweep, "hydra/launcher=joblib"],
        ["-m", "phase=planning", *sweep, "hydra/launcher=submitit_local"],
        ["experiment=digits", "--cfg", "job"],
    ]


@pytest.mark.slow
@pytest.mark.process
def test_nothing_of_the_current_folder_or_beside_a_package_is_imported(tmp_path: Path) -> None:
    """Files of every name that any process looks up, also of Python's own modules, lie in both folders: none runs."""
    lab, looked_up, ran = write_lab(tmp_path / "theirs"), tmp_path / "looked_up", tmp_path / "ran"
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "sitecustomize.py").write_text(RECORDS)
    path = os.pathsep.join([str(ROOT), str(tmp_path / "records")])
    first = [
        python(["-m", "pipeline", *words], tmp_path / "clean", PYTHONPATH=path, LOOKED_UP=str(looked_up))
        for words in commands(lab)
    ]
    assert all(done.returncode in (0, 3) for done in first), [done.stderr for done in first]
    names = {*looked_up.read_text().split(), *WISHED_FOR} - OWN - {"fivegate", "__main__"}
    assert {"numpy", "torch", "joblib", "submitit", "random", "socket"} < names and len(names) > 200

    for name in names:
        (lab / f"{name}.py").write_text(f"open({str(ran)!r}, 'a').write('{name} beside\\n')")
    for options, spared in ((["-m"], OF_PYTHON_ITSELF), (["-P", "-m"], set[str]())):
        folder = tmp_path / "hostile" / str(len(spared))
        folder.mkdir(parents=True)
        for name in names - spared:
            (folder / f"{name}.py").write_text(f"open({str(ran)!r}, 'a').write('{name}\\n')")
        for words, clean in zip(commands(lab), first, strict=True):
            if not spared and words[0] == "-m":
                continue  # the processes of launchers are started the same way
            done = python([*options, "pipeline", *words], folder)
            assert done.returncode == clean.returncode, (words, done.stderr, clean.stderr)
    assert not ran.exists(), ran.read_text()
