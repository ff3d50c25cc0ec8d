"""`-m hparams_search=NAME`: a space of values of the config, searched in generations, confirmed on fresh seeds."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.__main__ import run_search, run_sweep, select_command
from pipeline.config.compose import compose, composition
from pipeline.errors import UserError
from pipeline.history import History
from pipeline.run_store.ledger import read_ledger
from pipeline.run_store.run import Run
from pipeline.search.parameters import read_space
from pipeline.search.pruning import bounds_of, observers_of
from pipeline.search.report import lines, ranked
from pipeline.search.settings import SearchSettings, read_settings
from pipeline.search.study import Ended, SearchStudy
from pipeline.tuning.space import Choices, Range
from tests.check_helpers import assert_schema
from tests.conftest import SMALL, Cli, in_this_process

SPACE = {"optimizer.lr": Range(1e-4, 1.0, True), "layers": Range(1, 4, False), "norm": Choices(("none", "batch"))}
SETTINGS = SearchSettings("s", SPACE, 10, 4, 7, 1, True, "TPESampler", {"n_startup_trials": 4}, None, 5, 2)


# --- the space -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("interval(0.1, 0.9)", Range(0.1, 0.9, False)),
        ("tag(log, interval(1e-4, 1e-1))", Range(1e-4, 1e-1, True)),
        ("int(interval(1, 4))", Range(1, 4, False)),
        ("int(tag(log, interval(1, 64)))", Range(1, 64, True)),
        ("range(1, 5)", Range(1, 4, False)),
        ("range(0, 10, 5)", Choices((0, 5))),
        ("choice(16, 32, 64)", Choices((16, 32, 64))),
        ("16,32", Choices((16, 32))),
        ("choice([32], [64, 32])", Choices(([32], [64, 32]))),
        ("choice('a b', c)", Choices(("a b", "c"))),
    ],
)
def test_space_is_read_in_the_grammar_of_hydra(written: str, expected: Range | Choices) -> None:
    """Parameters are written as for Hydra's sweeper of Optuna, and on its command line."""
    assert read_space({"optimizer.lr": written}, {"optimizer": {"lr": 0.1}}) == ({"optimizer.lr": expected}, [])


@pytest.mark.parametrize(
    ("key", "written", "says"),
    [
        ("optimizer.lr", "0.1", "params.optimizer.lr: is one value"),
        ("optimizer.lr", "interval(1", "params.optimizer.lr: cannot be read"),
        ("optimizer.lr", "interval(0.1, 0.1)", "params.optimizer.lr: ends before it begins"),
        ("optimizer.lr", "tag(log, interval(0, 1))", "params.optimizer.lr: has no logarithm at its lower limit"),
        ("optimizer.lr", "choice(1, 1)", "params.optimizer.lr: has nothing to choose from"),
        ("optimizer.lrr", "interval(0, 1)", "params.optimizer.lrr: unknown key, got 'optimizer.lrr'; .*'optimizer.lr'"),
        ("seed", "choice(1, 2)", "params.seed: is not a parameter"),
        ("task.target", "interval(0, 1)", "params.task.target: is not searched"),
    ],
)
def test_space_names_what_is_wrong(key: str, written: str, says: str) -> None:
    """A parameter that is unknown, unreadable or none is one message; nothing that is measured is searched."""
    space, faults = read_space({key: written}, {"optimizer": {"lr": 0.1}, "seed": 1, "task": {"target": 1.0}})
    assert space == {} and len(faults) == 1
    assert re.search(says, faults[0]), faults[0]


def sweeper(**changes: Any) -> dict[str, Any]:
    composed = composition(["hparams_search=digits_optuna"], searching=True)
    return {**composed.sweeper, **changes}


def test_settings_of_the_bundled_search() -> None:
    """The bundled file is in the form of the Lightning-Hydra template, and each of its keys is read."""
    settings = read_settings(sweeper(), "digits_optuna", compose(), True, {"optimizer.lr": "interval(0.1,0.2)"})
    assert settings.name == "digits_optuna" and settings.trials == 20 and settings.sampler == "TPESampler"
    assert settings.space["optimizer.lr"] == Range(0.1, 0.2, False)  # of the command line
    assert settings.space["loader.batch_size"] == Choices((32, 64, 128))
    assert (settings.startup, settings.warmup, settings.sampler_arguments) == (5, 2, {"n_startup_trials": 8})


def test_settings_name_every_fault() -> None:
    """All that is wrong with a search is said at once, before anything is planned."""
    wrong = sweeper(n_trials=1, generation=0, seeds=3, n_jobs="all", storage="sqlite:///a.db", direction="minimize",
                    sampler={"_target_": "optuna.samplers.GPSampler"}, params={}, colour=1)  # fmt: skip
    with pytest.raises(UserError) as caught:
        read_settings(wrong, "s", compose(), True, {})
    places = [said.partition(":")[0] for said in caught.value.faults]
    for key in ("n_trials", "generation", "seeds", "n_jobs", "storage", "direction", "sampler._target_", "colour"):
        assert f"hydra.sweeper.{key}" in places
    assert "params" in places


def test_search_needs_m_and_takes_only_what_it_may_build(tmp_path: Path) -> None:
    """Without -m a search is refused, and so is a file that names anything else to build than Optuna's own."""
    with pytest.raises(UserError, match=r"hparams_search: is a search, which needs -m.*Do: python -m pipeline -m"):
        compose(["hparams_search=digits_optuna"])
    path = tmp_path / "hparams_search" / "sly.yaml"
    path.parent.mkdir()
    head = "# @package _global_\ndefaults: [{override /hydra/sweeper: optuna}]\n"
    for key, value in (
        ("sampler", "{_target_: os.system}"),
        ("pruner", "{_target_: optuna.pruners.MedianPruner, f: g}"),
    ):
        path.write_text(f"{head}hydra: {{sweeper: {{{key}: {value}}}}}\n")
        with pytest.raises(UserError, match=rf"sly.yaml: hydra.sweeper.{key}: has the wrong value"):
            composition(["hparams_search=sly"], [tmp_path], searching=True)


# --- the study -------------------------------------------------------------------------------------------------------


def bowl(values: Mapping[str, Any]) -> float:
    """A score that is best at a rate of 0.01 and three layers."""
    return 1 - 0.1 * math.log10(values["optimizer.lr"] / 0.01) ** 2 - 0.05 * abs(values["layers"] - 3)


def run_study(folder: Path, backwards: bool = False, interrupted: bool = False) -> list[tuple[int, dict[str, object]]]:
    """The trials of a study whose trainings end in another order, or whose process ends after each step."""
    study = SearchStudy(folder, SETTINGS, "plan", 1)
    study.start_with({"optimizer.lr": 0.5, "layers": 1, "norm": "none"})
    while generation := study.next_generation():
        if interrupted:
            study = SearchStudy(folder, SETTINGS, "plan", 1)
            assert study.next_generation() == generation
        order = reversed(generation) if backwards else generation
        ends = {number: Ended(bowl(values), [bowl(values)]) for number, values in order}
        if interrupted:  # between the records of two trials
            first = min(ends)
            study.tell({first: ends.pop(first)})
            study = SearchStudy(folder, SETTINGS, "plan", 1)
            assert [number for number, _ in study.next_generation()] == sorted(ends)
        study.tell(ends)
    return study.values()


def test_study_is_the_same_whatever_finishes_first_and_interrupts(tmp_path: Path) -> None:
    """Trials are proposed a generation at a time, on those before: neither order nor an interruption changes one."""
    trials = run_study(tmp_path / "a")
    assert trials == run_study(tmp_path / "b", backwards=True) == run_study(tmp_path / "c", interrupted=True)
    assert len(trials) == 10 and trials[0][1] == {"optimizer.lr": 0.5, "layers": 1, "norm": "none"}
    assert len({str(values) for _, values in trials}) == 10


def test_study_refuses_another_search_in_its_folder(tmp_path: Path) -> None:
    """A folder keeps the search that it was made for; more trials of the same search continue it."""
    run_study(tmp_path)
    with pytest.raises(UserError, match="has a search with another plan, got 'other'; expected plan"):
        SearchStudy(tmp_path, SETTINGS, "other", 1)


CURVES = st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=4), min_size=1, max_size=6)


@given(finished=CURVES, values=st.lists(st.floats(0, 1), min_size=1, max_size=4), greater=st.booleans())
def test_bounds_are_those_of_the_median_pruner(finished: list[list[float]], values: list[float], greater: bool) -> None:
    """A trial is stopped exactly where Optuna's MedianPruner stops it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize" if greater else "minimize")
    for curve in finished:
        trial = study.ask()
        for epoch, value in enumerate(curve):
            trial.report(value, epoch)
        study.tell(trial, curve[-1])
    running = study.ask()
    for epoch, value in enumerate(values):
        running.report(value, epoch)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=1, n_min_trials=2)
    expected = pruner.prune(study, study.get_trials(deepcopy=False)[-1])

    bounds = bounds_of("val/accuracy", greater, finished, 2, 1)
    assert (bounds is not None and bounds.is_worse(len(values) - 1, values)) == expected


def test_pruner_ends_a_training_that_is_worse_than_the_median(tmp_path: Path) -> None:
    """The observer reads the bounds beside the job's folder, and all else from the history, as after a resume."""
    from pipeline.engine.observer import StopTraining

    bounds = bounds_of("val/accuracy", True, [[0.5, 0.8], [0.6, 0.9]], 2, 0)
    assert bounds is not None and bounds.medians == (0.55, pytest.approx(0.85)) and observers_of(tmp_path / "t1") == []
    bounds.write(tmp_path / "t1")
    [observer] = observers_of(tmp_path / "t1")
    history = History()
    observer.start(None, None, history, 0)  # type: ignore[arg-type]  # it looks at neither
    history.log_epoch(1, {"val/accuracy": 0.7})
    observer.validated(1, {})
    history.log_epoch(2, {"val/accuracy": 0.8})
    with pytest.raises(StopTraining, match="worse than the median"):
        observer.validated(2, {})


# --- the whole -------------------------------------------------------------------------------------------------------

SEARCH = [*SMALL, "hparams_search=digits_optuna", "trainer.max_epochs=2", "hydra.sweeper.n_trials=3",
          "hydra.sweeper.generation=2", "hydra.sweeper.seeds=6", "hydra.sweeper.n_jobs=1"]  # fmt: skip


@pytest.fixture
def workers_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("pipeline.trials.executor.Workers.run", in_this_process)
    yield


@pytest.mark.process  # no process, but more seconds than a quick test may take
def test_search_confirms_what_it_found(cli: Cli, workers_here: None) -> None:
    """The run is planned, every trial is in the ledger, the study in its folder, and the answer names a command."""
    code, out, err = cli("-m", *SEARCH, "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert_schema("search", answer)
    run = Run(Path("runs/digits").absolute())
    assert [trial["number"] for trial in answer["trials"]] == [0, 1, 2] and answer["metric"] == "accuracy"
    assert answer["reference"]["loader.batch_size"] == compose(SMALL)["loader"]["batch_size"]
    assert (run.path / "search" / "digits_optuna" / "study.journal").is_file()
    assert any("few for 3 parameters" in note for note in answer["notes"])
    entries = read_ledger(run.ledger_path)
    assert [e["data"]["study"] for e in entries if e["kind"] == "search.decided"] == ["digits_optuna"]
    trained = {e["data"]["id"] for e in entries if e["kind"] == "job.finished" and e["data"]["study"]}
    assert {"reference", "t1", "t2"} <= trained and "t0" not in trained  # the first trial is the reference
    assert answer["next"]["command"].startswith("python -m pipeline phase=baseline run.name=digits")
    if answer["accepted"]:
        assert all(f"{key}=" in answer["next"]["command"] for key in answer["candidate"])
    assert cli("verify", "digits")[0] == 0
    again = json.loads(cli("-m", *SEARCH, "--json")[1])
    assert again["trials"] == answer["trials"] and again["comparison"] == answer["comparison"]


def test_search_refuses_what_changes_the_plan(cli: Cli, tmp_path: Path) -> None:
    """A search's file sets only the search, and every limit of its space is one that the config takes."""
    folder = tmp_path / "conf" / "hparams_search"
    folder.mkdir(parents=True)
    head = "# @package _global_\ndefaults: [{override /hydra/sweeper: optuna}]\n"
    params = "hydra: {sweeper: {params: {optimizer.lr: 'interval(0.1,1)'}}}\n"
    (folder / "more.yaml").write_text(f"{head}trainer: {{max_epochs: 9}}\n{params}")
    words = ["-m", "--config-dir", str(tmp_path / "conf"), *[word for word in SMALL if "max_epochs" not in word]]
    code, _, err = cli(*words, "hparams_search=more")
    assert code == 2 and "trainer.max_epochs: hparams_search=more changes the config" in err
    (folder / "none_chosen.yaml").write_text("# @package _global_\n")
    code, _, err = cli(*words, "hparams_search=none_chosen")
    assert code == 2 and "hparams_search=none_chosen: does not choose how to search" in err
    assert not Path("runs").exists()


def test_report_ranks_trials_and_says_what_was_shown() -> None:
    """The best trial is first; trials that were stopped early or failed are last, whatever their score."""
    trials: list[Any] = [
        {"number": 0, "values": {"a": 1}, "score": 0.5, "outcome": "scored", "why": ""},
        {"number": 1, "values": {"a": 2}, "score": 0.99, "outcome": "pruned", "why": ""},
        {"number": 2, "values": {"a": 3}, "score": 0.7, "outcome": "scored", "why": ""},
        {"number": 3, "values": {"a": 4}, "score": None, "outcome": "failed", "why": "signal 9"},
    ]
    assert [trial["number"] for trial in ranked(trials, True)] == [2, 0, 1, 3]
    assert [trial["number"] for trial in ranked(trials, False)] == [0, 2, 1, 3]
    record: Any = {"reference": {"a": 1}, "reference_score": 0.6, "candidate": None, "comparison": None, "without": {},
                   "notes": ["n"], "accepted": False}  # fmt: skip
    assert lines(record) == ["reference: 0.6, a=1", "no trial was better than the reference", "n"]


def test_select_command_searches_only_where_a_search_is_chosen() -> None:
    """`hparams_search=none`, or the last of several, leaves a sweep."""
    words = ["-m", "phase=planning", "seed=1,2"]

    def chosen(*more: str) -> Any:
        return cast("partial[int]", select_command([*words, *more])).func

    assert chosen("hparams_search=digits_optuna") is run_search
    assert chosen("hparams_search=none") is chosen("hparams_search=digits_optuna", "hparams_search=null") is run_sweep
