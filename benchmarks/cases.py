"""The four timed trainings. Each passes a real planning gate, so that the engine runs as it does for a user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.__main__ import make_hooks, make_registry
from pipeline.data.dataset import Data
from pipeline.data.load import load
from pipeline.orchestration.execute import execute_run
from pipeline.orchestration.run_request import resolve_request
from pipeline.run_store import permits
from pipeline.run_store.job import Job
from pipeline.run_store.run import Run

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Case:
    """One training: its title, and the overrides by which it differs from the digits MLP."""

    title: str
    epochs: int
    overrides: tuple[str, ...] = ()


CASES = {
    "mlp": Case("digits MLP 64-128-10, batch 64", 240, ("model=mlp",)),
    "cnn8": Case("digits CNN 8x8, 32 and 64 channels, batch 64", 30, ("model=cnn",)),
    "cnn28": Case(
        "digits CNN 28x28, 32 and 64 channels, batch 64",
        6,
        ("model=cnn", "model.image=[1,28,28]", "data=digits28", "trust=[rows]"),
    ),
    "transformer": Case(
        "transformer, 4 layers of 128, context 64, bytes of Python sources, batch 32",
        2,
        ("model=transformer", "model.classes=3", "data=letters", "trust=[rows]", "loader.batch_size=32"),
    ),
}


@dataclass(frozen=True)
class PlannedCase:
    """A case whose planning gate is open."""

    case: Case
    permit: permits.TrainPermit
    data: Data
    job: Job


def plan_run(name: str, root: Path, *overrides: str) -> Run:
    """Plan a case in a run under `root` and return the run. `overrides` win over those of the case."""
    case = CASES[name]
    fixed = ["experiment=digits", "phase=planning", "tracking=none", f"trainer.max_epochs={case.epochs}"]
    request_overrides = [*fixed, *case.overrides, f"run.root={root}", f"run.name={name}", *overrides]
    request = resolve_request(request_overrides, [HERE / "conf"])
    run, gate, _ = execute_run(make_registry(), make_hooks(lambda text: None), request)
    if gate != "open":
        raise SystemExit(f"{name}: the planning gate is {gate}")
    return run


@contextmanager
def plan_case(name: str, *overrides: str) -> Iterator[PlannedCase]:
    """Plan a case in a temporary folder and yield it with its permit, data and job."""
    with TemporaryDirectory() as folder:
        permit = permits.train(plan_run(name, Path(folder), *overrides))
        trust = tuple(grant["package"] for grant in permit.run.state().trust)
        data = load(permit.plan.config, trust)
        yield PlannedCase(CASES[name], permit, data, Job(permit.plan.digest, "baseline"))
