"""docs/schemas: each `--json` output and diagnosis.json is as its schema says, and a renamed key is noticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from docs.json_schemas import schemas
from pipeline.reporting import ranking
from pipeline.run_store.run import Run
from tests.check_helpers import SCHEMAS, assert_schema
from tests.conftest import Cli
from tests.ledger_fixtures import baseline_done, mended
from tests.test_ranking import Job

LOGS = Path(__file__).resolve().parent / "logs"


def test_schemas_are_up_to_date() -> None:
    """`make docs` would change none of them, and each is a schema of draft 2020-12 with a version."""
    made = schemas()
    assert {path.name: path.read_text() for path in SCHEMAS.glob("*.json")} == made
    for text in made.values():
        schema = json.loads(text)
        Draft202012Validator.check_schema(schema)
        assert schema["$id"].rpartition(":")[2].isdecimal() and schema["description"]


def test_status_is_as_its_schema_says(finished: Run, cli: Cli) -> None:
    """Of one run, with every gate evaluated, and of all runs."""
    assert_schema("status", json.loads(cli("status", "digits", "--json")[1]))
    assert_schema("status", json.loads(cli("status", "--json")[1]))


def test_status_of_a_planned_run_is_as_its_schema_says(planned: Run, cli: Cli) -> None:
    """Where nothing is trained yet, branch and release are null."""
    answer = json.loads(cli("status", "digits", "--json")[1])
    assert_schema("status", answer)
    assert answer["branch"] is None and answer["released"] is None and answer["schema"] == 1


@pytest.mark.parametrize("log", ["keras.csv", "trainer_state.json", "nested.jsonl", "nanogpt.log"])
def test_diagnosis_of_a_log_is_as_its_schema_says(log: str, cli: Cli, tmp_path: Path) -> None:
    """What `diagnose` prints and what it writes."""
    code, out, err = cli("diagnose", str(LOGS / log), "--json", "--out", str(tmp_path))
    assert code == 0, err
    assert_schema("diagnosis", json.loads(out))
    assert_schema("diagnosis", json.loads((tmp_path / "diagnosis.json").read_text()))


def test_diagnosis_of_a_statement_is_as_its_schema_says(cli: Cli) -> None:
    """Words alone give a diagnosis of the same form."""
    assert_schema("diagnosis", json.loads(cli("diagnose", "--symptom", "loss is NaN", "--at", "epoch=3", "--json")[1]))


def test_ranking_is_as_its_schema_says(finished: Run) -> None:
    """Of the jobs of a sweep, with and without a score."""
    jobs = [Job("digits", 0, ["seed=1"]), Job("never_started", 2, ["seed=2"])]
    ranked = ranking.rank(finished.path.parent, jobs)
    assert_schema("ranking", ranked)
    assert [row["score"] is None for row in ranked] == [False, True]


def test_comparison_is_as_its_schema_says(cli: Cli, own_folder: Path) -> None:
    """Of two arms in a file, paired by seed."""
    rows = "".join(
        f"{arm},{seed},{score + seed / 1000}\n" for arm, score in (("a", 0.8), ("b", 0.9)) for seed in range(7)
    )
    (own_folder / "scores.csv").write_text("arm,seed,accuracy\n" + rows)
    code, out, err = cli("compare", "scores.csv", "--json")
    assert code == 0, err
    assert_schema("compare", json.loads(out))


@pytest.mark.parametrize("command", ["explain", "checklist", "verify"])
def test_reading_command_is_as_its_schema_says(command: str, tmp_path: Path, cli: Cli) -> None:
    """Of a run whose last gate is closed, in one document and nothing else on standard output."""
    run = mended(tmp_path / "runs")
    answer = json.loads(cli(command, str(run.path), "--json")[1])
    assert_schema(command, answer)
    assert answer["run"] == run.name


def test_explanation_has_value_bound_and_command(tmp_path: Path, cli: Cli) -> None:
    """A check that is not satisfied has the command that helps, and one that is has none."""
    run = mended(tmp_path / "runs")
    answer = json.loads(cli("explain", str(run.path), "--json")[1])
    assert [check["id"] for check in answer["checks"]] == ["latency", "owner_approval"]
    assert all("python -m pipeline" in check["next"] and not check["satisfied"] for check in answer["checks"])
    [waived] = json.loads(cli("explain", str(run.path), "target_on_test", "--json")[1])["checks"]
    assert (waived["result"], waived["required"], waived["next"]) == ("0.944 accuracy", ">= 0.95", "")
    assert waived["people"][0].startswith("waived:   by Ada")


def test_difference_is_as_its_schema_says(tmp_path: Path, cli: Cli) -> None:
    """Two runs differ in their gates, and a run does not differ from itself."""
    first, second = mended(tmp_path / "runs"), baseline_done(tmp_path / "runs", "other")
    answer = json.loads(cli("diff", str(first.path), str(second.path), "--json")[1])
    assert_schema("diff", answer)
    assert {"key": "gates.finalization", "a": "closed", "b": "not reached"} in answer["changed"]
    assert json.loads(cli("diff", str(first.path), str(first.path), "--json")[1])["changed"] == []


@pytest.mark.parametrize(("path", "what"), [("gates", "planning"), ("next", "command"), ("", "head")])
def test_renamed_key_is_noticed(path: str, what: str, planned: Run, cli: Cli) -> None:
    """A document with a key of another name is not as the schema says."""
    answer: dict[str, Any] = json.loads(cli("status", "digits", "--json")[1])
    part = answer[path] if path else answer
    part[f"{what}_renamed"] = part.pop(what)
    with pytest.raises(AssertionError, match="is not valid under any"):
        assert_schema("status", answer)
