"""The resource estimate: what a training will take, from passes whose gradients are dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.building import resource_estimate
from pipeline.building.probe import probe
from tests.trainings import blobs, config


def step_cost(**changes: Any) -> resource_estimate.StepCost:
    cost = probe(config(**changes), blobs()).cost
    assert cost is not None
    return cost


def test_measure_step_counts_to_the_byte() -> None:
    """Weights and gradients have the size of the parameters, the optimizer state at most twice that."""
    cost = step_cost(loader__batch_size=16)

    assert cost.rows == 16 and cost.weights == cost.gradients == 4 * 67
    assert cost.state in (0, 4 * 67, 2 * 4 * 67) and cost.activations > 0
    assert cost.step_s > 0 and cost.forward_s > 0 and cost.needed > cost.process


def test_measure_step_activations_grow_with_the_batch() -> None:
    """Twice the rows save twice as many bytes for the backward pass; the weights do not change."""
    small, large = step_cost(loader__batch_size=16), step_cost(loader__batch_size=32)
    assert large.activations == pytest.approx(2 * small.activations, abs=8) and large.weights == small.weights


def test_measure_step_does_not_try_a_batch_that_cannot_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """If two rows show that the batch is too large, the number of rows that would fit is given, and no time."""
    memory = (1_000_000, 1_000_000 + 4 * 67 * 8 + 3000)
    monkeypatch.setattr(resource_estimate, "_memory", lambda device: memory)
    cost = step_cost(loader__batch_size=64)

    assert cost.step_s is None and cost.fits is not None and 0 < cost.fits < 64
    monkeypatch.setattr(resource_estimate, "_memory", lambda device: (1_000_000, 1_000_000))
    assert step_cost(loader__batch_size=64).fits == 0


def test_free_bytes_respects_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of the container counts if it is less than the machine has."""
    free = resource_estimate._free_bytes()
    if free is None:
        pytest.skip("no /proc/meminfo here")
    for name, text in {"max": "5000000\n", "current": "3000000\n", "stat": "anon 1\ninactive_file 500000\n"}.items():
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(resource_estimate, "CGROUP", tmp_path)
    assert resource_estimate._free_bytes() == 2_500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert (resource_estimate._free_bytes() or 0) > 2_500_000


def test_measure_step_restores_generators_and_threads() -> None:
    """The global generator and the number of threads are the same before and after."""
    torch.manual_seed(3)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    step_cost()
    assert torch.equal(before, torch.get_rng_state()) and torch.get_num_threads() == threads
