"""From the command to the first optimizer step, beside a Python that only imports torch and Hydra."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from cases import HERE, plan


def first_step(run: Path, into: Path) -> float:
    """Seconds from starting `python -m pipeline phase=baseline` on a copy of a planned run to its first step."""
    shutil.rmtree(into, ignore_errors=True)
    shutil.copytree(run, into / "runs" / run.name)
    stamp = into / "stamp"
    path = os.pathsep.join([str(HERE / "first_step"), str(HERE.parent)])
    command = [sys.executable, "-m", "pipeline", "phase=baseline", f"run.name={run.name}"]
    started = time.time()
    done = subprocess.run(
        command, cwd=into, env={**os.environ, "PYTHONPATH": path, "FIRST_STEP": str(stamp)}, capture_output=True
    )
    if not stamp.is_file():
        raise SystemExit(f"{' '.join(command)} made no step:\n{done.stderr.decode()[-2000:]}")
    return float(stamp.read_text()) - started


def imports(cwd: Path) -> float:
    """Seconds of a whole process that imports torch and Hydra."""
    started = time.time()
    subprocess.run([sys.executable, "-c", "import torch, hydra"], cwd=cwd, check=True)
    return time.time() - started


def startup(rounds: int) -> None:
    with TemporaryDirectory() as folder:
        run = plan("mlp", Path(folder) / "planned")
        pairs = [(first_step(run.path, Path(folder) / "run"), imports(Path(folder))) for _ in range(rounds + 1)][1:]
    print(f"seconds, digits MLP, {rounds} interleaved rounds")
    for title, values in zip(("to the first step", "import torch, hydra"), zip(*pairs, strict=True), strict=True):
        print(f"{title:<22}{median(values):>6.2f}   from {min(values):.2f} to {max(values):.2f}")
    ratios = [ours / theirs for ours, theirs in pairs]
    print(f"{'ratio':<22}{median(ratios):>6.2f}   from {min(ratios):.2f} to {max(ratios):.2f}")
