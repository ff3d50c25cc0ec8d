"""Trains one case and lets Fivegate explain it: `run_case.py CASE [--seed 1] [--mended K]` prints one line of JSON.

An experiment runs through Fivegate's own commands. An item that closes the planning gate is an accusation; it is
waived, so that the training is explained too. If an item cannot be waived, the case stays untrained. A loop is a script
that imports `Monitor`. A log is what such a script would have written, in the format of a library, read by
`diagnose PATH`.
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
from dataclasses import replace
from pathlib import Path
from typing import Any

from cases import HERE, Case, cases
from facts import Accusation, Facts, store
from posted.training import Training
from posted.write import write

from diagnostics.diagnose import diagnose
from diagnostics.logs.evidence.recorded import findings_of
from diagnostics.logs.read import read
from pipeline.__main__ import main as fivegate
from pipeline.experiments.result import ArmResult
from pipeline.history import History
from pipeline.inspection.finding import Inspections
from pipeline.run_store import plan
from pipeline.run_store.gate import utc_today
from pipeline.run_store.run import Run

GATE = 0.95  # the confidence of an accusation by a gate, whose items are measured
# Without the parts that take longer than the case and name none of its causes: folds, a second process, the tracker.
QUICK = ("tracking=none", "trainer.threads=1", "phases.baseline.folds=0", "phases.baseline.reproducibility_steps=0")


def run_case(case: Case, seed: int = 1, mended: int | None = None, facts: Path | None = None) -> dict[str, Any]:
    """Return `{case, value, accused: [[cause, confidence, by]], seconds}`: what Fivegate says of a training, in order.

    `by` is the gate that closed because of the cause (planning, baseline), or `diagnosis`.
    With `facts`, what the diagnosis started from is stored in that folder.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as root:
        if case.way == "experiment":
            answer, known = _run_experiment(case, seed, mended, Path(root))
        else:
            answer, known = _run_loop(case, seed, mended is not None, Path(root))
    seconds = time.perf_counter() - started
    if facts and known:
        store(facts, case.id, replace(known, value=answer["value"], seconds=seconds))
    return {"case": case.id, "seed": seed, **answer, "seconds": seconds}


def train_form(case: Case, seeds: Sequence[int], mended: int | None = None) -> list[float | None]:
    """Return the validation score of one form of a case for each seed; None if a training has no score.

    For an experiment the seeds are seed indices; index 0 is the experiment's own seed, which a baseline uses. Raises
    RuntimeError if an item that cannot be waived closes the planning gate.
    """
    if case.way != "experiment":
        script = load_script(case.script)
        return [script.run(seed, mended is not None)[0] for seed in seeds]
    with tempfile.TemporaryDirectory() as root:
        run, _ = plan_case(case, 1, mended, Path(root))
        if run.state().gate("planning") != "open":
            raise RuntimeError("the planning gate refuses the training")
        return list(_train_seeds(run, seeds))


def _train_seeds(run: Run, seeds: Sequence[int]) -> Iterable[float | None]:
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


def _run_command(*words: str) -> int:
    """Run a Fivegate command without its output; return its exit code. Raises RuntimeError for exit codes 1 and 2."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as stderr:
        code = fivegate(list(words))
    if code in (1, 2):
        raise RuntimeError(f"{' '.join(words)}: exit {code}: {stderr.getvalue()[-600:]}")
    return code


def plan_case(case: Case, seed: int, mended: int | None, root: Path, more: Sequence[str] = ()) -> tuple[Run, list[Any]]:
    """Plan a case, with more overrides where given, and waive what can be waived.

    Returns the run, and the items that were not satisfied.
    """
    overrides = [*case.overrides, *(() if mended is None else case.mended[mended]), *more]
    start = [
        "--config-dir",
        str(HERE / "conf"),
        f"experiment={case.parent or case.id}",
        "trust=[planted]",
        f"seed={seed}",
    ]
    _run_command("phase=planning", *start, *QUICK, *overrides, f"run.root={root}", f"run.name={case.id}")
    run = Run(root / case.id)
    closed = _unsatisfied(run, "planning")
    for item in closed:
        if item.waivable:
            reason = [
                "--who",
                "Fault Benchmark",
                "--why",
                "a case of the benchmark",
                "--expires",
                utc_today().isoformat(),
            ]
            _run_command("waive", str(run.path), item.id, *reason)
    return run, closed


def _unsatisfied(run: Run, phase: str) -> list[Any]:
    return [item for item in run.state().gates[phase].items if item.outcome not in ("passed", "not_applicable")]


def _run_experiment(case: Case, seed: int, mended: int | None, root: Path) -> tuple[dict[str, Any], Facts | None]:
    """Return the answer and its facts; a case that cannot be trained has no facts."""
    run, closed = plan_case(case, seed, mended, root)
    accused: list[Accusation] = [(item.cause, GATE, "planning") for item in closed if item.cause]
    if run.state().gate("planning") != "open":
        return {"value": None, "accused": accused}, None
    where = [f"run.root={root}", f"run.name={case.id}"]
    _run_command("phase=baseline", *where)
    baseline = _evidence(run, "baseline")
    score = baseline["score"]
    value = float(score["value"]) if score else None  # non-finite values are stored as strings
    accused += [(item.cause, GATE, "baseline") for item in _unsatisfied(run, "baseline") if item.cause]
    began = time.perf_counter()
    _run_command("phase=diagnostics", *where)
    seconds = time.perf_counter() - began
    history = History.load(run.path / "baseline" / "history.npz")
    known = Facts(
        history,
        dict(plan.load(run).config),
        Inspections.from_json(baseline.get("inspections", {})).findings,
        tuple(map(ArmResult.from_json, _evidence(run, "diagnostics", "1").get("experiments", ()))),
        tuple(accused),
        phase_seconds=seconds,
    )
    named = _root_causes(run.path / "diagnostics" / "1" / "diagnosis.json")
    return {"value": value, "accused": [*accused, *named]}, known


def _evidence(run: Run, *phase: str) -> dict[str, Any]:
    """Return the evidence of a phase; nothing if the phase has refused to run, as after records that disagree."""
    path = run.path.joinpath(*phase, "evidence.json")
    values: dict[str, Any] = json.loads(path.read_text())["values"] if path.is_file() else {}
    return values


def _root_causes(diagnosis: Path) -> list[Accusation]:
    """Return the root causes of a diagnosis, in its order; none if there is no diagnosis."""
    if not diagnosis.is_file():
        return []
    causes = json.loads(diagnosis.read_text())["root_causes"]
    return [(cause["issue"], cause["confidence"], "diagnosis") for cause in causes]


def load_script(script: str) -> Any:
    """Import a loop of `loops/`."""
    spec = importlib.util.spec_from_file_location(script, HERE / "loops" / f"{script}.py")
    assert spec and spec.loader, script
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run_loop(case: Case, seed: int, mended: bool, root: Path) -> tuple[dict[str, Any], Facts]:
    """Call the script's `run(seed, mended)`, which returns a score and a monitor; diagnose the monitor or its log."""
    value, monitor = load_script(case.script).run(seed, mended)
    bound = bound_of(case)
    if case.way == "loop":
        target_config = target_of(case)
        findings, (results, _) = monitor.findings(target_config), monitor.experiment(target_config)
        history = monitor.history
        causes = diagnose(history, target_config, findings, results).root_causes
        accused = [(c.issue, c.confidence.value, "diagnosis") for c in causes]
        return {"value": value, "accused": accused}, Facts(history, target_config, findings, tuple(results))
    log, out = write_log(case, monitor.history, root), root / "out"
    target = [] if bound is None else ["--target", str(bound)]
    _run_command("diagnose", str(log), "--out", str(out), *target)
    run = read(log).runs[0]
    run.history.facts |= {} if bound is None else {"target": bound}
    known = Facts(run.history, findings=tuple(findings_of(run, run.history)))
    return {"value": value, "accused": _root_causes(out / "diagnosis.json")}, known


def bound_of(case: Case) -> float | None:
    """Return the bound of the truth, which a user would call the target; None if a score can also be too good."""
    bounds = [bound for bound in (case.at_least, case.at_most) if bound is not None]
    return bounds[0] if len(bounds) == 1 else None


def target_of(case: Case) -> dict[str, Any] | None:
    """Return the config that tells a diagnosis of a loop its target."""
    bound = bound_of(case)
    return None if bound is None else {"task": {"metric": case.metric, "target": bound}}


def write_log(case: Case, history: History, folder: Path) -> Path:
    """Write what the loop would have logged, in the format of the case; return the file, or a folder of files."""
    if not case.format:
        (folder / "log.csv").write_text(_format_csv(history))
        return folder / "log.csv"
    (folder / case.format).mkdir()
    return write(case.format, Training.of(case.id, history), folder / case.format)


def _format_csv(history: Any) -> str:
    """Return the epochs of a history as CSV, as a plain loop would have logged them: losses and scores only."""
    names = sorted(history.epoch)  # `train/loss` is also in the step table
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
    parser.add_argument("--facts", type=Path, metavar="DIR", help="store what the diagnosis started from")
    parser.add_argument("--values", type=int, nargs="+", metavar="SEED", help="only the scores with these seeds")
    args = parser.parse_args()
    [case] = [case for case in cases() if case.id == args.case]
    if args.values:
        json.dump(train_form(case, args.values, args.mended), sys.stdout)
    else:
        json.dump(run_case(case, args.seed, args.mended, args.facts), sys.stdout)
    print()


if __name__ == "__main__":
    main()
