"""The truth of the fault benchmark: whole, in the common words, and split by nobody's choice."""

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
UNSHOWN = {
    "replicas_out_of_sync": "needs several processes",
    "out_of_memory": "ends the process of a CPU, or the machine",
    "nondeterminism": "two trainings show it, no single one; the baseline's proof makes two",
}


@pytest.fixture(scope="module")
def cases() -> Iterator[Any]:
    """The modules of the benchmark, which are scripts in a folder of their own."""
    sys.path.insert(0, str(FAULTS))
    try:
        import cases

        yield cases
    finally:
        sys.path.remove(str(FAULTS))


def test_every_case_is_there_and_speaks_the_common_words(cases: Any) -> None:
    """Its file exists, its causes are ids of causes.yaml, and a faulty one has a form that is well."""
    known = vocabulary()
    for case in cases.cases():
        stem = case.id.removesuffix("_logs")
        where = f"conf/experiment/{case.id}.yaml" if case.way == "experiment" else f"loops/{stem}.py"
        assert (FAULTS / where).is_file(), case.id
        assert set(case.causes) | set(case.harmless) <= set(known), case.id
        assert not set(case.causes) & set(case.harmless), case.id
        assert case.healthy or case.mended, case.id
        assert case.split == "val", case.id
        assert all(case.faults) and len(set(case.causes)) == len(case.causes), case.id


def _target(folder: Path, name: str) -> float | None:
    """What the experiment asks for, itself or the parent that it builds on."""
    read = yaml.safe_load((folder / f"{name}.yaml").read_text())
    own: float | None = read.get("task", {}).get("target")
    parents = [parent for parent in read["defaults"] if isinstance(parent, str) and parent != "_self_"]
    return own if own is not None or not parents else _target(folder, parents[0])


def test_an_experiment_asks_for_what_its_truth_calls_well(cases: Any) -> None:
    """Or a healthy training would be one that misses its target, which the product may well explain."""
    for case in cases.cases():
        if case.way == "experiment":
            asked = _target(FAULTS / "conf" / "experiment", case.id)
            assert asked == (case.at_most if case.at_least is None else case.at_least), case.id


def test_ids_are_given_once_and_nothing_lies_about(cases: Any) -> None:
    """Every experiment file and every loop is a case."""
    found = [case.id for case in cases.cases()]
    assert len(found) == len(set(found))
    files = {path.stem for folder in ("conf/experiment", "loops") for path in (FAULTS / folder).glob("*.*")}
    assert files == {name.removesuffix("_logs") for name in found}


def test_every_cause_is_shown_in_two_families(cases: Any) -> None:
    """But for those that one process on a CPU cannot show."""
    families = defaultdict(set)
    for case in cases.cases():
        for fault in case.faults:
            families[fault[0]].add(case.family)
    lacking = {cause for cause in vocabulary() if len(families[cause]) < 2}
    assert lacking == set(UNSHOWN)


def test_scores_count_a_fault_once_and_a_harmless_flaw_never(cases: Any) -> None:
    """Two faults, one named twice over; a healthy training accused of what is there, and of what is not."""
    from score import Answer, scored

    def case(faults: tuple[tuple[str, ...], ...], harmless: tuple[str, ...] = ()) -> Any:
        return cases.Case("a", "f", "loop", faults, harmless, (), "val", "accuracy", 0.9, None, "")

    two = case((("dead_relu", "weight_init_bad"), ("label_noise",)), harmless=("outliers",))
    well = case((), harmless=("outliers",))
    row = scored(
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


def test_a_perfect_answer_scores_perfectly(cases: Any) -> None:
    """On every case of the benchmark: the measure itself takes nothing away."""
    from score import Answer, scored

    told = [(case, Answer(tuple((fault[0], 1.0) for fault in case.faults))) for case in cases.cases()]
    row = scored(told)
    assert {row[key]["share"] for key in ("detected", "main", "first", "top3", "precision")} == {1.0}
    assert row["false_alarms"]["k"] == 0
    assert row["calibration"]["brier"] == 0.0


def test_a_case_that_dies_or_raises_is_an_answer(cases: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And those asked after it are answered too, in their order."""
    import side_by_side
    from side_by_side import asked

    monkeypatch.setattr(side_by_side, "PRELOADED", [])  # nothing here needs torch
    assert list(asked(os._exit, [(3,)], at_once=1)) == [{"error": "its process ended with 3"}]
    assert list(asked(divmod, [(7, 2), (1, 0), (9, 4)])) == [
        (3, 1),
        {"error": "ZeroDivisionError: integer division or modulo by zero"},
        (2, 1),
    ]
