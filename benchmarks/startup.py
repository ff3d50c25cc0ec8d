"""Seconds from the command to the first optimizer step, compared with a Python that only imports torch and Hydra."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from cases import HERE, plan_run


def seconds_to_first_step(run: Path, folder: Path) -> float:
    """Return the seconds from the start of `python -m pipeline phase=baseline` to its first step, on a copied run."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run, folder / "runs" / run.name)
    stamp = folder / "stamp"
    path = os.pathsep.join([str(HERE / "first_step"), str(HERE.parent)])
    command = [sys.executable, "-m", "pipeline", "phase=baseline", f"run.name={run.name}"]
    started = time.time()
    process = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": path, "FIRST_STEP": str(stamp)}, capture_output=True
    )
    if not stamp.is_file():
        raise SystemExit(f"{' '.join(command)} made no step:\n{process.stderr.decode()[-2000:]}")
    return float(stamp.read_text()) - started


def seconds_to_import(folder: Path) -> float:
    """Return the seconds of a process that imports torch and Hydra and ends."""
    started = time.time()
    subprocess.run([sys.executable, "-c", "import torch, hydra"], cwd=folder, check=True)
    return time.time() - started


def measure_startup(rounds: int) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        run = plan_run("mlp", folder / "planned")
        pairs = [
            (seconds_to_first_step(run.path, folder / "run"), seconds_to_import(folder)) for _ in range(rounds + 1)
        ]
    pairs = pairs[1:]  # the first round warms up the disk cache
    print(f"seconds, digits MLP, {rounds} interleaved rounds")
    for title, values in zip(("to the first step", "import torch, hydra"), zip(*pairs, strict=True), strict=True):
        print(f"{title:<22}{median(values):>6.2f}   from {min(values):.2f} to {max(values):.2f}")
    ratios = [first_step / imports for first_step, imports in pairs]
    print(f"{'ratio':<22}{median(ratios):>6.2f}   from {min(ratios):.2f} to {max(ratios):.2f}")
