"""The command `compare`: sweeps and CSV by seed, two runs by validation row."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from pipeline.orchestration.sweep_directory import JobEnd, SweepDirectory
from pipeline.run_store import files
from pipeline.run_store.run import Run, opened
from pipeline.tuning import validation_rows
from pipeline.tuning.validation_rows import RowLosses, compare_rows
from tests.conftest import Cli
from tests.ledger_fixtures import CONFIG, freeze, gate, passed


def scored_run(root: Path, name: str, value: float, losses: np.ndarray | None = None) -> Run:
    """A run whose baseline was scored, with the losses of its validation rows if given."""
    run = Run.at(root, name)
    with opened(run) as ledger:
        freeze(run, ledger, CONFIG)
        files.write_json(run.inside("planning", "manifest.json"), {"splits": {"val": {"digest": "d", "rows": 50}}})
        gate(ledger, "planning", passed("seeds_fixed"))
        gate(ledger, "baseline", passed("one_batch_overfits"))
        score = {"split": "val", "metric": "accuracy", "value": value, "low": 0.0, "high": 1.0, "n": 50}
        chosen = {"phase": "baseline", "round": 1, "weights": "f" * 64, "score": {**score, "greater_is_better": True}}
        if losses is not None:
            path = run.inside("baseline", "row_losses.npz")
            files.write_bytes(path, validation_rows.to_bytes(losses, None))
            artifact = {"path": run.relative(path), "sha256": files.sha256(path)}
            finished = next(e for e in reversed(ledger.entries) if e["kind"] == "phase.finished")["data"]
            ledger.append("phase.started", {"phase": "baseline", "round": 1, "basis": 1})
            ledger.append("phase.finished", {**finished, "artifacts": {"row_losses": artifact}})
        ledger.append("candidate.chosen", chosen)
    return run


def sweep(root: Path, number: int, means: dict[str, float], seeds: int = 7) -> None:
    """A sweep with one run per learning rate and seed, whose scores are noisy around the rate's mean."""
    directory = SweepDirectory(files.folder(root / ".sweeps" / str(number)))
    files.write_json(directory.path / "sweep.json", {"words": [], "config_dirs": [], "finished": True})
    jobs = [(rate, seed) for rate in means for seed in range(seeds)]
    for job, (rate, seed) in enumerate(jobs):
        name = f"digits-{number}-{job}"
        scored_run(root, name, means[rate] + random.Random(f"{number}{rate}{seed}").gauss(0, 0.01))
        directory.record_end(job, JobEnd(name, 0, [f"optimizer.lr={rate}", f"seed={seed}", f"run.root={root}"]))


def test_compare_of_a_sweep_with_two_configs(own_folder: Path, cli: Cli) -> None:
    """The two configs of one sweep are paired by seed, and named by what differs."""
    sweep(Path("runs"), 1, {"0.1": 0.8, "0.01": 0.9})
    code, out, _ = cli("compare", "digits-1", "--require", "better")
    assert code == 0 and "better: optimizer.lr=0.01 is better than optimizer.lr=0.1 in accuracy" in out
    assert "7 seeds" in out and "noise floor" in out


@pytest.mark.slow
def test_compare_of_two_sweeps(own_folder: Path, cli: Cli) -> None:
    """A worse sweep is worse, as JSON too, and `--require better` exits with 3; its number names a sweep as well."""
    sweep(Path("runs"), 1, {"0.1": 0.9})
    sweep(Path("runs"), 2, {"0.01": 0.8}, seeds=6)
    code, out, _ = cli("compare", "1", "digits-2", "--require", "better", "--json")
    answer = json.loads(out)
    assert (code, answer["answer"], answer["basis"]) == (3, "worse", "6 seeds")
    assert answer["notes"][0] == "left out, since 1 alone has them: the seeds 6"


def test_compare_of_two_runs_is_by_row(own_folder: Path, cli: Cli) -> None:
    """Two runs of one seed are paired by validation row, and the answer says that it is one seed."""
    wrong = np.arange(50) < 20
    scored_run(Path("runs"), "old", 0.6, wrong)
    scored_run(Path("runs"), "new", 0.9, np.arange(50) < 5)
    code, out, _ = cli("compare", "old", "new")
    assert code == 0 and "better: new is better than old in accuracy" in out
    assert "one seed, 50 validation rows" in out and "another seed's luck" in out


def test_compare_rows_is_mcnemars_test() -> None:
    """For accuracy the p-value is the exact one of the rows that differ, and the interval agrees with it."""
    from scipy.stats import binomtest

    rng = np.random.default_rng(3)
    for _ in range(20):
        first, second = (rng.random((2, 80)) < rng.random((2, 1)) * 0.6).astype(float)
        answer = compare_rows(RowLosses(first, np.zeros(0)), RowLosses(second, np.zeros(0)), ("a", "b"), "accuracy")
        gains, differing = int((first > second).sum()), int((first != second).sum())
        assert answer.p == pytest.approx(binomtest(gains, differing).pvalue if differing else 1.0)
        assert (answer.low > 0 or answer.high < 0) == (answer.answer != "not shown")
        assert answer.effect == pytest.approx(first.mean() - second.mean())


def test_compare_rows_counts_groups() -> None:
    """A thousand rows of ten patients are ten patients: what rows alone show, groups need not."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(10), 100)
    first = rng.random(1000) + rng.normal(0, 0.3, 10)[groups]
    second = rng.random(1000) - 0.05
    by_row = compare_rows(RowLosses(first, np.zeros(0)), RowLosses(second, groups[:0]), ("a", "b"), "mae")
    by_group = compare_rows(RowLosses(first, groups), RowLosses(second, groups), ("a", "b"), "mae")
    assert by_group.effect == pytest.approx(by_row.effect) and by_group.p > by_row.p
    assert "in 10 groups" in by_group.basis and not by_group.greater_is_better


WIDE = "seed,old,new\n" + "".join(f"{i},{0.8 + i / 1000},{0.9 + i / 500}\n" for i in range(7))
LONG = "arm,seed,acc,loss\n" + "".join(
    f"{arm},{seed},{mean + seed / 1000},{1 - mean}\n" for arm, mean in (("x", 0.8), ("y", 0.7)) for seed in range(7)
)


@pytest.mark.parametrize(
    ("text", "options", "answer"),
    [
        (WIDE, [], "better: new is better than old in score"),
        (WIDE, ["--metric", "loss"], "worse: new is worse than old in loss"),
        (WIDE, ["--metric", "loss", "--mode", "max"], "better: new"),
        (LONG, ["--metric", "acc"], "worse: y is worse than x in acc"),
        (WIDE.replace("0,0.8,", "0,,"), [], "1 of old's trainings ended without a score"),
    ],
)
def test_compare_reads_csv(own_folder: Path, cli: Cli, text: str, options: list[str], answer: str) -> None:
    """One column per arm, or one row per arm and seed."""
    Path("scores.csv").write_text(text)
    code, out, _ = cli("compare", "scores.csv", *options)
    assert code == 0 and answer in out


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        (
            "",
            [],
            "scores.csv: has no columns to compare, got 'an empty file'; expected the columns seed",
        ),
        ("a,b\n1,2\n", [], "has no columns to compare, got 'a, b'"),
        ("seed,a,b,c\n1,2,3,4\n", [], "does not have two arms, got '3 of them: a, b, c'"),
        ("seed,a,b\n1,2\n", [], "has rows without 3 cells, got 'rows 1'"),
        ("seed,a,b\n1,x,2\n1,2,3\n", [], "row 2: repeats a seed of b, got '1'"),
        ("seed,a,b\n1,x,2\n1,2,3\n", [], "row 1: the score of a is not a number, got 'x'"),
        (LONG, [], "has several metrics, got 'acc, loss'; expected --metric NAME"),
        (
            LONG,
            ["--metric", "ac"],
            "got 'ac'; expected one of acc, loss; did you mean 'acc'?",
        ),
    ],
)
def test_compare_refuses_a_csv(own_folder: Path, cli: Cli, text: str, options: list[str], says: str) -> None:
    """Exit 2, with the row and all faults of the file."""
    Path("scores.csv").write_text(text)
    code, out, err = cli("compare", "scores.csv", *options)
    assert (code, out) == (2, "") and says in err


def test_compare_refuses_other_arms(own_folder: Path, cli: Cli) -> None:
    """What is no run and no sweep, a run with a sweep, a sweep of one config alone, runs without rows."""
    sweep(Path("runs"), 1, {"0.1": 0.9}, seeds=1)
    scored_run(Path("runs"), "old", 0.6)
    for arguments, says in {
        ("nothing", "old"): "RUN: no such run, got 'nothing'",
        ("old", "digits-1"): "compare: compares a run with a sweep, got 'old digits-1'",
        ("digits-1",): "digits-1: is a sweep of 1 configs, got 'one, over seeds'; expected two configs",
        ("old", "old"): "old: has no losses by row",
        ("a", "b", "c"): "compare: takes two arms",
        ("old",): "compare: needs a second run",
    }.items():
        code, _, err = cli("compare", *arguments)
        assert code == 2 and says in err, arguments
