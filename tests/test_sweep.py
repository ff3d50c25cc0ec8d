"""A sweep: each job a run of its own, and none that stops, hides or changes another."""

from __future__ import annotations

import json
import logging
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config.compose import compose
from pipeline.config.sweep import isolated, multirun
from pipeline.errors import Refused, UserError

GRID = ["-m", "phase=baseline", "optimizer.lr=0.1,0.01", "seed=1,2"]


def test_a_failing_job_neither_stops_nor_hides_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """Two by two: a refusal is one line, a fault of the program has its traceback, and the other two are done."""
    done = []

    def job(config: dict[str, Any], told: list[str]) -> int:
        at = (config["optimizer"]["lr"], config["seed"])
        if at == (0.1, 2):
            raise Refused("the gate is closed")
        if at == (0.01, 1):
            raise ZeroDivisionError
        done.append((config["run"]["name"], told))
        return 0

    with caplog.at_level(logging.ERROR):
        ends = multirun(GRID, job)

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


def test_every_sweep_has_a_number_of_its_own() -> None:
    """The smallest that no sweep used, also where only its runs are left; nothing else appears on disk."""
    Path("runs/digits-2-0").mkdir(parents=True)

    first = multirun(["-m", "seed=1,2"], lambda config, told: 0)
    third = multirun(["-m", "experiment=glob(digits*)"], lambda config, told: config["run"]["sweep"])

    assert [end.name for end in first] == ["digits-1-0", "digits-1-1"]
    assert [(end.name, end.exit_code) for end in third] == [("digits-3-0", 3), ("digits_hot-3-1", 3)]
    assert sorted(path.name for path in Path().iterdir()) == ["runs"]
    assert sorted(path.name for path in Path("runs").iterdir()) == [".sweeps", "digits-2-0"]


def test_all_faults_before_the_first_job() -> None:
    """Every swept value is looked at before anything runs or is written."""
    words = ["-m", "seed=1,abc", "model=mlp,mpl", "optimizer.lrr=1,2", "trainer.max_epochs=0", "--config-dir=nowhere"]
    started = []

    with pytest.raises(UserError) as refused:
        multirun(words, lambda config, told: started.append(1) or 0)

    where = {said.split(":", 1)[0] for said in refused.value.faults}
    assert where == {"seed", "model", "optimizer.lrr", "trainer.max_epochs", "--config-dir"}
    assert started == []
    assert list(Path().iterdir()) == []


def test_what_only_shows_in_a_combination_fails_that_job_alone(caplog: pytest.LogCaptureFixture) -> None:
    """A name that grows too long with its suffix is refused as that job's input."""
    with caplog.at_level(logging.ERROR):
        ends = multirun(["-m", f"run.name={'a' * 62},b"], lambda config, told: 0)

    assert [(end.name[:1], end.exit_code) for end in ends] == [("a", 2), ("b", 0)]
    assert "run.name: is not allowed" in caplog.text


def test_nothing_leaks_from_job_to_job() -> None:
    """Generators, torch's switches, the folder and the environment are as new in each job, and afterwards."""
    seen = []
    argv, folder = list(sys.argv), Path.cwd()

    def job(config: dict[str, Any], told: list[str]) -> int:
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


def test_isolation_survives_an_exception() -> None:
    """The state is put back whatever happens inside."""
    with pytest.raises(KeyError), isolated():
        torch.set_default_dtype(torch.float64)
        raise KeyError

    assert torch.get_default_dtype() == torch.float32


def test_a_job_may_compose_for_itself() -> None:
    """Composing inside a job works, and leaves the sweep intact."""
    ends = multirun(["-m", "seed=1,2"], lambda config, told: compose(told)["seed"])

    assert [end.exit_code for end in ends] == [1, 2]


def test_an_exit_of_a_job_is_its_end_and_an_interrupt_ends_the_sweep() -> None:
    """`sys.exit` in a user's code is one job's end; Ctrl-C is the user's word for all."""

    def leave(config: dict[str, Any], told: list[str]) -> int:
        if config["seed"] == 3:
            raise KeyboardInterrupt
        sys.exit(config["seed"] - 1 or None)

    assert [end.exit_code for end in multirun(["-m", "seed=1,2"], leave)] == [0, 1]
    with pytest.raises(KeyboardInterrupt):
        multirun(["-m", "seed=3,1"], leave)


def test_hydra_refusals_are_our_messages() -> None:
    """What Hydra would print before it exits comes out as one message."""
    with pytest.raises(UserError, match="Sweeping over Hydra's configuration"):
        multirun(["-m", "hydra.verbose=true,false"], lambda config, told: 0)


def test_the_users_folder_is_swept_too(tmp_path: Path) -> None:
    """An experiment from `--config-dir` names its jobs."""
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    text = "# @package _global_\ndefaults: [digits]\nseed: 5\n"
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(text)

    words = ["-m", f"--config-dir={tmp_path / 'conf'}", "experiment=mine", "trainer.max_epochs=range(1,3)"]
    ends = multirun(words, lambda config, told: config["trainer"]["max_epochs"])

    assert [(end.name, end.exit_code) for end in ends] == [("mine-1-0", 1), ("mine-1-1", 2)]
