"""Preflight: checks any model and data in one command, and leaves nothing on disk."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import numpy as np
import pytest
from torch import nn

from pipeline.run_store.gate import Item
from pipeline.sanity_checks.infer_task import infer_task
from pipeline.sanity_checks.junit import junit
from tests.check_helpers import assert_schema
from tests.conftest import Cli
from tests.user_package import PACKAGE

MORE = '''

class Wide(nn.Linear):
    """As many outputs as it is told."""
    def __init__(self, outputs):
        super().__init__(13, outputs)

def with_missing():
    parts = table()
    parts["train"][0][7, 2] = np.nan
    return parts

def values():
    return {name: (X, X[:, 0] - X[:, 1]) for name, (X, _) in table().items()}

def half():
    return {"train": table()["train"]}

def broken():
    raise OSError("the disk is on fire")

class Lone(nn.Linear):
    """One output; its inputs are as many as it is told."""
    def __init__(self, in_features):
        super().__init__(in_features, 1)

def two_classes():
    return {name: (X, (y > 0).astype(int)) for name, (X, y) in table().items()}

class Dead(nn.Linear):
    """A softmax over its one output is 1, whatever comes in: no gradient, nothing to learn."""
    def __init__(self):
        super().__init__(13, 1)
    def forward(self, x):
        return super().forward(x).softmax(1)

number = 3
'''
QUICK = (
    "phases.baseline.reproducibility_steps=0",
    "phases.baseline.overfit_steps=20",
    "phases.baseline.sanity_check_steps=20",
)


@pytest.fixture
def preflight(
    own_folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[int, Any, str]]]:
    """`preflight("net", "table")`: the report of a user's package as JSON; nothing is on disk afterwards."""
    (own_folder / "somebody.py").write_text(PACKAGE + MORE)
    (own_folder / "scratch").mkdir()
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not Path(path, "somebody.py").is_file()])
    monkeypatch.setattr(tempfile, "tempdir", str(own_folder / "scratch"))
    sys.modules.pop("somebody", None)

    def command(model: str, data: str, *arguments: str) -> tuple[int, Any, str]:
        code, out, err = cli("preflight", f"somebody:{model}", f"somebody:{data}", *QUICK, *arguments, "--json")
        return code, json.loads(out) if out else None, err

    yield command
    assert {p.name for p in own_folder.iterdir()} - {"__pycache__", "items.xml"} == {"somebody.py", "scratch"}
    assert list((own_folder / "scratch").iterdir()) == []


def outcomes(report: Any) -> dict[str, str]:
    return {item["id"]: item["outcome"] for item in report["items"]}


def test_preflight_of_a_user_package(preflight: Callable[..., Any], own_folder: Path) -> None:
    """Every check of planning and baseline has an outcome, task and loss are inferred, and JUnit XML is written."""
    code, report, err = preflight("net", "table", "--junit", "items.xml", "trainer.max_minutes=20", "--seed", "3")
    assert code == 0, err
    assert_schema("preflight", report)
    not_applicable = {
        "training_repeats",
        "splits_independent",
    }  # reproducibility_steps is 0; there are no groups or times
    assert {name for name, outcome in outcomes(report).items() if outcome != "passed"} == not_applicable
    assert {"splits_disjoint", "one_batch_tried", "training_repeats", "trivial_baseline_scored"} <= set(
        outcomes(report)
    )
    assert not {"problem_card", "metric_and_target"} & set(outcomes(report))
    assert "task=classification, since targets are integers of 3 classes" in report["inferred"]
    assert any("the range test suggests" in line for line in report["messages"])
    suites = Xml.parse(own_folder / "items.xml").getroot()
    cases = list(suites.iter("testcase"))
    assert suites.tag == "testsuites" and int(suites.attrib["tests"]) == len(cases) == len(report["items"])
    assert all({"classname", "name", "time"} <= set(case.attrib) for case in cases)
    assert {case.attrib["classname"] for case in cases} == {"preflight.planning", "preflight.baseline"}


def test_preflight_does_not_train_on_data_that_close_the_gate(preflight: Callable[..., Any]) -> None:
    """Checks that train say why they were not run; forward checks are run; the exit code is 3."""
    code, report, _ = preflight("net", "with_missing")
    items = {item["id"]: item for item in report["items"]}
    assert code == 3 and not report["ready"]
    assert (items["data_finite"]["outcome"], items["data_finite"]["cause"]) == ("failed", "nonfinite_inputs")
    assert items["inputs_matter"]["outcome"] == "not_applicable"
    assert "the planning gate is closed (data_finite)" in items["inputs_matter"]["why"]
    assert items["rows_independent"]["outcome"] == items["gradients_reach"]["outcome"] == "passed"


def test_preflight_takes_overrides(preflight: Callable[..., Any]) -> None:
    """A given task is not inferred, and overrides reach model and loss as in a run."""
    code, report, err = preflight("Wide", "values", "task=regression", "+model.outputs=1", "optimizer.lr=0.01")
    assert code == 0, err
    assert report["inferred"] == ["loss=MSELoss, since none is given"]
    assert any("learning rate 0.01 is planned" in line for line in report["messages"])
    code, report, err = preflight("Wide", "values", "loss=huber", "loss.delta=2.0", "+model.outputs=1")
    assert (code, report["inferred"]) == (0, ["task=regression, since targets are floats"]), err


def test_preflight_infers_the_task_of_a_model_with_auto_width(preflight: Callable[..., Any]) -> None:
    """The width is that of the data, so that the model runs: with one output and two classes the task is binary."""
    _, report, err = preflight("Lone", "two_classes", "+model.in_features=auto")
    assert report, err
    inferred = ["task=binary, since targets are integers of 2 classes, and the model has one output"]
    assert report["inferred"] == [*inferred, "loss=BCEWithLogitsLoss, since none is given"]


def test_preflight_fails_for_a_model_that_does_not_learn(preflight: Callable[..., Any]) -> None:
    """A run would continue with its diagnosis; in a preflight it is a failure, and missing gradients are a warning."""
    code, report, _ = preflight("Dead", "values")
    items = {item["id"]: item for item in report["items"]}
    assert (code, items["one_batch_tried"]["outcome"]) == (3, "failed")
    assert items["gradients_reach"]["why"].startswith("warning: 2 of 2 trainable parameters")


BAD = [
    ("nothing", "table", (), "MODEL: somebody has no 'nothing'"),
    ("number", "table", (), "MODEL: cannot be called, got 'somebody.number'"),
    ("Wide", "table", (), "model: somebody.Wide needs outputs  Do: python -m pipeline ... +model.outputs=<value>"),
    ("net", "half", (), "data: split 'val' is missing"),
    ("net", "broken", (), "OSError: the disk is on fire"),
    ("net", "table", ("task=regresion",), "did you mean 'regression'?"),
    ("net", "table", ("run.root=here",), "run.root=here: cannot be set in a preflight"),
    ("net", "table", ("--seed", "-1"), "--seed: is not a seed, got -1"),
    ("net", "table", ("--junit", "no/where.xml"), "--junit: there is no such folder, got 'no'"),
    ("Wide", "table", ("+model.outputs=2",), "model: outputs do not fit the classes"),
]


@pytest.mark.parametrize(("model", "data", "arguments", "message"), BAD)
def test_preflight_reports_wrong_input_in_one_message(
    preflight: Callable[..., Any], model: str, data: str, arguments: Any, message: str
) -> None:
    """The message says what is wrong and what is expected, without a traceback."""
    code, report, err = preflight(model, data, *arguments)
    assert (code, report) == (2, None)
    assert message in err and "Traceback" not in err, err


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (
            "somebody.net",
            "d:e",
            "MODEL: is not a module and a name, got 'somebody.net'; expected package.module:name",
        ),
        ("a:b", "c", "DATA: is not a module and a name, got 'c'"),
        ("nobody.at:home", "nobody.at:work", "MODEL: no such module, got 'nobody'"),
        ("json:loads", "json:loads", "trust: 'json' is a module of Python itself"),
    ],
)
def test_preflight_refuses_names_that_do_not_exist(cli: Cli, model: str, data: str, message: str) -> None:
    """Both names are checked before any of their code runs."""
    code, _, err = cli("preflight", model, data)
    assert code == 2 and message in err and "Traceback" not in err, err


def test_preflight_of_bundled_parts_needs_no_trust(cli: Cli) -> None:
    """The bundled model on the bundled digits prints a table."""
    arguments = ("+model.in_features=64", "+model.out_features=10", "+model.hidden=[8]")
    code, out, err = cli("preflight", "pipeline.models.mlp:MLP", "pipeline.data.digits:digits", *arguments, *QUICK)
    assert code == 0, err
    assert "learning_rate_tried" in out and "ready: " in out and "splits_disjoint" in out


X = np.zeros((6, 4), np.float32)
PROBABILITY = nn.Sequential(nn.Linear(4, 1), nn.Sigmoid())
LOGARITHMS = nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1))
KINDS: list[tuple[Any, Callable[[], nn.Module], str, str]] = [
    (np.array([0, 1, 2, 0, 1, 2]), lambda: nn.Linear(4, 3), "classification", "CrossEntropyLoss"),
    (np.array([0, 1, 1, 0, 1, 1]), lambda: nn.Linear(4, 1), "binary", "BCEWithLogitsLoss"),
    (np.array([0, 1, 1, 0, 1, 1]), lambda: PROBABILITY, "binary", "BCELoss"),
    (np.array([0, 1, 1, 0, 1, 1]), lambda: nn.Linear(4, 2), "classification", "CrossEntropyLoss"),
    (np.array([0, 1, 2, 0, 1, 2]), lambda: LOGARITHMS, "classification", "NLLLoss"),
    (np.linspace(0, 1, 6), lambda: nn.Linear(4, 1), "regression", "MSELoss"),
    (np.array(list("abcabc")), lambda: nn.Linear(4, 1), "classification", "CrossEntropyLoss"),
    (np.array([0, 1, 1, 0, 1, 1]), lambda: nn.Linear(9, 1), "classification", "CrossEntropyLoss"),
]  # fmt: skip


@pytest.mark.parametrize(("y", "model", "kind", "loss"), KINDS)
def test_infer_task(y: Any, model: Callable[[], nn.Module], kind: str, loss: str) -> None:
    """Kind and loss follow from the targets' type and the model's outputs; unknown data are a classification."""
    task = infer_task({"train": (X, y)}, model)
    assert (task.kind, task.loss.rpartition(".")[2]) == (kind, loss)
    items = [(X[i], y[i]) for i in range(6)]
    assert infer_task({"train": items}, model).kind in (kind, "classification")


def test_junit_has_a_case_per_item() -> None:
    """Failures and errors with their reasons, what does not apply as skipped; forbidden characters are replaced."""
    items = [
        Item("fine", "Is it?", "passed", why="yes"),
        Item("bad", "Is it?", "failed", 3, 2, why="no & <never>\x00", cause="data_leakage"),
        Item("raised", "Is it?", "errored", why="KeyError"),
        Item("skipped", "Is it?", "not_applicable", why="no classes"),
    ]
    root = Xml.fromstring(junit("preflight", {"planning": items}, 1.5))
    assert [root.attrib[k] for k in ("tests", "failures", "errors", "skipped", "time")] == ["4", "1", "1", "1", "1.5"]
    assert [case.get("time") for case in root.iter("testcase")] == ["0.0"] * 4
    failure = root.find(".//testcase[@name='bad']/failure")
    assert failure is not None and failure.attrib == {"message": "no & <never>\\x00", "type": "data_leakage"}
    assert root.find(".//testcase[@name='skipped']/skipped") is not None
    assert root.find(".//testcase[@name='raised']/error") is not None
