"""Determinism: planning names operations without a deterministic kernel, and the gate follows the plan's policy."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.building import probe
from pipeline.checkpoints.weights import weights_digest
from pipeline.error_attribution import attributed, attributed_to
from pipeline.errors import UserError
from pipeline.evaluation.task import Task, build_task
from pipeline.run_store import plan as plans
from pipeline.run_store.run import Run
from pipeline.runtime import options
from pipeline.runtime.threads import cores, threads
from pipeline.trials.executor import parallel_jobs
from tests.check_helpers import judge
from tests.conftest import Cli

ROWS = torch.randn(2, 4), torch.tensor([0, 2])


class Puts(nn.Module):
    """A model with an operation that has no deterministic kernel on any device."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.layer(x))
        return torch.zeros_like(out).put(torch.arange(out.numel()).reshape(out.shape), out)


class _Backward(torch.autograd.Function):
    """The identity, with that operation in its backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return torch.zeros_like(gradient).put_(torch.arange(gradient.numel()).reshape(gradient.shape), gradient)


class PutsBackward(nn.Module):
    """A model with that operation only in its backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Backward.apply(self.layer(x))
        return out


def task(model: nn.Module) -> Task:
    section = {"kind": "classification", "metric": "accuracy", "target": 1, "predict": "auto"}
    return build_task({"task": section}, nn.CrossEntropyLoss(), model)


# --- the probe -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "named"),
    [(Puts(), ("put_",)), (PutsBackward(), ("put_",)), (nn.Linear(4, 3), ())],
    ids=["forward", "backward", "none"],
)
def test_varying_names_operations(model: nn.Module, named: tuple[str, ...]) -> None:
    """Operations of the forward and of the backward pass are named; a deterministic model has none."""
    assert probe.nondeterministic_operations(model, task(model), *ROWS, nullcontext) == named


def test_varying_leaves_model_and_generators_unchanged() -> None:
    """Weights, running statistics, gradients, generators and torch's switches are unchanged."""
    model = Puts()
    model.layer.weight.grad = torch.ones(3, 4)
    before = weights_digest(model.state_dict()), torch.get_rng_state()
    switches = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()

    probe.nondeterministic_operations(model, task(model), *ROWS, nullcontext)

    assert before[0] == weights_digest(model.state_dict()) and torch.equal(before[1], torch.get_rng_state())
    assert torch.equal(model.layer.weight.grad, torch.ones(3, 4)) and model.layer.bias.grad is None
    assert switches == (
        torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    )  # fmt: skip


def test_varying_reports_failing_backward_pass() -> None:
    """An error that only the backward pass raises is one message."""

    class Fails(PutsBackward):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            out.register_hook(lambda gradient: gradient.nonsense)
            return out

    model = Fails()
    with pytest.raises(UserError, match=rf"fails in the backward pass at {__file__}:\d+ \(AttributeError"):
        probe.nondeterministic_operations(model, task(model), *ROWS, nullcontext)


# --- threads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "count"), [("150000 100000", 2), ("max 100000", 64), ("50000 100000", 1), ("", 64)])
def test_cores_respect_container_quota(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch, share: str, count: int
) -> None:
    """Threads and parallel trials are counted by what the process may use, not by what the machine has."""
    (own_folder / "cpu.max").write_text(share)
    monkeypatch.setattr("pipeline.runtime.threads.CPU_QUOTA", own_folder / "cpu.max")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(64), raising=False)
    assert cores() == parallel_jobs("auto", 1) == count and threads("auto", 2_000_000) == min(count, 16)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [Puts(), PutsBackward()], ids=["forward", "backward"])
def test_deterministic_names_operation_and_line(model: nn.Module) -> None:
    """With the policy true the message has the operation, the user's line and the alternative."""
    chosen = task(model)
    with options.deterministic(True), pytest.raises(RuntimeError) as caught:
        chosen.forward(model, *ROWS)[1].backward()
    message = str(attributed(caught.value, model, chosen))

    assert re.match(
        rf"trainer.deterministic: put_ at {__file__}:\d+ has no deterministic kernel, got 'true'; ", message
    )
    assert message.endswith("  Do: trainer.deterministic=warn") and "\n" not in message
    with (
        options.deterministic(True),
        pytest.raises(UserError, match="has no deterministic kernel"),
        attributed_to("model"),
    ):
        Puts()(ROWS[0])


@pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation")
@pytest.mark.parametrize("rule", ["warn", False])
def test_deterministic_false_and_warn_allow_operation(rule: bool | str) -> None:
    """With false and warn the operation is allowed."""
    model = Puts()
    with options.deterministic(rule):
        task(model).forward(model, *ROWS)[1].backward()
    assert model.layer.weight.grad is not None


# --- the gate --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "operations", "outcome", "why"),
    [
        (True, [], "passed", "every operation is bit-reproducible"),
        (True, ["put_"], "failed", "no deterministic kernel for put_: allow it with trainer.deterministic=warn"),
        ("warn", ["a", "b"], "passed", "allowed to vary by trainer.deterministic=warn: a, b"),
        ("warn", [], "passed", "every operation is bit-reproducible, but trainer.deterministic=warn does not"),
        (False, ["put_"], "passed", "trainer.deterministic=false does not require reproducibility, and put_ will vary"),
    ],
)
def test_determinism_check_outcome(policy: Any, operations: list[str], outcome: str, why: str) -> None:
    """The gate closes only if the plan requires determinism and the model has such operations."""
    evidence = {"determinism": {"policy": policy, "operations": operations}}
    item = judge("environment.deterministic_kernels", evidence, max_operations=0)
    assert (item.outcome, item.value) == (outcome, len(operations)) and item.why.startswith(why)


PACKAGE = """
import torch
from torch import nn

class Puts(nn.Module):
    def __init__(self, **_):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        out = self.layer(x)
        return torch.zeros_like(out).put(torch.arange(out.numel()).reshape(out.shape), out)
"""


@pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation")
def test_planning_reports_nondeterministic_operations(
    cli: Cli, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With true gate 1 is closed and the exit code is 3; with warn it opens, and the plan names the operations."""
    (own_folder / "varies.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(own_folder)
    arguments = ["experiment=digits", "tracking=none", "trust=[varies]", "model._target_=varies.Puts"]
    code, out, err = cli("phase=planning", *arguments)
    assert code == 3, err
    run = Run(own_folder / "runs" / "digits")
    closed = {i.id: i for i in run.state().gates["planning"].items}["deterministic_kernels"]

    assert "planning: no deterministic kernel on the cpu: put_" in out
    assert closed.outcome == "failed" and closed.cause == "nondeterminism" and not closed.waivable

    code, _, err = cli("phase=planning", "run.name=digits", "trainer.deterministic=warn")
    allowed = {i.id: i for i in run.state().gates["planning"].items}["deterministic_kernels"]
    assert code == 0, err
    assert "put_" in allowed.why
    assert plans.load(run).facts["determinism"] == {"policy": "warn", "operations": ["put_"]}
