"""Does the pipeline mend what can be mended, do its repairs hold, and what do they cost?  `make bench-repair`

A faulty case that has a mended form goes through the phases up to optimization. What was accepted is trained on six
further seeds beside the unrepaired run, and beside it stands a random search that may train as often as the pipeline
did. A healthy case gets a target that nothing reaches, so that the pipeline tries to better what needs no repair: its
acceptances are false, unless they are better on the further seeds. Cases run two at a time, one thread each.

    benchmarks/faults/bench_repair.py [--part tuning|held_out] [--kind faulty|healthy] [--sample N] [--only CASE ...]
                                      [--out FILE]

The tuning part is the default; the held-out part is counted on request, and shows no single case. The benchmark
counts and judges nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal, NotRequired, TypedDict, get_args

from cases import PARTS, Case, cases
from repair import CHOICE_SEED, draw_candidate
from run_case import _run_command, plan_case
from side_by_side import run_each

from pipeline.run_store import plan as plans
from pipeline.run_store.job import Delta, Job
from pipeline.run_store.ledger import read_ledger
from pipeline.run_store.next_step import next_step
from pipeline.run_store.run import Run

FURTHER_SEEDS = range(301, 307)  # six seed indices that no phase and no other repair uses
CONFIRMATION_SEED = 20  # seed indices from here on confirm a candidate, smaller ones of an optimization search for it
TIMEOUT = 5400.0  # seconds of one case
UNREACHABLE = {True: 1.01, False: -1.0}  # a target for a healthy case, by whether a higher score is better
# A metric that the run was not told of, higher is better, and how much lower a repair may make it on average.
FURTHER_METRICS = {"classification": "f1_macro", "binary": "f1_macro", "multilabel": "f1_macro", "regression": "r2"}
METRIC_MARGIN = 0.02
KINDS = ("faulty", "healthy")
Purpose = Literal["diagnosis", "search", "verification"]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)
PHASES_TO_MEND = ("baseline", "diagnostics", "optimization")


class Repair(TypedDict):
    """What became of one case.

    - `accepted`: the change, in one line; empty without one. `alarm_silent`: whether the last training has no blocking
      symptom, the weaker rule by which other systems count their repairs.
    - `repaired`, `unrepaired`, `random`: scores on the further seeds, None for a training without a score.
    - `further`: how much a further metric gained on average on these seeds; None where it cannot be measured.
    - `seconds`: from the diagnosis to the end of the optimization.
    """

    case: str
    accepted: str
    alarm_silent: bool
    repaired: list[float | None]
    unrepaired: list[float | None]
    random: list[float | None]
    further: float | None
    costs: dict[Purpose, float]  # in trainings of the planned length
    seconds: float
    error: NotRequired[str]


# --- one case --------------------------------------------------------------------------------------------------------


def repair_case(case: Case) -> Repair:
    """Run a case through the phases up to optimization, and score what was accepted on further seeds."""
    with tempfile.TemporaryDirectory() as root:
        target = UNREACHABLE[case.at_least is not None] if case.healthy else None
        run, _ = plan_case(case, 1, None, Path(root), [] if target is None else [f"task.target={target}"])
        result: Repair = {
            "case": case.id, "accepted": "", "alarm_silent": False, "repaired": [], "unrepaired": [], "random": [],
            "further": None, "costs": {"diagnosis": 0.0, "search": 0.0, "verification": 0.0}, "seconds": 0.0,
        }  # fmt: skip
        if run.state().gate("planning") != "open":
            return result
        result["seconds"] = _run_phases(run)
        state, entries = run.state(), read_ledger(run.ledger_path)
        branch = state.current_branch()
        result["alarm_silent"] = branch is not None and branch["phase"] == "optimization" and not branch["symptoms"]
        result["costs"] = costs_of(run, entries)
        candidate = state.candidate
        job = None
        if candidate is not None and candidate["phase"] == "optimization":
            job = Job.from_json(candidate["job"])
            result["accepted"] = job.delta.describe()
        trainer = _Trainer(run)
        if job is not None:
            arms = [[trainer.measure(d, seed, job.max_steps) for seed in FURTHER_SEEDS] for d in (job.delta, Delta())]
            result["repaired"], result["unrepaired"] = ([score for score, _ in arm] for arm in arms)
            result["further"] = metric_gain(*([metric for _, metric in arm] for arm in arms))
        if not case.healthy:
            trainings = max(1, round(sum(result["costs"].values())))
            best = _best_random(case, trainer, trainings)
            result["random"] = [trainer.score(best, seed, None) for seed in FURTHER_SEEDS]
        return result


def _run_phases(run: Run) -> float:
    """Run the phases that mend, as `phase=auto` would; return the seconds of diagnostics and optimization."""
    where, seconds = [f"run.root={run.path.parent}", f"run.name={run.name}"], 0.0
    while (step := next_step(run.state(), run.path)).phase in PHASES_TO_MEND:
        begun = time.perf_counter()
        _run_command(f"phase={step.phase}", *where)
        if step.phase != "baseline":
            seconds += time.perf_counter() - begun
    return seconds


def costs_of(run: Run, entries: Sequence[Any]) -> dict[Purpose, float]:
    """Return what the run trained to mend itself, by what it was for, from the results of its trainings.

    Diagnosis: its experiments. Search: trainings of an optimization on seed indices below 20. Verification: those that
    confirm a candidate, and the training of the accepted one.
    """
    planned = int(plans.load(run).facts["budget"]["max_steps"])
    costs: dict[Purpose, float] = {"diagnosis": 0.0, "search": 0.0, "verification": 0.0}
    for path in run.path.glob("diagnostics/*/diagnosis.json"):
        experiments = json.loads(path.read_text())["experiments"]
        costs["diagnosis"] += sum(map(_steps, experiments)) / planned
    for path in run.path.glob("optimization/*/**/result.json"):
        index = json.loads(path.with_name("job.json").read_text())["seed_index"]
        confirms = index >= CONFIRMATION_SEED or index == 0
        costs["verification" if confirms else "search"] += json.loads(path.read_text())["steps"] / planned
    return costs


def _steps(experiment: dict[str, Any]) -> int:
    """Return the steps of all trainings of one experiment."""
    steps, seeds = experiment.get("steps") or 0, experiment.get("seeds") or []
    return (
        int(sum(steps))
        if isinstance(steps, list)
        else int(steps) * max(1, len(seeds) if isinstance(seeds, list) else 1)
    )


class _Trainer:
    """Trains changes of a planned run in this process, on any seed."""

    def __init__(self, run: Run) -> None:
        from pipeline.data.load import load
        from pipeline.run_store import permits

        self.permit = permits.train(run)
        self.config = dict(self.permit.plan.config)
        self._data = load(self.config, tuple(grant["package"] for grant in run.state().trust))

        metric = FURTHER_METRICS.get(str(self.config["task"]["kind"]), "")
        self._metric = "" if metric == self.config["task"]["metric"] else metric

    def measure(self, delta: Delta, seed: int, max_steps: int | None) -> tuple[float | None, float | None]:
        """Return score and further metric on validation; None where a training has none, or the model refuses it."""
        from pipeline.engine.fit import fit
        from pipeline.errors import FivegateError
        from pipeline.evaluation.evaluate import loss_and_metrics

        measured = replace(delta, overrides={**delta.overrides, "task.metrics": [self._metric] * bool(self._metric)})
        try:
            job = Job(self.permit.plan.digest, "trial", measured, seed, max_steps)
            trained = fit(self.permit, job, data=self._data)
        except FivegateError:
            return None, None
        if trained.score is None or not math.isfinite(trained.score.value):
            return None, None
        rows = self._data.val
        metrics = loss_and_metrics(trained.model, rows.X, rows.y, trained.task).metrics
        return float(trained.score.value), metrics.get(self._metric)

    def score(self, delta: Delta, seed: int, max_steps: int | None) -> float | None:
        return self.measure(delta, seed, max_steps)[0]


def _best_random(case: Case, trainer: _Trainer, trainings: int) -> Delta:
    """Return the best of so many random candidates, by their scores on one seed."""
    better = 1 if case.at_least is not None else -1
    deltas = [Delta(draw_candidate(case, trainer.config, number)) for number in range(trainings)]

    def worth(delta: Delta) -> float:
        score = trainer.score(delta, CHOICE_SEED, None)
        return -math.inf if score is None else better * score

    return max(deltas, key=worth)


# --- all cases -------------------------------------------------------------------------------------------------------


def holds(case: Case, scores: Sequence[float | None]) -> bool:
    """Return whether a repair holds: most of its trainings on the further seeds are those of a healthy run."""
    return sum(case.well(score) for score in scores) * 2 > len(scores)


def gain(case: Case, repaired: Sequence[float | None], unrepaired: Sequence[float | None]) -> float:
    """Return the mean gain over the unrepaired run; a training without a score counts as the worst of both."""
    sign = 1 if case.at_least is not None else -1
    known = [sign * score for score in (*repaired, *unrepaired) if score is not None]
    worst = min(known, default=0.0)
    means = [fmean(worst if s is None else sign * s for s in scores) for scores in (repaired, unrepaired)]
    return means[0] - means[1]


def metric_gain(repaired: Sequence[float | None], unrepaired: Sequence[float | None]) -> float | None:
    """Return the mean gain of a metric over the seeds on which both arms have it; None where there is no such seed."""
    pairs = [(a, b) for a, b in zip(repaired, unrepaired, strict=True) if a is not None and b is not None]
    return fmean(a - b for a, b in pairs) if pairs else None


def summary(selected: Sequence[Case], results: Sequence[Repair]) -> dict[str, Any]:
    """Return what the benchmark counts, over the faulty and over the healthy cases."""
    pairs = [(c, r) for c, r in zip(selected, results, strict=True) if "error" not in r]
    faulty, healthy = ([(c, r) for c, r in pairs if c.healthy == well] for well in (False, True))
    accepted = [(c, r) for c, r in faulty if r["accepted"]]
    lost = [(c, r) for c, r in faulty if not holds(c, r["random"])]
    false = [(c, r) for c, r in healthy if r["accepted"]]
    return {
        "cases": len(faulty),
        "accepted": len(accepted),
        "hold": sum(holds(c, r["repaired"]) for c, r in accepted),
        "lower": sum(gain(c, r["repaired"], r["unrepaired"]) < 0 for c, r in accepted),
        "metric_known": sum(r["further"] is not None for _, r in accepted),
        "metric_lower": sum((r["further"] or 0.0) < -METRIC_MARGIN for _, r in accepted),
        "alarm_silent": sum(r["alarm_silent"] for _, r in faulty),
        "random_holds": len(faulty) - len(lost),
        "random_lost": len(lost),
        "mended_where_random_lost": sum(bool(r["accepted"]) and holds(c, r["repaired"]) for c, r in lost),
        **{f"median_{name}": _median([r["costs"][name] for _, r in faulty]) for name in PURPOSES},
        "slowest_minutes": max((r["seconds"] / 60 for _, r in accepted), default=0.0),
        "healthy": len(healthy),
        "healthy_accepted": len(false),
        "healthy_worse": sum(gain(c, r["repaired"], r["unrepaired"]) < 0 for c, r in false),
        "errors": Counter(r["error"] for r in results if "error" in r),
    }  # fmt: skip


def _median(values: Sequence[float]) -> float:
    return median(values) if values else 0.0


def lines(counts: dict[str, Any]) -> list[str]:
    """Return the counts in sentences."""
    of = f"{counts['accepted']} of {counts['cases']} mendable cases"
    lost, mended = counts["random_lost"], counts["mended_where_random_lost"]
    known = f"the {counts['metric_known']} that have one"
    false = f"{counts['healthy_accepted']} of {counts['healthy']}"
    costs = ", ".join(f"{name} {counts[f'median_{name}']:.1f}" for name in PURPOSES)
    return [
        f"repairs accepted: {of}; on 6 further seeds {counts['hold']} hold, and {counts['lower']} score lower",
        f"a further metric is worse by more than {METRIC_MARGIN} in {counts['metric_lower']} of {known}",
        f"own alarm silent after the optimization: {counts['alarm_silent']} of {counts['cases']}",
        f"as many random trainings: {counts['random_holds']} hold; {mended} of the {lost} others are mended",
        f"median cost in planned trainings: {costs}",
        f"diagnosis and optimization took at most {counts['slowest_minutes']:.1f} minutes",
        f"healthy runs: {false} accepted a change, {counts['healthy_worse']} of these are worse on further seeds",
        *(f"not counted, {count} times: {error}" for error, count in counts["errors"].items()),
    ]


def _show(case: Case, result: Repair) -> str:
    if "error" in result:
        return f"! {case.id:<40} {result['error']}"
    well = sum(case.well(score) for score in result["repaired"])
    counts = (
        f"{result['accepted']} ({well} of {len(result['repaired'])} well)" if result["accepted"] else "nothing accepted"
    )
    random = "" if case.healthy else f"; random {sum(case.well(score) for score in result['random'])} well"
    return f"  {case.id:<40} {counts}{random}; {sum(result['costs'].values()):.1f} trainings"  # type: ignore[arg-type]


def mendable(case: Case) -> bool:
    """Return whether a case is of this benchmark: an experiment that a change of its config mends, or a healthy one.

    What only a change of the rows mends is left out, and what only another metric does: no repair may change those.
    """
    by_config = any(not any(o.startswith(("data.", "task.")) for o in overrides) for overrides in case.mended)
    return case.way == "experiment" and (case.healthy or by_config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, default="tuning")
    parser.add_argument("--kind", choices=KINDS, help="faulty or healthy cases only")
    parser.add_argument("--sample", type=int, help="every N-th case only")
    parser.add_argument("--only", nargs="+", metavar="CASE", help="these cases of the part")
    parser.add_argument("--out", type=Path, help="write cases and counts as JSON")
    args = parser.parse_args()
    selected = [case for case in cases() if case.part == args.part and mendable(case)]
    selected = [case for case in selected if not args.kind or case.healthy == (args.kind == "healthy")]
    if unknown := set(args.only or ()) - {case.id for case in selected}:
        parser.error(f"no case of the part {args.part}: {', '.join(sorted(unknown))}")
    selected = [case for case in selected if not args.only or case.id in args.only][:: args.sample or 1]
    results: list[Repair] = []
    for case, result in zip(selected, run_each(repair_case, [(c,) for c in selected], timeout=TIMEOUT), strict=True):
        results.append(result)
        if args.part == "tuning":
            print(_show(case, result), flush=True)
        counts = summary(selected[: len(results)], results)
        if args.out:  # after each case, so that a benchmark that is ended early has counted something
            shown = results if args.part == "tuning" else []
            args.out.write_text(json.dumps({"part": args.part, "counts": counts, "cases": shown}, indent=1))
    print("\n".join(lines(counts)))


if __name__ == "__main__":
    main()
