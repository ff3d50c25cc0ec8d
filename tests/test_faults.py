"""The truth of the fault benchmark: whole, in the common words, and split by nobody's choice."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.causes import load as vocabulary

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
        assert not case.several or len(case.causes) > 1, case.id


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
            assert _target(FAULTS / "conf" / "experiment", case.id) == case.bound, case.id


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
        for cause in case.causes if case.several else case.causes[:1]:
            families[cause].add(case.family)
    lacking = {cause for cause in vocabulary() if len(families[cause]) < 2}
    assert lacking == set(UNSHOWN)
