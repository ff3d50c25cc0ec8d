"""The configuration: what composes, what is refused, and that every fault is named at once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra.core.global_hydra import GlobalHydra

from pipeline.config.arguments import Arguments, parse
from pipeline.config.compose import compose, composition
from pipeline.config.conf_dir import conf_dir
from pipeline.config.hydra_queries import answer
from pipeline.config.schema import faults_of, validate
from pipeline.errors import UserError
from pipeline.results import PHASES
from tests.composition_cache import remembering

pytestmark = pytest.mark.usefixtures("composed_by_hydra")

OPTIONS = sorted((path.parent.name, path.stem) for path in conf_dir().glob("*/*.yaml"))
CHOSEN_BY_USERS = [(group, option) for group, option in OPTIONS if group not in ("phases", "hydra")]


def faults(overrides: list[str], config_dirs: tuple[Path, ...] = ()) -> list[str]:
    with pytest.raises(UserError) as refused:
        compose(overrides, config_dirs)
    return list(refused.value.faults)


@pytest.mark.parametrize(("group", "option"), CHOSEN_BY_USERS)
def test_compose_accepts_every_option(group: str, option: str) -> None:
    """A file in conf/ is a valid choice, without a second place to edit."""
    if option == "tensorboard":
        pytest.importorskip("tensorboard")  # an extra, without which the option is refused
    composed = composition([f"{group}={option}"], searching=group == "hparams_search")

    assert composed.choices[group] == option
    validate(composed.config)


def test_compose_has_five_phases() -> None:
    """conf/phases has one file for each phase, and all of them are loaded, in order."""
    assert sorted(PHASES) == [option for group, option in OPTIONS if group == "phases"]
    assert list(PHASES) == list(compose()["phases"])


@pytest.mark.parametrize("path", sorted((conf_dir() / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_experiment_file_begins_with_its_command(path: Path) -> None:
    """The first comment of an experiment is the command that runs it, and the command composes."""
    header, command = path.read_text().splitlines()[:2]

    assert header == "# @package _global_"
    arguments = command.removeprefix("# python -m pipeline ").split()
    assert compose(arguments)["run"]["name"] == path.stem


def test_debug_option_names_its_own_run() -> None:
    """A smoke test never lands in the ledger of the real run."""
    assert compose(["debug=smoke"])["run"]["name"] == "digits-smoke"
    assert compose(["debug=overfit", "experiment=digits_hot"])["run"]["name"] == "digits_hot-overfit"


def test_digits_hot_differs_from_digits_in_one_value() -> None:
    """The failing twin is the same task with a learning rate a thousand times higher."""
    right, hot = compose(["experiment=digits"]), compose(["experiment=digits_hot"])

    assert hot["optimizer"]["lr"] == pytest.approx(1000 * right["optimizer"]["lr"])
    assert hot["run"]["name"] == "digits_hot"
    right["run"], right["optimizer"]["lr"] = hot["run"], hot["optimizer"]["lr"]
    assert hot == right


def test_compose_without_experiment_has_no_seed() -> None:
    """The primary config sets no seed; an experiment does."""
    config = compose(["~experiment", "run.name=bare"])

    assert config["seed"] is None
    assert config["task"]["target"] is None


@pytest.mark.parametrize(("typed", "value"), [("1e-4", 1e-4), ("1E-4", 1e-4), ("3", 3), (".5", 0.5)])
def test_compose_reads_short_floats_as_numbers(typed: str, value: float) -> None:
    """`1e-4`, which plain YAML reads as text, is a number here."""
    assert compose([f"optimizer.lr={typed}"])["optimizer"]["lr"] == value


def test_compose_reports_all_faults() -> None:
    """One message carries every unknown key, unknown option, unreadable override, missing folder and wrong value."""
    keys = ["optimizer.lrr", "lr", "model", "experiment"]
    arguments = [*(f"{key}=wrong" for key in keys), "oops", "a b=1", "trainer.max_epochs=0", "seed=x"]
    messages = faults(arguments, (Path("/nowhere/conf"),))

    where = {message.split(":", 1)[0] for message in messages}
    assert where == {*keys, "oops", "a b=1", "trainer.max_epochs", "seed", "--config-dir"}
    assert all("  Do: " in message for message in messages)


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("optimizer.lrr=0.1", "optimizer.lr"),
        ("lr=0.1", "optimizer.lr"),
        ("optimzer.lr=0.1", "optimizer.lr"),
        ("trainer.max_epoch=3", "trainer.max_epochs"),
        ("+trainer.max_epoch=3", "trainer.max_epochs"),
        ("trainer.lr=3", "optimizer.lr"),
        ("plan.limits.latency_ms=3", "plan.limits.latency_ms_p99"),
        ("model=mpl", "mlp"),
        ("phase=basline", "baseline"),
        ("task.kind=classificaton", "classification"),
        ("trainer.accelerator=cdua", "cuda"),
    ],
)
def test_compose_proposes_similar_key(override: str, meant: str) -> None:
    """A misspelt key, option or value is answered with the one that was meant, and a command that has it."""
    [message] = faults([override])

    assert f"did you mean '{meant}'?" in message
    assert f"{meant}" in message.split("  Do: ")[1]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("trainer.strategy=ddp", "trainer.strategy: is not built in this version, got 'ddp'; expected none  Do: "),
        (
            "trainer.on_nonfinite=skip",
            "trainer.on_nonfinite: is not built in this version, got 'skip'; expected stop  Do: ",
        ),
        ("trainer.on_spike=back", "trainer.on_spike: is not allowed, got 'back'"),
        ("executor.kind=dask", "executor.kind: is not allowed, got 'dask'"),
        ("seed=true", "seed: has the wrong type, got True; expected an integer"),
        ("seed=-1", "seed: is out of bounds, got -1; expected >= 0"),
        ("seed=4294967296", "seed: is out of bounds, got 4294967296; expected < 4294967296"),
        ("seed=1.0", "seed: has the wrong type, got 1.0; expected an integer"),
        ("trainer.max_epochs=abc", "trainer.max_epochs: has the wrong type, got 'abc'; expected an integer"),
        ("trainer.threads=0", "trainer.threads: is out of bounds, got 0; expected 'auto' or >= 1"),
        ("trainer.deterministic=maybe", "trainer.deterministic: is not allowed, got 'maybe'"),
        ("trainer.max_minutes=inf", "trainer.max_minutes: is out of bounds, got inf; expected a finite number"),
        ("task.target=nan", "task.target: is out of bounds, got nan"),
        ("task.class_weights=[1,-2]", "task.class_weights.1: is out of bounds, got -2"),
        ("run=foo", "run: has the wrong type, got 'foo'; expected a section of keys"),
        ("plan.owner=3", "plan.owner: has the wrong type, got 3; expected text in quotes"),
        ("plan.license=apache-2.0", "plan.license: is not allowed, got 'apache-2.0'; expected Apache-2.0"),
        (
            "plan.license='Apache 2'",
            "plan.license: is not allowed, got 'Apache 2'; expected an SPDX expression, such as Apache-2.0",
        ),
        ("plan.licence=MIT", "plan.licence: unknown key"),
        ("plan.purpose=''", "plan.purpose: is not allowed, got ''; expected text that is not empty"),
        ("~optimizer._partial_", "optimizer._partial_: is missing"),
        ("model._target_=os system", "model._target_: is not allowed, got 'os system'; expected a dotted name"),
        ("surgery=[{a: 1, b: 2}]", "surgery: is not allowed"),
        ("optimizer.lr=???", "optimizer.lr: must be given a value"),
        ("optimizer.lr=${no.where}", "optimizer.lr: cannot be resolved"),
        ("seed=1,2", "seed: several values need -m"),
        ("model=mlp,mlp", "model: several values need -m"),
        ("experiment=null", "experiment: null is not an option"),
        ("+experiment=digits", "experiment: has an option already"),
        ("+seed=3", "seed: is set already"),
        ("hydra.searchpath=[file:///tmp]", "hydra.searchpath: is set by a flag"),
        ("trust=[os]", "trust: is not allowed"),
        ("trust=[torch.hub]", "trust: is not allowed"),
        ("trust=my_pkg", "trust: has the wrong type"),
    ],
)
def test_compose_reports_expected_value(override: str, says: str) -> None:
    """One message, the key first, then what was got and what would be right."""
    [message] = faults([override])

    assert message.startswith(says)


def test_open_section_accepts_new_argument() -> None:
    """`model data loss optimizer scheduler` take keys of their own; closed sections do not."""
    assert compose(["+model.foo=1"])["model"]["foo"] == 1
    assert faults(["+loader.foo=1"])[0].startswith("loader.foo: unknown key")
    own = "model={_target_: my_pkg.Net}"
    assert faults([own, "model.foo=1"])[0].endswith("Do: python -m pipeline ... +model.foo=1")


def test_bundled_target_proposes_its_arguments() -> None:
    """What a bundled model or torch's optimizer does not take is not proposed; what it takes can be added."""
    assert "+model.foo" not in faults(["model.foo=1"])[0]
    assert faults(["optimizer.amsgrad=true"])[0].endswith("Do: python -m pipeline ... +optimizer.amsgrad=True")


@pytest.mark.parametrize("name", ["../x", "a/b", "", "-a", "A", ".", "mlartifacts", "a" * 64, "a\\nb", "ä"])
def test_run_name_must_be_valid(name: str) -> None:
    """A run has a name of small letters, digits, hyphens and underscores."""
    [message] = faults([f"run.name='{name}'"])

    assert message.startswith("run.name: ")


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("phases=[planning,baseline,diagnostics,finalization]", "phases.optimization"),
        ("phases.optimization.rounds=4", "phases.optimization.rounds"),
        ("phases.optimization.rounds=0", "phases.optimization.rounds"),
        ("phases.planning.checklist=none", "phases.planning.checklist"),
        ("phases.planning.checklist=baseline", "phases.planning.checklist"),
        ("phases.planning.next.sufficient=finalization", "phases.planning.next.sufficient"),
        ("phases.baseline.next.insufficient=finalization", "phases.baseline.next.insufficient"),
        ("phases.optimization.next.insufficient=finalization", "phases.optimization.next.insufficient"),
        ("phases.finalization.next.insufficient=released", "phases.finalization.next.insufficient"),
        ("+phases.extra={checklist: extra}", "phases.extra"),
        ("~phases.diagnostics", "phases.diagnostics"),
    ],
)
def test_schema_protects_gates_and_phases(override: str, where: str) -> None:
    """Gates cannot be removed, phases not reordered, rounds not raised above three."""
    [message] = faults([override])

    assert message.startswith(f"{where}: ")


def test_compose_refuses_trust_from_file(tmp_path: Path) -> None:
    """Only the command line grants trust, whatever an experiment says."""
    _experiment(tmp_path, "sly", "defaults: [digits]\ntrust: [my_pkg]\n")

    [message] = faults(["experiment=sly"], (tmp_path,))
    assert message.startswith("trust: a config file cannot grant trust, got ['my_pkg']")
    assert compose(["experiment=sly", "trust=[other]"], [tmp_path])["trust"] == ["other"]


def _experiment(folder: Path, name: str, text: str) -> None:
    (folder / "experiment").mkdir(parents=True, exist_ok=True)
    (folder / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{text}")


def test_config_dir_adds_options(tmp_path: Path) -> None:
    """An experiment and a model in a folder of one's own compose beside ours, and name the run."""
    conf = tmp_path / "it's mine" / "conf"
    _experiment(conf, "mine", "defaults: [{override /model: net}]\nseed: 7\n")
    (conf / "model").mkdir()
    (conf / "model" / "net.yaml").write_text("_target_: my_pkg.model.Net\nwidth: 3\n")

    composed = composition(["experiment=mine"], [conf])

    assert composed.config["model"] == {"_target_": "my_pkg.model.Net", "width": 3}
    assert composed.config["run"]["name"] == "mine"
    assert composed.choices["model"] == "net"


def test_broken_config_file_is_one_message(tmp_path: Path) -> None:
    """YAML that cannot be read, or a choice that is not there, is the user's fault and has no traceback."""
    _experiment(tmp_path, "broken", "seed: [1\n")
    _experiment(tmp_path, "astray", "defaults: [{override /model: nowhere}]\n")

    assert faults(["experiment=broken"], (tmp_path,))[0].startswith("config: cannot be composed")
    assert "model/nowhere" in faults(["experiment=astray"], (tmp_path,))[0]


def test_compose_restores_hydra_state(tmp_path: Path) -> None:
    """No Hydra stays initialized, no folder appears, and composing again gives the same."""
    before = set(Path.cwd().iterdir())
    first = compose(["experiment=digits"])
    faults(["nope=1"])

    assert not GlobalHydra.instance().is_initialized()
    assert compose(["experiment=digits"]) == first
    assert set(Path.cwd().iterdir()) == before


def test_composed_config_has_plain_values() -> None:
    """Workers and the Python API get dicts, lists and values, resolved."""

    def walk(node: Any) -> None:
        assert type(node) in (dict, list, str, int, float, bool, type(None))
        assert not (isinstance(node, str) and ("${" in node or node == "???"))
        assert not (isinstance(node, float) and math.isnan(node))
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            walk(child)

    walk(compose(["scheduler=cosine"]))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["experiment=digits_hot", "run.root=here", "trainer.max_epochs=3", "run.root=there"],
        ["~experiment", "run.name=bare", "optimizer=sgd", "optimizer.momentum=0.9", "task={kind: regression}"],
        ["+model.foo=1", "++model.bar={a: [1, 2]}", "scheduler=plateau", "debug=smoke"],
    ],
)
def test_composition_cache_agrees_with_hydra(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    """Other tests compose through a memory: the first answer from it and the second are what Hydra composes."""
    expected = composition(arguments)
    monkeypatch.setattr("pipeline.config.compose.hydra_compose", remembering(hydra_compose))
    assert composition(arguments) == expected
    assert composition(arguments) == expected


def test_schema_reads_config_without_hydra() -> None:
    """The Python API validates a plain dict by the same rules."""
    config = compose()
    config["trainer"]["max_epochs"] = "20"
    del config["loader"]

    assert [message.split(":", 1)[0] for message in faults_of(config)] == ["loader", "trainer.max_epochs"]
    with pytest.raises(UserError, match="loader: is missing"):
        validate(config)


def test_parse_separates_overrides_and_flags() -> None:
    """Flags stand anywhere, with or without an equals sign."""
    arguments = [
        "phase=auto",
        "--config-dir",
        "a",
        "-m",
        "seed=1,2",
        "--config-dir=b",
        "--json",
        "~model",
        "--cfg",
        "job",
    ]

    expected = Arguments(("phase=auto", "seed=1,2", "~model"), (Path("a"), Path("b")), True, True, ("--cfg", "job"))
    assert parse(arguments) == expected
    assert parse(["-h"]).hydra_flags == ("--help",)


def test_parse_reports_all_wrong_flags() -> None:
    """Unknown flags, flags without a value, and those that would replace the pipeline."""
    with pytest.raises(UserError) as refused:
        parse(["--multrun", "--cfg", "jbo", "--experimental-rerun", "x", "--config-dir"])

    assert [message.split(":", 1)[0] for message in refused.value.faults] == [
        "--multrun",
        "--experimental-rerun",
        "--config-dir",
        "--cfg",
    ]
    assert "did you mean '--multirun'?" in refused.value.faults[0]


def test_hydra_flags_are_answered_by_hydra(capsys: pytest.CaptureFixture[str]) -> None:
    """`--cfg` and `--info` come from Hydra; a wrong override beside them is our message."""
    assert answer(parse(["--cfg", "job", "--package", "optimizer", "optimizer.lr=3"])) == 0
    assert "lr: 3" in capsys.readouterr().out
    with pytest.raises(UserError, match="unknown key"):
        answer(parse(["--cfg", "job", "optimizer.lrr=3"]))
    with pytest.raises(UserError, match="cannot be answered"):
        answer(parse(["--cfg", "job", "--package", "nowhere"]))
    with pytest.raises(UserError, match="refuses"):
        answer(parse(["--resolve"]))


# --- sections that are left out --------------------------------------------------------------------------------------

STEP = "+task.step={_target_: my_pkg.step}"


@pytest.mark.parametrize("spelling", ["scheduler=none", "scheduler=null", "~scheduler", "scheduler=None"])
def test_compose_takes_every_spelling_of_no_scheduler(spelling: str) -> None:
    """No scheduler is a constant learning rate, however it is written."""
    assert compose(["optimizer.lr=0.1", spelling])["scheduler"] is None
    assert parse([spelling]).overrides in (("scheduler=none",), ("~scheduler",))


@pytest.mark.parametrize("spelling", ["tracking=null", "~tracking", "tracking=none"])
def test_compose_takes_every_spelling_of_no_tracking(spelling: str) -> None:
    """Without tracking, nothing is copied to MLflow."""
    assert compose([spelling])["tracking"] == {"kind": "none", "uri": None, "experiment": "fivegate"}


@pytest.mark.parametrize("spelling", ["~loss", "loss=null"])
def test_compose_needs_no_loss_where_a_step_returns_one(spelling: str) -> None:
    """A step needs no loss; without a step the message names the bundled loss of the kind of task."""
    with_step = compose([spelling, STEP.removeprefix("+")])
    assert with_step["loss"] is None
    for kind, loss in (("classification", "cross_entropy"), ("regression", "mse"), ("binary", "bce_with_logits")):
        [message] = faults([spelling, f"task={kind}"])
        assert message.startswith("loss: is missing; expected a loss, or a task.step that returns one")
        assert message.endswith(f"  Do: python -m pipeline ... loss={loss}")


@pytest.mark.parametrize("body", ["null", "none"])
@pytest.mark.parametrize("section", ["scheduler", "tracking", "preprocess", "loss"])
def test_compose_takes_a_section_of_none_in_a_file(tmp_path: Path, section: str, body: str) -> None:
    """`scheduler: null`, `scheduler: none` and `override /scheduler: null` in an experiment mean the same."""
    experiments = tmp_path / "conf" / "experiment"
    experiments.mkdir(parents=True)
    head = "# @package _global_\n"
    step = "\ntask: {step: {_target_: my_pkg.step}}\n"
    (experiments / "removed.yaml").write_text(f"{head}defaults: [override /{section}: null]{step}")
    (experiments / "written.yaml").write_text(f"{head}defaults: [override /{section}: null]{step}{section}: {body}\n")
    removed, written = (
        compose([f"experiment={name}", "run.name=x"], [tmp_path / "conf"]) for name in ("removed", "written")
    )
    assert removed[section] == written[section]
    assert removed[section] == (compose([f"{section}=none"])[section] if section != "loss" else None)


@pytest.mark.parametrize("section", ["model", "data", "optimizer"])
def test_compose_says_what_to_write_for_a_section_that_is_needed(section: str) -> None:
    """The message shows a section for the experiment, and proposes an option that is accepted."""
    [message] = faults([f"~{section}"])
    assert message.startswith(f"{section}: is missing; expected a section `{section}: {{_target_: my_pkg.NAME")
    compose([message.partition("pipeline ... ")[2]])


@pytest.mark.parametrize("section", ["loader", "trainer", "export", "task"])
def test_compose_proposes_an_option_of_a_section_that_is_missing(section: str) -> None:
    """The command after `Do:` is accepted."""
    [message] = faults([f"~{section}"])
    assert message.startswith(f"{section}: is missing")
    compose([message.partition("pipeline ... ")[2]])
