"""A diagnosis of a long history: a million steps in seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LONG = """
import time
from pathlib import Path
import numpy as np
from diagnostics.diagnose import diagnose
from pipeline.history import History

diagnose(History(), None)  # playbooks and vocabulary are read once
steps = 1_000_000
draw = np.random.default_rng(0)
history = History()
loss = 2.3 * np.exp(-np.arange(steps) / 2e5) + 0.1 + 0.02 * draw.standard_normal(steps)
history.log_steps(1, {"train/loss": loss.tolist(), "lr": [1e-3] * steps})
history.log_steps(1, {"grad_norm": draw.random(steps // 10).tolist(), "update_ratio": [1e-3] * (steps // 10)})
for epoch in range(1, 101):
    history.log_epoch(epoch, {"val/loss": 2.3 / epoch + 0.1, "val/accuracy": 1 - 0.9 / epoch})
began = time.process_time()
diagnosis = diagnose(history, None)
seconds = time.process_time() - began
[peak] = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(seconds, int(peak) / 1024, len(diagnosis.symptoms))  # ru_maxrss would be that of the parent, if it is larger
"""


@pytest.mark.process
def test_diagnose_reads_a_million_steps_in_seconds() -> None:
    """Two seconds of one core are enough for all playbooks, and half a gigabyte."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}
    completed = subprocess.run(
        [sys.executable, "-c", LONG], env=environment, capture_output=True, text=True, check=True
    )
    seconds, megabytes, symptoms = map(float, completed.stdout.split())
    print(f"a million steps: {seconds:.2f} s, {megabytes:.0f} MB")

    assert symptoms == 0 and seconds < 2.0 and megabytes < 500
