"""Memory: if a step does not fit, the message names the batch size that does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.building import memory
from pipeline.error_attribution import out_of_memory

ROOT = Path(__file__).resolve().parents[1]
NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit is set from /proc")


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("not enough memory of the past"), False),
    ],
)
def test_out_of_memory_recognizes_errors(error: Exception, is_one: bool) -> None:
    """The messages of the allocators of all devices are recognized, and no other errors."""
    assert out_of_memory(error) is is_one


@pytest.mark.parametrize(
    ("room", "size", "fits"),
    [(100, 512, 64), (511, 512, 256), (1, 512, 1), (0, 512, None), (9, 1, None), (600, 1077, 539)],
)
def test_fitting_finds_largest_batch(room: int, size: int, fits: int | None) -> None:
    """Batches are halved until one fits, and the size that failed is not tried again."""
    tried = []

    def try_size(rows: int) -> None:
        tried.append(rows)
        if rows > room:
            raise torch.OutOfMemoryError

    assert memory.largest_fitting_size(try_size, size) == fits
    assert size not in tried and len(tried) <= 9


def test_fitting_raises_other_errors() -> None:
    """An error of another kind in a smaller batch is raised."""

    def try_size(rows: int) -> None:
        raise ValueError(rows)

    with pytest.raises(ValueError, match="4"):
        memory.largest_fitting_size(try_size, 8)


SCRIPT = """
import resource, sys, torch
from types import SimpleNamespace
from torch import nn
from pipeline.building.memory import step_error
from pipeline.error_attribution import attributed_to
from pipeline.engine.stepper import Stepper
from pipeline.errors import UserError
from pipeline.evaluation.task import build_task

class Batch(SimpleNamespace):
    def __len__(self):
        return len(self.inputs)

torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(8, 2000), nn.ReLU(), nn.Dropout(0.1), nn.Linear(2000, 3))
section = {"kind": "classification", "metric": "accuracy", "target": 1}
task = build_task({"task": section}, nn.CrossEntropyLoss(), model)
task.forward(model, torch.zeros(2, 8), torch.zeros(2, dtype=torch.long))[1].backward()
rows = int(sys.argv[1])
inputs, targets = torch.randn(rows, 8), torch.randint(3, (rows,))
used = 4096 * int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (used + 200 * 2**20,) * 2)
generator = torch.get_rng_state()
try:
    if sys.argv[2] == "evaluate":
        with attributed_to("model"), torch.no_grad():
            model(inputs)
    outputs, loss = task.forward(model, inputs, targets)
    loss.backward()
except UserError as error:
    print(error)
except Exception as error:
    torch.set_rng_state(generator)
    print(step_error(error, model, task, Batch(inputs=inputs, targets=targets), accumulate=2))
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(generator, torch.get_rng_state())
"""


def step_message(rows: int, doing: str = "train") -> str:
    """Return the error of a step with so many rows of 32 kB each, in a process with 200 MB to spare."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(rows), doing], env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


@pytest.mark.process
@NEEDS_PROC
def test_step_error_names_batch_size_that_fits() -> None:
    """The message has a batch size that was tried, and the accumulation that keeps the update the same."""
    message = step_message(65536)
    start, expected = "loader.batch_size: the step does not fit the memory of the cpu, got 65536; expected at most ", 0
    assert message.startswith(start) and "\n" not in message
    expected = int(message.removeprefix(start).split(",")[0])
    assert 1024 <= expected <= 8192 and expected & (expected - 1) == 0
    assert message.endswith(f"Do: loader.batch_size={expected} trainer.accumulate_grad_batches={2 * 65536 // expected}")


@pytest.mark.process
@NEEDS_PROC
def test_attributed_to_reports_memory_of_evaluation() -> None:
    """The message has the requested memory; there is no batch size to change."""
    message = step_message(65536, "evaluate")
    assert (
        message.startswith("model: needs more memory than there is, got '")
        and "bytes" in message
        and "  Do: " in message
    )
