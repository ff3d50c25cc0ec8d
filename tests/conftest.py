"""Real runs, shrunk: planned and trained once per session, copied for each test that changes them."""

from __future__ import annotations

import fcntl
import gc
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from omegaconf import OmegaConf

from pipeline.__main__ import main, make_hooks, make_registry
from pipeline.config import compose, overrides
from pipeline.orchestration.execute import RunOutcome, execute_run
from pipeline.orchestration.run_request import resolve_request
from pipeline.run_store import permits
from pipeline.run_store.gate import satisfied, utc_today
from pipeline.run_store.run import Run, opened
from pipeline.trust.source_guard import GUARD
from tests.composition_cache import remembering, remembering_text, text_of_file, text_of_string

Cli = Callable[..., tuple[int, str, str]]


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, not followed by coverage, which looks at every call of a process, other people's too."""

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        tracer = sys.gettrace()
        sys.settrace(None)
        try:
            return function(*args, **options)
        finally:
            sys.settrace(tracer)

    return call


# Composing a config is 700,000 calls inside Hydra, which take twice as long when they are followed.
COMPOSED_BY_HYDRA = untraced(compose.hydra_compose)
COMPOSED_ONCE = remembering(COMPOSED_BY_HYDRA)
for module in (compose, overrides):
    module.hydra_compose = COMPOSED_ONCE
LOAD, CREATE = OmegaConf.load, OmegaConf.create
OmegaConf.load = staticmethod(remembering_text(LOAD, text_of_file))  # type: ignore[method-assign]
OmegaConf.create = staticmethod(remembering_text(CREATE, text_of_string))  # type: ignore[method-assign]

SHORT = (
    "phases.baseline.sanity_check_steps=20", "phases.baseline.reproducibility_steps=0", "phases.baseline.folds=0",
    "phases.baseline.baseline_model_seconds=0", "phases.finalization.seeds=1", "phases.finalization.replay_seconds=0",
    "plan.not_audited=null",
    "phases.diagnostics.experiments=false",
)  # fmt: skip
SMALL = (
    "experiment=digits",
    "model=mlp",
    "trainer.max_epochs=3",
    "tracking=none",
    "phases.baseline.overfit_steps=40",
    *SHORT,
)


# --- which tests, how often, how long --------------------------------------------------------------------------------

settings.register_profile("quick", derandomize=True, deadline=None)  # `make test` gives the same result every time
settings.register_profile("thorough", max_examples=1000, deadline=None)
settings.load_profile("quick")


def examples(quick: int, thorough: int | None = None) -> int:
    """How many examples of a costly law: ten times as many in `make test-crash`, where nothing else is given."""
    return (thorough or 10 * quick) if settings.get_current_profile_name() == "thorough" else quick


STARTED = time.monotonic()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the tests cost: processor time of this process, the workers and what they started, and wall time."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    processor = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    wall = time.monotonic() - STARTED
    terminalreporter.write_line(f"{processor / 60:.1f} processor-minutes, {wall / 60:.1f} minutes of wall time")


PYTHONS_STARTED: list[str] = []


def note_python(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "subprocess.Popen" and sys.executable in (arguments[0], (arguments[1] or [""])[0]):
        PYTHONS_STARTED.append(" ".join(map(str, arguments[1]))[:200])


sys.addaudithook(note_python)


@pytest.fixture(autouse=True)
def marked_if_it_starts_a_process(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test without the mark `process` starts no other Python process: imports alone take seconds."""
    PYTHONS_STARTED.clear()
    yield
    assert not PYTHONS_STARTED or request.node.get_closest_marker("process"), f"mark as process: {PYTHONS_STARTED}"


@pytest.fixture
def default_sigint() -> Iterator[None]:
    """Handle SIGINT as in a terminal, even if the parent process ignores it, as nohup and CI runners do."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


# --- real runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True, scope="module")
def less_to_collect() -> None:
    """What lives so far is not looked at by later garbage collections, which took a second each after the imports."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def composed_by_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of composition itself: no config is remembered."""
    for module in (compose, overrides):
        monkeypatch.setattr(module, "hydra_compose", COMPOSED_BY_HYDRA)
    monkeypatch.setattr(OmegaConf, "load", LOAD)
    monkeypatch.setattr(OmegaConf, "create", CREATE)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """No test depends on what ran before it."""
    import random

    random.seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True, scope="session")
def own_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The key that signs grants is in a folder of the test session, which processes that tests start inherit."""
    folder = shared(tmp_path_factory, "state", lambda folder: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test stands in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # packages of other tests are not found
    monkeypatch.setattr(GUARD, "folders", {})
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def go(root: Path, *overrides: str, **options: Any) -> RunOutcome:
    """Execute a run in this process, as `python -m pipeline` does, but for the report, which takes half a second."""
    request = resolve_request([*overrides, f"run.root={root}"], options.get("config_dirs", ()))
    return execute_run(make_registry(), replace(make_hooks(lambda text: None), report=None), request)


def shared(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder that `make` filled, once for all the processes that share the suite."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"shared-{name}"
    folder.mkdir(exist_ok=True)
    with (folder / "turn").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            make(folder)
            (folder / "done").touch()
    return folder


@pytest.fixture(scope="session")
def _planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(root: Path) -> None:
        _, gate, _ = go(root, "phase=planning", *SMALL)
        assert gate == "open"

    return shared(tmp_path_factory, "planned", make) / "digits"


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(root: Path) -> None:
        _, gate, _ = go(root, "phase=baseline", *SMALL, "task.target=0.99")
        assert gate == "open"

    return shared(tmp_path_factory, "trained", make) / "digits"


@pytest.fixture(scope="session")
def _finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(root: Path) -> None:
        _, gate, _ = go(root, "phase=auto", *SMALL, "task.target=0.5")
        assert gate == "closed"

    return shared(tmp_path_factory, "finished", make) / "digits"


def in_this_process(_: Any, folder: Path, threads: int) -> subprocess.CompletedProcess[str]:
    """What the executor starts as a worker, done here: the same file of the same job, without a process's imports."""
    from diagnostics.monitor import Monitor
    from pipeline.trials import worker

    worker.work(folder, lambda: [Monitor()])
    return subprocess.CompletedProcess([], 0, "", "")


@pytest.fixture(scope="session")
def _mended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(root: Path) -> None:
        arguments = ("phases.optimization.seeds_per_arm=6", "phases.optimization.candidates=1", "task.target=0.5")
        quick = ("phases.optimization.parallel=1", "export.formats=[torchscript]")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pipeline.trials.executor.Workers.run", in_this_process)
            _, gate, _ = go(root, "phase=auto", "experiment=digits_hot", *SMALL[1:], *arguments, *quick)
        assert gate == "closed"

    return shared(tmp_path_factory, "mended", make) / "digits_hot"


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Run]:
    """A copy of a run under `<tmp_path>/runs`, free to be changed."""

    def copy(source: Path) -> Run:
        target = tmp_path / "runs" / source.name
        shutil.copytree(source, target)
        return Run(target)

    return copy


@pytest.fixture
def planned(copied: Callable[[Path], Run], _planned: Path) -> Run:
    """A run of the shrunk digits whose planning gate is open."""
    return copied(_planned)


@pytest.fixture
def trained(copied: Callable[[Path], Run], _trained: Path) -> Run:
    """A run of the shrunk digits with a baseline below its target."""
    return copied(_trained)


@pytest.fixture
def finished(copied: Callable[[Path], Run], _finished: Path) -> Run:
    """A run of the shrunk digits that reaches its (low) target and stands at the closed last gate."""
    return copied(_finished)


def release(run: Run, key: Path) -> None:
    """Release a run at its last gate, as its people do: waive what did not pass, sign with a new key, go on."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    expires = (utc_today() + timedelta(days=30)).isoformat()
    about = {"phase": "finalization", "who": "Example Owner", "why": "accepted for a rehearsal", "expires": expires}
    state = run.state()
    with opened(run) as ledger:
        for item in state.gates["finalization"].items:
            if item.outcome != "pending" and not satisfied(item, (), (), None, utc_today()):
                ledger.append("waiver", {**about, "item": item.id})
    private = Ed25519PrivateKey.generate()
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    signing = ["approve", run.path.name, "--root", str(run.path.parent), "--who", "Example Reviewer", "--key", str(key)]
    assert main(signing) == 0
    _, gate, _ = go(run.path.parent, "phase=finalization", f"run.name={run.path.name}")
    assert gate == "open" and run.state().released


@pytest.fixture(scope="session")
def _released(tmp_path_factory: pytest.TempPathFactory, _finished: Path) -> Path:
    def make(root: Path) -> None:
        shutil.copytree(_finished, root / "digits")
        release(Run(root / "digits"), root / "key")

    return shared(tmp_path_factory, "released", make) / "digits"


@pytest.fixture
def released(copied: Callable[[Path], Run], _released: Path) -> Run:
    """A run of the shrunk digits that was signed with a key and released."""
    return copied(_released)


@pytest.fixture
def mended(copied: Callable[[Path], Run], _mended: Path) -> Run:
    """A run of the shrunk digits_hot, explained and mended, and at the closed last gate."""
    return copied(_mended)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """`cli("status", "digits")`: the command line in this process; exit code, stdout and stderr come back."""

    def command(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([str(word) for word in arguments])
        except SystemExit as error:
            code = int(error.code or 0)
        output = capsys.readouterr()
        return code, output.out, output.err

    return command


@pytest.fixture
def digits_permit(planned: Run) -> Iterator[permits.TrainPermit]:
    """A real permit to train the shrunk digits."""
    yield permits.train(planned)
