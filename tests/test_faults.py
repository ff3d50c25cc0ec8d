"""The fault benchmark: its cases are complete and use known causes, and its scores are computed correctly."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.repair.causes import load as vocabulary

FAULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "faults"
CAUSES_WITHOUT_CASES = {
    "replicas_out_of_sync": "needs several processes",
    "out_of_memory": "ends the process, or the machine",
    "attention_misbuilt": "is shown by a test of the inspection that finds it",
    "resume_data_replayed": "needs a training that was resumed",
    "nondeterminism": "only shows in two trainings, which the reproducibility check of the baseline makes",
}


@pytest.fixture(scope="module")
def cases() -> Iterator[Any]:
    """Import the benchmark's modules, which are scripts in a folder of their own."""
    sys.path.insert(0, str(FAULTS))
    try:
        import cases

        yield cases
    finally:
        sys.path.remove(str(FAULTS))


def test_case_is_complete(cases: Any) -> None:
    """The file of a case exists, its causes are ids of causes.yaml, and a faulty case has a healthy form."""
    known = vocabulary()
    for case in cases.cases():
        where = f"conf/experiment/{case.id}.yaml" if case.way == "experiment" else f"loops/{case.script}.py"
        assert (FAULTS / where).is_file(), case.id
        assert set(case.causes) | set(case.harmless) <= set(known), case.id
        assert not set(case.causes) & set(case.harmless), case.id
        assert case.healthy or case.mended, case.id
        assert case.split == "val", case.id
        assert all(case.faults) and len(set(case.causes)) == len(case.causes), case.id


def _target(folder: Path, name: str) -> float | None:
    """Return the target of the experiment, or that of the parent it extends."""
    config = yaml.safe_load((folder / f"{name}.yaml").read_text())
    target: float | None = config.get("task", {}).get("target")
    parents = [parent for parent in config["defaults"] if isinstance(parent, str) and parent != "_self_"]
    return target if target is not None or not parents else _target(folder, parents[0])


def test_experiment_target_is_bound_of_truth(cases: Any) -> None:
    """Otherwise a healthy training could miss its target, and an explanation of that would not be a false alarm."""
    for case in cases.cases():
        if case.way == "experiment":
            target = _target(FAULTS / "conf" / "experiment", case.id)
            assert target == (case.at_most if case.at_least is None else case.at_least), case.id


def test_case_ids_are_unique_and_match_files(cases: Any) -> None:
    """Case ids are unique, and every experiment file and every loop is a case."""
    ids = [case.id for case in cases.cases()]
    names = {case.script if case.way != "experiment" else case.id for case in cases.cases()}
    assert len(ids) == len(set(ids))
    files = {path.stem for folder in ("conf/experiment", "loops") for path in (FAULTS / folder).glob("*.*")}
    assert files == names


def test_causes_have_cases_in_two_families(cases: Any) -> None:
    """Every cause is the main cause in two families, except those that one process on a CPU cannot show."""
    families = defaultdict(set)
    for case in cases.cases():
        for fault in case.faults:
            families[fault[0]].add(case.family)
    lacking = {cause for cause in vocabulary() if len(families[cause]) < 2}
    assert lacking == set(CAUSES_WITHOUT_CASES)


def test_score_row_counts_each_fault_once_and_ignores_harmless_flaws(cases: Any) -> None:
    """A second name of a fault and an accusation of a harmless flaw count neither way."""
    from score import Answer, score_row

    def case(faults: tuple[tuple[str, ...], ...], harmless: tuple[str, ...] = ()) -> Any:
        return cases.Case("a", "f", "loop", faults, harmless, (), "val", "accuracy", 0.9, None, "")

    two = case((("dead_relu", "weight_init_bad"), ("label_noise",)), harmless=("outliers",))
    well = case((), harmless=("outliers",))
    row = score_row(
        [
            (two, Answer((("outliers", 0.9), ("weight_init_bad", 0.8), ("dead_relu", 0.7), ("label_noise", 0.6)))),
            (two, Answer((("metric_wrong", 0.9),))),
            (well, Answer((("outliers", 0.9),))),
            (well, Answer((("label_noise", 0.9),))),
            (well, Answer((), broke=True)),
        ]
    )
    counts = {key: (row[key]["k"], row[key]["n"]) for key in ("detected", "main", "first", "top3", "false_alarms")}
    assert counts == {"detected": (2, 2), "main": (0, 2), "first": (1, 2), "top3": (1, 2), "false_alarms": (2, 3)}
    assert (row["precision"]["k"], row["precision"]["n"]) == (2, 4)  # weight_init_bad, label_noise; metric_wrong, ...
    assert row["calibration"]["n"] == 3


def test_score_row_of_perfect_answers_is_perfect(cases: Any) -> None:
    """Answers that name the main cause of every fault get the best value of every measure."""
    from score import Answer, score_row

    answers = [(case, Answer(tuple((fault[0], 1.0) for fault in case.faults))) for case in cases.cases()]
    row = score_row(answers)
    assert {row[key]["share"] for key in ("detected", "main", "first", "top3", "precision")} == {1.0}
    assert row["false_alarms"]["k"] == 0
    assert row["calibration"]["brier"] == 0.0


def test_run_each_returns_errors_of_processes(cases: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies or raises gives an error as its result, and the results keep their order."""
    import side_by_side
    from side_by_side import run_each

    monkeypatch.setattr(side_by_side, "PRELOADED", [])  # nothing here needs torch
    assert list(run_each(os._exit, [(3,)], at_once=1)) == [{"error": "its process ended with 3"}]
    assert list(run_each(divmod, [(7, 2), (1, 0), (9, 4)])) == [
        (3, 1),
        {"error": "ZeroDivisionError: integer division or modulo by zero"},
        (2, 1),
    ]
