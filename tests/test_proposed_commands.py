"""The commands that are proposed for a run whose config reads an environment variable work as they are printed."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.commands import explain, status
from pipeline.errors import FivegateError, Refused
from pipeline.orchestration.run_request import resolve_request
from pipeline.release.verify import verify
from pipeline.run_store import permits
from pipeline.run_store import plan as plans
from pipeline.run_store.gate import Item
from pipeline.run_store.job import Delta
from pipeline.run_store.run import Run
from pipeline.trials.fix_report import rerun_command
from tests.conftest import SMALL, go
from tests.test_verify import judge_real, rewrite

READS_WHO = """# @package _global_
defaults: [digits]
seed: 1
tracking: {kind: none}
plan: {owner: '${oc.env:WHO}', small_sample: {who: '${oc.env:WHO}', why: a small public set}}
"""


@pytest.fixture(scope="module")
def _planned_with_who(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reads-who")
    (folder / "conf" / "experiment").mkdir(parents=True)
    (folder / "conf" / "experiment" / "fair.yaml").write_text(READS_WHO)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHO", "Ada")
        words = ["phase=planning", "experiment=fair", "run.name=mine", "env=[WHO]", *SMALL[1:]]
        return go(folder / "runs", *words, config_dirs=[str(folder / "conf")]).run.path


@pytest.fixture
def run(_planned_with_who: Path, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A planned run whose owner is the environment variable WHO, which its first command named."""
    monkeypatch.setenv("WHO", "Ada")
    return Run(Path(shutil.copytree(_planned_with_who, own_folder / "runs" / "mine")))


def proposed(text: str) -> list[list[str]]:
    """The words of every command in a text that runs a phase."""
    commands = re.findall(r"python -m pipeline (phase=.*)", text)
    return [[word.rstrip(".,;)") for word in shlex.split(command)] for command in commands]


def show_status(run: Run) -> None:
    status.show(run, run.state())


def change_a_setting(run: Run) -> None:
    resolve_request(["phase=diagnostics", "run.name=mine", "env=[WHO]", "optimizer.lr=0.5"], [])


def change_a_goal(run: Run) -> None:
    resolve_request(["phase=baseline", "run.name=mine", "env=[WHO]", "task.target=0.5"], [])


def trust_another_package(run: Run) -> None:
    resolve_request(["phase=diagnostics", "run.name=mine", "trust=[mine]"], [])


def damage_the_plan(run: Run) -> None:
    (run.path / "plan" / "1.yaml").write_text("- cut off")
    plans.load(run)


def damage_the_evidence(run: Run) -> None:
    (run.path / "planning" / "evidence.json").write_text("{}")
    permits.train(run)


def explain_a_failed_check(run: Run) -> None:
    raise Refused(explain._what_to_do(run, run.state(), "planning", Item("seeds_fixed", "Is there a seed?", "failed")))


def edit_the_config(run: Run) -> None:
    """The notice of a later phase about an edit, which it does not use."""
    file = Path(run.state().plan["config_dirs"][0]) / "experiment" / "fair.yaml"  # type: ignore[index]
    original = file.read_text()
    file.write_text(READS_WHO + "optimizer: {lr: 0.5}\n")
    try:
        print(resolve_request(["phase=diagnostics", "run.name=mine", "env=[WHO]"], []).notice)
    finally:
        file.write_text(original)


@pytest.mark.parametrize(
    "occasion",
    [show_status, change_a_setting, change_a_goal, trust_another_package, damage_the_plan, damage_the_evidence,
     explain_a_failed_check, edit_the_config],
)  # fmt: skip
def test_proposed_commands_name_what_the_config_reads(
    run: Run, occasion: Callable[[Run], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command of a status, an explanation or a refusal composes the config that the plan was made from."""
    intact, said = (run.path / "plan" / "1.yaml").read_bytes(), ""
    try:
        occasion(run)
    except FivegateError as refusal:
        said = "\n".join(refusal.faults)
    (run.path / "plan" / "1.yaml").write_bytes(intact)
    commands = proposed(said + capsys.readouterr().out)

    assert commands
    for words in commands:
        assert "env=[WHO]" in words and resolve_request(words, []).config["plan"]["owner"] == "Ada", words


def test_rerun_command_names_what_the_config_reads(run: Run) -> None:
    """The command that trains a fixed config as a new run composes it with the variables of the plan."""
    command = rerun_command(run, run.state(), plans.load(run).config, Delta({"optimizer.lr": 0.1}))
    phase, flag, folder, *words = proposed(command)[0]

    assert flag == "--config-dir" and "env=[WHO]" in words
    assert resolve_request([phase, *words], [folder]).config["plan"]["owner"] == "Ada"


@pytest.mark.parametrize("variables", [["WHO", "SECRET"], [], None])
def test_verify_compares_the_variables_of_the_plan(run: Run, variables: list[str] | None) -> None:
    """A ledger that was rewritten so that commands would read other variables is not as the plan says."""
    assert verify(run, judge_real).faults == []

    def other(entry: dict[str, dict[str, object]]) -> None:
        if entry["kind"] == "plan.frozen":
            entry["data"].pop("env")
            entry["data"] |= {} if variables is None else {"env": variables}

    rewrite(run, other)
    assert any("env is not as in revision 1 of the plan" in said for said in verify(run, judge_real).faults)
