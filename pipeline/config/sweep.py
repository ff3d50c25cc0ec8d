"""A sweep: Hydra's own sweeper and launcher, and around them what they lack.

Every fault that can be seen is reported before the first job starts. A job that fails neither stops nor hides the
others, nothing leaks from one job into the next, and each job is a run of its own, `<name>-<sweep>-<n>`. The jobs'
ends travel through files in the sweep's folder, because a launcher may run them in other processes.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig

from pipeline.config.arguments import parse
from pipeline.config.compose import composition, existing, finished, hydra_over, search_path
from pipeline.config.hydra_main import hydra_main
from pipeline.config.schema import validate
from pipeline.errors import FivegateError, UserError
from pipeline.record import files

log = logging.getLogger(__name__)

Job = Callable[[dict[str, Any], list[str]], int]
LOOKED_AT_FIRST = 64  # compositions before the first job; more would cost more than they save


class JobEnd(NamedTuple):
    """How a job of a sweep ended: its run's name, its exit code, and what it was told apart by."""

    name: str
    exit_code: int
    overrides: list[str]


def multirun(argv: Sequence[str], job: Job) -> list[JobEnd]:
    """Every combination has been a job, in the order of the sweep; how each ended comes back.

    `job(config, overrides)` returns its exit code; what it raises counts as its own end. Raises UserError, before
    anything is written, when the sweep itself is wrong.
    """
    arguments = parse(argv)
    overrides, folders = list(arguments.overrides), arguments.config_dirs
    first = _looked_at(overrides, folders)
    root = Path(first["run"]["root"])
    sweep = _claim(root)
    ends = root / ".sweeps" / str(sweep)
    words = ["--multirun", search_path(existing(folders)[0]), *overrides, f"run.sweep={sweep}"]

    def task(composed: DictConfig) -> None:
        number = HydraConfig.get().job.num
        told = [word for word in HydraConfig.get().overrides.task if not word.startswith("run.sweep=")]
        with isolated():
            end = _run(composed, overrides, told, f"{sweep}-{number}", job)
        files.write_json(ends / f"{number}.json", {"name": end.name, "exit_code": end.exit_code, "overrides": told})

    with isolated():
        hydra_main(words, task)
    found = sorted(ends.glob("[0-9]*.json"), key=lambda path: int(path.stem))
    return [JobEnd(**json.loads(path.read_text())) for path in found]


def _run(composed: DictConfig, typed: list[str], told: list[str], suffix: str, job: Job) -> JobEnd:
    """One job from its config to its end. Only an interrupt gets out."""
    name = f"?-{suffix}"
    try:
        config, faults = finished(composed, typed)
        if faults:
            raise UserError(*faults)
        name = config["run"]["name"] = f"{config['run']['name']}-{suffix}"
        validate(config)
        code = job(config, told)
    except FivegateError as error:
        log.error("%s: %s", name, error)
        code = error.exit_code
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except Exception:  # a fault of the program in one job is no reason to lose the others
        log.exception("%s: fault in the program", name)
        code = 1
    return JobEnd(name, code, told)


def _looked_at(overrides: list[str], folders: Sequence[Path]) -> dict[str, Any]:
    """The first job's config. Raises UserError with the faults of the first job and of each swept value on its own."""
    first, others = _variations(overrides, folders)
    faults: list[str] = []
    config: dict[str, Any] = {}
    for words in [first, *others[: LOOKED_AT_FIRST - 1]]:
        try:
            config = config or composition(words, folders).config
            if words is not first:
                composition(words, folders)
        except UserError as error:
            faults += error.faults
    if faults:
        raise UserError(*{said.partition("  Do: ")[0]: said for said in reversed(faults)}.values())
    return config


def _variations(overrides: list[str], folders: Sequence[Path]) -> tuple[list[str], list[list[str]]]:
    """The overrides of the first job, and of those that differ from it in a single value."""
    first = list(overrides)
    values: dict[int, list[str]] = {}
    with hydra_over(existing(folders)[0]):
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        for place, word in enumerate(overrides):
            try:
                [override] = parser.parse_overrides([word])
                if override.is_sweep_override():
                    key = override.get_key_element()
                    values[place] = [f"{key}={value}" for value in override.sweep_string_iterator()]
                    first[place] = values[place][0]
            except (HydraException, IndexError, ValueError):
                continue  # composing the first job says what is wrong with it
    swept = ((place, word) for place, words in values.items() for word in words[1:])
    return first, [[*first[:place], word, *first[place + 1 :]] for place, word in swept]


def _claim(root: Path) -> int:
    """The smallest number that no sweep under this root has used, now used."""
    shelf = files.folder(root / ".sweeps")
    used = {int(m[1]) for path in root.iterdir() if (m := re.fullmatch(r".+-(\d+)-\d+", path.name))}
    for number in count(1):
        if number not in used and files.claim(shelf / str(number)):
            return number
    raise AssertionError("numbers do not end")


@contextmanager
def isolated() -> Iterator[None]:
    """What the block does to the process is undone: generators, torch's switches, folder, environment."""
    import random

    import numpy as np
    import torch

    folder, environment = os.getcwd(), dict(os.environ)
    state: list[tuple[Callable[[Any], object], Any]] = [
        (random.setstate, random.getstate()),
        (np.random.set_state, np.random.get_state()),
        (torch.set_rng_state, torch.get_rng_state()),
        (torch.set_default_dtype, torch.get_default_dtype()),
        (torch.set_default_device, torch.get_default_device()),
        (torch.set_num_threads, torch.get_num_threads()),
        (torch.set_grad_enabled, torch.is_grad_enabled()),
        (torch.set_deterministic_debug_mode, torch.get_deterministic_debug_mode()),
        (torch.set_float32_matmul_precision, torch.get_float32_matmul_precision()),
        (torch.autograd.set_detect_anomaly, torch.is_anomaly_enabled()),
    ]
    try:
        yield
    finally:
        for put_back, value in state:
            put_back(value)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
