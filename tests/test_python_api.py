"""`from fivegate import Run`: the phases of a run in a Python program, with the records of the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fivegate import Run
from pipeline.config.compose import compose
from pipeline.errors import Refused, UserError
from pipeline.python_api.overrides import overrides_of
from pipeline.run_store.ledger import read_ledger
from pipeline.run_store.run import Run as RunFolder
from tests.conftest import SMALL, Cli


@pytest.mark.process  # no process, but more seconds than a quick test may take
def test_run_walks_digits_from_planning_to_its_baseline(trained: RunFolder, cli: Cli) -> None:
    """`advance` runs planning, then the baseline, on the same records and with the same weights as the command line."""
    said: list[str] = []
    run = Run(SMALL, "run.name=program", log=said.append)
    assert "planning not reached" in repr(run) and not run.path.exists()
    planning = run.advance()
    assert (planning.phase, planning.status, planning.next_phase) == ("planning", "open", "baseline")
    baseline = run.advance()
    assert (baseline.phase, baseline.status, baseline.open_items) == ("baseline", "open", ())
    assert baseline.passed and baseline.score is not None and baseline.branch is not None
    assert baseline.next_command.startswith(f"python -m pipeline phase={baseline.next_phase} ")
    chosen, by_command = RunFolder(run.path).state().candidate, trained.state().candidate
    assert chosen and by_command and chosen["weights"] == by_command["weights"]
    assert run.status() == json.loads(cli("status", "program", "--json")[1])
    assert said and all(isinstance(line, str) for line in said)
    shown = run._repr_html_() + baseline._repr_html_()
    assert "<table>" in shown and 'style="color:#1a7f37">open' in shown


def test_run_advance_says_which_checks_close_a_gate(tmp_path: Path) -> None:
    """Without a seed the planning gate is closed: the outcome names the check, and nothing more is run."""
    run = Run([*SMALL, "seed=null"], f"run.root={tmp_path}")
    closed = run.advance()
    assert (closed.status, closed.exit_code, closed.next_phase, closed.passed) == ("closed", 3, None, False)
    assert "seeds_fixed" in [item.id for item in closed.open_items]
    entries = len(read_ledger(run.path / "ledger.jsonl"))
    again = run.advance()
    assert (again.phase, again.status, again.exit_code) == (None, "closed", 3)
    assert len(read_ledger(run.path / "ledger.jsonl")) == entries
    assert "seeds_fixed" in repr(again) and "<td>seeds_fixed</td>" in again._repr_html_()


def test_run_of_an_existing_folder_continues_it(trained: RunFolder) -> None:
    """A run is found by its folder; a phase before its time is refused as on the command line."""
    run = Run(trained.path)
    assert run.path == trained.path
    with pytest.raises(Refused, match="phase=finalization: cannot run yet"):
        run.advance("finalization")
    assert run.advance("diagnostics").phase == "diagnostics"


@pytest.mark.parametrize("words", [["experiment=digits_cnn", "optimizer=sgd"], ["experiment=csv"]])
def test_overrides_of_a_composed_config_compose_it_again(words: list[str], tmp_path: Path) -> None:
    """A composed config, also one from a YAML file, gives the same config, whatever the bundled experiment says."""
    config = compose([*words, "surgery=[{swap_activation: {from: ReLU, to: LeakyReLU}}]", "run.name=again"])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    assert compose(overrides_of(config, ())) == compose(overrides_of(path, ())) == config


def test_overrides_of_a_mapping_are_dotted_keys() -> None:
    """Nested and dotted keys of a partial config are overrides; options of groups stay words."""
    config: dict[str, Any] = {"experiment": "digits", "optimizer": {"lr": 0.01}, "trainer.max_epochs": 3}
    assert overrides_of(config, ["seed=2"]) == [
        "experiment=digits", "optimizer.lr=0.01", "trainer.max_epochs=3", "seed=2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (7, "Run: cannot be made from this, got 'a int'; expected overrides"),
        ("no_such_run", "RUN: no such run"),
        ("phase=baseline", r"phase: is not part of a run.*Do: Run\(\.\.\.\)\.advance\('baseline'\)"),
        (["experiment=digits", 3], "Run: takes overrides as text, got '3'"),
        ({1: 2}, "Run: has a key that is not text"),
        ("missing.yaml", "missing.yaml"),
    ],
)
def test_run_names_what_it_cannot_be_made_from(config: Any, match: str) -> None:
    """A wrong config is one message; nothing is written."""
    with pytest.raises(UserError, match=match):
        Run(config)
    assert not Path("runs").exists()


def test_run_refuses_a_phase_that_there_is_not() -> None:
    """A misspelt phase, and the status of a run that has not begun, are mistakes with a message."""
    run = Run(SMALL)
    with pytest.raises(UserError, match="did you mean 'planning'"):
        run.advance("planing")
    with pytest.raises(UserError, match="digits: has not begun"):
        run.status()
