"""One case, trained and explained by the product: `run_case.py CASE [--seed 1] [--mended K]`; one line of JSON.

An experiment goes through the product's own commands. A planning gate that its data close is an accusation of the
product, and is waived, so that the training is seen too; what nobody may waive stays untrained. A loop is a process
of its own that imports `Monitor`; logs are what such a process wrote, read by `diagnose PATH`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cases import HERE, Case, cases

from pipeline.__main__ import main as fivegate
from pipeline.run_store.run import Run

BOTH = ("playbooks", "blind")  # a loop and its logs have no target to begin with
GATE = 0.95  # a gate does not weigh: what closes it was measured
# Left out is what takes longer than the case and names no cause that a case has: folds, a second process, the tracker.
QUICK = ("tracking=none", "trainer.threads=1", "phases.baseline.folds=0", "phases.baseline.reproducibility_steps=0")


def answered(case: Case, seed: int = 1, mended: int | None = None) -> dict[str, Any]:
    """`{case, value, accused: [[cause, confidence, by]], seconds}`: what the product says of a training, in its order.

    `by` is the gate (planning, baseline) that closed for the cause, `playbooks`, the diagnosis, or `blind`, what the
    playbooks say of the history alone: without config and target, which an experiment's truth is made of.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as root:
        if case.way == "experiment":
            found = _experiment(case, seed, mended, Path(root))
        else:
            found = _loop(case, seed, mended is not None, Path(root))
    return {"case": case.id, "seed": seed, **found, "seconds": time.perf_counter() - started}


def values(case: Case, seeds: Sequence[int], mended: int | None = None) -> list[float | None]:
    """The validation scores of one form of a case, trained under each of the seeds; None where there is none.

    Of an experiment the seeds are indices, 0 being its own, which a baseline trains. Raises RuntimeError where a gate
    that nobody may waive refuses the training.
    """
    if case.way != "experiment":
        script = _script(case)
        return [script.run(seed, mended is not None)[0] for seed in seeds]
    with tempfile.TemporaryDirectory() as root:
        run, _ = planned(case, 1, mended, Path(root))
        if run.state().gate("planning") != "open":
            raise RuntimeError("planning refuses to train it")
        return list(_trained(run, seeds))


def _trained(run: Run, seeds: Sequence[int]) -> Iterable[float | None]:
    from pipeline.data.load import load
    from pipeline.engine.fit import fit
    from pipeline.run_store import permits
    from pipeline.run_store.job import Job

    permit = permits.train(run)
    trust = tuple(grant["package"] for grant in run.state().trust)
    data = load(permit.plan.config, trust)
    for seed in seeds:
        score = fit(permit, Job(permit.plan.digest, "trial", seed_index=seed), data=data).score
        yield score.value if score else None


def _say(*words: str) -> int:
    """The product's answer to a command, its screen apart. Raises RuntimeError for a fault, its own or the case's."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        code = fivegate(list(words))
    if code in (1, 2):
        raise RuntimeError(f"{' '.join(words)}: exit {code}: {said.getvalue()[-600:]}")
    return code


def planned(case: Case, seed: int, mended: int | None, root: Path) -> tuple[Run, list[Any]]:
    """The run behind its planning gate, everything waived that may be; and the items that were not satisfied."""
    words = [] if mended is None else case.mended[mended]
    start = ["--config-dir", str(HERE / "conf"), f"experiment={case.id}", "trust=[planted]", f"seed={seed}"]
    _say("phase=planning", *start, *QUICK, *words, f"run.root={root}", f"run.name={case.id}")
    run = Run(root / case.id)
    closed = _unsatisfied(run, "planning")
    for item in closed:
        if item.waivable:
            told = ["--who", "Fault Benchmark", "--why", "a case of the benchmark", "--expires", "2099-12-31"]
            _say("waive", str(run.path), item.id, *told)
    return run, closed


def _unsatisfied(run: Run, phase: str) -> list[Any]:
    return [item for item in run.state().gates[phase].items if item.outcome not in ("passed", "not_applicable")]


def _experiment(case: Case, seed: int, mended: int | None, root: Path) -> dict[str, Any]:
    run, closed = planned(case, seed, mended, root)
    accused = [[item.cause, GATE, "planning"] for item in closed if item.cause]  # whatever kept the gate closed
    value = None
    if run.state().gate("planning") == "open":
        where = [f"run.root={root}", f"run.name={case.id}"]
        _say("phase=baseline", *where)
        score = json.loads((run.path / "baseline" / "evidence.json").read_text())["values"]["score"]
        value = float(score["value"]) if score else None  # what is not finite stands there as a word
        accused += [[item.cause, GATE, "baseline"] for item in _unsatisfied(run, "baseline") if item.cause]
        _say("phase=diagnostics", *where)
        accused += _named(run.path / "diagnostics" / "1" / "diagnosis.json", "playbooks")
        accused += _blind(run.path / "baseline" / "history.npz", root)
    return {"value": value, "accused": accused}


def _blind(path: Path, root: Path) -> list[list[Any]]:
    """What the playbooks say of a history from which the target was taken, read as somebody's log without a config."""
    from pipeline.history import History

    history, log = History.load(path), root / "blind.npz"
    del history.facts["target"]
    log.write_bytes(history.to_bytes())
    _say("diagnose", str(log), "--out", str(root / "blind"))
    return _named(root / "blind" / "diagnosis.json", "blind")


def _named(diagnosis: Path, by: str) -> list[list[Any]]:
    """The root causes of a diagnosis, in its order."""
    causes = json.loads(diagnosis.read_text())["root_causes"]
    return [[cause["issue"], cause["confidence"], by] for cause in causes]


def _script(case: Case) -> Any:
    name = case.id.removesuffix("_logs")
    spec = importlib.util.spec_from_file_location(name, HERE / "loops" / f"{name}.py")
    assert spec and spec.loader, name
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def _loop(case: Case, seed: int, mended: bool, root: Path) -> dict[str, Any]:
    """The script's `run(seed, mended)` gives its score and its monitor; a case of logs is read from their CSV."""
    value, monitor = _script(case).run(seed, mended)
    if case.way == "loop":
        causes = monitor.diagnose().root_causes
        return {"value": value, "accused": [[c.issue, c.confidence.value, by] for by in BOTH for c in causes]}
    log, out = root / "log.csv", root / "out"
    log.write_text(_csv(monitor.history))
    _say("diagnose", str(log), "--out", str(out))
    return {"value": value, "accused": [one for by in BOTH for one in _named(out / "diagnosis.json", by)]}


def _csv(history: Any) -> str:
    """The epochs of a history as somebody's own loop would have logged them: losses and scores, no more."""
    names = sorted(history.epoch)  # also `train/loss`, which the steps have too
    columns = {name: dict(zip(history.epoch[name].index, history.epoch[name].values, strict=True)) for name in names}
    index = sorted({i for column in columns.values() for i in column})
    rows = [",".join(["epoch", *names])]
    rows += [",".join([str(i), *(str(columns[name].get(i, "")) for name in names)]) for i in index]
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=[case.id for case in cases()], metavar="CASE")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mended", type=int, default=None, metavar="K", help="the K-th mended form, from 0")
    parser.add_argument("--values", type=int, nargs="+", metavar="SEED", help="only the scores under these seeds")
    args = parser.parse_args()
    [case] = [case for case in cases() if case.id == args.case]
    if args.values:
        json.dump(values(case, args.values, args.mended), sys.stdout)
    else:
        json.dump(answered(case, args.seed, args.mended), sys.stdout)
    print()


if __name__ == "__main__":
    main()
