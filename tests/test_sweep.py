"""A sweep: each job a run of its own, and none that stops, hides or changes another."""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.__main__ import main
from pipeline.config.compose import compose
from pipeline.errors import Refused, UserError
from pipeline.orchestration import sweep
from pipeline.orchestration.sweep import multirun
from pipeline.orchestration.sweep_directory import claim_sweep
from pipeline.orchestration.sweep_isolation import isolated
from pipeline.run_store.ledger import read_ledger
from pipeline.run_store.run import Run
from pipeline.runtime.interrupt import StopSignal
from pipeline.runtime.threads import cores
from tests.conftest import SMALL

ROOT = Path(__file__).resolve().parents[1]
GRID = ["-m", "phase=baseline", "optimizer.lr=0.1,0.01", "seed=1,2"]


def test_sweep_continues_after_failed_job(caplog: pytest.LogCaptureFixture) -> None:
    """Two by two: a refusal is one line, a fault of the program has its traceback, and the other two are done."""
    done = []

    def job(config: dict[str, Any], output: list[str]) -> int:
        at = (config["optimizer"]["lr"], config["seed"])
        if at == (0.1, 2):
            raise Refused("the gate is closed")
        if at == (0.01, 1):
            raise ZeroDivisionError
        done.append((config["run"]["name"], output))
        return 0

    with caplog.at_level(logging.ERROR):
        ends = multirun(GRID, job).ends

    assert [(end.name, end.exit_code) for end in ends] == [
        ("digits-1-0", 0),
        ("digits-1-1", 3),
        ("digits-1-2", 1),
        ("digits-1-3", 0),
    ]
    assert done == [
        ("digits-1-0", ["phase=baseline", "optimizer.lr=0.1", "seed=1"]),
        ("digits-1-3", ["phase=baseline", "optimizer.lr=0.01", "seed=2"]),
    ]
    assert [bool(record.exc_info) for record in caplog.records] == [False, True]
    assert json.loads(Path("runs/.sweeps/1/1.json").read_text())["exit_code"] == 3


def test_sweep_numbers_are_unique() -> None:
    """The smallest that no sweep used, also where only its runs are left; nothing else appears on disk."""
    Path("runs/digits-2-0").mkdir(parents=True)

    first = multirun(["-m", "seed=1,2"], lambda config, output: 0).ends
    third = multirun(["-m", "experiment=digits,digits_hot"], lambda config, output: config["run"]["sweep"]).ends

    assert [end.name for end in first] == ["digits-1-0", "digits-1-1"]
    assert [(end.name, end.exit_code) for end in third] == [("digits-3-0", 3), ("digits_hot-3-1", 3)]
    assert sorted(path.name for path in Path().iterdir()) == ["runs"]
    assert sorted(path.name for path in Path("runs").iterdir()) == [".sweeps", "digits-2-0"]


def test_sweep_reports_all_faults_before_first_job() -> None:
    """Every swept value is looked at before anything runs or is written."""
    arguments = [
        "-m",
        "seed=1,abc",
        "model=mlp,mpl",
        "optimizer.lrr=1,2",
        "trainer.max_epochs=0",
        "--config-dir=nowhere",
    ]
    started = []

    with pytest.raises(UserError) as refused:
        multirun(arguments, lambda config, output: started.append(1) or 0)

    where = {message.split(":", 1)[0] for message in refused.value.faults}
    assert where == {"seed", "model", "optimizer.lrr", "trainer.max_epochs", "--config-dir"}
    assert started == []
    assert list(Path().iterdir()) == []


def test_sweep_fault_of_combination_fails_one_job(caplog: pytest.LogCaptureFixture) -> None:
    """A name that grows too long with its suffix is refused as that job's input."""
    with caplog.at_level(logging.ERROR):
        ends = multirun(["-m", f"run.name={'a' * 62},b"], lambda config, output: 0).ends

    assert [(end.name[:1], end.exit_code) for end in ends] == [("a", 2), ("b", 0)]
    assert "run.name: is not allowed" in caplog.text


def test_sweep_jobs_are_isolated() -> None:
    """Generators, torch's switches, the folder and the environment are as new in each job, and afterwards."""
    seen = []
    argv, folder = list(sys.argv), Path.cwd()

    def job(config: dict[str, Any], output: list[str]) -> int:
        seen.append((random.random(), np.random.rand(), float(torch.rand(1)), torch.get_default_dtype(), os.getcwd()))
        assert "LEAK" not in os.environ
        os.environ["LEAK"] = "1"
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(True)
        torch.manual_seed(config["seed"])
        os.chdir("/")
        return 0

    multirun(["-m", "seed=1,2,3"], job)

    assert len(set(seen)) == 1
    assert (torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()) == (torch.float32, False)
    assert (sys.argv, Path.cwd(), "LEAK" in os.environ) == (argv, folder, False)
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_isolated_restores_state_after_exception() -> None:
    """The state is put back whatever happens inside; where no default device was set, none is: it slows every call."""
    with pytest.raises(KeyError), isolated():
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        raise KeyError

    assert torch.get_default_dtype() == torch.float32
    assert (torch.empty(0).device.type, torch.utils._device.CURRENT_DEVICE) == ("cpu", None)


def test_sweep_job_may_compose() -> None:
    """Composing inside a job works, and leaves the sweep intact."""
    ends = multirun(["-m", "seed=1,2"], lambda config, output: compose(output)["seed"]).ends

    assert [end.exit_code for end in ends] == [1, 2]


def test_sweep_job_exit_and_interrupt() -> None:
    """`sys.exit` is a fault of one job, whatever its argument; a request to stop is for all jobs."""

    def leave(config: dict[str, Any], output: list[str]) -> int:
        if config["seed"] == 3:
            raise StopSignal
        sys.exit(config["seed"] - 1 or None)

    assert [end.exit_code for end in multirun(["-m", "seed=1,2"], leave).ends] == [1, 1]
    with pytest.raises(StopSignal):
        multirun(["-m", "seed=3,1"], leave)


def test_sweep_reports_hydra_refusal() -> None:
    """What Hydra would print before it exits comes out as one message."""
    with pytest.raises(UserError, match="Sweeping over Hydra's configuration"):
        multirun(["-m", "hydra.verbose=true,false"], lambda config, output: 0)


def test_sweep_uses_config_dir(tmp_path: Path) -> None:
    """An experiment from `--config-dir` names its jobs."""
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    text = "# @package _global_\ndefaults: [digits]\nseed: 5\n"
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(text)

    arguments = ["-m", f"--config-dir={tmp_path / 'conf'}", "experiment=mine", "trainer.max_epochs=range(1,3)"]
    ends = multirun(arguments, lambda config, output: config["trainer"]["max_epochs"]).ends

    assert [(end.name, end.exit_code) for end in ends] == [("mine-1-0", 1), ("mine-1-1", 2)]


# --- interrupted, and gone on with -----------------------------------------------------------------------------------


def test_sweep_is_continued_by_same_overrides() -> None:
    """Jobs that ended well are not done again, the others are, under the same names; a finished sweep is over."""
    arguments, seen, message = ["-m", "seed=1,2,3,4"], [], []

    def job(config: dict[str, Any], output: list[str]) -> int:
        seen.append(config["seed"])
        if len(seen) == 3:
            raise StopSignal
        return {1: 3, 2: 1}.get(config["seed"], 0)

    with pytest.raises(StopSignal):
        multirun(arguments, job, message.append)
    other = multirun(["-m", "seed=7,8"], lambda config, output: 0)
    done = multirun(arguments, job, message.append)
    again = multirun(arguments, lambda config, output: 0, message.append)

    assert seen == [1, 2, 3, 2, 3, 4]
    assert [(end.name, end.exit_code) for end in done.ends] == [
        ("digits-1-0", 3),
        ("digits-1-1", 1),
        ("digits-1-2", 0),
        ("digits-1-3", 0),
    ]
    assert (done.number, other.number, again.number) == (1, 2, 3)
    assert message == ["sweep 1 was interrupted and is continued; jobs that have ended: 1"]


@pytest.mark.usefixtures("default_sigint")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_sweep_with_one_joblib_process_can_be_stopped(number: signal.Signals) -> None:
    """joblib runs the jobs in the sweep's own process then, and the first Ctrl-C ends the sweep there and then."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    seen = []

    def job(config: dict[str, Any], output: list[str]) -> int:
        seen.append(config["seed"])
        os.kill(os.getpid(), number)
        return time.sleep(0.2) or 0

    with pytest.raises(StopSignal):
        multirun(["-m", "seed=1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=1"], job)
    assert seen == [1]


def test_claim_sweep_gives_parallel_sweeps_own_numbers() -> None:
    """Who asks for the same while another process is at it gets a number of its own."""
    root, arguments = Path("runs"), ["seed=1,2"]
    with claim_sweep(root, arguments, []) as (first, _), claim_sweep(root, arguments, []) as (second, goes_on):
        assert (first.number, second.number, goes_on) == (1, 2, False)
    with claim_sweep(root, [*arguments, "hydra/launcher=joblib"], []) as (newest, goes_on):
        assert (newest.number, goes_on) == (2, True)


@pytest.mark.parametrize(
    ("launcher", "arguments", "expected"),
    [
        ("basic", [], []),
        ("joblib", [], ["trainer.threads=1", "phases.optimization.parallel=1", "hydra.launcher.n_jobs=4"]),
        (
            "joblib",
            ["trainer.threads=2", "hydra.launcher.n_jobs=-1"],
            ["phases.optimization.parallel=1", "hydra.launcher.n_jobs=2"],
        ),
        (
            "joblib",
            ["trainer.threads=1,4", "phases.optimization.parallel=1", "hydra.launcher.n_jobs=8"],
            ["hydra.launcher.n_jobs=1"],
        ),
        (
            "joblib",
            ["phases.optimization.parallel=auto", "hydra.launcher.n_jobs=1"],
            ["trainer.threads=1", "hydra.launcher.n_jobs=1"],
        ),
        ("joblib", ["trainer.threads=auto"], ["phases.optimization.parallel=1", "hydra.launcher.n_jobs=1"]),
        (
            "submitit_local",
            ["trainer.threads=3"],
            ["phases.optimization.parallel=1", "hydra.sweeper.max_batch_size=1", "hydra.launcher.timeout_min=525600"],
        ),
    ],
)
def test_sweep_never_computes_on_more_threads_than_cores(
    launcher: str, arguments: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On four cores: jobs at a time, threads per job and trials per job multiply to at most four."""
    monkeypatch.setattr(sweep, "cores", lambda: 4)
    overrides = ["seed=1,2,3", f"hydra/launcher={launcher}", *arguments]
    if launcher != "basic":
        pytest.importorskip(f"hydra_plugins.hydra_{launcher.removesuffix('_local')}_launcher")

    assert sweep._launcher_overrides(launcher, sweep._check_jobs(overrides, []), overrides) == expected


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_sweep_runs_no_more_jobs_at_a_time_than_allowed(launcher: str, own_folder: Path) -> None:
    """Three jobs of as many threads as there are cores run one after the other."""
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.removesuffix('_local')}_launcher")
    arguments = [f"hydra/launcher={launcher}", "seed=1,2,3", f"trainer.threads={cores()}", "model=mlp"]

    assert main(["-m", "phase=planning", *arguments]) in (0, 3)
    spans = []
    for number in range(3):
        entries = read_ledger(own_folder / "runs" / f"digits-1-{number}" / "ledger.jsonl")
        spans.append((entries[0]["time"], entries[-1]["time"]))
    spans.sort()
    assert all(first[1] < second[0] for first, second in itertools.pairwise(spans))


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_sweep_launchers_give_the_same_weights(launcher: str) -> None:
    """Side by side, killed and gone on with, or one after the other: the same runs, and nothing but them under root."""
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.removesuffix('_local')}_launcher")
    arguments = ["phase=baseline", "seed=1,2", *SMALL[:1], *SMALL[2:], "trainer.max_epochs=60"]
    command = [sys.executable, "-m", "pipeline", "-m", *arguments, f"hydra/launcher={launcher}", "run.root=beside"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not Path("beside/digits-1-0/baseline").exists():
        assert first.poll() is None
        time.sleep(0.05)
    first.kill()
    first.wait()
    second = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert "sweep 1 was interrupted and is continued" in second.stdout
    assert main(["-m", *arguments, "run.root=alone"]) == 0
    for name in ("digits-1-0", "digits-1-1"):
        besides, alone = (Run.at(root, name).state().candidate for root in ("beside", "alone"))
        assert besides and alone and besides["weights"] == alone["weights"]
    assert sorted(p.name for p in Path("beside").iterdir()) == [".sweeps", "digits-1-0", "digits-1-1"]
    assert not any(Path("beside/.sweeps/1").glob("*.pid"))


@pytest.mark.process
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_sweep_launchers_run_nothing_of_the_current_folder(launcher: str, own_folder: Path) -> None:
    """The processes of a launcher import neither it nor a library from somebody's folder."""
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.removesuffix('_local')}_launcher")
    for name in ("joblib", "submitit", "cloudpickle", "socket"):
        (own_folder / f"{name}.py").write_text(f"open({str(own_folder / 'ran')!r}, 'w')")
    command = [sys.executable, "-m", "pipeline", "-m", "phase=planning", "seed=1,2", f"hydra/launcher={launcher}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *SMALL[:1], *SMALL[2:]], env=environment, capture_output=True, text=True)

    assert done.returncode in (0, 3) and not Path("ran").exists(), done.stderr
    assert len(list(Path("runs").glob("digits-1-*/plan"))) == 2


def test_sweep_refuses_other_launchers() -> None:
    """One whose jobs could not be stopped is refused by name."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    with pytest.raises(UserError, match="hydra/launcher: is not built"):
        multirun(["-m", "hydra/launcher=submitit_slurm", "seed=1,2"], lambda config, output: 0)
