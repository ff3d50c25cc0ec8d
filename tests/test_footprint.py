"""The footprint: what a training will take, told from a step whose gradients nobody uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.building import resource_estimate
from pipeline.building.probe import probe
from tests.trainings import blobs, config


def cost(**changes: Any) -> resource_estimate.Footprint:
    found = probe(config(**changes), blobs()).cost
    assert found is not None
    return found


def test_a_step_is_counted_to_the_byte() -> None:
    """Weights and gradients are those of the parameters, the optimizer keeps two of each, a batch has its rows."""
    found = cost(loader__batch_size=16)

    assert found.rows == 16 and found.weights == found.gradients == 4 * 67
    assert found.state in (0, 4 * 67, 2 * 4 * 67) and found.activations > 0
    assert found.step_s > 0 and found.forward_s > 0 and found.needed > found.process


def test_activations_grow_with_the_batch() -> None:
    """Twice the rows keep twice as much for the way back, and the weights stay what they are."""
    one, two = cost(loader__batch_size=16), cost(loader__batch_size=32)
    assert two.activations == pytest.approx(2 * one.activations, abs=8) and two.weights == one.weights


def test_a_batch_that_does_not_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where two rows show that the batch is too large, the number that would fit is told, and no time is known."""
    little = (1_000_000, 1_000_000 + 4 * 67 * 8 + 3000)
    monkeypatch.setattr(resource_estimate, "_memory", lambda device: little)
    found = cost(loader__batch_size=64)

    assert found.step_s is None and found.fits is not None and 0 < found.fits < 64
    monkeypatch.setattr(resource_estimate, "_memory", lambda device: (1_000_000, 1_000_000))
    assert cost(loader__batch_size=64).fits == 0


def test_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of the container is what there is, where it is less than the machine has."""
    free = resource_estimate._free()
    if free is None:
        pytest.skip("no /proc/meminfo here")
    for name, text in {"max": "5000000\n", "current": "3000000\n", "stat": "anon 1\ninactive_file 500000\n"}.items():
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(resource_estimate, "CONTAINER", tmp_path)
    assert resource_estimate._free() == 2_500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert (resource_estimate._free() or 0) > 2_500_000


def test_the_probe_leaves_no_trace() -> None:
    """Generators stand where they were, and the passes are made in the plan's number of threads and no more."""
    torch.manual_seed(3)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    cost()
    assert torch.equal(before, torch.get_rng_state()) and torch.get_num_threads() == threads
