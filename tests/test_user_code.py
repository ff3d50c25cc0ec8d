"""Exceptions of the user's code: one message with the part, the user's file and the line, and a run that goes on."""

from __future__ import annotations

import asyncio
import builtins
import importlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.run_store import permits
from pipeline.run_store.job import Delta, Job
from pipeline.run_store.next_step import next_step
from pipeline.run_store.run import Run
from pipeline.trials.executor import run_jobs
from tests.check_helpers import read_evidence
from tests.conftest import Cli

ROOT = Path(__file__).resolve().parents[1]

# A package of somebody's own, in which every part asks whether it is its turn to fail.
PACKAGE = '''
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import torch
from torch import nn

FAILING = {"part": "", "phase": "", "error": None}

def turn(part):
    """Whether this part is to fail in the phase that is running."""
    if FAILING["part"] != part:
        return False
    frame, names = sys._getframe(), []
    while frame is not None:
        names.append(f"{frame.f_code.co_filename.rsplit('/', 1)[-1]}:{frame.f_code.co_name}")
        frame = frame.f_back
    return any(name.startswith(FAILING["phase"]) for name in names)

def error():
    return FAILING["error"]

def called_in_thread(function):
    """Call the function in a thread of a pool if that is where it fails."""
    if "thread" not in FAILING["part"]: return
    with ThreadPoolExecutor(1) as pool:
        pool.submit(function).result()

def read():
    if turn("item in a thread"): raise error()

def compute():
    if turn("model in a thread"): raise error()

def prefetch():
    if turn("alone in a thread"): raise error()

def collate(rows):
    if turn("collate"): raise error()
    return rows[0]

class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1
    @staticmethod
    def backward(ctx, gradient):
        if turn("backward"): raise error()
        return gradient

class Own(Exception):
    """An exception without a message."""

class Unreadable(Exception):
    def __str__(self):
        raise ValueError("no text")

class Rows:
    def __init__(self, X, y):
        self.X, self.y = X, y
    def __len__(self):
        if turn("length"): raise error()
        return len(self.X)
    def __getitem__(self, i):
        if turn("item"): raise error()
        called_in_thread(read)
        return collate([(torch.as_tensor(self.X[i]), self.y[i])])

def table():
    if turn("data"): raise error()
    if "alone" in FAILING["part"]:
        thread = threading.Thread(target=prefetch)
        thread.start()
        thread.join()
    draw = np.random.default_rng(0)
    y = np.arange(180) % 3
    X = (draw.normal(size=(180, 3)) + 3 * np.eye(3)[y]).astype("float32")
    pairs = {"train": (X[:80], y[:80]), "val": (X[80:130], y[80:130]), "test": (X[130:], y[130:])}
    return {**pairs, "train": Rows(*pairs["train"])}

class Net(nn.Module):
    def __init__(self):
        if turn("model.__init__"): raise error()
        super().__init__()
        self.layer = nn.Linear(3, 3)
    def forward(self, x):
        if turn("model"): raise error()
        called_in_thread(compute)
        return Backward.apply(self.layer(x))
    def train(self, mode=True):
        if turn("model.train"): raise error()
        return super().train(mode)

class Broken(nn.Linear):
    def __init__(self):
        super().__init__(3, 3)
    def forward(self, x):
        if turn("broken") or True: raise IndexError("a mistake")

class Vanishing(Broken):
    def forward(self, x):
        os._exit(0)

class Loss(nn.CrossEntropyLoss):
    def __init__(self):
        if turn("loss.__init__"): raise error()
        super().__init__()
    def forward(self, outputs, targets):
        if turn("loss"): raise error()
        return super().forward(outputs, targets)

def hits(targets, predictions):
    if turn("task.metric"): raise error()
    return (targets == predictions).mean()
hits.greater_is_better = True

def predict(outputs):
    if turn("task.predict"): raise error()
    return outputs.argmax(1)

def step(model, batch):
    if turn("task.step"): raise error()
    outputs = model(batch[0])
    return {"loss": nn.functional.cross_entropy(outputs, batch[1]), "outputs": outputs}

class Optimizer(torch.optim.SGD):
    def __init__(self, params, lr):
        if turn("optimizer.__init__"): raise error()
        super().__init__(params, lr=lr)
    def step(self, closure=None):
        if turn("optimizer"): raise error()
        return super().step(closure)

class Scheduler(torch.optim.lr_scheduler.LRScheduler):
    def get_lr(self):
        if turn("scheduler"): raise error()
        return [group["lr"] for group in self.optimizer.param_groups]

def noise(inputs, draws):
    if turn("loader.augment[0]"): raise error()
    return inputs

class Augment:
    def __call__(self, inputs, draws):
        return noise(inputs, draws)
'''
EXPERIMENT = """# @package _global_
defaults: [override /data: null, override /model: null, override /loss: null, override /optimizer: null]
seed: 5
plan: {{purpose: to be, population: any, assumptions: [none], risks: [none], limits: {{size_mb: 1}}, owner: nobody}}
data: {{_target_: {0}.table}}
model: {{_target_: {0}.Net}}
loss: {{_target_: {0}.Loss}}
task: {{metric: {{_target_: {0}.hits}}, target: 0.5, predict: {{_target_: {0}.predict}}{1}}}
optimizer: {{_target_: {0}.Optimizer, _partial_: true, lr: 0.1}}
scheduler: {{_target_: {0}.Scheduler, _partial_: true}}
loader: {{batch_size: 20, augment: [{{_target_: {0}.Augment}}]}}
trainer: {{max_epochs: 2}}
export: {{formats: [torchscript]}}
phases:
  baseline: {{overfit_steps: 20, sanity_check_steps: 0, reproducibility_steps: 0, folds: 0, baseline_model_seconds: 0}}
  finalization: {{seeds: 1, replay_seconds: 0}}
tracking: {{kind: none}}
"""

Program = Callable[..., "UserProgram"]


class UserProgram:
    """The package in a folder of its own under a name that no other test imports, and the commands on it."""

    def __init__(self, folder: Path, name: str, cli: Cli, step: bool) -> None:
        self.name, self.path, self.cli = name, folder / f"{name}.py", cli
        self.path.write_text(PACKAGE)
        experiments = folder / "conf" / "experiment"
        experiments.mkdir(parents=True)
        own_step = f", step: {{_target_: {name}.step}}" if step else ""
        (experiments / "own.yaml").write_text(EXPERIMENT.format(name, own_step))

    @property
    def module(self) -> Any:
        return importlib.import_module(self.name)

    def fails(self, part: str, phase: str, error: str) -> None:
        """Let one part raise this exception in this phase."""
        sys.path.append(str(self.path.parent))
        self.module.FAILING.update(part=part, phase=phase, error=self.error(error))

    def error(self, name: str) -> BaseException:
        if name in ("Own", "Unreadable"):
            return getattr(self.module, name)()
        groups = {"ExceptionGroup": [ValueError("inside")], "BaseExceptionGroup": [SystemExit(0)]}
        if name in groups:
            return getattr(builtins, name)("several", groups[name])
        known = {
            "SystemExit": SystemExit(3),
            "SystemExit: 0": SystemExit(0),
            "KeyError": KeyError("absent"),
            "CancelledError": asyncio.CancelledError(),
            "ValueError: xxx": ValueError("x" * 3_000_000),
        }
        return known.get(name) or getattr(builtins, name)("a mistake")

    def mend(self) -> None:
        """The file changes, and fails no more."""
        self.module.FAILING.update(part="")
        self.path.write_text(PACKAGE + "\n# mended\n")

    def line(self, part: str) -> str:
        """`file:line` at which the part fails."""
        question = f'if turn("{part}")'
        return f"{self.path}:{next(i for i, text in enumerate(PACKAGE.splitlines(), 1) if question in text)}"

    def run(self, phase: str, *words: str) -> tuple[int, str, str]:
        return self.cli(f"phase={phase}", "--config-dir", "conf", "experiment=own", f"trust=[{self.name}]", *words)


def exit_code(error: str) -> int:
    """With which a command ends when the user's code raises this: 1 for what would end the process or the stack."""
    ends = ("SystemExit", "KeyboardInterrupt", "GeneratorExit", "RecursionError", "CancelledError", "BaseException")
    return 1 if error.startswith(ends) else 2


NUMBERS = iter(range(10_000))


@pytest.fixture
def program(own_folder: Path, cli: Cli) -> Iterator[Program]:
    path = list(sys.path)
    yield lambda step=False: UserProgram(own_folder, f"own_program_{next(NUMBERS)}", cli, step)
    sys.path[:] = path


PLANNING, TRAINING, EVALUATION, FINALIZATION = (
    "planning.py:run",
    "loop.py:_train",
    "loop.py:_validate",
    "finalization.py",
)
# (part, key that the message begins with, phases in which the part is called)
PARTS = [
    ("data", "data: {0}.table", (PLANNING, FINALIZATION)),
    ("length", "data.train: __len__", (PLANNING,)),
    ("item", "data.train[", (PLANNING, TRAINING)),
    ("model.__init__", "model: {0}.Net", (PLANNING, "baseline.py:run")),
    ("model", "model:", (PLANNING, TRAINING, EVALUATION, FINALIZATION)),
    ("model.train", "{1}", (PLANNING, TRAINING)),
    ("loss.__init__", "loss: {0}.Loss", (PLANNING,)),
    ("loss", "loss:", (PLANNING, TRAINING, EVALUATION, FINALIZATION)),
    ("task.metric", "task.metric: 'hits'", (PLANNING, EVALUATION, FINALIZATION)),
    ("task.predict", "task.predict:", (PLANNING, EVALUATION, FINALIZATION)),
    ("task.step", "task.step:", (PLANNING, TRAINING, EVALUATION, FINALIZATION)),
    ("optimizer.__init__", "optimizer:", (PLANNING,)),
    ("optimizer", "optimizer:", (TRAINING,)),
    ("scheduler", "scheduler:", (PLANNING, EVALUATION)),
    ("loader.augment[0]", "loader.augment[0]:", (PLANNING, TRAINING)),
]
ERRORS = (
    "IndexError", "KeyError", "AttributeError", "ZeroDivisionError", "RuntimeError", "Own", "Unreadable", "SystemExit",
    "StopIteration", "AssertionError", "ValueError", "TypeError", "OSError",
)  # fmt: skip
CASES = [(part, key, phase) for part, key, phases in PARTS for phase in phases]
# `make test` tries each part where it is called first, and these two in every phase; `make test-crash` tries all.
IN_EVERY_PHASE = ("model", "task.metric")
FIRST = {part: phases[0] for part, _, phases in PARTS}


@pytest.mark.parametrize(
    ("part", "key", "phase", "error"),
    [
        pytest.param(
            *(part, key, phase, ERRORS[i % len(ERRORS)]),
            marks=[] if phase == FIRST[part] or part in IN_EVERY_PHASE else [pytest.mark.slow],
        )
        for i, (part, key, phase) in enumerate(CASES)
    ],
)
def test_user_code_that_fails_is_one_message(program: Program, part: str, key: str, phase: str, error: str) -> None:
    """In every phase the message names the part, the file and the line; mended, the run goes on."""
    own = program(step=part == "task.step")
    if phase == FINALIZATION:
        assert own.run("baseline")[0] == 0
    own.fails(part, phase, error)

    code, out, err = own.run("finalization" if phase == FINALIZATION else "baseline")

    assert code == exit_code(error), out + err
    assert "Traceback" not in out + err
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith(key.format(own.name, own.path)) and own.line(part) in err
    assert error in err
    run = Run(Path("runs/own").resolve())
    if not run.exists():  # it failed in its first planning, which leaves nothing
        assert not Path("runs").exists()
        return
    assert own.line(part) in run.state().failed["why"]  # type: ignore[index]

    step = next_step(run.state(), run.path)
    assert step.why.endswith(f"fails again until {own.line(part)} is mended; then")

    own.mend()
    code, out, err = own.cli(*shlex.split(step.command)[3:])
    assert code == 0, out + err


# What is no `Exception`, would end the process with another exit code, or has a text that is not fit to print.
ENDINGS = (
    "SystemExit: 0", "KeyboardInterrupt", "GeneratorExit", "RecursionError", "MemoryError", "CancelledError",
    "ExceptionGroup", "BaseExceptionGroup", "ValueError: xxx", "StopAsyncIteration",
)  # fmt: skip
ENDING_PARTS = [
    ("data", "data: {0}.table", PLANNING),
    ("item", "data.train[", TRAINING),
    ("model.__init__", "model: {0}.Net", PLANNING),
    ("model", "model:", TRAINING),
    ("backward", "model or loss: fails in the backward pass", TRAINING),
    ("loss", "loss:", PLANNING),
    ("task.metric", "task.metric: 'hits'", EVALUATION),
    ("task.predict", "task.predict:", PLANNING),
    ("optimizer", "optimizer:", TRAINING),
    ("scheduler", "scheduler:", EVALUATION),
]


@pytest.mark.usefixtures("default_sigint")
@pytest.mark.parametrize(
    ("part", "key", "phase", "error"),
    [
        pytest.param(
            *ENDING_PARTS[(i + shift) % len(ENDING_PARTS)], ENDINGS[i], marks=[pytest.mark.slow] if shift else []
        )
        for shift in (0, 3, 7)
        for i in range(len(ENDINGS))
    ],
)
def test_user_code_cannot_end_the_process(program: Program, part: str, key: str, phase: str, error: str) -> None:
    """Whatever class the user's exception has, it is a fault of that code with its line, and nothing is called done."""
    own = program()
    own.fails(part, phase, error)

    code, out, err = own.run("baseline")

    assert code == exit_code(error), out + err
    if error == "MemoryError":  # has a message of its own, since smaller batches are tried
        assert "memory" in err and own.line(part) in err
    else:
        assert err.startswith(key.format(own.name)) and own.line(part) in err and error in err
    assert len(err) < 2000 and "Traceback" not in out + err


IN_A_WORKER, IN_A_THREAD = "worker.py:_worker_loop", "thread.py:run"


@pytest.mark.parametrize(
    ("part", "key", "place", "error"),
    [
        ("item", "data.train[", IN_A_WORKER, "KeyError"),
        ("item", "data.train[", IN_A_WORKER, "SystemExit: 0"),
        ("item", "data.train[", IN_A_WORKER, "Unreadable"),
        ("collate", "data.train[", IN_A_WORKER, "RuntimeError"),
        ("collate", "data.train[", TRAINING, "ValueError"),
        ("collate", "data.train[", PLANNING, "GeneratorExit"),
        ("item in a thread", "data.train[", IN_A_THREAD, "ZeroDivisionError"),
        ("item in a thread", "data.train[", IN_A_THREAD, "SystemExit: 0"),
        ("item in a thread", "data.train[", IN_A_THREAD, "KeyboardInterrupt"),
        ("model in a thread", "model:", IN_A_THREAD, "RecursionError"),
        ("model in a thread", "model:", IN_A_THREAD, "Own"),
    ],
)
@pytest.mark.process
@pytest.mark.usefixtures("default_sigint")
def test_user_code_that_fails_elsewhere_is_one_message(
    program: Program, part: str, key: str, place: str, error: str
) -> None:
    """What a function of the Dataset's, a process that reads rows, or a thread raises has the user's line, too."""
    own = program()
    own.fails(part, place, error)

    code, out, err = own.run("baseline", f"loader.num_workers={int(place == IN_A_WORKER)}")

    assert code == exit_code(error), out + err
    assert err.startswith(key) and own.line(part) in err and error in err and len(err.strip().splitlines()) == 1, err
    assert "Traceback" not in out + err


def test_thread_of_the_user_that_fails_alone_is_named(program: Program) -> None:
    """A thread that nobody waits for ends with one line instead of a traceback, and the phase goes on."""
    own = program()
    own.fails("alone in a thread", "threading.py", "KeyError")

    code, out, err = own.run("planning")

    assert code == 0, out + err
    assert "Traceback" not in err
    assert f"{own.line('alone in a thread')}: prefetch fails in a thread of its own (KeyError: 'absent')" in err


def test_sweep_job_that_exits_with_0_is_not_done(program: Program) -> None:
    """`sys.exit(0)` in the user's model of a sweep's job is a fault of that job, and the others run."""
    own = program()
    own.fails("model.__init__", PLANNING, "SystemExit: 0")

    code, out, err = own.cli(
        "-m", "phase=planning", "--config-dir", "conf", "experiment=own", f"trust=[{own.name}]", "seed=1,2"
    )

    assert code == 1 and out.count("fault") == 2, out + err


@pytest.mark.process
@pytest.mark.usefixtures("default_sigint")
def test_ctrl_c_in_user_code_is_an_interrupt(own_folder: Path) -> None:
    """Ctrl-C while the user's code runs ends with 130, although its frame is the last."""
    (own_folder / "waits.py").write_text(
        "import time\ndef table():\n    print('here', flush=True)\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-m", "pipeline", "preflight", "waits:table", "waits:table"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{own_folder}"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130 and "interrupted" in err


@pytest.mark.process
def test_worker_that_vanishes_with_0_is_a_recorded_failure(program: Program) -> None:
    """A trial whose process ends with 0 and without a result died, and the reason says so."""
    own = program()
    assert own.run("planning")[0] == 0
    run = Run(Path("runs/own").resolve())
    plan = permits.train(run).plan
    jobs = [("one", Job(plan.digest, "trial", Delta({"model": {"_target_": f"{own.name}.Vanishing"}})))]
    [trial] = run_jobs(jobs, run.inside("trials"), parallel=1, threads=1, on_finished=lambda trial: None)
    assert trial.died == "exit 0: it ended without a result, as after os._exit"


@pytest.mark.slow
def test_user_code_that_fails_in_the_export_is_the_reason_of_its_gate(program: Program) -> None:
    """An export or a comparison that the model refuses closes the last gate, with the user's line."""
    own = program()
    assert own.run("baseline")[0] == 0
    own.fails("model", "exported.py:export", "ZeroDivisionError")

    code, out, err = own.run("finalization")

    assert code == 3 and "Traceback" not in out + err
    parity = read_evidence(Run(Path("runs/own").resolve()), "finalization")["parity"]
    assert f"ZeroDivisionError: a mistake at {own.line('model')}" in parity["torchscript"]["error"]


@pytest.mark.process
def test_user_code_that_fails_in_a_worker_process_is_the_same_message(program: Program) -> None:
    """A trial in a process of its own names the part, the file and the line, as a training in this process does."""
    own = program()
    assert own.run("planning")[0] == 0
    run = Run(Path("runs/own").resolve())
    plan = permits.train(run).plan
    jobs = [("one", Job(plan.digest, "trial", Delta({"model": {"_target_": f"{own.name}.Broken"}})))]
    [trial] = run_jobs(jobs, run.inside("trials"), parallel=1, threads=1, on_finished=lambda trial: None)
    assert trial.died == f"exit 2: model: fails at {own.line('broken')} (IndexError: a mistake)"
