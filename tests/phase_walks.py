"""A small run through all five phases in seconds, in processes that can be killed and whose writes can be injured.

The modules are imported once; each command then runs in a fork, and so do its workers. What a command does is what
`python -m pipeline` does, without the seconds that imports take.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.adoption.guards import LATENCY, MEMORY
from pipeline.release.bundle import DOCUMENTS, MANIFEST
from pipeline.run_store import files
from pipeline.run_store.ledger import Ledger, read_ledger
from pipeline.run_store.run import Run

ROOT = Path(__file__).resolve().parents[1]
PHASES = ("planning", "baseline", "diagnostics", "optimization", "finalization")
NAME = "walk"
APPROVER = "Example Reviewer"  # the plan names approvers, so that its owner may not approve
# The learning rate is a thousand times too high: the baseline misses its target, and one fix is tried and adopted.
WORDS = [
    "experiment=digits_hot", "model=mlp", f"run.name={NAME}", "tracking=none", "trainer.max_epochs=2",
    "trainer.checkpoint_steps=5",
    "task.target=0.5", "phases.baseline.overfit_steps=20", "phases.baseline.sanity_check_steps=20",
    "phases.baseline.reproducibility_steps=0", "phases.baseline.folds=0", "phases.baseline.baseline_model_seconds=0",
    "phases.optimization.seeds_per_arm=7", "phases.optimization.candidates=1", "phases.optimization.parallel=2",
    "export.formats=[torchscript]",
]  # fmt: skip

WITH_TIMES = (*DOCUMENTS, MANIFEST)  # they name the entry of the ledger that finalization began after

SERVER = "import tests.phase_walks as w; w.serve()"


class Ended(NamedTuple):
    """How a command ended: exit code (-9 if killed), seconds, what it printed, whether the kill found its victim."""

    code: int
    seconds: float
    output: str
    killed: bool


@dataclass(frozen=True)
class Kill:
    """A signal for the whole process group, the parent alone or one worker, after seconds or entries of the ledger.

    With `ended`, it comes when the ledger has the end of the training with this id.
    """

    victim: str  # group | parent | worker
    seconds: float = 0.0
    entries: int = 0
    ended: str = ""
    signal: str = "SIGKILL"


@dataclass(frozen=True)
class Point:
    """A kind of call of the file module: by the parent or a worker, the operation, and the path without numbers."""

    process: str
    operation: str
    path: str


@dataclass(frozen=True)
class Fault:
    """What happens once, at the first call at a point, by the parent or by the worker of one trial."""

    point: Point
    kind: str  # kill | short | the name of an errno
    trial: str = ""


class Walks:
    """Runs commands one after another, each in a new process group."""

    def __init__(self, folder: Path, words: Sequence[str] = WORDS) -> None:
        self.words = list(words)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "1"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", SERVER], cwd=folder, env=environment, **pipes)

    def __call__(
        self, root: Path, phase: str = "auto", kill: Kill | None = None, faults: Sequence[Fault] = (), log: str = ""
    ) -> Ended:
        """Run a phase (auto: all) of the run under `root`; `log` is a file that notes every call of the file module.

        The phase `approve` is the command of that name.
        """
        approve = ["approve", str(root / NAME), "--who", APPROVER]
        asked = {
            "words": approve if phase == "approve" else [f"phase={phase}", *self.words, f"run.root={root}"],
            "ledger": str(root / NAME / "ledger.jsonl"),
            "kill": vars(kill) if kill else None,
            "faults": [[*vars(fault.point).values(), fault.kind, fault.trial] for fault in faults],
            "log": log,
        }
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return Ended(*json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=60)


def without_times(arm: dict[str, Any]) -> dict[str, Any]:
    """Return an arm of a study without the latency and the memory that its trainings measured."""
    guards = [guard for guard in arm.get("guards", ()) if guard["what"] not in (LATENCY, MEMORY)]
    return {**arm, "guards": guards}


def outcome(run: Run) -> dict[str, Any]:
    """Return everything that the run amounts to, apart from times: weights, scores, choice, gates, model files."""
    state, entries = run.state(), read_ledger(run.ledger_path)
    finished = {
        e["data"]["id"]: (e["data"]["weights"], e["data"]["score"]) for e in entries if e["kind"] == "job.finished"
    }
    studies = [e["data"] for e in entries if e["kind"] == "study.decided"]
    payload = run.inside("bundle", "payload")
    return {
        "plan": state.plan and state.plan["digest"],
        "candidate": state.candidate and (state.candidate["weights"], state.candidate["score"]),
        "branch": state.branches and state.branches[-1]["branch"],
        "trials": finished,
        "chosen": studies and {**studies[-1], "arms": [without_times(arm) for arm in studies[-1]["arms"]]},
        "items": {phase: [(item.id, item.outcome) for item in gate.items] for phase, gate in state.gates.items()},
        "gates": {phase: state.gate(phase) for phase in state.gates},
        "test": [e["data"]["score"] for e in entries if e["kind"] == "test.scored"][-1:],
        "opened": len(state.test_opened),
        "payload": {f.name: files.sha256(f) for f in sorted(payload.glob("*")) if f.name not in WITH_TIMES},
    }


# --- in the process that serves --------------------------------------------------------------------------------------


@dataclass
class Injury:
    """A hook of the file module that notes calls, and makes calls fail once over all processes of a command."""

    faults: list[Fault]
    log: str
    trial: str = ""  # of this process; empty in the parent
    entry: str = ""  # the kind of the entry that is appended to the ledger

    def __call__(self, operation: str, path: Path) -> bool:
        point = self.point(operation, path)
        if self.log:
            with open(self.log, "a") as stream:
                stream.write(json.dumps([*vars(point).values(), self.trial]) + "\n")
        for number, fault in enumerate(self.faults):
            if fault.point == point and fault.trial in ("", self.trial) and _first(f"injured-{number}"):
                return self.injure(fault.kind, path)
        return False

    def point(self, operation: str, path: Path) -> Point:
        import re

        inside = str(path).rpartition(f"/{NAME}/")[2] if f"/{NAME}/" in str(path) else path.name
        named = re.sub(r"\d+", "N", re.sub(r"trials/[^/]+", "trials/ID", inside))
        if named == "ledger.jsonl":
            named += f" ({self.entry})"
        return Point("worker" if self.trial else "parent", operation, named)

    def injure(self, kind: str, path: Path) -> bool:
        import errno
        import signal

        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "short":
            return True
        raise OSError(getattr(errno, kind), os.strerror(getattr(errno, kind)), str(path))


def _first(name: str) -> bool:
    """Whether this call creates the file."""
    try:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _run(asked: dict[str, Any], output: Path) -> int:
    """Be the process of one command."""
    from pipeline.__main__ import main
    from pipeline.run_store import files, lock
    from pipeline.trials import executor

    stream = output.open("w", buffering=1)
    for number in (1, 2):
        os.dup2(stream.fileno(), number)
    injury = Injury([Fault(Point(*words[:3]), *words[3:]) for words in asked["faults"]], asked["log"])
    if injury.faults or injury.log:
        files._hook = injury
    append = Ledger.append

    def append_and_tell(ledger: Ledger, kind: str, data: dict[str, Any]) -> Any:
        injury.entry = kind
        return append(ledger, kind, data)

    Ledger.append = append_and_tell  # type: ignore[method-assign]

    def in_a_fork(workers: object, folder: Path, threads: int) -> subprocess.CompletedProcess[str]:
        said = Path(f"said-{folder.name}").resolve()
        said.touch()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.dup2(os.open(said, os.O_WRONLY | os.O_TRUNC), 2)
                injury.trial = folder.name
                lock._owners.clear()  # as in a process of its own, and not in a child of the one that has the lock
                code = main(["worker", str(folder)])
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        text = said.read_text()
        said.unlink()
        return subprocess.CompletedProcess([], code, "", text)

    executor.Workers.run = in_a_fork  # type: ignore[method-assign]
    _stop_the_clocks()
    return main(asked["words"])


def _stop_the_clocks() -> None:
    """Times are measured, then replaced by those of the first command, since two measurements are never the same."""
    from pipeline.release import rollback_rehearsal
    from pipeline.serving import latency, sandbox

    time_calls, serve_golden, rehearse = latency.measure, sandbox.measure, rollback_rehearsal.rehearse

    def first_latency(*words: Any) -> Any:
        timed, path = time_calls(*words), Path("latency-of-the-first-command.json")
        if not path.exists():
            path.with_suffix(".tmp").write_text(json.dumps(timed))
            path.with_suffix(".tmp").replace(path)
        return json.loads(path.read_text())

    latency.measure = first_latency
    sandbox.measure = lambda *words: {**serve_golden(*words), "seconds": 1.0}  # type: ignore[typeddict-item]
    rollback_rehearsal.rehearse = lambda *words: {**rehearse(*words), "seconds": 1.0}


def _group(leader: int) -> list[int]:
    """Return the living processes of a group, but its leader."""
    members = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(group) == leader and state != "Z" and int(path.parent.name) != leader:
            members.append(int(path.parent.name))
    return members


def _kill_in_time(child: int, kill: dict[str, Any], ledger: Path, began: float) -> bool:
    """Kill the victim when its time has come; return whether it was still there."""
    import signal
    import time

    while True:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return False
        due = time.perf_counter() - began >= kill["seconds"]
        if due and kill["entries"]:
            due = ledger.exists() and ledger.read_bytes().count(b"\n") >= kill["entries"]
        if due and kill["ended"]:  # its start has the id as well
            due = ledger.exists() and ledger.read_bytes().count(f'"id":"{kill["ended"]}"'.encode()) >= 2
        victims = [child] if kill["victim"] != "worker" else _group(child)[:1] if due else []
        if due and victims:
            break
        time.sleep(0.001)
    number = signal.Signals[kill["signal"]]
    try:
        (os.killpg if kill["victim"] == "group" else os.kill)(victims[0], number)
    except ProcessLookupError:  # so soon that the child has no group of its own yet, or just ended
        if kill["victim"] == "worker":
            return False
        os.kill(child, number)
    return True


def _attempt(asked: dict[str, Any]) -> Ended:
    import signal
    import time

    output, began = Path("output"), time.perf_counter()
    for marker in Path().glob("injured-*"):
        marker.unlink()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it
            code = _run(asked, output)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    killed = bool(asked["kill"]) and _kill_in_time(child, asked["kill"], Path(asked["ledger"]), began)
    sent_after = time.perf_counter() - began
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if killed and asked["kill"]["victim"] != "worker":
        killed = code in (-9, 130)  # else it ended by itself in the instant in which it was to be killed
    deadline = time.perf_counter() + 5
    while left := _group(child):  # workers die with their parent
        assert time.perf_counter() < deadline, f"processes outlived their parent: {left}"
        time.sleep(0.002)
    said = output.read_text() if output.exists() else ""
    if asked["kill"] and not killed:  # a signal that was not heeded and one that was not sent are told apart
        said += f"\nthe wait for the moment of the kill ended after {sent_after:.2f} s"
    return Ended(code, time.perf_counter() - began, said, killed)


def serve() -> None:
    """Answer every line of standard input, which asks for one command, with how it ended."""
    import hydra  # noqa: F401
    import jinja2  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.datasets
    import sklearn.metrics
    import sympy  # noqa: F401
    import torch.jit  # noqa: F401

    import checklists.resolve  # noqa: F401
    import phases.baseline
    import phases.diagnostics
    import phases.finalization
    import phases.optimization
    import phases.planning  # noqa: F401
    import pipeline.config.compose
    import pipeline.engine.fit
    import pipeline.export.formats
    import pipeline.orchestration.execute
    import pipeline.reporting.page  # noqa: F401

    sklearn.datasets.load_digits()
    for line in sys.stdin:
        print(json.dumps(_attempt(json.loads(line))), flush=True)
