"""Bring your own: model, data, loss and optimizer of a package outside the checkout, trusted by name alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.run_store.run import Run
from tests.check_helpers import read_evidence

pytestmark = pytest.mark.process
ROOT = Path(__file__).resolve().parents[1]

PACKAGE = {
    "lab/__init__.py": "",
    "lab/net.py": """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.hidden, self.out = nn.Linear(2, width), nn.Linear(width, 2)

    def forward(self, x):  # [B, 2] -> [B, 2]
        return self.out(torch.tanh(self.hidden(x)))
""",
    "lab/rows.py": """
import numpy as np


def rows(n, seed):
    draw = np.random.default_rng(seed)
    X = draw.normal(size=(3 * n, 2))
    y = (X[:, 0] * X[:, 1] > 0).astype(int)
    parts = {name: (X[i * n : (i + 1) * n], y[i * n : (i + 1) * n]) for i, name in enumerate(("train", "val", "test"))}
    return {**parts, "class_names": ["differ", "agree"]}
""",
    "lab/steps.py": '''
import torch


def smooth(outputs, targets, amount):
    return torch.nn.functional.cross_entropy(outputs, targets, label_smoothing=amount)


class Careful(torch.optim.SGD):
    """SGD under another name."""
''',
    "conf/experiment/corners.yaml": """# @package _global_
# python -m pipeline phase=auto --config-dir conf experiment=corners trust=[lab]
defaults:
  - override /data: null
  - override /model: null
  - override /loss: null
  - override /optimizer: null
  - override /tracking: none

seed: 3
data: {_target_: lab.rows.rows, n: 200, seed: 0}
model: {_target_: lab.net.Net, width: 16}
loss: {_target_: lab.steps.smooth, _partial_: true, amount: 0.01}
optimizer: {_target_: lab.steps.Careful, _partial_: true, lr: 1.0e+6}
trainer: {max_epochs: 4}
loader: {batch_size: 20}
phases:
  baseline: {overfit_steps: 20, sanity_check_steps: 20, reproducibility_steps: 0, folds: 0}
  optimization: {candidates: 1, seeds_per_arm: 2}
task: {target: 0.99}
plan: {purpose: corners, population: corners, assumptions: [none], risks: [none], limits: {size_mb: 1}, owner: Ada}
""",
}
WORDS = ("--config-dir", "conf", "experiment=corners")


@pytest.fixture
def outside(own_folder: Path) -> Path:
    """An empty folder with a package, its configs, and nothing of the checkout."""
    for name, text in PACKAGE.items():
        path = own_folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return own_folder


def pipeline(*arguments: str) -> tuple[int, str]:
    """`python -m pipeline` in a process of its own, in the current folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pipeline", *arguments]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.returncode, ended.stdout + ended.stderr


@pytest.mark.slow
def test_byo_package_runs_all_phases(outside: Path) -> None:
    """Trusted once, it is planned, trained, explained and handed to the workers; changed, it is refused."""
    code, output = pipeline("phase=auto", *WORDS, "trust=[lab]")
    run = Run(outside / "runs" / "corners")
    state = run.state()
    gates = {phase: state.gate(phase) for phase in ("planning", "baseline", "optimization")}

    assert code == 3, output  # two pairs prove nothing, and the fourth gate says so
    assert gates == {"planning": "open", "baseline": "open", "optimization": "closed"}, output
    assert {i.outcome for i in state.gates["diagnostics"].items} == {"passed"}
    assert state.trust[0]["package"] == "lab"
    assert read_evidence(run, "planning")["rows"] == {"train": 200, "val": 200, "test": 200}
    study = read_evidence(run, "optimization", 1)
    assert len(study["arms"]) == 1 and study["trials_died"] == 0
    assert study["trials_planned"] == study["trials_recorded"] >= 4
    result = run.inside("optimization", 1, "trials", f"{study['arms'][0]['id']}-1", "result.json")
    assert json.loads(result.read_text())["steps"] == 40

    (outside / "lab" / "net.py").write_text(PACKAGE["lab/net.py"].replace("tanh", "relu"))
    before = run.ledger_path.read_bytes()
    code, output = pipeline("phase=baseline", "run.name=corners", "optimizer.lr=0.1")
    assert code == 3 and "lab: has changed since it was trusted" in output and "trust=[lab]" in output
    assert run.ledger_path.read_bytes() == before

    code, output = pipeline("phase=baseline", *WORDS, "trust=[lab]", "optimizer.lr=0.1")
    assert code == 0, output
    assert run.state().plan and run.state().plan["revision"] == 2


def test_byo_package_needs_trust(outside: Path) -> None:
    """Refused without trust, naming every target and the word to add; the package was not even imported."""
    (outside / "lab" / "__init__.py").write_text("open('imported', 'w')\n")

    code, output = pipeline("phase=baseline", *WORDS)

    assert code == 2
    assert "lab.rows.rows" in output and "trust=[lab]" in output
    assert not (outside / "imported").exists() and not (outside / "runs").exists()


def test_byo_config_file_cannot_grant_trust(outside: Path) -> None:
    """`trust:` in a file is refused, wherever the file stands."""
    path = outside / "conf" / "experiment" / "corners.yaml"
    path.write_text(path.read_text() + "trust: [lab]\n")

    code, output = pipeline("phase=baseline", *WORDS)

    assert code == 2 and "trust: a config file cannot grant trust" in output
    assert not (outside / "runs").exists()
